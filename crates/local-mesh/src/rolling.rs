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

/// Each measure of health-sync's alone, and neither. A longer interval gives the measure work: without it Consul's checks pass up
/// to that much later than ECS says HEALTHY. The hold waits for at most 2.5 s, the gate for as long as it takes.
const NEITHER: Settings =
    &[("HEALTH_SYNC_HOLD", "0s"), ("HEALTH_SYNC_IN_MESH", "false"), ("HEALTH_SYNC_INTERVAL", "10s")];
const HOLD: Settings = &[("HEALTH_SYNC_IN_MESH", "false"), ("HEALTH_SYNC_INTERVAL", "1s")];
const GATE: Settings = &[("HEALTH_SYNC_HOLD", "0s"), ("HEALTH_SYNC_INTERVAL", "10s")];

/// Variables that docker-compose.yml reads.
type Settings = &'static [(&'static str, &'static str)];

/// What is known of a case before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// No request fails.
    Lossless,
    /// Some requests fail: it shows that the measurement can.
    Failures,
    /// Either. Where all containers get TERM at once, the task's node may be gone before the hold is over.
    Measured,
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Health-sync's variables.
    pub settings: Settings,
    /// The order of TERM.
    pub order: StopOrder,
    /// What is known of it.
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
