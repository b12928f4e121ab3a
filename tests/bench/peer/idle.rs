//! What each program uses while nothing happens. The programs of all sides run at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_tests::consul::Agent;
use mesh_tests::process::Process;
use tokio::time::sleep;

use super::Who;
use super::react::synced;
use super::report::Figure;
use super::task::{Failed, Side, Task};
use crate::BOUND;
use crate::dataplane::Envoy;
use crate::table::Unit;
use crate::usage::{Usage, resident, share};

/// How many copies of health-sync run at the same time.
pub const COPIES: usize = 50;

const MINUTE: Duration = Duration::from_secs(60);

/// The measurement begins this long after the start, because a program may still have work then.
const SETTLED: Duration = Duration::from_secs(10);

/// An idle program of one side.
struct Idle {
    program: &'static str,
    who: Who,
    process: u32,
}

/// Measures one copy of each program for a minute: envoy-entrypoint of the sides `with_agent`, app-entrypoint of `with_apps`, health-sync
/// of `in_mesh`, and the dataplanes of `envoys`.
pub async fn one(
    agent: &Agent,
    with_agent: &[Side],
    with_apps: &[Side],
    in_mesh: &[Side],
    envoys: &[Envoy],
) -> Result<Vec<Figure>, Failed> {
    let (tasks, syncs) = synced(agent, in_mesh, "idle").await?;
    let syncs = tasks.iter().zip(&syncs).map(|(task, sync)| ("health-sync", task.side.who, sync.id()));
    let dataplanes = envoys.iter().map(|envoy| ("dataplane", envoy.who, envoy.process.id()));
    let mut all =
        syncs.chain(dataplanes).map(|(program, who, process)| Idle { program, who, process }).collect::<Vec<_>>();
    let (mut entry_tasks, mut entry_points) = (Vec::new(), Vec::new());
    for (program, sides) in [("envoy-entrypoint", with_agent), ("app-entrypoint", with_apps)] {
        for side in sides {
            let task = Task::start(side, "entry");
            let mut command = task.side.command(program);
            command.env("ECS_CONTAINER_METADATA_URI_V4", &task.metadata.uri);
            let process = Process::spawn(command.args(["sh", "-c", "echo ready; exec sleep 600"]));
            process.says("ready", BOUND).await;
            all.push(Idle { program, who: task.side.who, process: process.id() });
            entry_tasks.push(task);
            entry_points.push(process);
        }
    }
    sleep(SETTLED).await;
    let before = all.iter().map(|idle| Usage::of(idle.process)).collect::<Vec<_>>();
    sleep(MINUTE).await;
    let mut programs = Vec::<(&str, [BTreeMap<Who, f64>; 3])>::new();
    for (idle, before) in all.iter().zip(before) {
        let used = Usage::of(idle.process) - before;
        let at = programs.iter().position(|(program, _)| *program == idle.program).unwrap_or_else(|| {
            programs.push((idle.program, Default::default()));
            programs.len() - 1
        });
        let values = [resident(idle.process), used.milliseconds(), used.wakeups as f64];
        for (map, value) in programs[at].1.iter_mut().zip(values) {
            map.insert(idle.who, value);
        }
    }
    for task in &tasks {
        task.deregister(agent).await;
    }
    let figures = programs.into_iter().flat_map(|(program, [memory, cpu, wakeups])| {
        [
            (format!("{program}: resident, idle"), Unit::Megabytes, memory),
            (format!("{program}: CPU of an idle minute"), Unit::Milliseconds, cpu),
            (format!("{program}: wake-ups in an idle minute"), Unit::Calls, wakeups),
        ]
    });
    Ok(figures.map(|(work, unit, values)| Figure { work, unit, floor: None, values }).collect())
}

/// Measures many copies of health-sync for a minute. The copies of one side belong to the same task.
pub async fn many(agent: &Agent, sides: &[Side]) -> Result<Vec<Figure>, Failed> {
    let (tasks, first) = synced(agent, sides, "copies").await?;
    let mut copies = tasks.iter().zip(first).map(|(task, sync)| (task.side.who, vec![sync])).collect::<Vec<_>>();
    for (task, (_, processes)) in tasks.iter().zip(&mut copies) {
        for _ in 1..COPIES {
            processes.push(Process::spawn(&mut task.command("health-sync", agent, &agent.http)));
        }
    }
    sleep(SETTLED).await;
    let used = |processes: &[Process]| {
        processes.iter().map(|process| Usage::of(process.id())).fold(Usage::default(), |sum, used| sum + used)
    };
    let before = copies.iter().map(|(_, processes)| used(processes)).collect::<Vec<_>>();
    sleep(MINUTE).await;
    let (mut memory, mut cpu) = (BTreeMap::new(), BTreeMap::new());
    for ((who, processes), before) in copies.iter().zip(before) {
        cpu.insert(*who, (used(processes) - before).milliseconds());
        memory.insert(*who, processes.iter().map(|process| share(process.id())).sum());
    }
    drop(copies);
    for task in &tasks {
        task.deregister(agent).await;
    }
    let name = |what| format!("{COPIES} copies of health-sync: {what}");
    Ok(vec![
        Figure { work: name("memory, shared pages once"), unit: Unit::Megabytes, floor: None, values: memory },
        Figure { work: name("CPU of an idle minute"), unit: Unit::Milliseconds, floor: None, values: cpu },
    ])
}
