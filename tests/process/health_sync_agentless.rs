//! health-sync in a task without an agent, with a real Consul server.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http_fixture::{Pass, Relay};
use mesh_tests::catalog::{NODE, host_and_port, on_node, register_node, servers};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

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
async fn term_is_critical_and_the_end_of_the_dataplane_deregisters() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let mut sync = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    mesh.metadata.set_containers(stopping("STOPPED", "RUNNING"));
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    let (_, checks) = on_node(&mesh.agent).await;
    assert_eq!(checks[PROXY]["Output"], REASON);
    for id in SERVICES {
        let maintenance = &checks[format!("_service_maintenance:{id}")];
        assert_eq!((&maintenance["Status"], &maintenance["Notes"]), (&json!("critical"), &json!(REASON)), "{checks}");
    }
    let answered = mesh.metadata.answered();
    eventually("ten more rounds", BOUND, async || match mesh.metadata.answered() {
        now if now >= answered + 10 => Ok(()),
        now => Err(now.to_string()),
    })
    .await;
    assert!(on_node(&mesh.agent).await.0[SERVICES[1]].is_object(), "the dataplane still runs");
    mesh.ends(&mut sync).await;
    let output = sync.output();
    let position = |id: &str| output.find(&format!("deregistered {id}\n")).unwrap_or_else(|| panic!("{id}: {output}"));
    assert!(position(SERVICES[0]) < position(SERVICES[1]), "{output}");
    assert!(!output.contains(&mesh.token));
}

/// ECS may restart the container in the same task.
#[tokio::test]
async fn maintenance_of_an_earlier_run_ends() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let first = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    drop(first);
    let maintenance = |id: &str, notes: &str| {
        json!({
            "CheckID": format!("_service_maintenance:{id}"), "ServiceID": id, "Name": "m", "Status": "critical", "Notes": notes,
        })
    };
    let checks = [maintenance(SERVICES[0], "by an operator"), maintenance(SERVICES[1], REASON)];
    let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Checks": checks });
    mesh.agent.call("PUT", "/v1/catalog/register", &body).await;
    let _again = Process::spawn(&mut mesh.command());
    eventually("the proxy's maintenance has ended", BOUND, async || {
        let (_, checks) = on_node(&mesh.agent).await;
        if checks[format!("_service_maintenance:{}", SERVICES[1])].is_null() { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    let (_, checks) = on_node(&mesh.agent).await;
    assert!(checks[format!("_service_maintenance:{}", SERVICES[0])].is_object(), "an operator's stays: {checks}");
}

#[tokio::test]
async fn dataplane_that_does_not_stop_delays_the_end_for_a_bounded_time() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let mut sync = Process::spawn(mesh.command().env("HEALTH_SYNC_DATAPLANE_WAIT", "300ms"));
    mesh.become_all("passing").await;
    // An operator was faster.
    mesh.deregister(json!({ "ServiceID": SERVICES[0] })).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    sync.says("the dataplane has not stopped within 300ms: deregistering the task now", BOUND).await;
    assert!(on_node(&mesh.agent).await.0[SERVICES[1]].is_null());
}

/// What became of a write that a relay delays.
#[derive(Default)]
struct Delayed {
    /// The connection on which it came.
    held: OnceLock<usize>,
    answered: AtomicBool,
}

#[tokio::test]
async fn critical_wins_over_a_passing_write_that_term_finds_under_way() {
    // The first write ends in time. The second takes long, and health-sync cuts it off.
    for delay in [Duration::from_millis(60), Duration::from_secs(3)] {
        let mesh = Mesh::start("HEALTHY", "UNHEALTHY").await;
        let write = Arc::new(Delayed::default());
        let (asks, answers) = (write.clone(), write.clone());
        let hold = move |connection, bytes: &[u8]| {
            let passing = String::from_utf8_lossy(bytes).contains(r#"\"HEALTHY\" for container \"dataplane"#);
            if passing && asks.held.set(connection).is_ok() {
                std::thread::sleep(delay);
            }
            Pass::On
        };
        let answered = move |connection, _: &[u8]| {
            if answers.held.get() == Some(&connection) {
                answers.answered.store(true, Ordering::SeqCst);
            }
        };
        let relay = Relay::start(&mesh.agent.http, hold, answered);
        let mut sync = Process::spawn(&mut mesh.command_by(&relay.address));
        mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
        mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
        let wait = async |what: &str, came: &dyn Fn() -> bool| {
            eventually(what, BOUND, async || if came() { Ok(()) } else { Err("not yet".to_owned()) }).await;
        };
        wait("a write of passing is under way", &|| write.held.get().is_some()).await;
        sync.signal(Signal::TERM);
        mesh.become_all("critical").await;
        // The server carries the write out, although health-sync has cut it off. health-sync undoes it, and the maintenance lasts.
        wait("the write has reached the server", &|| write.answered.load(Ordering::SeqCst)).await;
        let (_, checks) = on_node(&mesh.agent).await;
        assert_eq!(checks["_service_maintenance:shop-f1a2-sidecar-proxy"]["Status"], "critical", "{checks}");
        mesh.become_all("critical").await;
        mesh.ends(&mut sync).await;
    }
}

/// Passes connections on to the server, until it is aborted.
async fn forward(at: (&'static str, u16), to: String) -> JoinHandle<()> {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let to = to.clone();
            connections.spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    })
}

#[tokio::test]
async fn another_server_takes_over_when_one_dies_or_hangs() {
    let mesh = Mesh::start("HEALTHY", "UNHEALTHY").await;
    let port = host_and_port(&mesh.agent.http).1;
    let first = forward(("127.0.0.2", port), mesh.agent.http.clone()).await;
    let mut sync = Process::spawn(&mut mesh.command_at(servers("127.0.0.2,127.0.0.1", port)));
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    // At TERM, the first address accepts connections and never answers.
    let _hangs = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    assert!(!sync.output().contains("not critical yet"), "{}", sync.output());
    mesh.ends(&mut sync).await;
}

#[tokio::test]
async fn end_without_a_server_is_bounded_and_says_what_stays() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let gone = Arc::new(AtomicBool::new(false));
    let cut = gone.clone();
    let look = move |_, _: &[u8]| if cut.load(Ordering::SeqCst) { Pass::Cut } else { Pass::On };
    let relay = Relay::start(&mesh.agent.http, look, |_, _| {});
    let mut sync = Process::spawn(&mut mesh.command_by(&relay.address));
    mesh.become_all("passing").await;
    gone.store(true, Ordering::SeqCst);
    mesh.metadata.set_containers(stopping("STOPPED", "STOPPED"));
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1, "{}", sync.output());
    sync.says("health-sync: not deregistered within 3s: shop-f1a2: PUT /v1/catalog/deregister: Consul is not", BOUND)
        .await;
}

#[tokio::test]
async fn lost_registration_is_back_with_its_statuses() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let mut sync = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    let registered = on_node(&mesh.agent).await.0;
    assert_eq!(registered[SERVICES[1]]["Proxy"]["DestinationServiceID"], SERVICES[0]);
    // A changed status is a write, and that fails. Without one, the read-back comes within a minute.
    mesh.deregister(json!({})).await;
    mesh.metadata.set_containers(containers("HEALTHY", "UNHEALTHY"));
    sync.says("expected a token with the service identity shop, and the node arn:aws:ecs:eu-north-1:210987654321:cluster/blue in the catalog", BOUND).await;
    register_node(&mesh.agent).await;
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    let without_indexes = |mut services: Value| {
        for id in SERVICES {
            for key in ["CreateIndex", "ModifyIndex"] {
                services[id].as_object_mut().unwrap().remove(key);
            }
        }
        services
    };
    assert_eq!(without_indexes(on_node(&mesh.agent).await.0), without_indexes(registered));
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    mesh.ends(&mut sync).await;
}

/// No write of health-sync fails here, so this waits for the read-back.
#[tokio::test]
async fn overwritten_status_and_lost_service_are_restored_within_a_minute() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let (way, reads) = counting(&mesh.agent.http, "GET ");
    let sync = Process::spawn(&mut mesh.command_by(&way));
    mesh.become_all("passing").await;
    // The start is over: a failed first write causes a second read-back.
    let mut before = (0, Instant::now());
    eventually("three seconds without a read", BOUND, async || {
        let now = reads.load(Ordering::SeqCst);
        if now != before.0 {
            before = (now, Instant::now());
        }
        if before.1.elapsed() >= Duration::from_secs(3) { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    mesh.deregister(json!({ "ServiceID": SERVICES[0] })).await;
    mesh.write(PROXY, SERVICES[1], "critical", "by hand").await;
    mesh.become_within(Duration::from_secs(60), ["passing"; 3]).await;
    // One read-back found both. It reads each service once.
    assert_eq!(reads.load(Ordering::SeqCst), before.0 + 2, "{}", sync.output());
}

#[tokio::test]
async fn critical_status_waits_for_another_passing_instance_in_the_catalog() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    mesh.register_other().await;
    let mut sync = Process::spawn(mesh.command().env("HEALTH_SYNC_HOLD", format!("{BOUND:?}")));
    mesh.become_all("passing").await;
    sync.signal(Signal::TERM);
    sync.says("no other instance of shop is passing yet: the critical status waits for one, at most 20s", BOUND).await;
    assert_eq!(mesh.statuses().await[2].as_deref(), Some("passing"));
    mesh.write("other", "shop-b2-sidecar-proxy", "passing", "").await;
    mesh.become_all("critical").await;
    mesh.ends(&mut sync).await;
}

#[tokio::test]
async fn hold_does_not_wait_for_a_task_that_is_stopping_too() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    mesh.register_other().await;
    mesh.write("_service_maintenance:shop-b2-sidecar-proxy", "shop-b2-sidecar-proxy", "critical", "").await;
    let mut sync = Process::spawn(mesh.command().env("HEALTH_SYNC_HOLD", format!("{BOUND:?}")));
    mesh.become_all("passing").await;
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    assert!(!sync.output().contains("the critical status waits for one"), "{}", sync.output());
    mesh.ends(&mut sync).await;
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
        (tls, json!({}), "consulServers (CONSUL_ECS_CONFIG_JSON): cannot use the HTTP API of Consul's servers: "),
        (nobody, json!({ "enabled": true, "method": "aws" }), "consulServers (CONSUL_ECS_CONFIG_JSON): consulLogin: "),
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

#[tokio::test]
async fn term_before_a_login_ends_it() {
    let metadata = Metadata::start("shop", containers("HEALTHY", "HEALTHY"));
    let document = json!({
        "bootstrapDir": "/consul", "service": { "port": 8080 }, "consulServers": servers("127.0.0.1", free_port()),
        "consulLogin": { "enabled": true, "method": "platform" }, "transparentProxy": { "enabled": false },
    });
    let mut command = Command::new(binary("health-sync"));
    command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).env("CONSUL_LOGIN_BEARER_TOKEN", "5ec3e7");
    let mut sync = Process::spawn(command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()));
    sync.says("cannot log in, trying again: POST /v1/acl/login: Consul is not reachable", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before a login succeeded: nothing was written to Consul", BOUND).await;
    assert!(!sync.output().contains("5ec3e7"));
}
