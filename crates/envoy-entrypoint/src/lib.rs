//! Runs Envoy under supervision as a task's sidecar proxy.
