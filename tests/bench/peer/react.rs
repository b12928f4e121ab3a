//! How soon each side reacts: to a change of health, to TERM, and to the end of the last app. All sides react at the same time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use rustix::process::Signal;
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

/// The time of one write of a check: in tasks with an agent (false), and in tasks without one (true).
type Floor = BTreeMap<bool, Duration>;

/// The time from a change in the metadata to the change of the check. The floor is one write of a check.
pub async fn to_health(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    let (times, floor) = health_times(agent, sides).await?;
    let work = |what| format!("ECS health changed to check changed, {what} of {CHANGES}");
    Ok(figures(&times, &floor, &[(work("median"), 50), (work("p99"), 99)]))
}

/// The time from TERM to the critical check.
pub async fn to_term(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    let (times, floor) = term_times(agent, sides, TERMS).await?;
    let work = |what| format!("health-sync: TERM to check critical, {what} of {TERMS}");
    Ok(figures(&times, &floor, &[(work("median"), 50), (work("slowest"), 100)]))
}

/// One figure for each of these percentiles, for tasks with an agent and for tasks without one.
fn figures(times: &Times, floor: &Floor, percentiles: &[(String, usize)]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (agentless, floor) in floor {
        for (work, percent) in percentiles {
            let of = times.iter().filter(|(who, _)| who.is_agentless() == *agentless);
            figures.push(milliseconds(
                work.clone(),
                Some(*floor),
                of.map(|(who, times)| (*who, rank(times, *percent))),
            ));
        }
    }
    figures
}

/// The times from a change in the metadata to the change of the check, of many changes.
pub async fn health_times(agent: &Agent, sides: &[Side]) -> Result<(Times, Floor), Failed> {
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
    let floor = writes_alone(agent, &tasks).await;
    for task in &tasks {
        task.deregister(agent).await;
    }
    Ok((times, floor))
}

/// The times from TERM to the critical check, of so many health-syncs.
pub async fn term_times(agent: &Agent, sides: &[Side], terms: u64) -> Result<(Times, Floor), Failed> {
    let mut times = Times::new();
    let mut floor = Floor::new();
    for _ in 0..terms {
        let (tasks, syncs) = synced(agent, sides, "term").await?;
        let began = Instant::now();
        syncs.iter().for_each(|sync| sync.signal(Signal::TERM));
        record(&mut times, reached(agent, &tasks, "critical", began).await);
        drop(syncs);
        floor = writes_alone(agent, &tasks).await;
        for task in &tasks {
            task.deregister(agent).await;
        }
    }
    Ok((times, floor))
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
async fn writes_alone(agent: &Agent, tasks: &[Task]) -> Floor {
    let mut floor = Floor::new();
    for task in tasks {
        let mut times = Vec::new();
        for status in ["passing", "critical"].into_iter().cycle().take(11) {
            let began = Instant::now();
            task.write(agent, status).await;
            times.push(began.elapsed());
        }
        floor.entry(task.side.who.is_agentless()).or_insert_with(|| median(&times));
    }
    floor
}
