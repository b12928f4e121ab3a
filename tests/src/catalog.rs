//! A task without an agent in Consul's catalog: the node of its cluster, and what is registered there.

use serde_json::{Map, Value, json};

use crate::consul::Agent;

/// The node of the cluster `blue`: the cluster's ARN.
pub const NODE: &str = "arn:aws:ecs:eu-north-1:210987654321:cluster/blue";

/// Registers the node, as the controller does.
pub async fn register_node(agent: &Agent) {
    let node = json!({ "Node": NODE, "Address": "10.0.0.14", "NodeMeta": { "synthetic-node": "true" } });
    agent.call("PUT", "/v1/catalog/register", &node).await;
}

/// The node's services by ID, and its checks by ID.
///
/// # Panics
/// If Consul does not answer.
pub async fn on_node(agent: &Agent) -> (Value, Value) {
    let node = agent.call("GET", &format!("/v1/catalog/node/{}", NODE.replace('/', "%2F")), &Value::Null).await;
    let checks = agent.call("GET", &format!("/v1/health/node/{}", NODE.replace('/', "%2F")), &Value::Null).await;
    let checks = checks.as_array().into_iter().flatten();
    let checks: Map<_, _> =
        checks.map(|check| (check["CheckID"].as_str().expect("a text").to_owned(), check.clone())).collect();
    (node["Services"].clone(), checks.into())
}

/// `consulServers` of a document: these hosts, with plain HTTP at this port.
#[must_use]
pub fn servers(hosts: &str, port: u16) -> Value {
    json!({
        "hosts": hosts, "defaults": { "tls": false }, "http": { "https": false, "port": port }, "grpc": { "port": 8502 },
    })
}

/// Host and port of an address.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn host_and_port(address: &str) -> (&str, u16) {
    let (host, port) = address.split_once(':').expect("an address has a port");
    (host, port.parse().expect("a port is a number"))
}
