//! A client agent that crashes and starts again while Envoys are connected to it and carry load. The tests print how many requests
//! failed (`--nocapture`), and docs/compatibility.md has these figures. They fail if the requests do not recover.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use local_mesh::load::Report;
use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use mesh_tests::{binary, eventually, free_port, http, part};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::mesh_init::Task;
use super::xds_bridge::{BOUND, Envoy};

/// A task's own agent, which keeps its data when it starts again.
struct ClientAgent {
    process: Process,
    http: String,
    grpc: u16,
    directory: TempDir,
}

impl ClientAgent {
    async fn start(server: &Agent, node: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = server.call("GET", "/v1/agent/self", &Value::Null).await["DebugConfig"].take();
        let (http, grpc) = (free_port(), free_port());
        let config = json!({
            "node_name": node, "datacenter": "dc1", "data_dir": directory.path().join("data"),
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "leave_on_terminate": true,
            "retry_join": [format!("127.0.0.1:{}", ports["SerfPortLAN"])],
            "ports": { "http": http, "grpc": grpc, "dns": -1, "serf_lan": free_port(), "server": free_port() },
            "acl": { "enabled": true, "default_policy": "deny", "tokens": { "agent": server.management } },
        });
        std::fs::write(directory.path().join("agent.json"), config.to_string()).unwrap();
        let process = Self::spawn(directory.path());
        Self { process, http: format!("127.0.0.1:{http}"), grpc, directory }
    }

    fn spawn(directory: &Path) -> Process {
        Process::spawn(Command::new(part("consul")).arg("agent").arg("-config-file").arg(directory.join("agent.json")))
    }

    /// Kills it and starts it again, as ECS's restart policy does.
    async fn crashes_and_starts_again(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.exit_code(BOUND).await;
        self.process = Self::spawn(self.directory.path());
    }
}

/// The Envoy of a service, with the bootstrap that mesh-init wrote.
struct Member {
    agent: ClientAgent,
    envoy: Envoy,
}

impl Member {
    async fn start(server: &Agent, node: &str, service: &str, port: u16, proxy: Value) -> Self {
        let agent = ClientAgent::start(server, node).await;
        let token = server.service_token(service).await;
        let mut task = Task::new(&agent.http, &token)
            .with("CONSUL_GRPC_ADDR", format!("127.0.0.1:{}", agent.grpc))
            .with("MESH_INIT_ADMIN_BIND", format!("127.0.0.1:{}", free_port()));
        task.document["healthSyncContainers"] = json!([]);
        task.document["service"] = json!({ "name": service, "port": port });
        task.document["proxy"] = proxy;
        task.document["proxy"]["publicListenerPort"] = free_port().into();
        task.starts().await;
        let directory = tempfile::tempdir().unwrap();
        let bootstrap = directory.path().join("bootstrap.json");
        std::fs::write(&bootstrap, task.bootstrap().to_string()).unwrap();
        Self { agent, envoy: Envoy::with(&bootstrap, directory).await }
    }

    /// How many clusters and listeners its Envoy has removed.
    async fn removed(&self) -> u64 {
        self.envoy.stat("cluster_manager.cluster_removed").await
            + self.envoy.stat("listener_manager.listener_removed").await
    }

    /// How many changes of its clusters Envoy has taken from its agent.
    async fn changes(&self) -> u64 {
        self.envoy.stat("cluster_manager.cds.update_success").await
    }
}

/// `web` calls the instances of `api`.
struct Mesh {
    server: Agent,
    web: Member,
    api: Vec<Member>,
    /// Where web's app sends its requests.
    upstream: String,
    _apps: Vec<Process>,
}

impl Mesh {
    async fn start(instances: usize) -> Self {
        let server = Agent::start_with_acls().await;
        for service in ["web", "api"] {
            let entry = json!({ "Kind": "service-defaults", "Name": service, "Protocol": "http" });
            server.call("PUT", "/v1/config", &entry).await;
        }
        let allow = server.url("/v1/connect/intentions/exact?source=web&destination=api");
        let token = [("X-Consul-Token", server.management.as_str())];
        // A new cluster refuses intentions for a moment.
        eventually("web may call api", BOUND, async || {
            match http::request("PUT", &allow, &token, r#"{ "Action": "allow" }"#).await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        let (mut api, mut apps) = (Vec::new(), Vec::new());
        for number in 1..=instances {
            let port = free_port();
            let mut app = Command::new(binary("demo-app"));
            apps.push(Process::spawn(
                app.arg("serve").env("LISTEN", format!("127.0.0.1:{port}")).env("SERVICE_NAME", "api"),
            ));
            api.push(Member::start(&server, &format!("api-{number}"), "api", port, json!({})).await);
        }
        let port = free_port();
        let upstreams = json!({ "upstreams": [{ "destinationName": "api", "localBindPort": port }] });
        let web = Member::start(&server, "web", "web", free_port(), upstreams).await;
        let mesh = Self { server, web, api, upstream: format!("http://127.0.0.1:{port}/"), _apps: apps };
        mesh.all_are_passing().await;
        eventually("requests reach api", BOUND, async || http::get(&mesh.upstream).await).await;
        mesh
    }

    async fn all_are_passing(&self) {
        eventually("the servers list every instance of api as passing", BOUND, async || {
            let passing = self.server.call("GET", "/v1/health/connect/api?passing", &Value::Null).await;
            if passing.as_array().map(Vec::len) == Some(self.api.len()) { Ok(()) } else { Err(passing.to_string()) }
        })
        .await;
    }

    fn member(&mut self, name: &str) -> &mut Member {
        match name {
            "web" => &mut self.web,
            _ => &mut self.api[0],
        }
    }

    /// Restarts the agent of a member under load, prints how many requests failed, and waits until requests succeed again.
    async fn recovers_from_a_restart_of_the_agent_of(&mut self, name: &str) {
        let mut load = Command::new(binary("demo-app"));
        load.args(["load", &self.upstream, "--json", "--rate", "50", "--fresh", "0.2", "--duration", "10m"]);
        let mut load = Process::spawn(&mut load);
        let (changes, removed) = (self.member(name).changes().await, self.member(name).removed().await);
        let steady = Duration::from_secs(3);
        // The load is the subject here, so time must pass before the crash and after it.
        tokio::time::sleep(steady).await;
        self.member(name).agent.crashes_and_starts_again().await;
        self.all_are_passing().await;
        // A new connection brings a change of all proxies.
        let config =
            json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "local_connect_timeout_ms": 4321 } });
        self.server.call("PUT", "/v1/config", &config).await;
        let member = self.member(name);
        eventually("Envoy has a change from the restarted agent", BOUND, async || {
            let now = member.changes().await;
            if now > changes { Ok(()) } else { Err(format!("{now} changes")) }
        })
        .await;
        eventually("twenty requests in a row succeed", BOUND, async || {
            for _ in 0..20 {
                http::get(&self.upstream).await?;
            }
            Ok(())
        })
        .await;
        tokio::time::sleep(steady).await;
        load.signal(Signal::INT);
        load.exit_code(BOUND).await;
        let output = load.output();
        let report = output.lines().find_map(|line| serde_json::from_str::<Report>(line).ok());
        let report = report.unwrap_or_else(|| panic!("no report in {output}"));
        let removed = self.member(name).removed().await - removed;
        println!(
            "{} instances of api, the agent of {name} restarted: {} of {} requests failed {:?}; its Envoy removed {removed} resources",
            self.api.len(),
            report.failed,
            report.sent,
            report.failures
        );
    }
}

#[tokio::test]
async fn requests_recover_from_a_restart_of_the_caller_s_agent() {
    Mesh::start(1).await.recovers_from_a_restart_of_the_agent_of("web").await;
}

#[tokio::test]
async fn requests_recover_from_a_restart_of_the_only_instance_s_agent() {
    Mesh::start(1).await.recovers_from_a_restart_of_the_agent_of("api").await;
}

#[tokio::test]
async fn requests_recover_from_a_restart_of_the_agent_of_one_of_two_instances() {
    Mesh::start(2).await.recovers_from_a_restart_of_the_agent_of("api").await;
}
