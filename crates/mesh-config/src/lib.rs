//! The `CONSUL_ECS_CONFIG_JSON` document of consul-ecs 0.6 and the names derived from it. Knows neither Consul's client
//! nor ECS.
//!
//! [`Config::parse`] reads the document and tells all that is wrong with it at once; [`Names`] says what a task's
//! service, proxy and checks are called in Consul.

mod document;
mod names;
mod reader;

pub use document::{
    Address, Check, CheckStatus, Config, ConsulLogin, DestinationType, Expose, ExposePath, ExposeProtocol, Gateway,
    LogLevel, MeshGatewayMode, Proxy, Service, Upstream, Weights,
};
pub use names::{BOOTSTRAP_FILE, HEALTH_SYNC_NAME, HEALTH_SYNC_TTL, Names, PUBLIC_LISTENER_PORT, is_sidecar, meta};
pub use reader::{ConfigError, FieldError};

/// The environment variable that holds the document.
pub const VARIABLE: &str = "CONSUL_ECS_CONFIG_JSON";
