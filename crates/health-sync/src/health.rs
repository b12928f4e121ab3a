//! From ECS health to check statuses: what is, what was written, and so what to write.

use consul_api::CheckStatus;
use ecs_meta::{HealthStatus, Task};
use mesh_config::Names;

/// The checks of the synced containers.
#[derive(Debug)]
pub struct Checks(Vec<Check>);

#[derive(Debug)]
struct Check {
    container: String,
    id: String,
    /// What the agent has by our own writes; none before the first and after it lost it.
    written: Option<CheckStatus>,
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
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|check| check.id.as_str())
    }

    /// What has to be written: container, check ID, status, and the health in ECS's words.
    pub fn changes(&self, task: &Task) -> Vec<(String, String, CheckStatus, String)> {
        let change = |check: &Check| {
            let (status, said) = health(task, &check.container);
            let changed = check.written != Some(status);
            changed.then(|| (check.container.clone(), check.id.clone(), status, said))
        };
        self.0.iter().filter_map(change).collect()
    }

    /// The agent has taken this status.
    pub fn written(&mut self, container: &str, status: CheckStatus) {
        for check in self.0.iter_mut().filter(|check| check.container == container) {
            check.written = Some(status);
        }
    }

    /// Compares with what the agent has: what differs is written again. True if it lacks a check.
    pub fn compare(&mut self, at_agent: impl Fn(&str) -> Option<CheckStatus>) -> bool {
        let mut lost = false;
        for check in &mut self.0 {
            let status = at_agent(&check.id);
            lost |= status.is_none();
            if status != check.written {
                check.written = None;
            }
        }
        lost
    }
}

/// HEALTHY is passing, all else critical; so is a container that the metadata doesn't have.
fn health(task: &Task, container: &str) -> (CheckStatus, String) {
    let found = task.containers.iter().find(|found| found.name == container);
    let said = match found.map(|found| found.health.as_ref()) {
        None => "ECS does not know the container".to_owned(),
        Some(None) => "the container has no health check in ECS".to_owned(),
        Some(Some(health)) => format!("ECS says {}", health.status.as_str()),
    };
    let healthy =
        found.and_then(|found| found.health.as_ref()).is_some_and(|health| health.status == HealthStatus::Healthy);
    (if healthy { CheckStatus::Passing } else { CheckStatus::Critical }, said)
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

    fn checks() -> Checks {
        Checks::new(&["app".to_owned()], &Names::new(None, "shop", "f1a2"))
    }

    #[test]
    fn healthy_is_passing_and_all_else_critical() {
        let health = |status: &str| json!([{ "Name": "app", "Health": { "status": status } }]);
        let rows = [
            (health("HEALTHY"), CheckStatus::Passing),
            (health("UNHEALTHY"), CheckStatus::Critical),
            (health("UNKNOWN"), CheckStatus::Critical),
            (health("SOMETHING_NEW"), CheckStatus::Critical),
            (json!([{ "Name": "app" }]), CheckStatus::Critical),
            (json!([{ "Name": "other", "Health": { "status": "HEALTHY" } }]), CheckStatus::Critical),
        ];
        for (containers, expected) in rows {
            let changes = checks().changes(&task(containers.clone()));
            assert_eq!(changes[0].2, expected, "{containers}");
        }
    }

    #[test]
    fn one_write_a_change_and_none_otherwise() {
        let mut checks = checks();
        let healthy = task(json!([{ "Name": "app", "Health": { "status": "HEALTHY" } }]));
        assert_eq!(checks.changes(&healthy).len(), 1);
        checks.written("app", CheckStatus::Passing);
        assert!(checks.changes(&healthy).is_empty());
        let unhealthy = task(json!([{ "Name": "app", "Health": { "status": "UNHEALTHY" } }]));
        assert_eq!(checks.changes(&unhealthy).len(), 1, "until it was written");
        assert_eq!(checks.changes(&unhealthy).len(), 1);
        checks.written("app", CheckStatus::Critical);
        assert!(checks.changes(&task(json!([{ "Name": "app" }]))).is_empty(), "critical for another reason");
    }

    #[test]
    fn what_the_agent_lost_or_has_otherwise_is_written_again() {
        let mut checks = checks();
        let healthy = task(json!([{ "Name": "app", "Health": { "status": "HEALTHY" } }]));
        checks.written("app", CheckStatus::Passing);
        assert!(!checks.compare(|_| Some(CheckStatus::Passing)));
        assert!(checks.changes(&healthy).is_empty());
        assert!(!checks.compare(|_| Some(CheckStatus::Critical)));
        assert_eq!(checks.changes(&healthy).len(), 1);
        checks.written("app", CheckStatus::Passing);
        assert!(checks.compare(|_| None));
        assert_eq!(checks.changes(&healthy).len(), 1);
    }
}
