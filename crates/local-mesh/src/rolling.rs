//! The only task of a service replaced under load, as a deployment does it: the new task starts, ECS says that it is healthy, the
//! old one is stopped.

use bollard::Docker;

use crate::Progress;
use crate::demo::LOAD;
use crate::load::{Load, Report};
use crate::mesh::{MeshError, start_all};
use crate::task::{self, StopOrder};

/// The two tasks of service `api` that take turns.
const TASKS: [&str; 2] = ["api-1", "api-2"];

/// How often the task is replaced in a row of the demo.
pub const REPLACEMENTS: usize = 10;

/// One measure of health-sync's, with the other switched off.
const HOLD: [(&str, &str); 1] = [("HEALTH_SYNC_IN_MESH", "false")];
const GATE: [(&str, &str); 1] = [("HEALTH_SYNC_HOLD", "0s")];

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Variables that docker-compose.yml reads.
    pub settings: &'static [(&'static str, &'static str)],
    /// The order of TERM.
    pub order: StopOrder,
    /// Whether no request may fail: where all containers get TERM at once, the task's node is gone before the hold is over.
    pub lossless: bool,
}

/// All cases of the demo.
pub const CASES: [Case; 4] = [
    Case { name: "hold, depends-on", settings: &HOLD, order: StopOrder::DependsOn, lossless: true },
    Case { name: "gate, depends-on", settings: &GATE, order: StopOrder::DependsOn, lossless: true },
    Case { name: "gate, all at once", settings: &GATE, order: StopOrder::AllAtOnce, lossless: true },
    Case { name: "hold, all at once", settings: &HOLD, order: StopOrder::AllAtOnce, lossless: false },
];

/// Runs one case on the running mesh: `api` has one task, which is replaced this often under load from web.
///
/// # Errors
/// See [`MeshError`].
pub async fn run(
    docker: &Docker,
    case: Case,
    replacements: usize,
    progress: &dyn Progress,
) -> Result<Report, MeshError> {
    let [mut old, mut new] = TASKS;
    progress.detail(&format!("starting {old} alone, with the case's settings"));
    stop_both(docker).await?;
    task::start(docker, old, case.settings).await?;
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
        Ok(())
    };
    let replaced = replaced.await;
    let report = load.end().await;
    replaced.and(report)
}

/// Brings both tasks back as docker-compose.yml has them.
///
/// # Errors
/// See [`MeshError`].
pub async fn end(docker: &Docker) -> Result<(), MeshError> {
    stop_both(docker).await?;
    start_all(docker).await
}

async fn stop_both(docker: &Docker) -> Result<(), MeshError> {
    for name in TASKS {
        if task::running(docker, name).await.is_ok() {
            task::stop(docker, name, StopOrder::AllAtOnce).await?;
        }
    }
    Ok(())
}
