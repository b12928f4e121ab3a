//! Services and their proxies.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{CheckDefinition, ServiceId, null_as_empty};

/// The kind of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// A sidecar proxy.
    ConnectProxy,
    /// Between datacenters.
    MeshGateway,
    /// Into the mesh.
    IngressGateway,
    /// Out of the mesh.
    TerminatingGateway,
    /// One that this client doesn't register.
    #[serde(other)]
    Other,
}

/// A service to be registered. Only fields that are set are sent, since an agent refuses those that it doesn't know.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceRegistration {
    /// What kind it is; an ordinary service without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ServiceKind>,
    /// The ID, unique on the agent.
    #[serde(rename = "ID")]
    pub id: ServiceId,
    /// The name.
    pub name: String,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The port; none for a service that nobody connects to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address, where it isn't the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Other addresses, by their tag (`lan`, `wan`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    /// Metadata.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Whether the catalog may change the tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tag_override: Option<bool>,
    /// Weights in DNS answers and for proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// The checks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckDefinition>,
    /// For a proxy: what it is the proxy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Consul Enterprise's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Consul Enterprise's admin partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

/// An address with its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceAddress {
    /// The address.
    pub address: String,
    /// The port.
    pub port: u16,
}

/// Weights of a service by its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// While its checks pass.
    pub passing: i64,
    /// While one warns.
    pub warning: i64,
}

/// What a sidecar proxy is the proxy of, and its upstreams. Its configuration may hold credentials: `Debug` doesn't show it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proxy {
    /// The service's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination_service_name: String,
    /// The service instance's ID.
    #[serde(default, rename = "DestinationServiceID", skip_serializing_if = "Option::is_none")]
    pub destination_service_id: Option<ServiceId>,
    /// Where the app listens; 127.0.0.1 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_service_address: Option<String>,
    /// The app's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_service_port: Option<u16>,
    /// Opaque configuration, merged with `proxy-defaults` by an agent with central configuration. A `null` in it is not
    /// sent, which means the same: Consul 1.8 ends the connection over one, without an answer (tried).
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub config: Option<Map<String, Value>>,
    /// What the app reaches through the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub upstreams: Vec<Upstream>,
    /// How services in other datacenters are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_gateway: Option<MeshGatewayConfig>,
    /// Paths outside of mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expose: Option<ExposeConfig>,
}

/// One upstream of a proxy. `Debug` doesn't show its configuration.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Upstream {
    /// `service` or `prepared_query`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_type: Option<String>,
    /// Its namespace (Consul Enterprise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_partition: Option<String>,
    /// Its name.
    pub destination_name: String,
    /// Its datacenter, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// Where the proxy listens for it; 127.0.0.1 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_bind_address: Option<String>,
    /// The port on which the proxy listens for it.
    #[serde(default)]
    pub local_bind_port: u16,
    /// Opaque configuration, without its nulls as [`Proxy::config`].
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub config: Option<Map<String, Value>>,
    /// How it is reached in another datacenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_gateway: Option<MeshGatewayConfig>,
}

/// How services in other datacenters are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MeshGatewayConfig {
    /// `none`, `local` or `remote`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Paths that the proxy serves outside of mutual TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExposeConfig {
    /// Also the paths of all HTTP and gRPC checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<bool>,
    /// The paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub paths: Vec<ExposePath>,
}

/// One exposed path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExposePath {
    /// The proxy's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_port: Option<u16>,
    /// The path, with its leading slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The app's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path_port: Option<u16>,
    /// `http` or `http2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("destination_service_name", &self.destination_service_name)
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("destination_name", &self.destination_name)
            .field("local_bind_address", &self.local_bind_address)
            .field("local_bind_port", &self.local_bind_port)
            .finish_non_exhaustive()
    }
}

/// Leaves out what is `null`, however deep.
fn without_nulls<S: serde::Serializer>(config: &Option<Map<String, Value>>, serializer: S) -> Result<S::Ok, S::Error> {
    fn of(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.iter().filter(|(_, value)| !value.is_null());
                kept.map(|(key, value)| (key.clone(), of(value))).collect::<Map<_, _>>().into()
            }
            Value::Array(values) => values.iter().filter(|value| !value.is_null()).map(of).collect(),
            other => other.clone(),
        }
    }
    config.as_ref().map(|config| of(&Value::Object(config.clone()))).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn debug_shows_no_configuration() {
        let config = json!({ "envoy_statsd_url": "5ec3e7" }).as_object().cloned();
        let upstream = Upstream { config: config.clone(), ..Upstream::default() };
        let proxy = Proxy { config, upstreams: vec![upstream], ..Proxy::default() };
        assert!(!format!("{proxy:?}").contains("5ec3e7"), "{proxy:?}");
    }
}
