//! health-sync in a task without an agent, with a real Consul server.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http_fixture::{Pass, Relay};
use mesh_tests::catalog::{NODE, host_and_port, on_node, register_node, servers};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};

mod repair;
mod stopping;

const BOUND: Duration = Duration::from_secs(20);
const SERVICES: [&str; 2] = ["shop-f1a2", "shop-f1a2-sidecar-proxy"];
const APP: &str = "shop-f1a2-app";
const WHOLE: &str = "shop-f1a2-consul-dataplane";
const PROXY: &str = "shop-f1a2-sidecar-proxy-consul-dataplane";
const REASON: &str = "the ECS task is stopping";

/// A cluster's server, a task there, and the token of the task's service.
struct Mesh {
    agent: Agent,
    metadata: Metadata,
    token: String,
}

/// The containers of a task, with the health that ECS sees.
fn containers(app: &str, dataplane: &str) -> Value {
    json!([
        { "Name": "app", "Networks": [{ "IPv4Addresses": ["10.0.0.21"] }], "Health": { "status": app } },
        { "Name": "dataplane", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING", "Health": { "status": dataplane } },
    ])
}

/// The containers of a task whose app is healthy and whose dataplane stops.
fn stopping(desired: &str, known: &str) -> Value {
    let mut containers = containers("HEALTHY", "HEALTHY");
    containers[1]["DesiredStatus"] = desired.into();
    containers[1]["KnownStatus"] = known.into();
    containers
}

impl Mesh {
    /// With ACLs default-deny and the node of the task's cluster.
    async fn start(app: &str, dataplane: &str) -> Self {
        let agent = Agent::start_with_acls().await;
        register_node(&agent).await;
        let token = agent.service_token("shop").await;
        Self { agent, metadata: Metadata::start("shop", containers(app, dataplane)), token }
    }

    /// health-sync, with the servers at these addresses.
    fn command_at(&self, servers: Value) -> Command {
        let document = json!({
            "bootstrapDir": "/consul", "service": { "port": 8080 }, "healthSyncContainers": ["app"],
            "consulServers": servers, "transparentProxy": { "enabled": false },
        });
        let mut command = Command::new(binary("health-sync"));
        command.env_clear().env("CONSUL_HTTP_TOKEN", &self.token).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
        command.env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri).env("HEALTH_SYNC_INTERVAL", "50ms");
        command
    }

    /// health-sync, with a server at this address.
    fn command_by(&self, address: &str) -> Command {
        let (host, port) = host_and_port(address);
        self.command_at(servers(host, port))
    }

    fn command(&self) -> Command {
        self.command_by(&self.agent.http)
    }

    async fn statuses(&self) -> [Option<String>; 3] {
        let (_, checks) = on_node(&self.agent).await;
        [APP, WHOLE, PROXY].map(|id| checks[id]["Status"].as_str().map(str::to_owned))
    }

    /// Waits until the checks of the app, the service and the proxy have these statuses.
    async fn become_within(&self, bound: Duration, wanted: [&str; 3]) {
        let wanted = wanted.map(|status| Some(status.to_owned()));
        eventually(&format!("the checks are {wanted:?}"), bound, async || match self.statuses().await {
            statuses if statuses == wanted => Ok(()),
            statuses => Err(format!("{statuses:?}")),
        })
        .await;
    }

    async fn become_all(&self, status: &str) {
        self.become_within(BOUND, [status; 3]).await;
    }

    /// Writes one check of the catalog, as an operator may.
    async fn write(&self, check: &str, service: &str, status: &str, output: &str) {
        let check =
            json!({ "CheckID": check, "ServiceID": service, "Name": "by hand", "Status": status, "Output": output });
        let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Check": check });
        self.agent.call("PUT", "/v1/catalog/register", &body).await;
    }

    async fn deregister(&self, what: Value) {
        let mut body = json!({ "Node": NODE });
        body.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        self.agent.call("PUT", "/v1/catalog/deregister", &body).await;
    }

    /// Registers the proxy of another task of the service.
    async fn register_other(&self) {
        let proxy = json!({
            "Kind": "connect-proxy", "ID": "shop-b2-sidecar-proxy", "Service": "shop-sidecar-proxy", "Port": 20000,
            "Proxy": { "DestinationServiceName": "shop" },
        });
        let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Service": proxy });
        self.agent.call("PUT", "/v1/catalog/register", &body).await;
        self.write("other", "shop-b2-sidecar-proxy", "critical", "").await;
    }

    /// Lets the dataplane end, and health-sync after it. Nothing of the task remains.
    async fn ends(&self, sync: &mut Process) {
        self.metadata.set_containers(stopping("STOPPED", "STOPPED"));
        assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
        let (services, checks) = on_node(&self.agent).await;
        for id in SERVICES {
            assert!(services[id].is_null(), "{services}");
        }
        assert!(checks[APP].is_null() && checks[PROXY].is_null(), "{checks}");
    }
}

/// A relay to the server, and the number of the requests with `text` that it has passed on.
fn counting(to: &str, text: &'static str) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let look = move |_, bytes: &[u8]| {
        counted.fetch_add(String::from_utf8_lossy(bytes).matches(text).count(), Ordering::SeqCst);
        Pass::On
    };
    (Relay::start(to, look, |_, _| {}).address, count)
}

#[tokio::test]
async fn changed_statuses_of_service_and_proxy_are_one_write() {
    let mesh = Mesh::start("HEALTHY", "UNKNOWN").await;
    let (way, writes) = counting(&mesh.agent.http, "PUT /v1/catalog/register");
    let sync = Process::spawn(&mut mesh.command_by(&way));
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    let output = async |id: &str| on_node(&mesh.agent).await.1[id]["Output"].clone();
    assert_eq!(output(PROXY).await, r#"ECS health status is "UNKNOWN" for container "dataplane""#);
    // The start is over: its first read-back may have registered what was not there.
    sync.says("shop-f1a2-sidecar-proxy: ", BOUND).await;
    let answered = mesh.metadata.answered();
    eventually("ten more rounds", BOUND, async || match mesh.metadata.answered() {
        now if now >= answered + 10 => Ok(()),
        now => Err(now.to_string()),
    })
    .await;
    let before = writes.load(Ordering::SeqCst);
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    let (_, checks) = on_node(&mesh.agent).await;
    assert_eq!(checks[WHOLE]["ModifyIndex"], checks[PROXY]["ModifyIndex"], "one transaction: {checks}");
    assert_eq!(writes.load(Ordering::SeqCst), before + 1);
    assert_eq!(output(APP).await, r#"ECS health status is "HEALTHY" for container "app""#);
    assert_eq!(output(PROXY).await, r#"ECS health status is "HEALTHY" for container "dataplane""#);
    for (id, name) in [(APP, "Consul ECS health check synced"), (PROXY, "Consul dataplane readiness")] {
        let check = &checks[id];
        assert_eq!((&check["Name"], &check["Type"]), (&json!(name), &json!("consul-ecs-health-check")), "{check}");
    }
    mesh.metadata.set_containers(containers("UNKNOWN", "HEALTHY"));
    mesh.become_all("critical").await;
    assert_eq!(output(PROXY).await, r#"ECS health status is "UNKNOWN" for container "app""#);
}

#[tokio::test]
async fn gate_of_a_task_without_an_agent_opens_once_and_stays_open_after_a_restart() {
    let mut mesh = Mesh::start("HEALTHY", "UNKNOWN").await;
    let sync = Process::spawn(&mut mesh.command());
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    let gate = async |metadata: &Metadata| {
        let mut command = Command::new(binary("health-sync"));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(["healthy", "--in-mesh"]);
        let ended = run(&mut command, BOUND).await;
        (ended.code, ended.stderr)
    };
    let closed = "Consul's servers do not list shop-f1a2-sidecar-proxy as passing yet: \
                  \"Consul dataplane readiness\" is critical";
    assert_eq!(gate(&mesh.metadata).await, (1, format!("health-sync: {closed}\n")));
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    assert_eq!(gate(&mesh.metadata).await, (0, String::new()));
    drop(sync);
    let again = Process::spawn(&mut mesh.command());
    again.says("has been in the mesh", BOUND).await;
    mesh.agent.stop(BOUND).await;
    assert_eq!(gate(&mesh.metadata).await, (0, String::new()), "an outage ends no task");
}

#[tokio::test]
async fn gateway_without_an_agent_has_one_check() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let token = agent.service_token("door").await;
    let mesh = Mesh { agent, metadata: Metadata::start("Door", containers("UNHEALTHY", "HEALTHY")), token };
    let (host, port) = host_and_port(&mesh.agent.http);
    let document = json!({
        "bootstrapDir": "/consul", "gateway": { "kind": "mesh-gateway" }, "consulServers": servers(host, port),
        "healthSyncContainers": ["app"],
    });
    let mut sync = Process::spawn(mesh.command().env("CONSUL_ECS_CONFIG_JSON", document.to_string()));
    eventually("the gateway is passing", BOUND, async || {
        let (_, checks) = on_node(&mesh.agent).await;
        if checks["door-f1a2-consul-dataplane"]["Status"] == "passing" { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    assert_eq!(on_node(&mesh.agent).await.1.as_object().unwrap().len(), 1);
    sync.signal(Signal::TERM);
    mesh.ends(&mut sync).await;
    assert_eq!(on_node(&mesh.agent).await.0, json!({}));
}

#[tokio::test]
async fn wrong_settings_without_an_agent_end_in_one_line() {
    let metadata = Metadata::start("shop", json!([]));
    let nobody = servers("127.0.0.1", free_port());
    let mut tls = nobody.clone();
    tls["http"] = json!({ "caCertFile": "/nowhere" });
    for (servers, login, text) in [
        (
            tls,
            json!({}),
            "health-sync: cannot use the HTTP API of Consul's servers: consulServers (CONSUL_ECS_CONFIG_JSON): caCertFile: ",
        ),
        (nobody, json!({ "enabled": true, "method": "aws" }), "health-sync: consulLogin: "),
    ] {
        let document = json!({
            "bootstrapDir": "/consul", "service": { "port": 8080 }, "consulServers": servers, "consulLogin": login,
            "transparentProxy": { "enabled": false },
        });
        let mut command = Command::new(binary("health-sync"));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
        let ended = run(command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()), BOUND).await;
        assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
}
