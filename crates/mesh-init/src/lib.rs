//! Registers a task's service and sidecar proxy in Consul and writes Envoy's bootstrap. In a task without a Consul agent, writes
//! the dataplane's file instead. Also writes the configuration of the task's Consul agent, and validates a configuration document.
//!
//! [`run::run`] is `mesh-init`, [`agent_config::write`] is `mesh-init agent-config`, [`validate::run`] is
//! `mesh-init validate`.

pub mod address;
mod agent;
pub mod agent_config;
pub mod agentless;
pub mod catalog;
mod compat;
pub mod consul_version;
mod dataplane;
pub mod register;
pub mod run;
pub mod service_defaults;
pub mod step;
pub mod validate;
pub mod volume;
