//! Plain types of Consul's HTTP API: IDs, service registrations and checks ("Service - Agent HTTP API", "Check - Agent
//! HTTP API", "Register Entity - Catalog HTTP API").

mod catalog;
mod check;
mod id;
mod service;

pub use catalog::{CatalogCheck, CatalogRegistration, CatalogService, Locality};
pub use check::{CheckDefinition, CheckStatus};
pub use id::{AccessorId, CheckId, ServiceId};
pub use service::{
    ExposeConfig, ExposePath, MeshGatewayConfig, Proxy, ServiceAddress, ServiceKind, ServiceRegistration, Upstream,
    Weights,
};

use serde::{Deserialize, Deserializer};

/// Go writes an empty list or map as `null`.
///
/// # Errors
/// When the value is neither `null` nor a `T`.
pub fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
