//! The rolling demo: the only task of a service is replaced under load, as a deployment does it. The new task starts, ECS reports
//! it as healthy, and the old task is stopped.

use bollard::Docker;
use futures_util::future::try_join;

use crate::Progress;
use crate::demo::LOAD;
use crate::load::{Load, LoadError, Report};
use crate::mesh::start_all;
use crate::task::{self, StopOrder, TaskError};

/// The two tasks of service `api` that take turns.
const TASKS: [&str; 2] = ["api-1", "api-2"];

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
pub enum RollingError {
    /// A task did not start or stop.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The load failed.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How many times the task is replaced in a row of the demo.
pub const REPLACEMENTS: usize = 10;

/// The settings of health-sync: without the hold and the gate, with the hold alone, and with the gate alone. With the gate, ECS counts a
/// task as healthy only when Consul lists it as passing. With the hold, a task that stops stays passing in Consul until another one is
/// passing, for at most 2.5 s.
///
/// health-sync reads ECS's health once in each interval, so Consul learns of a new task up to one interval late. An interval of 10 s makes
/// requests fail, unless the gate prevents it. The hold lasts at most 2.5 s, and Consul must learn of the new task within this time. So the
/// case with the hold has an interval of 1 s.
const NEITHER: Settings =
    &[("HEALTH_SYNC_HOLD", "0s"), ("HEALTH_SYNC_IN_MESH", "false"), ("HEALTH_SYNC_INTERVAL", "10s")];
const HOLD: Settings = &[("HEALTH_SYNC_IN_MESH", "false"), ("HEALTH_SYNC_INTERVAL", "1s")];
const GATE: Settings = &[("HEALTH_SYNC_HOLD", "0s"), ("HEALTH_SYNC_INTERVAL", "10s")];

/// Variables that docker-compose.yml reads.
type Settings = &'static [(&'static str, &'static str)];

/// The expected result of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// No request fails.
    Lossless,
    /// Some requests fail, which shows that the measurement can count failures.
    Failures,
    /// Requests may fail. If all containers get TERM at once, the task's node may leave Consul before the hold is over.
    Measured,
}

/// One row of the demo.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// The variables of health-sync.
    pub settings: Settings,
    /// The order of TERM.
    pub order: StopOrder,
    /// The expected result.
    pub expected: Expected,
}

/// All cases of the demo.
pub const CASES: [Case; 5] = [
    Case { name: "neither, depends-on", settings: NEITHER, order: StopOrder::DependsOn, expected: Expected::Failures },
    Case { name: "hold, depends-on", settings: HOLD, order: StopOrder::DependsOn, expected: Expected::Lossless },
    Case { name: "gate, depends-on", settings: GATE, order: StopOrder::DependsOn, expected: Expected::Lossless },
    Case { name: "gate, all at once", settings: GATE, order: StopOrder::AllAtOnce, expected: Expected::Lossless },
    Case { name: "hold, all at once", settings: HOLD, order: StopOrder::AllAtOnce, expected: Expected::Measured },
];

/// Runs one case on the running mesh: replaces the only task of `api` this many times, under load from web.
pub async fn run(
    docker: &Docker,
    case: Case,
    replacements: usize,
    progress: &dyn Progress,
) -> Result<Report, RollingError> {
    progress.detail("starting one task alone, with the case's settings");
    let [mut old, mut new] = start_one(docker, case.settings).await?;
    task::in_rotation(docker, old).await?;
    let load = Load::start(docker, "web", LOAD).await?;
    let replaced = async {
        for number in 1..=replacements {
            progress.detail(&format!("load on; {new} replaces {old}, {number} of {replacements}"));
            task::launch(docker, new, case.settings).await?;
            task::healthy_in_ecs(docker, new).await?;
            task::stop(docker, old, case.order).await?;
            (old, new) = (new, old);
        }
        Ok::<_, TaskError>(())
    };
    let replaced = replaced.await;
    let report = load.end().await;
    replaced?;
    Ok(report?)
}

/// Starts both tasks with the settings of docker-compose.yml again.
pub async fn end(docker: &Docker) -> Result<(), TaskError> {
    stop_both(docker).await?;
    start_all(docker).await
}

/// Starts one of the tasks with these settings while the other one stops. Returns the task that now runs, then the
/// other one.
async fn start_one(docker: &Docker, settings: Settings) -> Result<[&'static str; 2], TaskError> {
    let [first, second] = TASKS;
    if task::running(docker, first).await.is_ok() && task::running(docker, second).await.is_err() {
        try_join(task::start(docker, second, settings), stop(docker, first)).await?;
        return Ok([second, first]);
    }
    stop(docker, first).await?;
    try_join(task::start(docker, first, settings), stop(docker, second)).await?;
    Ok([first, second])
}

async fn stop_both(docker: &Docker) -> Result<(), TaskError> {
    try_join(stop(docker, TASKS[0]), stop(docker, TASKS[1])).await?;
    Ok(())
}

/// Stops a task if it runs.
async fn stop(docker: &Docker, name: &str) -> Result<(), TaskError> {
    if task::running(docker, name).await.is_err() {
        return Ok(());
    }
    task::stop(docker, name, StopOrder::AllAtOnce).await
}
