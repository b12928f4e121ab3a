//! Turns the ECS health of containers into statuses of Consul's checks. Compares the metadata with what the agent has, and decides what to
//! write.

use consul_api::{CheckId, CheckStatus};
use ecs_meta::{HealthStatus, Status, Task};
use mesh_config::Names;

/// The checks of the synced containers.
#[derive(Debug)]
pub struct Checks(Vec<Check>);

#[derive(Debug)]
struct Check {
    container: String,
    id: CheckId,
    /// The status and output that the agent took last; none before the first write and after the agent lost the check.
    written: Option<(CheckStatus, String)>,
}

/// A status to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub container: String,
    pub id: CheckId,
    pub status: CheckStatus,
    /// The reason, as the check shows it.
    pub output: String,
}

impl Checks {
    /// One for each container.
    pub fn new(containers: &[String], names: &Names) -> Self {
        let check = |container: &String| Check {
            container: container.clone(),
            id: names.health_sync_check_id(container),
            written: None,
        };
        Self(containers.iter().map(check).collect())
    }

    /// All their IDs.
    pub fn ids(&self) -> Vec<CheckId> {
        self.0.iter().map(|check| check.id.clone()).collect()
    }

    /// The updates for all checks whose status differs from the one written last.
    pub fn changes(&self, task: &Task) -> Vec<Update> {
        let change = |check: &Check| {
            let (status, output) = health(task, &check.container);
            let changed = check.written.as_ref().is_none_or(|(written, _)| *written != status);
            changed.then(|| Update { container: check.container.clone(), id: check.id.clone(), status, output })
        };
        self.0.iter().filter_map(change).collect()
    }

    /// Whether every synced container is healthy.
    pub fn all_healthy(&self, task: &Task) -> bool {
        self.0.iter().all(|check| health(task, &check.container).0 == CheckStatus::Passing)
    }

    /// The updates written last, for the heartbeat.
    pub fn written(&self) -> Vec<Update> {
        let update = |check: &Check| {
            let (status, output) = check.written.clone()?;
            Some(Update { container: check.container.clone(), id: check.id.clone(), status, output })
        };
        self.0.iter().filter_map(update).collect()
    }

    /// Records that the agent has taken a change.
    pub fn record(&mut self, update: Update) {
        for check in self.0.iter_mut().filter(|check| check.id == update.id) {
            check.written = Some((update.status, update.output.clone()));
        }
    }

    /// Records that the agent has taken a heartbeat. If the status changed while the heartbeat was under way, either write may have
    /// come last. So the current status is written again.
    pub fn record_heartbeat(&mut self, heartbeat: &Update) {
        for check in self.0.iter_mut().filter(|check| check.id == heartbeat.id) {
            if check.written.as_ref().is_some_and(|(written, _)| *written != heartbeat.status) {
                check.written = None;
            }
        }
    }

    /// Compares the agent's statuses with the updates that were `written` when the agent was asked. A check that differs is written
    /// again. True if the agent lacks a check.
    pub fn compare(&mut self, written: &[Update], at_agent: impl Fn(&CheckId) -> Option<CheckStatus>) -> bool {
        let mut lost = false;
        for check in &mut self.0 {
            let status = at_agent(&check.id);
            lost |= status.is_none();
            let written_then = written.iter().find(|update| update.id == check.id).map(|update| update.status);
            let written_now = check.written.as_ref().map(|(status, _)| *status);
            // If the status was written after the agent was asked, the agent's answer is too old.
            if status.is_none() || (status != written_then && written_then == written_now) {
                check.written = None;
            }
        }
        lost
    }
}

/// HEALTHY makes the check passing. Any other health makes it critical. The check is also critical if the container has stopped, or
/// if the metadata lacks it.
fn health(task: &Task, container: &str) -> (CheckStatus, String) {
    let Some(found) = task.containers.iter().find(|found| found.name == container) else {
        return (CheckStatus::Critical, "ECS does not know the container".to_owned());
    };
    match &found.health {
        // A stopped container may still be HEALTHY in the metadata: ECS keeps its last health.
        _ if found.known_status == Status::Stopped => (CheckStatus::Critical, "the container has stopped".to_owned()),
        None => (CheckStatus::Critical, "the container has no health check in ECS".to_owned()),
        Some(health) => {
            let healthy = health.status == HealthStatus::Healthy;
            let status = if healthy { CheckStatus::Passing } else { CheckStatus::Critical };
            (status, format!("ECS says {}", health.status.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(containers: serde_json::Value) -> Task {
        serde_json::from_value(json!({
            "Cluster": "blue", "Family": "shop", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "Containers": containers,
        }))
        .unwrap()
    }

    fn app(health: &str) -> Task {
        task(json!([{ "Name": "app", "Health": { "status": health } }]))
    }

    fn checks() -> Checks {
        Checks::new(&["app".to_owned()], &Names::new(None, "shop", &"f1a2".into()))
    }

    fn write(checks: &mut Checks, task: &Task) {
        for update in checks.changes(task) {
            checks.record(update);
        }
    }

    #[test]
    fn only_a_healthy_running_container_is_passing() {
        let health = |status: &str| json!([{ "Name": "app", "Health": { "status": status } }]);
        let stopped = json!([{ "Name": "app", "KnownStatus": "STOPPED", "Health": { "status": "HEALTHY" } }]);
        let rows = [
            (health("HEALTHY"), CheckStatus::Passing),
            (health("UNHEALTHY"), CheckStatus::Critical),
            (health("UNKNOWN"), CheckStatus::Critical),
            (health("SOMETHING_NEW"), CheckStatus::Critical),
            (json!([{ "Name": "app" }]), CheckStatus::Critical),
            (json!([{ "Name": "other", "Health": { "status": "HEALTHY" } }]), CheckStatus::Critical),
            (stopped, CheckStatus::Critical),
        ];
        for (containers, expected) in rows {
            let changes = checks().changes(&task(containers.clone()));
            assert_eq!(changes[0].status, expected, "{containers}");
        }
    }

    #[test]
    fn a_status_is_written_when_it_changes_and_only_then() {
        let mut checks = checks();
        write(&mut checks, &app("HEALTHY"));
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1, "not written yet");
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1);
        write(&mut checks, &app("UNHEALTHY"));
        assert!(checks.changes(&task(json!([{ "Name": "app" }]))).is_empty(), "critical for another reason");
    }

    #[test]
    fn a_lost_or_changed_check_is_written_again() {
        let mut checks = checks();
        write(&mut checks, &app("HEALTHY"));
        let written = checks.written();
        assert!(!checks.compare(&written, |_| Some(CheckStatus::Passing)));
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert!(!checks.compare(&written, |_| Some(CheckStatus::Critical)));
        assert_eq!(checks.changes(&app("HEALTHY")).len(), 1);
        write(&mut checks, &app("HEALTHY"));
        assert!(!checks.compare(&[], |_| Some(CheckStatus::Critical)), "the answer is older than the write");
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert!(checks.compare(&written, |_| None));
        assert_eq!(checks.changes(&app("HEALTHY")).len(), 1);
    }

    #[test]
    fn a_change_during_a_heartbeat_is_written_again() {
        let mut checks = checks();
        assert_eq!(checks.written(), [], "nothing was written yet");
        write(&mut checks, &app("HEALTHY"));
        let heartbeat = checks.written().remove(0);
        assert_eq!((heartbeat.status, heartbeat.output.as_str()), (CheckStatus::Passing, "ECS says HEALTHY"));
        checks.record_heartbeat(&heartbeat);
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        write(&mut checks, &app("UNHEALTHY"));
        checks.record_heartbeat(&heartbeat);
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1, "either write may have come last");
    }
}
