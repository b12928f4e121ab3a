//! Servers of one datacenter, for tasks without an agent that call each other.

use std::time::Duration;

use serde_json::{Value, json};

use crate::catalog::register_node;
use crate::consul::Agent;
use crate::{eventually, free_port, http};

const BOUND: Duration = Duration::from_secs(60);

/// Servers of one datacenter, with ACLs. Each has an address of its own, and all have the same gRPC port. The node of the cluster is
/// registered, and `web` may call `api` by HTTP.
pub struct Servers {
    /// The server at index n has the address 127.0.0.(n + 1).
    pub all: Vec<Agent>,
    /// Their gRPC port.
    pub grpc: u16,
    /// The port of the HTTP API for the tasks, if it is not that of the tests.
    pub http: Option<u16>,
    /// The index of the one that the test asks, and does not kill.
    pub kept: usize,
}

impl Servers {
    /// Starts them, and waits until all of them vote.
    ///
    /// # Panics
    /// When they do not elect a leader.
    pub async fn start(count: u8) -> Self {
        let (grpc, first) = (free_port(), free_port());
        let mut all = Vec::new();
        for number in 1..=count {
            let address = format!("127.0.0.{number}");
            let mut config = json!({
                "node_name": format!("server-{number}"), "bind_addr": address, "addresses": { "grpc": address },
                "ports": { "grpc": grpc },
                // A server that a test kills and starts again stays a voter.
                "autopilot": { "cleanup_dead_servers": false },
            });
            if number == 1 {
                config["ports"]["serf_lan"] = first.into();
            } else {
                config["bootstrap"] = false.into();
                config["retry_join"] = json!([format!("127.0.0.1:{first}")]);
                config["retry_interval"] = "1s".into();
            }
            all.push(Agent::start_with_acls_and(config).await);
        }
        let servers = Self { all, grpc, http: None, kept: 0 };
        servers.all_vote().await;
        register_node(servers.any()).await;
        for service in ["web", "api"] {
            let entry = json!({ "Kind": "service-defaults", "Name": service, "Protocol": "http" });
            servers.any().call("PUT", "/v1/config", &entry).await;
        }
        let allow =
            json!({ "Kind": "service-intentions", "Name": "api", "Sources": [{ "Name": "web", "Action": "allow" }] });
        let token = [("X-Consul-Token", servers.any().management.as_str())];
        // A new cluster refuses intentions for a moment.
        eventually("web may call api", BOUND, async || {
            match http::request("PUT", &servers.any().url("/v1/config"), &token, &allow.to_string()).await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        servers
    }

    async fn all_vote(&self) {
        eventually("every server is a voter", BOUND, async || {
            let peers = self.any().call("GET", "/v1/operator/raft/configuration", &Value::Null).await;
            let voters = peers["Servers"].as_array().into_iter().flatten().filter(|server| server["Voter"] == true);
            if voters.count() == self.all.len() { Ok(()) } else { Err(peers.to_string()) }
        })
        .await;
    }

    /// The one that the test asks.
    #[must_use]
    pub fn any(&self) -> &Agent {
        &self.all[self.kept]
    }

    /// The addresses for a document.
    #[must_use]
    pub fn hosts(&self) -> String {
        (1..=self.all.len()).map(|number| format!("127.0.0.{number}")).collect::<Vec<_>>().join(",")
    }

    /// The HTTP port for the tasks. By default it is that of the one that the test asks, on 127.0.0.1.
    ///
    /// # Panics
    /// When its address has no port.
    #[must_use]
    pub fn http_port(&self) -> u16 {
        self.http.unwrap_or_else(|| crate::catalog::host_and_port(&self.any().http).1)
    }
}
