//! A real Consul agent on loopback.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use local_mesh::version::Version;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, run};
use crate::{binary, eventually, free_port, http, part};

/// The version of the Consul that the tests run with. `tests/needs.txt` lists the tests that cannot run with every version.
///
/// # Panics
/// When Consul does not print its version.
#[must_use]
pub fn version() -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(part("consul")).arg("version").output().expect("consul runs");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        Version::parse(&output).unwrap_or_else(|| panic!("`consul version` printed {output:?}"))
    })
}

/// A cluster of one server. Dropping it ends the server.
pub struct Agent {
    /// Its HTTP address, `127.0.0.1:port`.
    pub http: String,
    /// Its gRPC port, on which it serves xDS (version 2).
    pub grpc_port: u16,
    /// Its management token; empty without ACLs.
    pub management: String,
    process: Process,
    data: TempDir,
}

/// A directory with an authority (`consul-agent-ca.pem`) and a server's certificate (`dc1-server-consul-0.pem`, `…-key.pem`), as
/// `consul tls` makes them.
pub async fn certificates() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["tls", "ca", "create"][..], &["tls", "cert", "create", "-server"]] {
        let mut command = Command::new(part("consul"));
        let created = run(command.args(arguments).current_dir(directory.path()), Duration::from_secs(20)).await;
        assert_eq!(created.code, 0, "{}", created.stderr);
    }
    directory
}

/// How Consul is run.
enum Launch<'a> {
    /// By itself.
    Alone,
    /// Consul 1.8 under xds-bridge, later ones by themselves.
    ForAgentless,
    /// The same with TLS: certificate, key and port.
    WithTls(&'a Path, &'a Path, u16),
}

impl Launch<'_> {
    /// The program that runs Consul. Changes Consul's configuration for it.
    fn command(&self, data: &Path, config: &mut Value) -> Command {
        if matches!(self, Self::Alone) || version().serves_xds_v3() {
            return Command::new(part("consul"));
        }
        let dns = free_port();
        config["ports"]["dns"] = dns.into();
        let local = |port: &dyn std::fmt::Display| format!("127.0.0.1:{port}");
        let mut command = Command::new(binary("xds-bridge"));
        command.arg("--listen").arg(local(&config["ports"]["grpc"])).arg("--socket").arg(data.join("grpc.sock"));
        command.arg("--http").arg(local(&config["ports"]["http"])).arg("--dns").arg(local(&dns));
        if let Self::WithTls(certificate, key, port) = self {
            // With an HTTPS port, Consul 1.8 has TLS on its gRPC too.
            config["ports"]["https"] = free_port().into();
            command
                .arg("--socket-tls")
                .arg("--tls-listen")
                .arg(local(port))
                .arg("--tls-cert")
                .arg(certificate)
                .arg("--tls-key")
                .arg(key);
        }
        command.env("LOG_LEVEL", "debug").arg(part("consul"));
        command
    }
}

impl Agent {
    /// Starts a server without ACLs and waits for its leader.
    pub async fn start() -> Self {
        Self::start_with(&json!({})).await
    }

    /// Starts a server with ACLs default-deny, bootstraps them, and gives the agent itself the management token.
    pub async fn start_with_acls() -> Self {
        Self::start_with_acls_and(json!({})).await
    }

    /// Starts such a server with more configuration.
    pub async fn start_with_acls_and(more: Value) -> Self {
        Self::launch_with_acls(more, Launch::Alone).await
    }

    /// Starts such a server that answers the gRPC calls of tasks without an agent: Consul 1.16 or later, or Consul 1.8 under xds-bridge.
    pub async fn start_for_agentless() -> Self {
        Self::launch_with_acls(json!({}), Launch::ForAgentless).await
    }

    async fn launch_with_acls(mut more: Value, launch: Launch<'_>) -> Self {
        let management = "00000000-0000-0000-0000-00000000aaaa";
        let initial = if version().at_least(1, 11) { "initial_management" } else { "master" };
        more["acl"] = json!({
            "enabled": true, "default_policy": "deny", "tokens": { initial: management, "agent": management }
        });
        let mut agent = Self::launch(&more, launch).await;
        agent.management = management.to_owned();
        let url = agent.url("/v1/acl/token/self");
        eventually("the management token is known", Duration::from_secs(30), async || {
            match http::request("GET", &url, &[("X-Consul-Token", management)], "").await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        agent
    }

    /// Starts a primary datacenter, and a secondary one that replicates its tokens. Each has one server. Both have the same management
    /// token.
    pub async fn start_two_datacenters() -> (Self, Self) {
        let serf_wan = free_port();
        let primary = Self::start_with_acls_and(json!({ "ports": { "serf_wan": serf_wan } })).await;
        let management = &primary.management;
        let secondary = json!({
            "datacenter": "dc2", "node_name": "test-2", "primary_datacenter": "dc1",
            "retry_join_wan": [format!("127.0.0.1:{serf_wan}")], "ports": { "serf_wan": free_port() },
            "acl": {
                "enabled": true, "default_policy": "deny", "enable_token_replication": true,
                "tokens": { "agent": management, "replication": management }
            }
        });
        let mut secondary = Self::start_with(&secondary).await;
        secondary.management.clone_from(management);
        eventually("the secondary datacenter replicates", Duration::from_secs(60), async || {
            let (status, answer) = http::request("GET", &secondary.url("/v1/acl/replication"), &[], "").await?;
            let replication: Value = serde_json::from_str(&answer).map_err(|error| format!("{status}: {error}"))?;
            if replication["ReplicatedTokenIndex"].as_u64() > Some(0) { Ok(()) } else { Err(answer) }
        })
        .await;
        (primary, secondary)
    }

    /// Lets a secondary datacenter replicate ACLs, or not.
    pub async fn replicate(&self, replicates: bool) {
        let wrong = "00000000-0000-0000-0000-00000000ffff";
        let token = if replicates { &self.management } else { wrong };
        self.call("PUT", "/v1/agent/token/replication", &json!({ "Token": token })).await;
    }

    /// Starts a server with more configuration and waits for its leader.
    pub async fn start_with(more: &Value) -> Self {
        Self::launch(more, Launch::Alone).await
    }

    /// Starts a server with a certificate, as [`certificates`] makes it, that answers gRPC calls with TLS on `port`. See
    /// [`Agent::start_for_agentless`].
    pub async fn start_with_grpc_tls(certificates: &Path, port: u16) -> Self {
        let file = |name: &str| certificates.join(name);
        let (certificate, key) = (file("dc1-server-consul-0.pem"), file("dc1-server-consul-0-key.pem"));
        let mut more = json!({ "ca_file": file("consul-agent-ca.pem"), "cert_file": certificate, "key_file": key });
        if version().serves_xds_v3() {
            more["ports"] = json!({ "grpc_tls": port });
        }
        Self::launch(&more, Launch::WithTls(&certificate, &key, port)).await
    }

    async fn launch(more: &Value, launch: Launch<'_>) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory can be made");
        let (http_port, grpc_port) = (free_port(), free_port());
        let mut config = json!({
            "server": true, "bootstrap": true, "node_name": "test", "datacenter": "dc1",
            "data_dir": data.path(), "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
            "enable_central_service_config": true, "connect": { "enabled": true },
            "performance": { "raft_multiplier": 1 },
            "ports": { "http": http_port, "grpc": grpc_port, "dns": -1,
                       "serf_lan": free_port(), "serf_wan": -1, "server": free_port() }
        });
        if version().at_least(1, 14) {
            // By default, servers also listen on 8503, so that only one could run at a time.
            config["ports"]["grpc_tls"] = (-1).into();
        }
        for (key, value) in more.as_object().expect("configuration is an object") {
            match (config[key].as_object_mut(), value.as_object()) {
                (Some(parts), Some(more)) => parts.extend(more.clone()),
                _ => config[key] = value.clone(),
            }
        }
        let file = data.path().join("agent.json");
        let mut command = launch.command(data.path(), &mut config);
        std::fs::write(&file, config.to_string()).expect("the configuration can be written");
        let process = Process::spawn(command.arg("agent").arg("-config-file").arg(file));
        let http = format!("127.0.0.1:{http_port}");
        let agent = Self { http, grpc_port, management: String::new(), process, data };
        agent.has_leader().await;
        agent
    }

    async fn has_leader(&self) {
        let leader = self.url("/v1/status/leader");
        eventually("the agent has a leader", Duration::from_secs(30), async || {
            let leader = http::get(&leader).await?;
            if leader.trim().len() > 2 { Ok(()) } else { Err(format!("leader {leader}")) }
        })
        .await;
    }

    /// Starts it again with its data after [`Agent::kill`], if Consul ran by itself. Waits until it has a leader.
    pub async fn start_again(&mut self) {
        self.process.exit_code(Duration::from_secs(20)).await;
        let file = self.data.path().join("agent.json");
        self.process = Process::spawn(Command::new(part("consul")).arg("agent").arg("-config-file").arg(file));
        self.has_leader().await;
    }

    /// A URL of its HTTP API.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Sends a request with a JSON body and the management token. Returns the answer's JSON, or null if it has none.
    ///
    /// # Panics
    /// When the answer's status isn't 200.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let token = [("X-Consul-Token", self.management.as_str())];
        let (status, answer) = http::request(method, &self.url(path), &token, &body).await.expect("the agent answers");
        assert_eq!(status, 200, "{method} {path}: {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Creates a token that has only one service identity, as a task's token has.
    pub async fn service_token(&self, service: &str) -> String {
        let token = json!({ "ServiceIdentities": [{ "ServiceName": service }] });
        let created = self.call("PUT", "/v1/acl/token", &token).await;
        created["SecretID"].as_str().expect("a new token has a secret ID").to_owned()
    }

    /// Ends the agent with TERM, as ECS does. Returns its exit code.
    pub async fn stop(&mut self, bound: Duration) -> i32 {
        self.process.signal(Signal::TERM);
        self.process.exit_code(bound).await
    }

    /// Kills the agent, as a crash does.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
    }

    /// Makes it silent: its connections stay open.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Its log.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.output()
    }
}
