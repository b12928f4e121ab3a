//! The budgets of what is shipped, measured: `cargo xtask bench`.
//!
//! The release binary works beside a real Consul and an AWS of the tests, both some milliseconds away. What the same calls take
//! without it, the floor, is measured in the same run: a figure says little about a machine that nobody knows.

mod far_consul;
mod floor;
mod sidecars;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use mesh_tests::aws::{Aws, CLUSTER};
use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use mesh_tests::{eventually, free_port, http};

use crate::far_consul::FarConsul;
use crate::table::{Row, Unit};

const SERVICES: usize = 1_000;
const TASKS: usize = 10_000;
const AWAY: Duration = Duration::from_millis(20);
const PREFIX: &str = "p";

/// How many idle cycles are watched.
const CYCLES: u64 = 3;

/// Far over every budget: the end of a measurement that hangs.
const BOUND: Duration = Duration::from_secs(120);

/// The most that one answer of AWS's lists holds.
const PAGE: usize = 100;

/// What each shipped binary may have, in MB.
const SIZES: [(&str, f64); 5] = [
    ("mesh-init", 5.0),
    ("health-sync", 5.0),
    ("envoy-entrypoint", 2.5),
    ("app-entrypoint", 1.7),
    ("acl-controller", 8.0),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut rows = SIZES.map(|(name, budget)| size(name, budget)).to_vec();
    eprintln!("measuring a task's containers, for some minutes …");
    rows.extend(sidecars::measure().await);
    eprintln!("measuring acl-controller's floor …");
    let floor = floor::measure(&World::new().await).await;
    eprintln!("measuring acl-controller, {} cycles of 10 s …", CYCLES + 2);
    rows.extend(acl_controller(floor).await);
    print!("{}", table::draw(&rows));
    ExitCode::from(u8::from(rows.iter().any(Row::is_over)))
}

/// A Consul without tokens, and an AWS with all tasks and an empty secret for each of their services.
struct World {
    agent: Agent,
    consul: FarConsul,
    aws: Aws,
}

impl World {
    async fn new() -> Self {
        let agent = Agent::start_with_acls().await;
        let consul = FarConsul::new(&agent.http, AWAY);
        let aws = Aws::start();
        for secret in secrets() {
            aws.set_secret(&secret, "{}");
        }
        for task in 0..TASKS {
            aws.run(&format!("{task:05}"), &service(task % SERVICES));
        }
        for call in ["ListTasks", "DescribeTasks", "ListSecrets", "GetSecretValue", "PutSecretValue"] {
            aws.slow(call, AWAY);
        }
        Self { agent, consul, aws }
    }

    /// The calls since the last time this was asked, but for those that keep the lock, which are no part of a cycle.
    fn take_calls(&self) -> BTreeMap<String, usize> {
        let aws = self.aws.take_calls().into_iter().map(|call| call.name);
        let consul = self.consul.take_requests().into_iter();
        let mut calls = BTreeMap::new();
        for call in aws.chain(consul.filter(|call| !call.contains("/v1/session/") && !call.contains("/v1/kv/"))) {
            *calls.entry(call).or_default() += 1;
        }
        calls
    }
}

fn service(number: usize) -> String {
    format!("service-{number:04}")
}

/// The names of all secrets: the consul-clients' and each service's.
fn secrets() -> impl Iterator<Item = String> {
    std::iter::once("consul-client-token".to_owned())
        .chain((0..SERVICES).map(service))
        .map(|name| format!("{PREFIX}-{name}"))
}

/// What `cargo build --release` made, beside the directory this program was built in.
fn release_binary(name: &str) -> PathBuf {
    let bench = std::env::current_exe().expect("a program has a path");
    let target = bench.parent().and_then(|dir| dir.parent()).expect("cargo builds programs in target/…/debug");
    let path = target.join("release").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask bench`, which builds it", path.display());
    path
}

fn size(name: &str, budget: f64) -> Row {
    let bytes = release_binary(name).metadata().expect("the binary can be looked at").len();
    Row::new(format!("{name}: binary, stripped"), Unit::Megabytes, bytes as f64 / 1e6, budget)
}

async fn acl_controller(floor: Duration) -> Vec<Row> {
    let world = World::new().await;
    let listen = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(release_binary("acl-controller"));
    command.env_clear().env("AWS_REGION", "eu-north-1").env("AWS_ENDPOINT_URL", &world.aws.url);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    command.env("CONSUL_HTTP_ADDR", &world.consul.address).env("CONSUL_HTTP_TOKEN", &world.agent.management);
    command.args(["--cluster", CLUSTER, "--secret-name-prefix", PREFIX, "--listen", &listen]);

    let began = Instant::now();
    let controller = Process::spawn(&mut command);
    eventually("every secret is filled", BOUND, async || {
        let empty = world.aws.texts().iter().filter(|text| *text == "{}").count();
        if empty == 0 { Ok(()) } else { Err(format!("{empty} are empty: {}", controller.output())) }
    })
    .await;
    let took = began.elapsed();

    // The next cycle may look again at what the first one did.
    let metrics = format!("http://{listen}/metrics");
    cycle_ends(&metrics, 2).await;
    let all = world.take_calls();
    assert_eq!(all["PUT /v1/acl/token"], SERVICES + 1, "each token is made once: {all:?}");
    let mut calls = BTreeMap::<String, usize>::new();
    for cycle in 1..=CYCLES {
        cycle_ends(&metrics, 2 + cycle).await;
        for (call, count) in world.take_calls() {
            let most = calls.entry(call).or_default();
            *most = count.max(*most);
        }
    }
    let resident = resident(controller.id());

    let mut rows = vec![
        Row::new(
            format!("acl-controller: {SERVICES} new services among {TASKS} tasks, calls {} ms away", AWAY.as_millis()),
            Unit::Seconds,
            took.as_secs_f64(),
            1.2 * floor.as_secs_f64(),
        )
        .with_floor(floor.as_secs_f64()),
        Row::new(format!("acl-controller: resident, idle, {SERVICES} services"), Unit::Megabytes, resident, 15.0),
    ];
    // The consul-clients' secret is one more than the services'.
    for (call, budget) in [
        ("ListTasks", TASKS.div_ceil(PAGE)),
        ("DescribeTasks", TASKS.div_ceil(PAGE)),
        ("ListSecrets", (SERVICES + 1).div_ceil(PAGE)),
        ("GET /v1/acl/tokens", 1),
        ("GET /v1/acl/policies", 1),
        ("GET /v1/config/terminating-gateway", 1),
    ] {
        let most = calls.remove(call).unwrap_or_default();
        rows.push(Row::new(idle(call), Unit::Calls, most as f64, budget as f64));
    }
    let others = calls.values().sum::<usize>();
    let what = if calls.is_empty() { "any other call but the lock's".to_owned() } else { format!("{calls:?}") };
    rows.push(Row::new(idle(&what), Unit::Calls, others as f64, 0.0));
    rows
}

fn idle(call: &str) -> String {
    format!("acl-controller: nothing to do, a cycle: {call}")
}

/// Waits for the end of the controller's cycle of this number, and that is when none is under way: the next begins seconds later.
async fn cycle_ends(metrics: &str, number: u64) {
    let ended = eventually("a cycle ends", BOUND, async || {
        let metrics = http::get(metrics).await?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("acl_controller_cycle_seconds_count "));
        let count = count.and_then(|count| count.parse::<u64>().ok()).ok_or("no count")?;
        if count >= number { Ok(count) } else { Err(format!("{count} have ended")) }
    })
    .await;
    assert_eq!(ended, number, "a cycle ended unseen");
}

/// A process's resident memory in MB.
fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it still runs");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<f64>().ok()).expect("Linux says VmRSS in kB") * 1024.0 / 1e6
}
