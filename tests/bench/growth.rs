//! How the work grows with upstreams, with services in the catalog, and with tasks: `cargo xtask bench --growth`.

use std::path::Path;
use std::time::{Duration, Instant};

use mesh_tests::consul::{Agent, version};
use mesh_tests::metadata::Metadata;
use mesh_tests::process::Process;
use mesh_tests::{free_port, http};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::acl_controller::{self, Measured, Size};
use crate::peer::report::{load, machine, median};
use crate::requests::Recorder;
use crate::{BOUND, PAGE, release_binary};

const UPSTREAMS: [usize; 3] = [1, 10, 100];
const SERVICES: [usize; 3] = [10, 1_000, 10_000];
const TASKS: [usize; 3] = [1_000, 10_000, 100_000];

/// How often mesh-init runs for each figure.
const RUNS: usize = 11;

/// How many tasks of acl-controller's world run each service.
const TASKS_A_SERVICE: usize = 2;

/// How often acl-controller begins a cycle, in seconds.
const INTERVAL: f64 = 10.0;

/// 10,000 new services take minutes.
const LONG: Duration = Duration::from_secs(900);

const MINUTE: Duration = Duration::from_secs(60);

/// After this time, a new agent has sent the requests that belong to its start.
const STARTED: Duration = Duration::from_secs(20);

/// Measures everything, and prints the tables in Markdown.
pub async fn measure() {
    println!("{}. Consul {}. Load {} at the start.", machine(), version(), load());
    eprintln!("measuring a task with {UPSTREAMS:?} upstreams …");
    let tasks = upstreams().await;
    eprintln!("measuring mesh-init with {SERVICES:?} services in the catalog …");
    services().await;
    extrapolate(&tasks);
    eprintln!("measuring acl-controller, for some minutes …");
    controller().await;
}

/// The cost of a task with a certain number of upstreams.
struct Cost {
    upstreams: usize,
    /// HTTP requests of the sidecars to the task's agent in an idle minute.
    requests: usize,
    /// Requests of the task's agent to the servers: in the first seconds, and in an idle minute after that.
    start: f64,
    minute: f64,
}

/// A task's registration: mesh-init's command for a document with this many upstreams.
fn of_task(name: &str, agent: &str, metadata: &Metadata, volume: &Path, upstreams: usize) -> std::process::Command {
    let upstreams = (0..upstreams)
        .map(|number| json!({ "destinationName": format!("upstream-{number}"), "localBindPort": 10_000 + number }));
    let document = json!({
        "bootstrapDir": volume, "service": { "port": 8080 }, "healthSyncContainers": ["app"],
        "proxy": { "upstreams": upstreams.collect::<Vec<_>>() },
    });
    let mut command = std::process::Command::new(release_binary(name));
    command.env_clear().env("CONSUL_HTTP_ADDR", agent).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    command
}

fn task() -> (Metadata, tempfile::TempDir) {
    let app =
        json!([{ "Name": "app", "DockerId": "app", "KnownStatus": "RUNNING", "Health": { "status": "HEALTHY" } }]);
    (Metadata::start("shop", app), tempfile::tempdir().expect("a temporary directory can be made"))
}

/// The median time of mesh-init, each time for a task that is not registered. At the end the task is not registered.
async fn mesh_init(agent: &Agent, metadata: &Metadata, volume: &Path, upstreams: usize) -> Duration {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        register(agent, metadata, volume, upstreams);
        times.push(began.elapsed());
        for id in ["shop-f1a2", "shop-f1a2-sidecar-proxy"] {
            agent.call("PUT", &format!("/v1/agent/service/deregister/{id}"), &Value::Null).await;
        }
    }
    median(&times)
}

/// Runs mesh-init once.
fn register(agent: &Agent, metadata: &Metadata, volume: &Path, upstreams: usize) {
    let output = of_task("mesh-init", &agent.http, metadata, volume, upstreams).output().expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The task's own agent, as a client of the server.
async fn client_of(serf: u16, number: usize) -> Agent {
    Agent::start_with(&json!({
        "server": false, "bootstrap": false, "node_name": format!("task-{number}"),
        "retry_join": [format!("127.0.0.1:{serf}")],
        "telemetry": { "prometheus_retention_time": "1h", "disable_hostname": true },
    }))
    .await
}

/// How many requests the agent has sent to the servers.
async fn asked(agent: &Agent) -> f64 {
    let metrics = http::get(&agent.url("/v1/agent/metrics?format=prometheus")).await.expect("the agent answers");
    let count = metrics.lines().find_map(|line| line.strip_prefix("consul_client_rpc "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// One task for each number of upstreams, all at the same time.
async fn upstreams() -> Vec<Cost> {
    let serf = free_port();
    let server = Agent::start_with(&json!({ "ports": { "serf_lan": serf } })).await;
    println!(
        "\n| upstreams | mesh-init, median | bootstrap | requests to the agent, idle minute | the agent's requests to the servers: start | idle minute |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    let mut tasks = Vec::new();
    for upstreams in UPSTREAMS {
        let agent = client_of(serf, upstreams).await;
        let (metadata, volume) = task();
        tasks.push((upstreams, agent, metadata, volume));
    }
    // The start of the agents themselves is not counted.
    sleep(STARTED).await;
    let mut syncs = Vec::new();
    for (upstreams, agent, metadata, volume) in &tasks {
        let before = asked(agent).await;
        register(agent, metadata, volume.path(), *upstreams);
        let recorder = Recorder::start(&agent.http);
        let sync = Process::spawn(&mut of_task("health-sync", &recorder.address, metadata, volume.path(), *upstreams));
        sync.says("check passing", BOUND).await;
        syncs.push((sync, recorder, before));
    }
    sleep(STARTED).await;
    let mut before = Vec::new();
    for ((_, agent, ..), (_, recorder, _)) in tasks.iter().zip(&syncs) {
        before.push((asked(agent).await, recorder.requests().len()));
    }
    sleep(MINUTE).await;
    let mut costs = Vec::new();
    for (((upstreams, agent, metadata, volume), (sync, recorder, at_first)), (started, requests)) in
        tasks.iter().zip(syncs).zip(before)
    {
        let bootstrap = volume.path().join("envoy-bootstrap.json").metadata().expect("mesh-init wrote it").len();
        let cost = Cost {
            upstreams: *upstreams,
            requests: recorder.requests().len() - requests,
            start: started - at_first,
            minute: asked(agent).await - started,
        };
        // health-sync would register again what the measured runs deregister.
        drop(sync);
        let took = mesh_init(agent, metadata, volume.path(), *upstreams).await;
        println!(
            "| {upstreams} | {:.1} ms | {:.1} kB | {} | {:.0} | {:.0} |",
            took.as_secs_f64() * 1e3,
            bootstrap as f64 / 1e3,
            cost.requests,
            cost.start,
            cost.minute
        );
        costs.push(cost);
    }
    drop(server);
    costs
}

/// Measures mesh-init with catalogs of different sizes.
async fn services() {
    println!("\n| services in the catalog | mesh-init, median |\n|--:|--:|");
    let agent = Agent::start().await;
    let (metadata, volume) = task();
    let mut registered = 0;
    for services in SERVICES {
        while registered < services {
            // A transaction has at most 64 operations.
            let end = services.min(registered + 60);
            let node = format!("node-{registered}");
            let mut operations =
                vec![json!({ "Node": { "Verb": "set", "Node": { "Node": node, "Address": "127.0.0.2" } } })];
            operations.extend((registered..end).map(|number| {
                let service =
                    json!({ "ID": format!("other-{number}"), "Service": format!("other-{number}"), "Port": 80 });
                json!({ "Service": { "Verb": "set", "Node": node, "Service": service } })
            }));
            agent.call("PUT", "/v1/txn", &Value::Array(operations)).await;
            registered = end;
        }
        let took = mesh_init(&agent, &metadata, volume.path(), 1).await;
        println!("| {services} | {:.1} ms |", took.as_secs_f64() * 1e3);
    }
}

/// Measures acl-controller with different numbers of services and tasks.
async fn controller() {
    println!(
        "\n| services | tasks | acl-controller: all new services | resident | an idle cycle | its calls of ECS | of Secrets Manager | of Consul |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
    for services in SERVICES {
        let tasks = services * TASKS_A_SERVICE;
        let Measured { first, resident, cycle, calls } =
            acl_controller::measure(Size { services, tasks }, 1, LONG).await;
        let sum = |names: &[&str]| {
            calls
                .iter()
                .filter(|(call, _)| names.iter().any(|name| call.starts_with(name)))
                .map(|(_, count)| count)
                .sum::<usize>()
        };
        println!(
            "| {services} | {tasks} | {:.1} s | {resident:.1} MB | {:.1} s | {} | {} | {} |",
            first.as_secs_f64(),
            cycle.as_secs_f64(),
            sum(&["ListTasks", "DescribeTasks"]),
            sum(&["ListSecrets", "GetSecretValue", "PutSecretValue"]),
            sum(&["GET ", "PUT "])
        );
    }
}

/// The measured cost of one task, multiplied by the number of tasks.
fn extrapolate(costs: &[Cost]) {
    println!(
        "\n| tasks | agents in the gossip pool | requests to the agents, a second | requests to the servers, a second, idle | requests to the servers, all tasks new | acl-controller's calls of ECS, a second |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    let Some(cost) = costs.iter().find(|cost| cost.upstreams == 10) else { return };
    for tasks in TASKS {
        let all = tasks as f64;
        println!(
            "| {tasks} | {tasks} | {:.0} | {:.0} | {:.0} | {:.0} |",
            all * cost.requests as f64 / 60.0,
            all * cost.minute / 60.0,
            all * cost.start,
            2.0 * tasks.div_ceil(PAGE) as f64 / INTERVAL
        );
    }
}
