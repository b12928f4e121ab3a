//! Measures acl-controller with a real Consul and a simulated AWS: the first cycle, and cycles in which nothing is to do.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use mesh_tests::aws::{Aws, CLUSTER};
use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use mesh_tests::{eventually, free_port, http};

use crate::far_consul::FarConsul;
use crate::release_binary;
use crate::usage::resident;

/// The time by which each answer of Consul and AWS is delayed.
pub const AWAY: Duration = Duration::from_millis(20);

pub const PREFIX: &str = "p";

/// How many services there are, and how many tasks run them.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub services: usize,
    pub tasks: usize,
}

impl Size {
    /// The names of all secrets: that of the consul-clients, and that of each service.
    pub fn secrets(self) -> impl Iterator<Item = String> {
        std::iter::once("consul-client-token".to_owned())
            .chain((0..self.services).map(service))
            .map(|name| format!("{PREFIX}-{name}"))
    }
}

fn service(number: usize) -> String {
    format!("service-{number:05}")
}

/// A Consul without tokens of services, and a simulated AWS with all tasks and an empty secret for each service.
pub struct World {
    pub agent: Agent,
    pub consul: FarConsul,
    pub aws: Aws,
    pub size: Size,
}

impl World {
    pub async fn new(size: Size) -> Self {
        let agent = Agent::start_with_acls().await;
        let consul = FarConsul::new(&agent.http, AWAY);
        let aws = Aws::start();
        for secret in size.secrets() {
            aws.set_secret(&secret, "{}");
        }
        for task in 0..size.tasks {
            aws.run(&format!("{task:06}"), &service(task % size.services));
        }
        for call in ["ListTasks", "DescribeTasks", "ListSecrets", "GetSecretValue", "PutSecretValue"] {
            aws.slow(call, AWAY);
        }
        Self { agent, consul, aws, size }
    }

    /// The calls since the last call of this function. The calls for the lock are left out, because they belong to no cycle.
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

/// What was measured.
pub struct Measured {
    /// From the start until every secret is filled.
    pub first: Duration,
    /// The resident memory in MB, after the idle cycles.
    pub resident: f64,
    /// How long the last idle cycle took.
    pub cycle: Duration,
    /// The most calls of each kind in a cycle in which nothing was to do.
    pub calls: BTreeMap<String, usize>,
}

/// Runs the controller until every secret is filled, and then for this many cycles in which nothing is to do. Nothing of it may take
/// longer than `bound`.
pub async fn measure(size: Size, cycles: u64, bound: Duration) -> Measured {
    let world = World::new(size).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(release_binary("acl-controller"));
    command.env_clear().env("AWS_REGION", "eu-north-1").env("AWS_ENDPOINT_URL", &world.aws.url);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    command.env("CONSUL_HTTP_ADDR", &world.consul.address).env("CONSUL_HTTP_TOKEN", &world.agent.management);
    command.args(["--cluster", CLUSTER, "--secret-name-prefix", PREFIX, "--listen", &listen]);

    let began = Instant::now();
    let controller = Process::spawn(&mut command);
    eventually("every secret is filled", bound, async || {
        let empty = world.aws.texts().iter().filter(|text| *text == "{}").count();
        if empty == 0 { Ok(()) } else { Err(format!("{empty} are empty: {}", controller.output())) }
    })
    .await;
    let first = began.elapsed();

    // The next cycle may still read what the first one has written.
    let metrics = format!("http://{listen}/metrics");
    let mut ended = cycle_ends(&metrics, 2, bound).await;
    let all = world.take_calls();
    assert_eq!(all["PUT /v1/acl/token"], world.size.services + 1, "each token is made once: {all:?}");
    let mut calls = BTreeMap::<String, usize>::new();
    let mut spent = [0.0; 2];
    for _ in 0..cycles {
        spent[0] = cycle_seconds(&metrics).await;
        ended = cycle_ends(&metrics, ended + 1, bound).await;
        for (call, count) in world.take_calls() {
            let most = calls.entry(call).or_default();
            *most = count.max(*most);
        }
        spent[1] = cycle_seconds(&metrics).await;
    }
    let cycle = Duration::from_secs_f64(spent[1] - spent[0]);
    Measured { first, resident: resident(controller.id()), cycle, calls }
}

/// How long all cycles took together, in seconds.
async fn cycle_seconds(metrics: &str) -> f64 {
    let metrics = http::get(metrics).await.expect("the controller answers");
    let sum = metrics.lines().find_map(|line| line.strip_prefix("acl_controller_cycle_seconds_sum "));
    sum.and_then(|sum| sum.trim().parse().ok()).expect("the metrics have it")
}

/// Waits until the controller has ended this many cycles. Then no cycle is under way, because the next one begins some seconds later.
async fn cycle_ends(metrics: &str, number: u64, bound: Duration) -> u64 {
    let ended = eventually("a cycle ends", bound, async || {
        let metrics = http::get(metrics).await?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("acl_controller_cycle_seconds_count "));
        let count = count.and_then(|count| count.parse::<u64>().ok()).ok_or("no count")?;
        if count >= number { Ok(count) } else { Err(format!("{count} have ended")) }
    })
    .await;
    assert_eq!(ended, number, "a cycle ended unseen");
    ended
}
