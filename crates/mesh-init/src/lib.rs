//! Registers a task's service and sidecar proxy in Consul and writes Envoy's bootstrap; writes the configuration of the
//! task's Consul agent.
//!
//! [`run::run`] is `mesh-init`, [`agent_config::write`] is `mesh-init agent-config`.

pub mod agent_config;
pub mod bootstrap;
pub mod run;
pub mod xds;
