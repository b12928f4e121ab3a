//! From ECS health to check statuses: what is, what was written, and so what to write.

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
    /// What the agent has by this program's own writes; none before the first and after the agent lost it.
    written: Option<(CheckStatus, String)>,
}

/// A status to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub container: String,
    pub id: CheckId,
    pub status: CheckStatus,
    /// The health in ECS's words.
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

    /// What has to be written.
    pub fn changes(&self, task: &Task) -> Vec<Update> {
        let change = |check: &Check| {
            let (status, output) = health(task, &check.container);
            let changed = check.written.as_ref().is_none_or(|(written, _)| *written != status);
            changed.then(|| Update { container: check.container.clone(), id: check.id.clone(), status, output })
        };
        self.0.iter().filter_map(change).collect()
    }

    /// What was written last, to be written again before its time to live is over.
    pub fn standing(&self) -> Vec<Update> {
        let update = |check: &Check| {
            let (status, output) = check.written.clone()?;
            Some(Update { container: check.container.clone(), id: check.id.clone(), status, output })
        };
        self.0.iter().filter_map(update).collect()
    }

    /// The agent has taken a change.
    pub fn written(&mut self, update: Update) {
        for check in self.0.iter_mut().filter(|check| check.id == update.id) {
            check.written = Some((update.status, update.output.clone()));
        }
    }

    /// The agent has taken what stood when it was sent. If the status changed meanwhile, nobody knows which of the two writes
    /// came last, so that the newer is written again.
    pub fn refreshed(&mut self, update: &Update) {
        for check in self.0.iter_mut().filter(|check| check.id == update.id) {
            if check.written.as_ref().is_some_and(|(written, _)| *written != update.status) {
                check.written = None;
            }
        }
    }

    /// Compares what stood when the agent was asked with what the agent had: what differs is written again. True if it lacks a
    /// check.
    pub fn compare(&mut self, stood: &[Update], at_agent: impl Fn(&CheckId) -> Option<CheckStatus>) -> bool {
        let mut lost = false;
        for check in &mut self.0 {
            let status = at_agent(&check.id);
            lost |= status.is_none();
            let stood = stood.iter().find(|update| update.id == check.id).map(|update| update.status);
            let written = check.written.as_ref().map(|(written, _)| *written);
            // What was written since then is newer than the answer.
            if status.is_none() || (status != stood && stood == written) {
                check.written = None;
            }
        }
        lost
    }
}

/// HEALTHY is passing, all else critical; so is a container that has stopped or that the metadata doesn't have.
fn health(task: &Task, container: &str) -> (CheckStatus, String) {
    let Some(found) = task.containers.iter().find(|found| found.name == container) else {
        return (CheckStatus::Critical, "ECS does not know the container".to_owned());
    };
    match &found.health {
        // ECS keeps what the last health check said.
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
            checks.written(update);
        }
    }

    #[test]
    fn healthy_is_passing_and_all_else_critical() {
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
    fn one_write_a_change_and_none_otherwise() {
        let mut checks = checks();
        write(&mut checks, &app("HEALTHY"));
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1, "until it was written");
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1);
        write(&mut checks, &app("UNHEALTHY"));
        assert!(checks.changes(&task(json!([{ "Name": "app" }]))).is_empty(), "critical for another reason");
    }

    #[test]
    fn what_the_agent_lost_or_has_otherwise_is_written_again() {
        let mut checks = checks();
        write(&mut checks, &app("HEALTHY"));
        let stood = checks.standing();
        assert!(!checks.compare(&stood, |_| Some(CheckStatus::Passing)));
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert!(!checks.compare(&stood, |_| Some(CheckStatus::Critical)));
        assert_eq!(checks.changes(&app("HEALTHY")).len(), 1);
        write(&mut checks, &app("HEALTHY"));
        assert!(!checks.compare(&[], |_| Some(CheckStatus::Critical)), "the answer is older than the write");
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        assert!(checks.compare(&stood, |_| None));
        assert_eq!(checks.changes(&app("HEALTHY")).len(), 1);
    }

    #[test]
    fn a_heartbeat_repeats_what_was_written_and_loses_against_a_change() {
        let mut checks = checks();
        assert_eq!(checks.standing(), [], "nothing was written yet");
        write(&mut checks, &app("HEALTHY"));
        let heartbeat = checks.standing().remove(0);
        assert_eq!((heartbeat.status, heartbeat.output.as_str()), (CheckStatus::Passing, "ECS says HEALTHY"));
        checks.refreshed(&heartbeat);
        assert!(checks.changes(&app("HEALTHY")).is_empty());
        write(&mut checks, &app("UNHEALTHY"));
        checks.refreshed(&heartbeat);
        assert_eq!(checks.changes(&app("UNHEALTHY")).len(), 1, "which of the two came last is not known");
    }
}
