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
    /// A gateway between datacenters.
    MeshGateway,
    /// A gateway into the mesh.
    IngressGateway,
    /// A gateway out of the mesh.
    TerminatingGateway,
    /// A gateway into the mesh, as of Consul 1.15.
    ApiGateway,
    /// A kind that this client does not register.
    #[serde(other)]
    Other,
}

/// A service registration, as the agent's `/v1/agent/service/register` takes it. Fields that are not set are not sent, because an agent
/// refuses fields that it does not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceRegistration {
    /// Its kind; none for an ordinary service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ServiceKind>,
    /// The ID, unique on the agent.
    #[serde(rename = "ID")]
    pub id: ServiceId,
    /// The service's name, which all of its instances share.
    pub name: String,
    /// Labels by which a DNS or catalog query can select instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The port; none if nobody connects to the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address, if it differs from the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Other addresses, by their tag (`lan`, `wan`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    /// The service's meta: texts by key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Whether tags that somebody changes in the catalog stay. Otherwise the agent restores its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tag_override: Option<bool>,
    /// Its share of DNS answers and of the requests from proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// The checks that decide whether the instance gets traffic.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckDefinition>,
    /// A proxy's service, upstreams and configuration.
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
    /// An IP address or a host name.
    pub address: String,
    /// The port at this address.
    pub port: u16,
}

/// The weights of an instance: its share of DNS answers and of the requests from proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// The weight while all checks pass.
    pub passing: i64,
    /// The weight while a check is in the warning status.
    pub warning: i64,
}

/// A sidecar proxy's service, upstreams and configuration. `Debug` does not show the configuration, which may hold credentials.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proxy {
    /// The name of the service that the proxy serves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination_service_name: String,
    /// The ID of the service instance that the proxy serves.
    #[serde(default, rename = "DestinationServiceID", skip_serializing_if = "Option::is_none")]
    pub destination_service_id: Option<ServiceId>,
    /// The address on which the app listens; 127.0.0.1 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_service_address: Option<String>,
    /// The app's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_service_port: Option<u16>,
    /// Settings that Consul passes to Envoy unchanged. An agent with central configuration merges `proxy-defaults` into them. A `null` in
    /// it is not sent, because Consul 1.8 closes the connection when it receives one.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub config: Option<Map<String, Value>>,
    /// The services that the app reaches through the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub upstreams: Vec<Upstream>,
    /// How connections to other datacenters use mesh gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_gateway: Option<MeshGatewayConfig>,
    /// HTTP paths that the proxy serves without mutual TLS.
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
    /// The upstream's namespace (Consul Enterprise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_namespace: Option<String>,
    /// The upstream's admin partition (Consul Enterprise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_partition: Option<String>,
    /// The name of the upstream service or prepared query.
    pub destination_name: String,
    /// The peer that has it, if it is not of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_peer: Option<String>,
    /// The upstream's datacenter, if it is not the proxy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// The address on which the proxy listens for it; 127.0.0.1 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_bind_address: Option<String>,
    /// The port on which the proxy listens for it.
    #[serde(default)]
    pub local_bind_port: u16,
    /// Settings that Consul passes to Envoy unchanged. As in [`Proxy::config`], a `null` is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub config: Option<Map<String, Value>>,
    /// How connections to this upstream in another datacenter use mesh gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_gateway: Option<MeshGatewayConfig>,
}

/// How connections to another datacenter use mesh gateways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MeshGatewayConfig {
    /// `none`; `local`: through a gateway in the own datacenter; `remote`: through one in the other datacenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Paths that the proxy serves outside of mutual TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExposeConfig {
    /// Whether the paths of all HTTP and gRPC checks are exposed too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<bool>,
    /// The exposed paths, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub paths: Vec<ExposePath>,
}

/// One exposed path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExposePath {
    /// The port on which the proxy listens for the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_port: Option<u16>,
    /// The path, with its leading slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The app's port, to which the proxy forwards requests for the path.
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

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// Leaves out each `null`, at any depth.
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
