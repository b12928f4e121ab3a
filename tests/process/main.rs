//! The `process` suite.
mod consul_api;
mod envoy_entrypoint;
