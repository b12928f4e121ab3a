//! Registers a task's service and sidecar proxy in Consul and writes Envoy's bootstrap. Also writes the configuration of the task's
//! Consul agent, and validates a configuration document.
//!
//! [`run::run`] is `mesh-init`, [`agent_config::write`] is `mesh-init agent-config`, [`validate::run`] is
//! `mesh-init validate`.

pub mod address;
mod agent;
pub mod agent_config;
pub mod bootstrap;
mod compat;
pub mod consul_version;
pub mod login;
pub mod register;
pub mod run;
pub mod validate;
pub mod volume;
