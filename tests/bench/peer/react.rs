//! How soon each side reacts: to a change of health, to TERM, and to the end of the last app. All sides react at the same time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;

use super::Who;
use super::report::{Figure, median, rank};
use super::start::milliseconds;
use super::task::{Failed, Side, Task};
use crate::BOUND;

/// How often the health changes.
const CHANGES: u64 = 100;

/// How often health-sync gets TERM.
const TERMS: u64 = 20;

/// How often the last app stops.
const STOPS: u64 = 40;

type Times = BTreeMap<Who, Vec<Duration>>;

/// The time from a change in the metadata to the change of the check. The floor is one write of a check.
pub async fn to_health(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    let (tasks, syncs) = synced(agent, sides, "health").await?;
    let mut times = Times::new();
    for number in 0..CHANGES {
        // The pauses differ, so that the changes come at different times between two requests for the metadata.
        sleep(Duration::from_millis(number * 370 % 1000)).await;
        let (health, status) = if number % 2 == 0 { ("UNHEALTHY", "critical") } else { ("HEALTHY", "passing") };
        let began = Instant::now();
        tasks.iter().for_each(|task| task.set_app("RUNNING", health));
        record(&mut times, reached(agent, &tasks, status, began).await);
    }
    drop(syncs);
    let write = write_alone(agent, &tasks[0]).await;
    let figure = |what, percent| {
        let values = times.iter().map(|(who, times)| (*who, rank(times, percent)));
        milliseconds(format!("ECS health changed to check changed, {what} of {CHANGES}"), Some(write), values)
    };
    let figures = vec![figure("median", 50), figure("p99", 99)];
    for task in &tasks {
        task.deregister(agent).await;
    }
    Ok(figures)
}

/// The time from TERM to the critical check.
pub async fn to_term(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    let mut times = Times::new();
    let mut floor = Duration::ZERO;
    for _ in 0..TERMS {
        let (tasks, syncs) = synced(agent, sides, "term").await?;
        let began = Instant::now();
        syncs.iter().for_each(|sync| sync.signal(Signal::TERM));
        record(&mut times, reached(agent, &tasks, "critical", began).await);
        drop(syncs);
        floor = write_alone(agent, &tasks[0]).await;
        for task in &tasks {
            task.deregister(agent).await;
        }
    }
    let figure = |what, percent| {
        let values = times.iter().map(|(who, times)| (*who, rank(times, percent)));
        milliseconds(format!("health-sync: TERM to check critical, {what} of {TERMS}"), Some(floor), values)
    };
    Ok(vec![figure("median", 50), figure("slowest", 100)])
}

/// The time from the end of the last app in the metadata to the end of the entry point. Its command ends at once on TERM.
pub async fn to_last_app(sides: &[Side]) -> Vec<Figure> {
    let mut times = Times::new();
    for number in 0..STOPS {
        let tasks = sides.iter().map(|side| Task::start(side, "stops")).collect::<Vec<_>>();
        let mut entry_points = Vec::new();
        for task in &tasks {
            let mut command = task.side.command("envoy-entrypoint");
            command.env("ECS_CONTAINER_METADATA_URI_V4", &task.metadata.uri);
            let entry_point = Process::spawn(command.args(["sh", "-c", "echo ready; exec sleep 600"]));
            entry_point.says("ready", BOUND).await;
            entry_point.signal(Signal::TERM);
            entry_point.says("waiting for app", BOUND).await;
            entry_points.push(entry_point);
        }
        // The pauses differ, so that the changes come at different times between two requests for the metadata. consul-ecs sends one
        // request a second.
        sleep(Duration::from_millis(number * 1000 / STOPS)).await;
        let began = Instant::now();
        tasks.iter().for_each(|task| task.set_app("STOPPED", "HEALTHY"));
        let mut left = tasks.iter().zip(&entry_points).collect::<Vec<_>>();
        while !left.is_empty() {
            sleep(Duration::from_millis(1)).await;
            left.retain(|(task, entry_point)| {
                let over = has_ended(entry_point);
                if over {
                    times.entry(task.side.who).or_default().push(began.elapsed());
                }
                assert!(began.elapsed() < BOUND, "{} goes on: {}", task.side.who.name(), entry_point.output());
                !over
            });
        }
    }
    let figure = |what, percent| {
        let values = times.iter().map(|(who, times)| (*who, rank(times, percent)));
        milliseconds(format!("envoy-entrypoint: last app gone to Envoy ended, {what} of {STOPS}"), None, values)
    };
    vec![figure("median", 50), figure("slowest", 100)]
}

/// Whether the process is a zombie: it has ended, and nobody has waited for it.
fn has_ended(process: &Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("nobody has waited for it");
    stat.contains(") Z ")
}

/// A registered task of each side, and its health-sync, which has set the check to passing.
pub async fn synced(agent: &Agent, sides: &[Side], family: &str) -> Result<(Vec<Task>, Vec<Process>), Failed> {
    let tasks = sides.iter().map(|side| Task::start(side, family)).collect::<Vec<_>>();
    let mut syncs = Vec::new();
    for task in &tasks {
        task.register(agent, &agent.http)?;
        syncs.push(Process::spawn(&mut task.command("health-sync", agent, &agent.http)));
    }
    reached(agent, &tasks, "passing", Instant::now()).await;
    Ok((tasks, syncs))
}

/// The time from `began` until the check of each task has this status.
async fn reached(agent: &Agent, tasks: &[Task], status: &str, began: Instant) -> BTreeMap<Who, Duration> {
    let mut reached = BTreeMap::new();
    while reached.len() < tasks.len() {
        for task in tasks.iter().filter(|task| !reached.contains_key(&task.side.who)).collect::<Vec<_>>() {
            if task.status(agent).await == status {
                reached.insert(task.side.who, began.elapsed());
            }
        }
        assert!(began.elapsed() < BOUND, "{status} was not reached by all: {reached:?}");
        sleep(Duration::from_millis(1)).await;
    }
    reached
}

fn record(times: &mut Times, reached: BTreeMap<Who, Duration>) {
    for (who, time) in reached {
        times.entry(who).or_default().push(time);
    }
}

/// The time of one write of a check, as health-sync makes it: the median of some writes.
async fn write_alone(agent: &Agent, task: &Task) -> Duration {
    let path = format!("/v1/agent/check/update/{}", task.check());
    let mut times = Vec::new();
    for status in ["passing", "critical"].into_iter().cycle().take(11) {
        let began = Instant::now();
        agent.call("PUT", &path, &json!({ "Status": status, "Output": "alone" })).await;
        times.push(began.elapsed());
    }
    median(&times)
}
