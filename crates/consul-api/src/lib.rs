//! A client for the parts of Consul's HTTP API that a mesh task uses.
//!
//! It works with agents from version 1.8 on and knows nothing of ECS. [`Config::from_env`] reads Consul's own variables with
//! Consul's own meaning. [`Client`] has one method for each endpoint. [`Error`] has a variant for each kind of failure, so
//! that a caller knows what to repeat. [`at_start`] is the retry policy while a task is starting.

mod acl;
mod acl_replication;
mod agent;
mod auth_method;
mod catalog;
mod client;
mod config;
mod config_entry;
mod error;
mod intention;
mod kv;
mod login;
mod registration;
mod servers;
mod session;
mod start;
mod tls;

pub use acl::{AclLink, NewPolicy, Policy, Role, ServiceIdentity, Token, TokenEntry, TokenGrants};
pub use agent::{AgentCheck, AgentSelf, AgentSelfConfig, AgentService, XdsPort};
pub use auth_method::{AuthMethod, BindingRule};
pub use catalog::{
    CatalogService, HealthCheck, HealthNode, HealthService, Index, Indexed, Instances, NodeServices, ServiceHealth,
    ServiceOfNode,
};
pub use client::Client;
pub use config::{Builder, Config, ConfigError};
pub use consul_types::{
    AccessorId, CatalogCheck, CatalogRegistration, CheckDefinition, CheckId, CheckStatus, ExposeConfig, ExposePath,
    MeshGatewayConfig, Proxy, ServiceAddress, ServiceId, ServiceKind, ServiceRegistration, Upstream, Weights,
};
pub use error::Error;
pub use intention::{Intention, IntentionAction};
pub use kv::{KeyValue, KeyWrite};
pub use login::Login;
pub use session::{NewSession, SessionId};
pub use start::{START_BOUND, at_start};
