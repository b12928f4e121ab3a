//! Registers a task's service and sidecar proxy in Consul and writes Envoy's bootstrap.
