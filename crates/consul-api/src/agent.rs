//! The agent's own view: itself, its services and its checks ("Agent HTTP API", "Service - Agent HTTP API", "Check -
//! Agent HTTP API").

use std::collections::BTreeMap;

use consul_types::{CheckId, CheckStatus, Proxy, ServiceId, ServiceKind, ServiceRegistration, null_as_empty};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::catalog::equals;
use crate::client::{Call, Client};
use crate::error::Error;

/// The parts of `/v1/agent/self` that are used here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSelf {
    /// The agent's identity.
    pub config: AgentSelfConfig,
    /// The configuration in effect. Consul may change its form in any version.
    #[serde(default)]
    pub debug_config: Map<String, Value>,
    /// Where proxies connect. It has `Ports` since Consul 1.14.
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

/// Where the agent serves xDS, according to its own report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdsPort {
    /// On this port in plain text. It may also have a port with TLS.
    Plain(u16),
    /// On this port, with TLS only.
    Tls(u16),
    /// Nowhere, because gRPC is off.
    Off,
    /// The agent does not report a port.
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

/// A service as the agent has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentService {
    /// Its kind; none for an ordinary service.
    #[serde(default, deserialize_with = "empty_as_none")]
    pub kind: Option<ServiceKind>,
    /// The ID.
    #[serde(rename = "ID")]
    pub id: ServiceId,
    /// The name.
    pub service: String,
    /// Tags.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub tags: Vec<String>,
    /// Metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub meta: BTreeMap<String, String>,
    /// The port; 0 if it has none.
    #[serde(default)]
    pub port: u16,
    /// The address, if it differs from the agent's.
    #[serde(default)]
    pub address: String,
    /// A proxy's configuration, with the central configuration merged in.
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
    /// The agent's node.
    #[serde(default)]
    pub node: String,
    /// The ID.
    #[serde(rename = "CheckID")]
    pub check_id: CheckId,
    /// The name.
    pub name: String,
    /// The status.
    pub status: CheckStatus,
    /// The output of the last run or update.
    #[serde(default)]
    pub output: String,
    /// The description, for operators. In a maintenance check, it is the reason.
    #[serde(default)]
    pub notes: String,
    /// The service's ID; empty for a check of the node.
    #[serde(default, rename = "ServiceID")]
    pub service_id: ServiceId,
}

impl Client {
    /// The agent's identity and configuration. The token needs `agent:read`, which a service identity does not include.
    pub async fn agent_self(&self) -> Result<AgentSelf, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/self")).await
    }

    /// Registers a service, or updates the one with the same ID. Checks that are not in the registration are removed.
    pub async fn register_service(&self, service: &ServiceRegistration) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/service/register").query("replace-existing-checks", "true");
        self.execute(call.json(service)).await
    }

    /// Registers a service, or updates the one with the same ID. Checks that are not in the registration stay, and so does
    /// maintenance.
    pub async fn register_service_keeping_checks(&self, service: &ServiceRegistration) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/agent/service/register").json(service)).await
    }

    /// Deregisters a service and its checks.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the agent does not have it.
    pub async fn deregister_service(&self, id: &ServiceId) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/agent/service/deregister").segment(id.as_str())).await
    }

    /// A service as the agent has it. For a proxy, the central configuration is merged in.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the agent does not have it.
    pub async fn agent_service(&self, id: &ServiceId) -> Result<AgentService, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/service").segment(id.as_str())).await
    }

    /// The services among these IDs that the agent has and the token may read.
    pub async fn agent_services(&self, ids: &[&ServiceId]) -> Result<BTreeMap<ServiceId, AgentService>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/services").query("filter", any_of("ID", ids))).await
    }

    /// The checks of these services that the agent has and the token may read, maintenance included.
    pub async fn agent_checks(&self, services: &[&ServiceId]) -> Result<BTreeMap<CheckId, AgentCheck>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/agent/checks").query("filter", any_of("ServiceID", services))).await
    }

    /// Sets or ends maintenance: a service in maintenance is critical, whatever its other checks say.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the agent does not have it.
    pub async fn set_maintenance(&self, id: &ServiceId, on: bool, reason: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/service/maintenance").segment(id.as_str());
        self.execute(call.query("enable", on.to_string()).query("reason", reason)).await
    }

    /// Sets the status of a TTL check.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the agent does not have it.
    pub async fn update_check(&self, id: &CheckId, status: CheckStatus, output: &str) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/agent/check/update").segment(id.as_str());
        self.execute(call.json(&serde_json::json!({ "Status": status, "Output": output }))).await
    }
}

fn any_of(field: &str, ids: &[&ServiceId]) -> String {
    ids.iter().map(|id| equals(field, id.as_str())).collect::<Vec<_>>().join(" or ")
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
    fn the_xds_port_is_read_from_every_version_s_report() {
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
}
