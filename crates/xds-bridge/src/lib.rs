//! Lets an Envoy that speaks xDS v3 be served by a Consul that speaks xDS v2.
