//! A client for the parts of Consul's HTTP API that a mesh task uses.
