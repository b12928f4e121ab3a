//! The `CONSUL_ECS_CONFIG_JSON` document of consul-ecs 0.6, and what follows from it for Consul.
//!
//! [`Config::parse`] reads the document and tells all that is wrong with it at once; [`Names`] says what a task's
//! service, proxy and checks are called in Consul; [`registration`] is how they are registered.

mod document;
mod names;
mod reader;
pub mod registration;

pub use document::{
    Address, Check, CheckStatus, Config, ConsulLogin, DestinationType, Expose, ExposePath, ExposeProtocol, Gateway,
    LogLevel, MeshGatewayMode, Proxy, Service, Upstream, Weights,
};
pub use names::{BOOTSTRAP_FILE, HEALTH_SYNC_NAME, HEALTH_SYNC_TTL, Names, PUBLIC_LISTENER_PORT, is_sidecar, meta};
pub use reader::{ConfigError, FieldError};

/// The environment variable that holds the document.
pub const VARIABLE: &str = "CONSUL_ECS_CONFIG_JSON";
