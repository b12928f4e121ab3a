//! How soon the entry points start their command, and how long mesh-init takes.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_tests::consul::Agent;
use sidecar_kit::http::Client;

use super::Who;
use super::report::{Figure, median};
use super::task::{Failed, Side, Task};
use crate::requests::{self, Recorder, Sent};
use crate::table::Unit;

/// How often each entry point starts its command.
const STARTS: usize = 51;

/// How often each mesh-init runs.
const RUNS: usize = 21;

/// The time from the start of an entry point until its command runs. The floor is the command without an entry point.
pub fn entry_point(program: &str, sides: &[Side]) -> Figure {
    let tasks = sides.iter().map(|side| Task::start(side, "starts")).collect::<Vec<_>>();
    let mut alone = Vec::new();
    let mut took = BTreeMap::<Who, Vec<Duration>>::new();
    for _ in 0..STARTS {
        alone.push(until_it_runs(&mut Command::new("date")));
        for task in &tasks {
            let mut command = task.side.command(program);
            command.env("ECS_CONTAINER_METADATA_URI_V4", &task.metadata.uri).arg("date");
            took.entry(task.side.who).or_default().push(until_it_runs(&mut command));
        }
    }
    milliseconds(
        format!("{program}: start until its command runs, median of {STARTS}"),
        Some(median(&alone)),
        took.into_iter().map(|(who, times)| (who, median(&times))),
    )
}

/// A figure for these durations.
pub fn milliseconds(
    work: String,
    floor: Option<Duration>,
    values: impl IntoIterator<Item = (Who, Duration)>,
) -> Figure {
    let shown = |time: Duration| time.as_secs_f64() * 1e3;
    let values = values.into_iter().map(|(who, time)| (who, shown(time))).collect();
    Figure { work, unit: Unit::Milliseconds, floor: floor.map(shown), values }
}

/// The time from the start of the command until its last argument, `date`, prints the time of day.
fn until_it_runs(command: &mut Command) -> Duration {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let began = now();
    let output = command.arg("+%s%N").output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let nanoseconds = text.lines().rev().find_map(|line| line.trim().parse::<u64>().ok());
    let nanoseconds = nanoseconds
        .unwrap_or_else(|| panic!("{command:?} printed no time: {text}{}", String::from_utf8_lossy(&output.stderr)));
    Duration::from_nanos(nanoseconds).saturating_sub(began)
}

/// The time of mesh-init from start to exit, and the number of its requests. Each run registers a new task. The floor is the time that a
/// test client needs for the requests of ecs-mesh. Nothing, if there are no sides.
pub async fn mesh_init(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    if sides.is_empty() {
        return Ok(Vec::new());
    }
    let mut requests = BTreeMap::<Who, Vec<Sent>>::new();
    let recorded = sides.iter().map(|side| Task::start(side, "recorded")).collect::<Vec<_>>();
    for task in &recorded {
        let recorder = Recorder::start(&agent.http);
        task.register(agent, &recorder.address)?;
        task.deregister(agent).await;
        requests.insert(task.side.who, recorder.requests());
    }
    let tasks = sides.iter().map(|side| Task::start(side, "runs")).collect::<Vec<_>>();
    let client = Client::plain();
    let mut alone = Vec::new();
    let mut took = BTreeMap::<Who, Vec<Duration>>::new();
    for _ in 0..RUNS {
        for (task, recorded) in tasks.iter().zip(&recorded) {
            let began = Instant::now();
            task.register(agent, &agent.http)?;
            took.entry(task.side.who).or_default().push(began.elapsed());
            task.deregister(agent).await;
            if task.side.who.is_ours() {
                let sent = &requests[&task.side.who];
                alone.push(requests::time_alone(&client, &task.metadata.uri, agent, sent).await);
                recorded.deregister(agent).await;
            }
        }
    }
    let count = |requests: &Vec<Sent>| requests.len() as f64;
    Ok(vec![
        milliseconds(
            format!("mesh-init: start to exit, median of {RUNS}"),
            Some(median(&alone)),
            took.into_iter().map(|(who, times)| (who, median(&times))),
        ),
        Figure {
            work: "mesh-init: HTTP requests to Consul".to_owned(),
            unit: Unit::Calls,
            floor: None,
            values: requests.iter().map(|(who, requests)| (*who, count(requests))).collect(),
        },
    ])
}
