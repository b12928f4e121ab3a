//! What happens after TERM.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::*;

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

/// Consul refuses a write with a check of a service that it does not have.
#[tokio::test]
async fn proxy_becomes_critical_although_the_service_is_missing() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let mut sync = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    sync.says("shop-f1a2-sidecar-proxy: ", BOUND).await;
    mesh.deregister(json!({ "ServiceID": SERVICES[0] })).await;
    sync.signal(Signal::TERM);
    eventually("the proxy is critical", BOUND, async || {
        let (_, checks) = on_node(&mesh.agent).await;
        if checks[PROXY]["Status"] == "critical" { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    assert!(on_node(&mesh.agent).await.0[SERVICES[0]].is_null(), "it stays away");
    assert!(!sync.output().contains("not critical yet"), "{}", sync.output());
    mesh.ends(&mut sync).await;
}

#[tokio::test]
async fn each_reason_why_the_checks_are_not_critical_yet_is_logged_and_the_success_too() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let fails = Arc::new(AtomicU8::new(0));
    let how = fails.clone();
    let look = move |_, _: &[u8]| match how.load(Ordering::SeqCst) {
        0 => Pass::On,
        1 => Pass::Cut,
        _ => Pass::Answer(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nbusy".to_vec()),
    };
    let relay = Relay::start(&mesh.agent.http, look, |_, _| {});
    let mut sync = Process::spawn(&mut mesh.command_by(&relay.address));
    mesh.become_all("passing").await;
    fails.store(1, Ordering::SeqCst);
    sync.signal(Signal::TERM);
    sync.says("the checks are not critical yet: PUT /v1/catalog/register: Consul is not reachable", BOUND).await;
    fails.store(2, Ordering::SeqCst);
    sync.says("busy; trying again", BOUND).await;
    fails.store(0, Ordering::SeqCst);
    sync.says("the checks are critical", BOUND).await;
    mesh.become_all("critical").await;
    mesh.ends(&mut sync).await;
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
    /// How many writes made the checks critical.
    critical: AtomicUsize,
}

#[tokio::test]
async fn critical_wins_over_a_passing_write_that_began_before_term() {
    // The first write ends in time. The second takes long, and health-sync cuts it off.
    for delay in [Duration::from_millis(60), Duration::from_secs(3)] {
        let mesh = Mesh::start("HEALTHY", "UNHEALTHY").await;
        let write = Arc::new(Delayed::default());
        let (asks, answers) = (write.clone(), write.clone());
        let hold = move |connection, bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            asks.critical.fetch_add(text.contains(REASON).into(), Ordering::SeqCst);
            let passing = text.contains(r#"\"HEALTHY\" for container \"dataplane"#);
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
        mesh.write("of-a-monitor", SERVICES[1], "passing", "").await;
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
        let writes = write.critical.load(Ordering::SeqCst);
        assert!(writes <= 5, "the check of others does not count: {writes}");
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
    let second = forward(("127.0.0.3", port), mesh.agent.http.clone()).await;
    let mut sync = Process::spawn(&mut mesh.command_at(servers("127.0.0.2,127.0.0.3", port)));
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    // At TERM, the first server is back, and the one in use accepts connections and never answers.
    let _first = forward(("127.0.0.2", port), mesh.agent.http.clone()).await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    let _hangs = std::net::TcpListener::bind(("127.0.0.3", port)).unwrap();
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    assert!(!sync.output().contains("not critical yet"), "{}", sync.output());
    mesh.ends(&mut sync).await;
}

#[tokio::test]
async fn without_a_server_the_end_is_bounded_and_names_what_stays() {
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
async fn critical_status_waits_for_another_passing_instance_in_the_catalog() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    mesh.register_other().await;
    // More than two thirds of the checks' time to live, which checks in the catalog do not have.
    let mut sync = Process::spawn(mesh.command().env("HEALTH_SYNC_HOLD", "40s"));
    mesh.become_all("passing").await;
    sync.signal(Signal::TERM);
    sync.says("no other instance of shop is passing yet: this task stays passing until one is, at most for 40s", BOUND)
        .await;
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
    assert!(!sync.output().contains("this task stays passing until one is"), "{}", sync.output());
    mesh.ends(&mut sync).await;
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
    let mut gate = Command::new(binary("health-sync"));
    gate.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(["healthy", "--in-mesh"]);
    let closed = run(&mut gate, BOUND).await.stderr;
    assert_eq!(closed, "health-sync: there is no task metadata yet, or no login has succeeded yet\n");
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before a login succeeded: nothing was written to Consul", BOUND).await;
    assert!(!sync.output().contains("5ec3e7"));
}
