//! The containers of a task: how soon they react, what they hold in memory, and how long mesh-init takes.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use mesh_tests::consul::Agent;
use mesh_tests::eventually;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::Process;
use rustix::process::Signal;
use serde_json::{Value, json};
use sidecar_kit::http::Client;
use tokio::time::{sleep, timeout};

use crate::requests::{self, Recorder};
use crate::table::{Row, Unit};
use crate::usage::{Usage, resident};
use crate::{BOUND, release_binary};

/// How often each reaction is measured.
const SAMPLES: u64 = 100;

/// How long one stop of an entry point may take.
const STOP: Duration = Duration::from_secs(20);

/// How often mesh-init runs, and how often its requests are made without it.
const RUNS: usize = 31;

/// How many ms of processor time health-sync may use in an idle minute. In one run, health-sync of consul-ecs 0.6.2 took 32.5 ms, and an
/// earlier one of ecs-mesh 39.5 ms. The budget is half of what consul-ecs took.
pub const IDLE_CPU: f64 = 32.5 / 2.0;

const CHECK: &str = "shop-f1a2-app-consul-ecs";

/// The command of an entry point. TERM ends it.
const COMMAND: [&str; 3] = ["sh", "-c", "echo ready; exec sleep 600"];

pub async fn measure() -> Vec<Row> {
    let agent = Agent::start().await;
    let mut rows = vec![mesh_init(&agent).await];
    rows.extend(envoy_entrypoint().await);
    rows.push(app_entrypoint().await);
    rows.push(stops().await);
    rows.extend(health_sync(&agent).await);
    rows.extend(health_sync_idle(&agent).await);
    rows
}

fn app(known: &str, health: &str) -> Value {
    json!([{ "Name": "app", "DockerId": "app", "KnownStatus": known, "DesiredStatus": "RUNNING", "Health": { "status": health } }])
}

pub fn idle(name: &str, process: &Process, budget: f64) -> Row {
    Row::new(format!("{name}: resident, idle"), Unit::Megabytes, resident(process.id()), budget)
}

pub fn p99(what: &str, mut samples: Vec<Duration>, budget: f64) -> Row {
    samples.sort();
    let sample = samples[samples.len() * 99 / 100 - 1];
    Row::new(format!("{what}, p99 of {}", samples.len()), Unit::Seconds, sample.as_secs_f64(), budget)
}

/// The time from the end of the last app in the metadata to the end of the entry point. The entry point ends with its command.
async fn envoy_entrypoint() -> [Row; 2] {
    let (mut samples, mut memory) = (Vec::new(), None);
    for number in 0..SAMPLES {
        let metadata = Metadata::start("shop", app("RUNNING", "HEALTHY"));
        let mut command = Command::new(release_binary("envoy-entrypoint"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
        let entrypoint = Process::spawn(command.args(COMMAND));
        entrypoint.says("ready", BOUND).await;
        memory.get_or_insert_with(|| idle("envoy-entrypoint", &entrypoint, 2.5));
        entrypoint.signal(Signal::TERM);
        entrypoint.says("waiting for app", BOUND).await;
        // The pauses differ, so that the changes come at different times between two requests for the metadata, which are a tenth of a
        // second apart.
        sleep(Duration::from_millis(number)).await;
        let began = Instant::now();
        metadata.set_containers(app("STOPPED", "HEALTHY"));
        let status = format!("/proc/{}/stat", entrypoint.id());
        while !std::fs::read_to_string(&status).expect("nobody has waited for it").contains(") Z ") {
            sleep(Duration::from_millis(1)).await;
        }
        samples.push(began.elapsed());
    }
    [p99("envoy-entrypoint: last app gone to TERM for Envoy", samples, 0.15), memory.expect("there were samples")]
}

async fn app_entrypoint() -> Row {
    let entrypoint = Process::spawn(Command::new(release_binary("app-entrypoint")).args(COMMAND));
    entrypoint.says("ready", BOUND).await;
    idle("app-entrypoint", &entrypoint, 2.5)
}

/// Stops an entry point whose command has children, many times, and counts the stops after which it did not end.
async fn stops() -> Row {
    const STOPS: usize = 1_000;
    let names = ["app-entrypoint", "envoy-entrypoint"].into_iter().cycle().take(STOPS);
    let ended = stream::iter(names)
        .map(async |name| {
            let mut command = Command::new(release_binary(name));
            command.env_remove("ECS_CONTAINER_METADATA_URI_V4");
            command.envs(["APP_ENTRYPOINT_SIGNAL_GROUP", "ENVOY_ENTRYPOINT_SIGNAL_GROUP"].map(|name| (name, "1")));
            let mut process = Process::spawn(command.args([
                "sh",
                "-c",
                "sleep 600 & sleep 600 & sleep 600 & sleep 600 & echo ready; wait",
            ]));
            process.says("ready", BOUND).await;
            process.signal(Signal::TERM);
            timeout(STOP, process.exit_code(BOUND)).await.is_ok()
        })
        .buffer_unordered(8)
        .filter(|ended| std::future::ready(!ended))
        .count()
        .await;
    Row::new(format!("entry points: {STOPS} stops with children, not ended"), Unit::Calls, ended as f64, 0.0)
}

/// A command with the variables of a task's container.
fn of_task(name: &str, agent: &str, metadata: &Metadata, volume: &Path) -> Command {
    let document = json!({
        "bootstrapDir": volume, "service": { "port": 8080 }, "healthSyncContainers": ["app"],
        "proxy": { "upstreams": [{ "destinationName": "api", "localBindPort": 1234 }] },
    });
    let mut command = Command::new(release_binary(name));
    command.env_clear().env("CONSUL_HTTP_ADDR", agent).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    command
}

/// The time from a change in the metadata to the change of the agent's check.
async fn health_sync(agent: &Agent) -> [Row; 2] {
    let metadata = Metadata::start("shop", app("RUNNING", "UNHEALTHY"));
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let sync = Process::spawn(&mut of_task("health-sync", &agent.http, &metadata, volume.path()));
    let is = async |wanted: &str| agent.call("GET", "/v1/agent/checks", &Value::Null).await[CHECK]["Status"] == wanted;
    eventually("health-sync has registered the check", BOUND, async || {
        if is("critical").await { Ok(()) } else { Err(sync.output()) }
    })
    .await;
    let mut samples = Vec::new();
    for number in 0..SAMPLES {
        // The pauses differ, so that the changes come at different times between two requests for the metadata.
        sleep(Duration::from_millis(number * 370 % 1000)).await;
        let (health, status) = if number % 2 == 0 { ("HEALTHY", "passing") } else { ("UNHEALTHY", "critical") };
        let began = Instant::now();
        metadata.set_containers(app("RUNNING", health));
        while !is(status).await {
            assert!(began.elapsed() < BOUND, "{}", sync.output());
            sleep(Duration::from_millis(2)).await;
        }
        samples.push(began.elapsed());
    }
    [p99("health-sync: ECS health changed to check changed", samples, 0.55), idle("health-sync", &sync, 4.0)]
}

/// Measures health-sync during a minute in which nothing changes.
async fn health_sync_idle(agent: &Agent) -> [Row; 2] {
    // The budget of requests: six heartbeats, and one read-back of services and checks.
    const REQUESTS: f64 = 6.0 + 2.0;
    let metadata = Metadata::start("shop", app("RUNNING", "HEALTHY"));
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let recorder = Recorder::start(&agent.http);
    let sync = Process::spawn(&mut of_task("health-sync", &recorder.address, &metadata, volume.path()));
    sync.says("check passing", BOUND).await;
    sleep(Duration::from_secs(5)).await;
    let before = (Usage::of(sync.id()), recorder.requests().len());
    sleep(Duration::from_secs(60)).await;
    let milliseconds = (Usage::of(sync.id()) - before.0).milliseconds();
    let requests = recorder.requests().len() - before.1;
    [
        Row::new("health-sync: CPU of an idle minute".to_owned(), Unit::Milliseconds, milliseconds, IDLE_CPU),
        Row::new(
            "health-sync: requests to the agent in an idle minute".to_owned(),
            Unit::Calls,
            requests as f64,
            REQUESTS,
        ),
    ]
}

/// The median time of mesh-init from start to exit. The floor is the median time of its requests alone.
async fn mesh_init(agent: &Agent) -> Row {
    let metadata = Metadata::start("shop", app("RUNNING", "HEALTHY"));
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let runs = |agent: &str| {
        let began = Instant::now();
        let output = of_task("mesh-init", agent, &metadata, volume.path()).output().expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        began.elapsed()
    };
    // The first run registers. All others find the registration.
    runs(&agent.http);
    let recorder = Recorder::start(&agent.http);
    runs(&recorder.address);
    let requests = recorder.requests();
    assert!(requests.len() > 2, "mesh-init asks for more than {}", requests.len());

    let client = Client::plain();
    let (mut took, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        took.push(runs(&agent.http));
        alone.push(requests::time_alone(&client, &metadata.uri, agent, &requests).await);
    }
    let [took, alone] = [took, alone].map(|mut times| {
        times.sort();
        times[RUNS / 2].as_secs_f64()
    });
    Row::new(format!("mesh-init: start to exit, median of {RUNS}"), Unit::Seconds, took, 1.5 * alone).with_floor(alone)
}
