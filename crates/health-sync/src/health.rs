//! Turns the ECS health of containers into statuses of Consul's checks. Compares the metadata with what Consul has, and decides what to
//! write.

use consul_api::{CheckId, CheckStatus, ServiceId};
use ecs_meta::{HealthStatus, Status, Task};
use mesh_config::{Names, catalog, is_dataplane};

/// The checks that health-sync writes.
#[derive(Debug)]
pub struct Checks {
    checks: Vec<Check>,
    words: Words,
}

#[derive(Debug)]
struct Check {
    id: CheckId,
    /// What the check is about, for the log: a container, or a service or proxy.
    subject: String,
    /// The check is passing only if all of them are healthy.
    of: Vec<Part>,
    /// The status and output that Consul took last; none before the first write and after Consul lost the check.
    written: Option<(CheckStatus, String)>,
}

/// A part of the task that ECS watches.
#[derive(Debug, Clone)]
enum Part {
    /// The container with this name.
    Container(String),
    /// The container that runs the proxy of a task without an agent.
    Dataplane,
}

/// The form of a check's output.
#[derive(Debug, Clone, Copy)]
enum Words {
    /// That of a check at an agent.
    Agent,
    /// That of consul-ecs 0.7 to 0.10, for a check in the catalog.
    Catalog,
}

/// A status to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What the check is about, for the log.
    pub subject: String,
    pub id: CheckId,
    pub status: CheckStatus,
    /// The reason, as the check shows it.
    pub output: String,
}

impl Checks {
    /// Those at an agent: one for each container.
    pub fn at_agent(containers: &[String], names: &Names) -> Self {
        let check = |container: &String| Check {
            id: names.health_sync_check_id(container),
            subject: container.clone(),
            of: vec![Part::Container(container.clone())],
            written: None,
        };
        Self { checks: containers.iter().map(check).collect(), words: Words::Agent }
    }

    /// Those in the catalog: one for each container, and one for each of these services that shows whether the whole task is healthy.
    pub fn in_catalog<'a>(containers: &[String], names: &Names, services: impl Iterator<Item = &'a ServiceId>) -> Self {
        let parts = containers.iter().cloned().map(Part::Container);
        let all = std::iter::once(Part::Dataplane).chain(parts).collect::<Vec<_>>();
        let own = containers.iter().map(|container| Check {
            id: catalog::container_check_id(names, container),
            subject: container.clone(),
            of: vec![Part::Container(container.clone())],
            written: None,
        });
        let whole = services.map(|service| Check {
            id: catalog::readiness_check_id(service),
            subject: service.to_string(),
            of: all.clone(),
            written: None,
        });
        Self { checks: own.chain(whole).collect(), words: Words::Catalog }
    }

    /// All their IDs.
    pub fn ids(&self) -> Vec<CheckId> {
        self.checks.iter().map(|check| check.id.clone()).collect()
    }

    /// The updates for all checks whose status differs from the one written last.
    pub fn changes(&self, task: &Task) -> Vec<Update> {
        let change = |check: &Check| {
            let (status, output) = self.health(task, check);
            let changed = check.written.as_ref().is_none_or(|(written, _)| *written != status);
            changed.then(|| Update { subject: check.subject.clone(), id: check.id.clone(), status, output })
        };
        self.checks.iter().filter_map(change).collect()
    }

    /// Whether every check is passing, by the metadata.
    pub fn all_healthy(&self, task: &Task) -> bool {
        self.checks.iter().all(|check| self.health(task, check).0 == CheckStatus::Passing)
    }

    /// The updates written last, for the heartbeat.
    pub fn written(&self) -> Vec<Update> {
        let update = |check: &Check| {
            let (status, output) = check.written.clone()?;
            Some(Update { subject: check.subject.clone(), id: check.id.clone(), status, output })
        };
        self.checks.iter().filter_map(update).collect()
    }

    /// Records that Consul has taken a change.
    pub fn record(&mut self, update: Update) {
        for check in self.checks.iter_mut().filter(|check| check.id == update.id) {
            check.written = Some((update.status, update.output.clone()));
        }
    }

    /// Records that Consul has taken a heartbeat. If the status changed while the heartbeat was under way, either write may have
    /// come last. So the current status is written again.
    pub fn record_heartbeat(&mut self, heartbeat: &Update) {
        for check in self.checks.iter_mut().filter(|check| check.id == heartbeat.id) {
            if check.written.as_ref().is_some_and(|(written, _)| *written != heartbeat.status) {
                check.written = None;
            }
        }
    }

    /// Compares Consul's statuses with the updates that were `written` when Consul was asked. A check that differs is written
    /// again. True if Consul lacks a check.
    pub fn compare(&mut self, written: &[Update], in_consul: impl Fn(&CheckId) -> Option<CheckStatus>) -> bool {
        let mut lost = false;
        for check in &mut self.checks {
            let status = in_consul(&check.id);
            lost |= status.is_none();
            let written_then = written.iter().find(|update| update.id == check.id).map(|update| update.status);
            let written_now = check.written.as_ref().map(|(status, _)| *status);
            // If the status was written after Consul was asked, Consul's answer is too old.
            if status.is_none() || (status != written_then && written_then == written_now) {
                check.written = None;
            }
        }
        lost
    }

    /// The status of a check: critical if one of its parts is not healthy. The output names the first of those.
    fn health(&self, task: &Task, check: &Check) -> (CheckStatus, String) {
        let mut healths = check.of.iter().map(|part| self.words.of(part.name(task), health(task, part)));
        let first = healths.next().expect("a check is about at least one part");
        if first.0 != CheckStatus::Passing {
            return first;
        }
        healths.find(|(status, _)| *status != CheckStatus::Passing).unwrap_or(first)
    }
}

impl Part {
    fn is(&self, container: &str) -> bool {
        match self {
            Self::Container(name) => name == container,
            Self::Dataplane => is_dataplane(container),
        }
    }

    fn name<'a>(&'a self, task: &'a Task) -> &'a str {
        match self {
            Self::Container(name) => name,
            Self::Dataplane => {
                let found = task.containers.iter().find(|container| self.is(&container.name));
                found.map_or("dataplane", |container| &container.name)
            }
        }
    }
}

/// What the metadata says of a part.
enum Health<'a> {
    /// ECS's word.
    Word(&'a HealthStatus),
    /// A reason why there is none.
    None(&'static str),
}

/// A stopped container may still be HEALTHY in the metadata: ECS keeps its last health.
fn health<'a>(task: &'a Task, part: &Part) -> Health<'a> {
    let Some(found) = task.containers.iter().find(|found| part.is(&found.name)) else {
        return Health::None("ECS does not know the container");
    };
    match &found.health {
        _ if found.known_status == Status::Stopped => Health::None("the container has stopped"),
        None => Health::None("the container has no health check in ECS"),
        Some(health) => Health::Word(&health.status),
    }
}

impl Words {
    /// HEALTHY makes the check passing. Anything else makes it critical.
    fn of(self, container: &str, health: Health<'_>) -> (CheckStatus, String) {
        let status = match health {
            Health::Word(HealthStatus::Healthy) => CheckStatus::Passing,
            _ => CheckStatus::Critical,
        };
        let output = match (self, health) {
            (Self::Agent, Health::Word(word)) => format!("ECS says {}", word.as_str()),
            (Self::Agent, Health::None(reason)) => reason.to_owned(),
            (Self::Catalog, Health::Word(word)) => {
                format!("ECS health status is {:?} for container {container:?}", word.as_str())
            }
            (Self::Catalog, Health::None(reason)) => format!("{container}: {reason}"),
        };
        (status, output)
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
        Checks::at_agent(&["app".to_owned()], &Names::new(None, "shop", &"f1a2".into()))
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
    #[test]
    fn in_the_catalog_one_unhealthy_part_makes_the_whole_task_critical() {
        let names = Names::new(None, "shop", &"f1a2".into());
        let checks = Checks::in_catalog(&["app".to_owned()], &names, [&names.service_id, &names.proxy_id].into_iter());
        let written = |app: &str, dataplane: &str, health: &str| {
            let containers = json!([{ "Name": "app", "Health": { "status": app } },
                { "Name": dataplane, "Health": { "status": health } }]);
            checks.changes(&task(containers)).into_iter().map(|it| (it.id.to_string(), it.status, it.output)).collect()
        };
        let expected = |app: (CheckStatus, &str), whole: (CheckStatus, &str)| -> Vec<_> {
            let ids = ["shop-f1a2-app", "shop-f1a2-consul-dataplane", "shop-f1a2-sidecar-proxy-consul-dataplane"];
            let texts = [app, whole, whole].into_iter();
            ids.into_iter().zip(texts).map(|(id, (status, text))| (id.to_owned(), status, text.to_owned())).collect()
        };
        let (passing, critical) = (CheckStatus::Passing, CheckStatus::Critical);
        let healthy = r#"ECS health status is "HEALTHY" for container "app""#;
        let unknown = r#"ECS health status is "UNKNOWN" for container "app""#;
        for dataplane in ["dataplane", "consul-dataplane"] {
            let all = format!(r#"ECS health status is "HEALTHY" for container "{dataplane}""#);
            let rows: [(Vec<_>, Vec<_>); 3] = [
                (written("HEALTHY", dataplane, "HEALTHY"), expected((passing, healthy), (passing, &all))),
                (written("UNKNOWN", dataplane, "HEALTHY"), expected((critical, unknown), (critical, unknown))),
                (
                    written("HEALTHY", dataplane, "UNHEALTHY"),
                    expected((passing, healthy), (critical, &all.replace("HEALTHY", "UNHEALTHY"))),
                ),
            ];
            for (got, wanted) in rows {
                assert_eq!(got, wanted);
            }
        }
        let none = json!([{ "Name": "app", "Health": { "status": "HEALTHY" } }]);
        assert_eq!(checks.changes(&task(none))[2].output, "dataplane: ECS does not know the container");
    }
}
