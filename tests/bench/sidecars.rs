//! The containers of a task: how soon they react, what they hold in memory, and how long mesh-init takes.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_tests::consul::Agent;
use mesh_tests::eventually;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::Process;
use rustix::process::Signal;
use serde_json::{Value, json};
use sidecar_kit::http::{Client, Limits, Request};
use tokio::time::sleep;

use crate::far_consul::copy;
use crate::table::{Row, Unit};
use crate::{BOUND, release_binary, resident};

/// How often each reaction is measured.
const SAMPLES: u64 = 100;

/// How often mesh-init runs, and its requests without it.
const RUNS: usize = 31;

const CHECK: &str = "shop-f1a2-app-consul-ecs";

/// What an entry point runs: it ends with TERM.
const STAND_IN: [&str; 3] = ["sh", "-c", "echo ready; exec sleep 600"];

pub async fn measure() -> Vec<Row> {
    let agent = Agent::start().await;
    let [told, envoy_idle] = envoy_entrypoint().await;
    let [changed, sync_idle] = health_sync(&agent).await;
    vec![mesh_init(&agent).await, told, changed, envoy_idle, app_entrypoint().await, sync_idle]
}

fn app(known: &str, health: &str) -> Value {
    json!([{ "Name": "app", "DockerId": "app", "KnownStatus": known, "DesiredStatus": "RUNNING", "Health": { "status": health } }])
}

fn idle(name: &str, process: &Process, budget: f64) -> Row {
    Row::new(format!("{name}: resident, idle"), Unit::Megabytes, resident(process.id()), budget)
}

fn p99(what: &str, mut samples: Vec<Duration>, budget: f64) -> Row {
    samples.sort();
    let sample = samples[samples.len() * 99 / 100 - 1];
    Row::new(format!("{what}, p99 of {}", samples.len()), Unit::Seconds, sample.as_secs_f64(), budget)
}

/// From the last app's end in the metadata to the entry point's own, which is that of what runs in Envoy's place.
async fn envoy_entrypoint() -> [Row; 2] {
    let (mut samples, mut memory) = (Vec::new(), None);
    for number in 0..SAMPLES {
        let metadata = Metadata::start("shop", app("RUNNING", "HEALTHY"));
        let mut command = Command::new(release_binary("envoy-entrypoint"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
        let entrypoint = Process::spawn(command.args(STAND_IN));
        entrypoint.says("ready", BOUND).await;
        memory.get_or_insert_with(|| idle("envoy-entrypoint", &entrypoint, 3.0));
        entrypoint.signal(Signal::TERM);
        entrypoint.says("waiting for app", BOUND).await;
        // At any point of the tenth of a second between two questions.
        sleep(Duration::from_millis(number)).await;
        let began = Instant::now();
        metadata.set_containers(app("STOPPED", "HEALTHY"));
        let status = format!("/proc/{}/stat", entrypoint.id());
        while !std::fs::read_to_string(&status).expect("nobody has waited for it").contains(") Z ") {
            sleep(Duration::from_millis(1)).await;
        }
        samples.push(began.elapsed());
    }
    [p99("envoy-entrypoint: last app gone to Envoy told to end", samples, 0.3), memory.expect("there were samples")]
}

async fn app_entrypoint() -> Row {
    let entrypoint = Process::spawn(Command::new(release_binary("app-entrypoint")).args(STAND_IN));
    entrypoint.says("ready", BOUND).await;
    idle("app-entrypoint", &entrypoint, 3.0)
}

/// The variables of a task's containers.
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

/// From a change in the metadata to the agent's check.
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
        // At any point of the second between two questions.
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
    [p99("health-sync: ECS health changed to check changed", samples, 1.1), idle("health-sync", &sync, 5.0)]
}

/// From start to exit, the median of some runs, beside that of its requests alone.
async fn mesh_init(agent: &Agent) -> Row {
    let metadata = Metadata::start("shop", app("RUNNING", "HEALTHY"));
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let runs = |agent: &str| {
        let began = Instant::now();
        let output = of_task("mesh-init", agent, &metadata, volume.path()).output().expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        began.elapsed()
    };
    // The first one registers; all others find that.
    runs(&agent.http);
    let (address, sent) = recorded(&agent.http);
    runs(&address);
    let requests =
        sent.lock().expect("no other thread panics").iter().flat_map(|bytes| parse(bytes)).collect::<Vec<_>>();
    assert!(requests.len() > 2, "mesh-init asks for more than {}", requests.len());

    let client = Client::plain();
    let limits = Limits { time: Duration::from_secs(30), bytes: 16 << 20 };
    let (mut took, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        took.push(runs(&agent.http));
        let began = Instant::now();
        let task = hyper::Request::get(format!("{}/task", metadata.uri)).body(Default::default());
        client.send(task.expect("it is a URL"), limits).await.expect("the metadata answers");
        for (method, path, headers, body) in &requests {
            let mut request: Request = hyper::Request::new(body.clone().into());
            *request.method_mut() = method.parse().expect("a method was recorded");
            *request.uri_mut() = agent.url(path).parse().expect("a path was recorded");
            for (name, value) in headers {
                let name = name.parse::<hyper::header::HeaderName>().expect("a name was recorded");
                request.headers_mut().insert(name, value.parse().expect("a value was recorded"));
            }
            client.send(request, limits).await.expect("the agent answers");
        }
        alone.push(began.elapsed());
    }
    let [took, alone] = [took, alone].map(|mut times| {
        times.sort();
        times[RUNS / 2].as_secs_f64()
    });
    Row::new(format!("mesh-init: start to exit, median of {RUNS}"), Unit::Seconds, took, 1.5 * alone).with_floor(alone)
}

/// A way to the agent on which everything that is sent is kept, connection by connection.
fn recorded(to: &str) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address").to_string();
    let (to, sent) = (to.to_owned(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
    let keep = sent.clone();
    std::thread::spawn(move || {
        for (number, near) in listener.incoming().flatten().enumerate() {
            let far = TcpStream::connect(&to).expect("Consul listens");
            let twice = |stream: &TcpStream| stream.try_clone().expect("a connection can be held twice");
            let (answers, back, keep) = (twice(&far), twice(&near), keep.clone());
            keep.lock().expect("no other thread panics").push(Vec::new());
            std::thread::spawn(move || copy(answers, back, |_| {}));
            std::thread::spawn(move || {
                copy(near, far, |bytes| keep.lock().expect("no other thread panics")[number].extend_from_slice(bytes));
            });
        }
    });
    (address, sent)
}

/// Method, path, header fields and body.
type Sent = (String, String, Vec<(String, String)>, Vec<u8>);

/// The requests of one connection. Bodies have a length.
fn parse(mut bytes: &[u8]) -> Vec<Sent> {
    let mut requests = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let (own, fields): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| name == "content-length" || name == "host");
        let length =
            own.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, length)| length.parse().unwrap_or(0));
        let body = &bytes[end + 4..][..length];
        requests.push((method, path, fields, body.to_vec()));
        bytes = &bytes[end + 4 + length..];
    }
    requests
}
