//! The `CONSUL_ECS_CONFIG_JSON` document of consul-ecs 0.6, that of 0.7 to 0.10, and what follows from it for Consul.
//!
//! [`Config::parse`] reads the document and reports all errors at once. [`Names`] has the names of a task's service, proxy and
//! checks in Consul. [`Role`] says whether a task is a service with its proxy or a gateway. [`registration`] makes the
//! registrations. [`shape`] describes the document, and [`schema`] makes its JSON schema and its reference page. [`rules`] are
//! the rules beyond the schema.

mod agentless;
pub mod catalog;
mod check_ttl;
mod document;
mod fields;
mod gateway;
mod names;
mod reader;
pub mod registration;
pub mod rules;
pub mod schema;
pub mod shape;

pub use agentless::{
    ConsulServers, Controller, GrpcServers, HEALTH_CHECK_PORT, HttpServers, NetworkResilience, OutlierDetection,
    ServerEndpoint, ServerTls, TransparentProxy,
};
pub use check_ttl::{CheckTtl, CheckTtlError};
pub use document::{
    Address, Check, CheckStatus, Config, ConsulLogin, DestinationType, Expose, ExposePath, ExposeProtocol, Gateway,
    GatewayKind, LogLevel, MeshGatewayMode, Mode, Proxy, Service, Upstream, Weights,
};
pub use gateway::{GATEWAY_PORT, Role};
pub use names::{
    BOOTSTRAP_FILE, CLIENT_TOKEN_FILE, DATAPLANE_FILE, HEALTH_SYNC_NAME, Names, PUBLIC_LISTENER_PORT,
    SERVICE_TOKEN_FILE, is_dataplane, is_sidecar, meta,
};
pub use reader::{ConfigError, FieldError, FieldReader, Findings, Object, Unknown, describe_value};

/// The environment variable that holds the document.
pub const VARIABLE: &str = "CONSUL_ECS_CONFIG_JSON";
