//! The agent's own view: itself, its services and its checks ("Agent HTTP API", "Service - Agent HTTP API", "Check -
//! Agent HTTP API").

use std::collections::BTreeMap;

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::catalog::equals;
use crate::client::{Call, Client};
use crate::error::Error;

/// The status of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Traffic may come.
    Passing,
    /// Traffic may come, with another weight.
    Warning,
    /// No traffic.
    Critical,
    /// A maintenance check, which is critical for as long as it exists.
    Maintenance,
}

impl CheckStatus {
    /// Consul's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

/// What `/v1/agent/self` says, as far as it is used here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSelf {
    /// The agent's identity.
    pub config: AgentSelfConfig,
    /// The configuration in effect; its form is not documented to be stable.
    #[serde(default)]
    pub debug_config: Map<String, Value>,
    /// Where proxies connect to; its `Ports` since Consul 1.14.
    #[serde(default, rename = "xDS")]
    pub xds: Option<Value>,
}

/// The stable part of [`AgentSelf`].
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSelfConfig {
    /// The datacenter.
    pub datacenter: String,
    /// The node's name.
    pub node_name: String,
    /// Consul's version.
    pub version: String,
}

/// Where an agent serves xDS, by what it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdsPort {
    /// On this port in plain text, whether it has one with TLS too or not.
    Plain(u16),
    /// On this port, with TLS only.
    Tls(u16),
    /// Nowhere: gRPC is off.
    Off,
    /// It doesn't say.
    Unknown,
}

impl AgentSelf {
    /// Where the agent serves xDS: `xDS.Ports` (Consul 1.14), else `DebugConfig.GRPCPort`.
    #[must_use]
    pub fn xds_port(&self) -> XdsPort {
        let ports = self.xds.as_ref().and_then(|xds| xds.get("Ports"));
        let current = |name: &str| ports.and_then(|ports| ports.get(name)?.as_i64());
        let (plain, tls) = (current("Plaintext"), current("TLS"));
        let older = self.debug_config.get("GRPCPort").and_then(Value::as_i64);
        let port = |port: Option<i64>| port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let off = |port: Option<i64>| port.is_some_and(|port| port < 0);
        match (port(plain), port(tls), port(older)) {
            (Some(port), ..) => XdsPort::Plain(port),
            (None, Some(port), _) => XdsPort::Tls(port),
            (None, None, Some(port)) => XdsPort::Plain(port),
            (None, None, None) if off(plain) || off(older) => XdsPort::Off,
            (None, None, None) => XdsPort::Unknown,
        }
    }
}

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
    pub id: String,
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
    pub destination_service_id: Option<String>,
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

/// A check to be registered with a service. Durations are Go's: `10s`, `5m`. Headers and body may hold credentials, so that
/// `Debug` shows the name alone.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct CheckDefinition {
    #[serde(rename = "CheckID", skip_serializing_if = "Option::is_none")]
    pub check_id: Option<String>,
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    #[serde(rename = "TTL", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    #[serde(rename = "HTTP", skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(rename = "TCP", skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    #[serde(rename = "UDP", skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<CheckStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    #[serde(rename = "TLSServerName", skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    #[serde(rename = "TLSSkipVerify", skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    #[serde(rename = "GRPC", skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    #[serde(rename = "GRPCUseTLS", skip_serializing_if = "Option::is_none")]
    pub grpc_use_tls: Option<bool>,
    #[serde(rename = "H2PING", skip_serializing_if = "Option::is_none")]
    pub h2ping: Option<String>,
    #[serde(rename = "H2PingUseTLS", skip_serializing_if = "Option::is_none")]
    pub h2ping_use_tls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_before_passing: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures_before_critical: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_service_after: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("destination_service_name", &self.destination_service_name)
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("destination_name", &self.destination_name)
            .field("local_bind_address", &self.local_bind_address)
            .field("local_bind_port", &self.local_bind_port)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CheckDefinition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckDefinition").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A service as the agent has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentService {
    /// What kind it is; an ordinary service without.
    #[serde(default, deserialize_with = "empty_as_none")]
    pub kind: Option<ServiceKind>,
    /// The ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// The name.
    pub service: String,
    /// Tags.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub tags: Vec<String>,
    /// Metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub meta: BTreeMap<String, String>,
    /// The port; 0 for none.
    #[serde(default)]
    pub port: u16,
    /// The address, where it isn't the agent's.
    #[serde(default)]
    pub address: String,
    /// For a proxy: what it is the proxy of, with the central configuration merged in.
    #[serde(default)]
    pub proxy: Option<Proxy>,
    /// Its namespace (Consul Enterprise).
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    #[serde(default)]
    pub partition: Option<String>,
    /// Its datacenter; since Consul 1.10.
    #[serde(default)]
    pub datacenter: Option<String>,
}

/// A check as the agent has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentCheck {
    /// The ID.
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// The name.
    pub name: String,
    /// The status.
    pub status: CheckStatus,
    /// What the last run or update said.
    #[serde(default)]
    pub output: String,
    /// For humans; of a maintenance check the reason.
    #[serde(default)]
    pub notes: String,
    /// The service's ID; empty for a check of the node.
    #[serde(default, rename = "ServiceID")]
    pub service_id: String,
}

impl Client {
    /// The agent's identity and configuration; needs `agent:read`, which a service identity doesn't give.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agent_self(&self) -> Result<AgentSelf, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/self")).await
    }

    /// Registers a service, or brings one with the same ID to this state. Its checks of other names are removed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn register_service(&self, service: &ServiceRegistration) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/service/register").query("replace-existing-checks", "true");
        self.execute(call.json(service)).await
    }

    /// Registers a service, or brings one with the same ID to this state. Its checks of other names stay, maintenance
    /// among them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn register_service_keeping_checks(&self, service: &ServiceRegistration) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/agent/service/register").json(service)).await
    }

    /// Removes a service and its checks.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] where the agent doesn't have it.
    pub async fn deregister_service(&self, id: &str) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/agent/service/deregister").segment(id)).await
    }

    /// A service as the agent has it; for a proxy with the central configuration merged in.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] where the agent doesn't have it.
    pub async fn agent_service(&self, id: &str) -> Result<AgentService, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/service").segment(id)).await
    }

    /// Those of these services that the agent has and the token may see, by ID.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agent_services(&self, ids: &[&str]) -> Result<BTreeMap<String, AgentService>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/services").query("filter", any_of("ID", ids))).await
    }

    /// The checks of these services that the agent has and the token may see, by ID; maintenance is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agent_checks(&self, services: &[&str]) -> Result<BTreeMap<String, AgentCheck>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/checks").query("filter", any_of("ServiceID", services))).await
    }

    /// Takes a service out of the mesh or back in, whatever its checks say.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] where the agent doesn't have it.
    pub async fn set_maintenance(&self, id: &str, on: bool, reason: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/service/maintenance").segment(id);
        self.execute(call.query("enable", on.to_string()).query("reason", reason)).await
    }

    /// Sets the status of a TTL check.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] where the agent doesn't have it.
    pub async fn update_check(&self, id: &str, status: CheckStatus, output: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/check/update").segment(id);
        self.execute(call.json(&serde_json::json!({ "Status": status, "Output": output }))).await
    }
}

fn any_of(field: &str, values: &[&str]) -> String {
    values.iter().map(|value| equals(field, value)).collect::<Vec<_>>().join(" or ")
}

/// Go writes an empty list or map as `null`.
pub(crate) fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
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

/// An ordinary service's kind is the empty string.
fn empty_as_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<ServiceKind>, D::Error> {
    let kind = Option::<String>::deserialize(deserializer)?.filter(|kind| !kind.is_empty());
    kind.map(|kind| serde_json::from_value(Value::String(kind)).map_err(serde::de::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_says_where_it_serves_xds_or_that_it_does_not() {
        let port = |debug_config: Value, xds: Value| {
            let config = json!({ "Datacenter": "dc1", "NodeName": "n", "Version": "1" });
            let answer = json!({ "Config": config, "DebugConfig": debug_config, "xDS": xds });
            serde_json::from_value::<AgentSelf>(answer).unwrap().xds_port()
        };
        let ports = |plain: i64, tls: i64| json!({ "Ports": { "Plaintext": plain, "TLS": tls } });
        assert_eq!(port(json!({ "GRPCPort": 8502 }), Value::Null), XdsPort::Plain(8502));
        assert_eq!(port(json!({ "GRPCPort": -1 }), Value::Null), XdsPort::Off);
        assert_eq!(port(json!({}), Value::Null), XdsPort::Unknown);
        assert_eq!(port(json!({ "GRPCPort": 18502 }), ports(18502, 8503)), XdsPort::Plain(18502));
        assert_eq!(port(json!({ "GRPCPort": -1 }), ports(-1, 8503)), XdsPort::Tls(8503));
        assert_eq!(port(json!({}), ports(-1, -1)), XdsPort::Off);
        assert_eq!(port(json!({ "GRPCPort": -1 }), ports(0, 0)), XdsPort::Off);
        // Consul 1.11 to 1.13 have another `xDS`.
        assert_eq!(port(json!({ "GRPCPort": 8502 }), json!({ "Port": 8502 })), XdsPort::Plain(8502));
    }

    #[test]
    fn debug_shows_no_configuration() {
        let config = json!({ "envoy_statsd_url": "5ec3e7" }).as_object().cloned();
        let upstream = Upstream { config: config.clone(), ..Upstream::default() };
        let proxy = Proxy { config, upstreams: vec![upstream], ..Proxy::default() };
        assert!(!format!("{proxy:?}").contains("5ec3e7"), "{proxy:?}");
    }
}
