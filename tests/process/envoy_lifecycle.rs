//! envoy-entrypoint in a task: Envoy runs on until the apps have stopped.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use http_fixture::{Answer, Request, Server};
use mesh_tests::metadata::{Metadata, OWN_DOCKER_ID};
use mesh_tests::process::Process;
use mesh_tests::{binary, eventually, free_port, part};
use rustix::process::Signal;
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(20);

/// A script in Envoy's place. It prints a line when it gets TERM, and exits with 7.
const ENVOY: &str = "trap 'echo envoy got TERM; exit 7' TERM; echo ready; while :; do sleep 0.05; done";

fn container(name: &str, known: &str) -> Value {
    json!({ "DockerId": format!("id-of-{name}"), "Name": name, "KnownStatus": known, "DesiredStatus": "RUNNING" })
}

/// These apps, with Envoy's own container and health-sync.
fn containers(apps: &[(&str, &str)]) -> Value {
    let mut own = container("envoy", "RUNNING");
    own["DockerId"] = OWN_DOCKER_ID.into();
    let mut all = vec![own, container("health-sync", "RUNNING")];
    all.extend(apps.iter().map(|(name, known)| container(name, known)));
    all.into()
}

fn command(metadata: &Metadata, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("envoy-entrypoint"));
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(flags).args(["sh", "-c", ENVOY]);
    command
}

async fn started(metadata: &Metadata, flags: &[&str]) -> Process {
    let process = Process::spawn(&mut command(metadata, flags));
    process.says("ready", BOUND).await;
    process
}

/// Waits for this many more requests for the metadata. By then envoy-entrypoint has read the earlier answers.
async fn asked_again(metadata: &Metadata, times: u64) {
    let before = metadata.answered();
    eventually("the metadata is asked again", BOUND, async || {
        let asked = metadata.answered() - before;
        if asked >= times { Ok(()) } else { Err(format!("{asked} times")) }
    })
    .await;
}

#[tokio::test]
async fn envoy_gets_term_when_the_last_app_has_stopped() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING"), ("logger", "RUNNING")]));
    let mut process = started(&metadata, &[]).await;
    process.signal(Signal::TERM);
    process.says("waiting for app, logger", BOUND).await;
    metadata.set_containers(containers(&[("app", "STOPPED"), ("logger", "RUNNING")]));
    process.says("waiting for logger", BOUND).await;
    asked_again(&metadata, 3).await;
    assert!(!process.output().contains("envoy got TERM"), "{}", process.output());
    metadata.set_containers(containers(&[("app", "STOPPED"), ("logger", "STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(process.output().contains("envoy got TERM"), "{}", process.output());
}

#[tokio::test]
async fn ignored_container_does_not_keep_envoy_running() {
    let metadata = Metadata::start("shop", containers(&[("app", "STOPPED"), ("logger", "RUNNING"), ("x", "RUNNING")]));
    let mut process = started(&metadata, &["--ignore-container", "logger, x"]).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
}

#[tokio::test]
async fn metadata_is_polled_at_most_ten_times_a_second() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let process = started(&metadata, &["--drain", "--admin", "127.0.0.1:9"]).await;
    let running = (Instant::now(), metadata.answered());
    asked_again(&metadata, 2).await;
    let asked = metadata.answered() - running.1;
    assert!(asked as f64 <= 2.0 + running.0.elapsed().as_secs_f64(), "{asked} in {:?}", running.0.elapsed());
    process.signal(Signal::TERM);
    process.says("waiting for app", BOUND).await;
    let waiting = (Instant::now(), metadata.answered());
    asked_again(&metadata, 20).await;
    let asked = metadata.answered() - waiting.1;
    assert!(asked as f64 <= 2.0 + 10.0 * waiting.0.elapsed().as_secs_f64(), "{asked} in {:?}", waiting.0.elapsed());
}

#[tokio::test]
async fn metadata_without_the_apps_does_not_end_envoy() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let mut process = started(&metadata, &[]).await;
    process.signal(Signal::TERM);
    process.says("waiting for app", BOUND).await;
    let stranger = container("app", "STOPPED");
    for nothing in [Value::Null, json!([]), json!([stranger])] {
        metadata.set_field("Containers", nothing);
        asked_again(&metadata, 3).await;
        assert!(!process.output().contains("envoy got TERM"), "{}", process.output());
    }
    process.says("the task metadata lists containers, but not this one", BOUND).await;
    // Undocumented values in fields that do not show which containers have stopped.
    let mut app = container("app", "STOPPED");
    app["RestartCount"] = json!(-1);
    app["Labels"] = Value::Null;
    metadata.set_field("EphemeralStorageMetrics", json!({ "Utilized": 1.5 }));
    let mut all = containers(&[]);
    all.as_array_mut().unwrap().push(app);
    metadata.set_containers(all);
    assert_eq!(process.exit_code(BOUND).await, 7, "{}", process.output());
}

#[tokio::test]
async fn envoy_runs_on_while_the_metadata_is_missing() {
    let metadata = Metadata::start("shop", containers(&[("app", "STOPPED")]));
    metadata.set_failing(true);
    let mut process = started(&metadata, &[]).await;
    process.signal(Signal::TERM);
    process.says("no task metadata, asking again: ", BOUND).await;
    asked_again(&metadata, 5).await;
    let output = process.output();
    assert_eq!(output.matches("asking again").count(), 1, "said once: {output}");
    assert!(!output.contains("envoy got TERM"), "{output}");
    metadata.set_failing(false);
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(process.output().contains("the task metadata is there again"));
}

#[tokio::test]
async fn envoy_of_a_gateway_stops_after_its_delay() {
    let metadata = Metadata::start("shop", routed("RUNNING"));
    let mut process = started(&metadata, &["--gateway-delay", "700ms"]).await;
    let begun = Instant::now();
    process.signal(Signal::TERM);
    process.says("this gateway runs on for 700ms", BOUND).await;
    assert!(!process.output().contains("envoy got TERM"), "{}", process.output());
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(begun.elapsed() >= Duration::from_millis(700));
    for needless in ["waiting for app", "log router"] {
        assert!(!process.output().contains(needless), "{}", process.output());
    }
}

#[tokio::test]
async fn second_term_is_ignored_and_the_grace_ends_envoy() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let mut process = started(&metadata, &[]).await;
    process.signal(Signal::TERM);
    process.says("waiting for app", BOUND).await;
    process.signal(Signal::TERM);
    process.says("TERM again: Envoy runs on as before", BOUND).await;
    asked_again(&metadata, 3).await;
    assert!(!process.output().contains("envoy got TERM"), "{}", process.output());
    metadata.set_containers(containers(&[("app", "STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 7);

    metadata.set_containers(containers(&[("app", "RUNNING")]));
    let mut process = started(&metadata, &["--grace", "300ms"]).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(process.output().contains("the grace of 300ms is over"));
}

#[tokio::test]
async fn envoy_that_ignores_term_is_killed() {
    let metadata = Metadata::start("shop", containers(&[("app", "STOPPED")]));
    let mut ignoring = Command::new(binary("envoy-entrypoint"));
    ignoring.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    ignoring.args(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut process = Process::spawn(&mut ignoring);
    process.says("ready", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 128 + 9);
}

#[tokio::test]
async fn envoy_that_exits_by_itself_gives_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let die = dir.path().join("die");
    let script = format!("trap '' TERM; echo ready; while [ ! -e {} ]; do sleep 0.05; done; exit 9", die.display());
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    for term in [false, true] {
        let mut dying = Command::new(binary("envoy-entrypoint"));
        dying.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(["sh", "-c", &script]);
        let mut process = Process::spawn(&mut dying);
        process.says("ready", BOUND).await;
        if term {
            process.signal(Signal::TERM);
            process.says("waiting for app", BOUND).await;
        }
        std::fs::write(&die, "").unwrap();
        assert_eq!(process.exit_code(BOUND).await, 9);
        std::fs::remove_file(&die).unwrap();
    }
}

#[tokio::test]
async fn envoy_restarts_as_often_as_allowed_until_term() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let restarting = |uri: &str, flags: &[&str]| {
        let mut command = Command::new(binary("envoy-entrypoint"));
        command.env("ECS_CONTAINER_METADATA_URI_V4", uri);
        command.args(flags).args(["sh", "-c", "echo started; exit 3"]);
        Process::spawn(&mut command)
    };
    // An empty variable counts as not set.
    for uri in [metadata.uri.as_str(), ""] {
        let mut process = restarting(uri, &["--restarts", "2", "--restart-delay", "20ms"]);
        assert_eq!(process.exit_code(BOUND).await, 3);
        eventually("its output is read", BOUND, async || {
            let started = process.output().lines().filter(|line| *line == "started").count();
            if started == 3 { Ok(()) } else { Err(process.output()) }
        })
        .await;
    }
    let mut process = restarting(&metadata.uri, &["--restarts", "2", "--restart-delay", "1h"]);
    process.says("starting it again, 1 restarts left", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 3);
}

/// A server in the place of Envoy's admin page, and the paths of its POST requests. envoy-entrypoint also gets statistics from it.
fn admin() -> (String, Receiver<String>) {
    let (sender, receiver) = channel();
    let server = Server::start(move |request| {
        if request.method == "POST" {
            let _ = sender.send(request.target.clone());
        }
        Answer::ok("OK\n")
    });
    (server.address, receiver)
}

/// Statistics of an Envoy that asks Consul for listeners: how many updates it has taken.
fn listener_updates(taken: u32) -> String {
    format!("listener_manager.lds.update_rejected: 0\nlistener_manager.lds.update_success: {taken}\n")
}

/// A server in the place of Envoy's admin page. It answers each request with the next of these bodies, then with the last.
fn statistics(bodies: Vec<String>) -> String {
    let next = AtomicUsize::new(0);
    let answer = move |_: &Request| {
        let number = next.fetch_add(1, Ordering::SeqCst);
        Answer::ok(&bodies[number.min(bodies.len() - 1)])
    };
    Server::start(answer).address
}

#[tokio::test]
async fn listener_timeout_begins_anew_with_each_start() {
    // The admin page outlives Envoy. The first bound is over while no Envoy runs.
    let address = statistics(vec![listener_updates(0)]);
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let mut restarting = Command::new(binary("envoy-entrypoint"));
    restarting.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(["--admin", &address]);
    restarting.args(["--listener-timeout", "3s", "--restarts", "1", "--restart-delay", "4s", "sh", "-c", "exit 3"]);
    assert_eq!(Process::spawn(&mut restarting).exit_code(BOUND).await, 3);
}

#[tokio::test]
async fn inbound_listeners_drain_once_at_term_or_task_stop() {
    for by_term in [true, false] {
        let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
        let (address, requests) = admin();
        let mut process = started(&metadata, &["--drain", "--admin", &address]).await;
        assert!(
            process.output().contains("--drain without Envoy's --drain-strategy immediate"),
            "{}",
            process.output()
        );
        asked_again(&metadata, 1).await;
        assert!(requests.try_recv().is_err(), "not before");
        if by_term {
            process.signal(Signal::TERM);
        } else {
            metadata.set_desired_status("STOPPED");
        }
        process.says("draining the inbound listeners", BOUND).await;
        assert_eq!(requests.recv().unwrap(), "/drain_listeners?inboundonly&graceful&skip_exit");
        if !by_term {
            process.signal(Signal::TERM);
        }
        process.says("waiting for app", BOUND).await;
        asked_again(&metadata, 3).await;
        assert!(requests.try_recv().is_err(), "once");
        metadata.set_containers(containers(&[("app", "STOPPED")]));
        assert_eq!(process.exit_code(BOUND).await, 7);
    }
}

/// A bootstrap with an inbound and an outbound listener. Envoy answers their requests itself.
fn two_listeners(admin: u16, inbound: u16, outbound: u16) -> Value {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let listener = |direction: &str, port: u16| {
        let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": direction,
            "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
            "route_config": { "virtual_hosts": [{ "name": "any", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "direct_response": { "status": 200 } },
            ] }] },
        });
        let filters = json!([{ "name": "http", "typed_config": manager }]);
        json!({ "name": direction, "traffic_direction": direction, "address": address(port),
            "filter_chains": [{ "filters": filters }] })
    };
    json!({ "admin": { "address": address(admin) },
        "static_resources": { "listeners": [listener("INBOUND", inbound), listener("OUTBOUND", outbound)] } })
}

/// Sends a request on a connection that stays open. Returns the head of the answer; it is empty if the connection was closed.
fn asked(mut connection: &TcpStream) -> String {
    let _ = connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut head = String::new();
    let lines = BufReader::new(connection).lines().map_while(Result::ok);
    for line in lines.take_while(|line| !line.is_empty()) {
        head.push_str(&line);
        head.push('\n');
    }
    head
}

/// A real Envoy with this bootstrap, one worker and a drain time of 1 s, under envoy-entrypoint.
fn real_envoy(metadata: &Metadata, flags: &[&str], directory: &Path, bootstrap: &Value) -> Process {
    let config = directory.join("envoy.json");
    std::fs::write(&config, bootstrap.to_string()).unwrap();
    let mut command = Command::new(binary("envoy-entrypoint"));
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(flags).arg(part("envoy"));
    command.arg("--config-path").arg(config).args(["--drain-time-s", "1", "--drain-strategy", "immediate"]);
    Process::spawn(command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]))
}

async fn connected(port: u16) -> TcpStream {
    let connect = async || TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string());
    eventually("the listener is open", BOUND, connect).await
}

/// envoy-entrypoint reads the admin address from the bootstrap.
#[tokio::test]
async fn draining_envoy_still_accepts_and_sends_requests() {
    for (drain, host) in [("true", "127.0.0.1"), ("true", "::1"), ("false", "127.0.0.1")] {
        let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
        let ports = [free_port(), free_port(), free_port()];
        let mut bootstrap = two_listeners(ports[0], ports[1], ports[2]);
        bootstrap["admin"]["address"]["socket_address"]["address"] = host.into();
        let directory = tempfile::tempdir().unwrap();
        let flags = if drain == "true" { &["--drain"][..] } else { &[] };
        let mut process = real_envoy(&metadata, flags, directory.path(), &bootstrap);
        let (inbound, outbound) = (connected(ports[1]).await, connected(ports[2]).await);
        for connection in [&inbound, &outbound] {
            assert!(asked(connection).starts_with("HTTP/1.1 200"), "{}", process.output());
        }
        process.signal(Signal::TERM);
        process.says("waiting for app", BOUND).await;
        if drain == "true" {
            process.says("draining the inbound listeners", BOUND).await;
            let last = asked(&inbound);
            assert!(last.starts_with("HTTP/1.1 200") && last.contains("connection: close"), "{last}");
        }
        // This takes more than twice the drain time.
        asked_again(&metadata, 25).await;
        let new = asked(&connected(ports[1]).await);
        assert!(new.starts_with("HTTP/1.1 200") && new.contains("connection: close") == (drain == "true"), "{new}");
        let kept = asked(&outbound);
        assert!(kept.starts_with("HTTP/1.1 200") && !kept.contains("close"), "{kept}");
        metadata.set_containers(containers(&[("app", "STOPPED")]));
        assert_eq!(process.exit_code(BOUND).await, 0, "{}", process.output());
    }
}

/// The bootstrap of an Envoy that asks an agent for listeners, but no agent answers. Its static listeners open.
fn without_an_agent(mut bootstrap: Value) -> Value {
    let agent = json!({ "socket_address": { "address": "127.0.0.1", "port_value": free_port() } });
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": agent } }] }]);
    bootstrap["node"] = json!({ "id": "shop-f1a2-sidecar-proxy", "cluster": "shop" });
    bootstrap["static_resources"]["clusters"] = json!([{
        "name": "local_agent", "connect_timeout": "1s", "http2_protocol_options": {},
        "load_assignment": { "cluster_name": "local_agent", "endpoints": endpoints },
    }]);
    bootstrap["dynamic_resources"] = json!({
        "lds_config": { "ads": {}, "resource_api_version": "V3" },
        "ads_config": {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "grpc_services": { "envoy_grpc": { "cluster_name": "local_agent" } },
        },
    });
    bootstrap
}

#[tokio::test]
async fn envoy_without_listeners_ends_with_the_reason() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let directory = tempfile::tempdir().unwrap();
    let bootstrap = without_an_agent(two_listeners(free_port(), free_port(), free_port()));
    let mut process = real_envoy(&metadata, &["--listener-timeout", "2s"], directory.path(), &bootstrap);
    assert_eq!(process.exit_code(BOUND).await, 1);
    process.says("envoy-entrypoint: Envoy got no listeners from Consul within 2s, so it was ended: ", BOUND).await;

    // An ingress gateway's Envoy has no bound: it runs for longer than the one above.
    let mut process = real_envoy(&metadata, &["--drain", "--listener-timeout", "0s"], directory.path(), &bootstrap);
    asked_again(&metadata, 4).await;
    process.signal(Signal::TERM);
    process.says("waiting for app", BOUND).await;
    metadata.set_containers(containers(&[("app", "STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 0, "{}", process.output());
}

#[tokio::test]
async fn envoy_that_gives_no_answer_is_ended() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let frozen = |flags: &[&str]| {
        let mut command = Command::new(binary("envoy-entrypoint"));
        command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).args(["--listener-timeout", "2s"]).args(flags);
        Process::spawn(command.args(["sh", "-c", "echo ready; kill -STOP $$"]))
    };
    let page = format!("127.0.0.1:{}", free_port());
    let mut process = frozen(&["--admin", &page]);
    assert_eq!(process.exit_code(BOUND).await, 1);
    process.says(&format!("Envoy gave no answer at its admin page {page} within 2s, so it was ended: "), BOUND).await;

    // Without an address, there may be no admin page.
    let mut process = frozen(&["--drain", "--grace", "1s"]);
    process.says("ready", BOUND).await;
    asked_again(&metadata, 5).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 137, "{}", process.output());
}

#[tokio::test]
async fn envoy_that_does_not_use_consul_runs_on() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    let directory = tempfile::tempdir().unwrap();
    let bootstrap = two_listeners(free_port(), free_port(), free_port());
    let mut process = real_envoy(&metadata, &["--drain", "--listener-timeout", "1s"], directory.path(), &bootstrap);
    asked_again(&metadata, 4).await;
    process.signal(Signal::TERM);
    process.says("waiting for app", BOUND).await;
    metadata.set_containers(containers(&[("app", "STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 0, "{}", process.output());
}

#[tokio::test]
async fn envoy_that_had_listeners_runs_on_without_them() {
    let metadata = Metadata::start("shop", containers(&[("app", "RUNNING")]));
    // As if somebody had reset Envoy's counters after the listeners came.
    let address = statistics(vec![listener_updates(1), listener_updates(0)]);
    let flags = ["--drain", "--admin", &address, "--listener-timeout", "1s"];
    let mut process = started(&metadata, &flags).await;
    asked_again(&metadata, 4).await;
    process.signal(Signal::TERM);
    metadata.set_containers(containers(&[("app", "STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 7, "{}", process.output());
}

#[tokio::test]
async fn log_router_that_is_not_ignored_gives_a_warning() {
    const WARNING: &str = "this container logs through a log router, which ECS stops only after this container";
    let metadata = Metadata::start("shop", routed("STOPPED"));
    for flags in [&[][..], &["--ignore-container", "app"]] {
        // The endpoint may not answer yet when Envoy starts.
        metadata.set_failing(true);
        let process = started(&metadata, flags).await;
        asked_again(&metadata, 2).await;
        metadata.set_failing(false);
        process.says(WARNING, BOUND).await;
    }
    let before = metadata.answered();
    let mut process = started(&metadata, &["--ignore-container", "router"]).await;
    eventually("both warnings have their metadata", BOUND, async || {
        if metadata.answered() >= before + 3 { Ok(()) } else { Err(metadata.answered().to_string()) }
    })
    .await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(!process.output().contains(WARNING), "{}", process.output());
}

/// An app and Envoy that log through a log router.
fn routed(app: &str) -> Value {
    let mut all = containers(&[("app", app), ("router", "RUNNING")]);
    for container in [0, 2] {
        all[container]["LogDriver"] = "awsfirelens".into();
    }
    all
}

#[tokio::test]
async fn ignored_name_without_a_container_gives_a_warning() {
    // ECS lists a container once it is created. A container that depends on this one is created later.
    let metadata = Metadata::start("shop", containers(&[]));
    metadata.set_field("KnownStatus", "CREATED".into());
    let process = started(&metadata, &["--ignore-container", "router,ruoter"]).await;
    asked_again(&metadata, 2).await;
    assert!(!process.output().contains("--ignore-container names"), "{}", process.output());
    metadata.set_containers(containers(&[("app", "RUNNING"), ("router", "RUNNING")]));
    metadata.set_field("KnownStatus", "RUNNING".into());
    process.says("--ignore-container names ruoter, and this task has no such container", BOUND).await;
    assert!(!process.output().contains("names router,"), "{}", process.output());
}

#[tokio::test]
async fn silent_admin_page_does_not_delay_the_end() {
    let metadata = Metadata::start("shop", containers(&[("app", "STOPPED")]));
    let mut process = started(&metadata, &["--drain", "--admin", "127.0.0.1:9"]).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
}

#[tokio::test]
async fn outside_ecs_term_is_passed_on_at_once() {
    let mut outside = Command::new(binary("envoy-entrypoint"));
    outside.env_remove("ECS_CONTAINER_METADATA_URI_V4").args(["sh", "-c", ENVOY]);
    let mut process = Process::spawn(&mut outside);
    process.says("ECS_CONTAINER_METADATA_URI_V4 is not set", BOUND).await;
    process.says("ready", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);

    let mut wrong = Command::new(binary("envoy-entrypoint"));
    wrong.env("ECS_CONTAINER_METADATA_URI_V4", "169.254.170.2").args(["sh", "-c", "echo ready"]);
    let finished = mesh_tests::process::run(&mut wrong, BOUND).await;
    assert_eq!((finished.code, finished.stdout.as_str(), finished.stderr.lines().count()), (1, "", 1));
    assert!(finished.stderr.starts_with("envoy-entrypoint: ECS_CONTAINER_METADATA_URI_V4 is"), "{}", finished.stderr);
}
