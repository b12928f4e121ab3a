//! Measures the release binaries against their budgets: `cargo xtask bench`. With `--peer DIR`, consul-ecs and ecs-mesh do the same work.
//! With `--growth`, this measures how the work grows with upstreams, services and tasks.
//!
//! The release binaries work with a real Consul and a simulated AWS, whose answers are delayed by some milliseconds. The same run also
//! measures the floor: the time that the same calls take without the program. A figure without its floor would say little, because machines
//! differ.

mod acl_controller;
mod agentless;
mod dataplane;
mod far_consul;
mod floor;
mod growth;
mod peer;
mod registrations;
mod requests;
mod sidecars;
mod table;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::acl_controller::{AWAY, Measured, Size, World};
use crate::table::{Row, Unit};

const SIZE: Size = Size { services: 1_000, tasks: 10_000 };

/// How many idle cycles are measured.
const CYCLES: u64 = 3;

/// A measurement that takes longer than this hangs. Every budget is far below.
const BOUND: Duration = Duration::from_secs(120);

/// The most entries in one page of AWS's lists.
const PAGE: usize = 100;

/// The largest size of each shipped binary, in MB.
const SIZES: [(&str, f64); 6] = [
    ("mesh-init", 5.0),
    ("mesh-dataplane", 5.0),
    ("health-sync", 5.0),
    ("envoy-entrypoint", 2.5),
    ("app-entrypoint", 1.7),
    ("acl-controller", 8.0),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => budgets().await,
        ["--peer", folder] => match peer::measure(Path::new(folder)).await {
            Ok(report) => {
                print!("{report}");
                ExitCode::SUCCESS
            }
            Err(failed) => {
                eprintln!("bench: {failed}");
                ExitCode::FAILURE
            }
        },
        ["--growth"] => {
            growth::measure().await;
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("bench: expected no argument, `--peer DIR` or `--growth`: `cargo xtask bench` runs this program");
            ExitCode::from(2)
        }
    }
}

async fn budgets() -> ExitCode {
    let mut rows = SIZES.map(|(name, budget)| size(name, budget)).to_vec();
    eprintln!("measuring a task's containers, for some minutes …");
    rows.extend(sidecars::measure().await);
    eprintln!("measuring a task without an agent, for some minutes …");
    let (without_agent, left_out) = agentless::measure().await;
    rows.extend(without_agent);
    eprintln!("measuring acl-controller's floor …");
    let floor = floor::measure(&World::new(SIZE).await).await;
    eprintln!("measuring acl-controller, {} cycles of 10 s …", CYCLES + 2);
    rows.extend(acl_controller(floor).await);
    print!("{}", table::draw(&rows));
    left_out.iter().for_each(|reason| println!("{reason}"));
    ExitCode::from(u8::from(rows.iter().any(Row::is_over)))
}

/// The path of a binary that `cargo build --release` built.
fn release_binary(name: &str) -> PathBuf {
    let bench = std::env::current_exe().expect("a program has a path");
    let target = bench.parent().and_then(|dir| dir.parent()).expect("cargo builds programs in target/…/debug");
    let path = target.join("release").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask bench`, which builds it", path.display());
    path
}

fn megabytes(binary: &Path) -> f64 {
    binary.metadata().expect("the binary can be looked at").len() as f64 / 1e6
}

fn size(name: &str, budget: f64) -> Row {
    Row::new(format!("{name}: binary, stripped"), Unit::Megabytes, megabytes(&release_binary(name)), budget)
}

async fn acl_controller(floor: Duration) -> Vec<Row> {
    let Size { services, tasks } = SIZE;
    let Measured { first, resident, mut calls, .. } = acl_controller::measure(SIZE, CYCLES, BOUND).await;
    let mut rows = vec![
        Row::new(
            format!("acl-controller: {services} new services among {tasks} tasks, calls {} ms away", AWAY.as_millis()),
            Unit::Seconds,
            first.as_secs_f64(),
            1.2 * floor.as_secs_f64(),
        )
        .with_floor(floor.as_secs_f64()),
        Row::new(format!("acl-controller: resident, idle, {services} services"), Unit::Megabytes, resident, 15.0),
    ];
    // There is one secret for each service, and one for the consul-clients.
    for (call, budget) in [
        ("ListTasks", tasks.div_ceil(PAGE)),
        ("DescribeTasks", tasks.div_ceil(PAGE)),
        ("ListSecrets", (services + 1).div_ceil(PAGE)),
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
