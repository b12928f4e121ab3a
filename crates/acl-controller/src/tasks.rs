//! The cluster's tasks, and the services that need a token because of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::rotation::Start;

/// The tag that puts a task into the mesh.
const MESH: &str = "consul.hashicorp.com/mesh";
/// The tag that names a task's service.
const SERVICE_NAME: &str = "consul.hashicorp.com/service-name";
/// The tags that name a task's namespace and admin partition (Consul Enterprise).
const NAMESPACE: &str = "consul.hashicorp.com/namespace";
const PARTITION: &str = "consul.hashicorp.com/partition";
/// The tag with the kind of a gateway.
const GATEWAY_KIND: &str = "consul.hashicorp.com/gateway-kind";
/// A service with this name would get the secret of the consul-clients' token.
const RESERVED: &str = "consul-client-token";

/// A task whose containers run or may run. A cluster may have 10,000 of them, so tasks share what is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The task's ARN.
    pub arn: Arc<str>,
    /// Its tags; none if the task is not in the mesh.
    pub mesh: Option<Arc<Mesh>>,
    /// Whether ECS is stopping it. ECS deletes the tags of a task when StopTask stops it, while its containers still run.
    pub stopping: bool,
    /// When it read its secrets. If ECS reports no creation time, this takes the start time, and without a start time the epoch.
    pub start: Start,
}

/// A task's part in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// The service's name, lower case.
    pub service: String,
    /// Whether the task is a mesh gateway.
    pub is_mesh_gateway: bool,
    /// The task's namespace and admin partition. consul-ecs 0.4 appends them to the secret's name (Consul Enterprise).
    pub scope: String,
}

impl Task {
    /// Converts ECS's description; none for a task that has stopped.
    #[must_use]
    pub fn new(task: &aws_sdk_ecs::types::Task) -> Option<Self> {
        let status = task.last_status().unwrap_or_default();
        if status == "STOPPED" {
            return None;
        }
        let tag = |key: &str| {
            let tag = task.tags().iter().find(|tag| tag.key() == Some(key))?;
            tag.value().filter(|value| !value.is_empty())
        };
        // …:task-definition/<family>:<revision>
        let definition = task.task_definition_arn().and_then(|arn| arn.rsplit('/').next()).unwrap_or_default();
        let family = definition.rsplit_once(':').map_or(definition, |(family, _)| family);
        let mesh = tag(MESH).is_some_and(|value| value == "true").then(|| {
            Arc::new(Mesh {
                service: tag(SERVICE_NAME).unwrap_or(family).to_lowercase(),
                is_mesh_gateway: tag(GATEWAY_KIND) == Some("mesh-gateway"),
                scope: [NAMESPACE, PARTITION].map(|key| tag(key).unwrap_or("default")).join("-"),
            })
        });
        let time = |at: &aws_smithy_types::DateTime| SystemTime::try_from(*at).ok();
        let started = task.started_at().and_then(time);
        let created = task.created_at().and_then(time).or(started).unwrap_or(SystemTime::UNIX_EPOCH);
        let starting = ["PROVISIONING", "PENDING", "ACTIVATING"].contains(&status);
        let start = Start { created, started: started.or((!starting).then_some(created)) };
        let stopping = task.desired_status() == Some("STOPPED");
        Some(Self { arn: task.task_arn().unwrap_or_default().into(), mesh, stopping, start })
    }
}

/// The tags of running tasks.
#[derive(Debug, Default)]
pub struct Tagged(HashMap<Arc<str>, Arc<Mesh>>);

impl Tagged {
    /// Restores the tags of each stopping task that has lost them. `complete`: these are all running tasks.
    pub fn restore(&mut self, tasks: &mut [Task], complete: bool) {
        for task in &mut *tasks {
            match &task.mesh {
                Some(mesh) if self.0.get(&task.arn) != Some(mesh) => {
                    self.0.insert(task.arn.clone(), mesh.clone());
                }
                None if task.stopping => task.mesh = self.0.get(&task.arn).cloned(),
                _ => {}
            }
        }
        if complete {
            let running = tasks.iter().map(|task| &*task.arn).collect::<HashSet<_>>();
            self.0.retain(|arn, _| running.contains(&**arn));
        }
    }
}

/// The services that have tasks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Each service with the starts of its tasks.
    pub services: BTreeMap<String, Vec<Start>>,
    /// The services that are mesh gateways.
    pub mesh_gateways: BTreeSet<String>,
    /// For each service, the namespace and admin partition of one task.
    pub scopes: BTreeMap<String, String>,
    /// Names that no service can have, each with the reason and one task.
    pub refused: BTreeMap<String, String>,
}

impl Desired {
    /// The services of these tasks.
    #[must_use]
    pub fn new(tasks: &[Task]) -> Self {
        let mut desired = Self::default();
        for task in tasks {
            let Some(Mesh { service, is_mesh_gateway, scope }) = task.mesh.as_deref() else { continue };
            if let Some(why) = refusal(service) {
                desired.refused.entry(service.clone()).or_insert_with(|| {
                    format!(
                        "{service:?}, the service of {}, {why}: change the tag {SERVICE_NAME} or the family",
                        task.arn
                    )
                });
                continue;
            }
            desired.scopes.insert(service.clone(), scope.clone());
            desired.services.entry(service.clone()).or_default().push(task.start);
            if *is_mesh_gateway {
                desired.mesh_gateways.insert(service.clone());
            }
        }
        desired
    }
}

/// Whether Consul accepts a name in a service identity: lower case letters, digits, `-` and `_`, a letter or digit at both ends,
/// at most 256 characters.
pub(crate) fn may_be_identity(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let whole = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    whole && name.len() <= 256 && end(name.chars().next()) && end(name.chars().next_back())
}

/// The reason why no service can have this name.
fn refusal(name: &str) -> Option<&'static str> {
    if name == RESERVED || name.ends_with("-consul-client-token") {
        Some(
            "cannot be used: its secret would have the name of a secret for consul-clients, of this cluster or of another one",
        )
    } else if !may_be_identity(name) {
        Some(
            "is not a name that Consul accepts (letters, digits, - and _, a letter or digit at both ends, at most 256)",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_ecs::types::{Tag, Task as EcsTask};

    use super::*;

    fn task(tags: &[(&str, &str)], status: &str) -> Option<Task> {
        let tag = |(key, value): &(&str, &str)| Tag::builder().key(*key).value(*value).build();
        let definition = "arn:aws:ecs:eu-north-1:210987654321:task-definition/Shop:3";
        let task = EcsTask::builder().task_arn("a").task_definition_arn(definition).last_status(status);
        Task::new(&task.set_tags(Some(tags.iter().map(tag).collect())).build())
    }

    #[test]
    fn the_service_is_the_tag_or_the_family_in_lower_case() {
        let service = |tags| task(tags, "RUNNING").unwrap().mesh.map(|mesh| mesh.service.clone());
        assert_eq!(service(&[(MESH, "true")]).as_deref(), Some("shop"));
        assert_eq!(service(&[(MESH, "true"), (SERVICE_NAME, "Web")]).as_deref(), Some("web"));
        assert_eq!(service(&[(MESH, "true"), (SERVICE_NAME, "")]).as_deref(), Some("shop"));
        assert_eq!(service(&[(MESH, "false"), (SERVICE_NAME, "web")]), None);
        assert_eq!(service(&[]), None);
    }

    #[test]
    fn the_scope_comes_from_the_tags_or_is_the_default() {
        let scope = |tags| task(tags, "RUNNING").unwrap().mesh.unwrap().scope.clone();
        assert_eq!(scope(&[(MESH, "true")]), "default-default");
        assert_eq!(scope(&[(MESH, "true"), (NAMESPACE, "shop"), (PARTITION, "eu")]), "shop-eu");
    }

    #[test]
    fn a_mesh_gateway_is_what_its_tag_says() {
        let is_mesh_gateway = |kind| {
            let task = task(&[(MESH, "true"), (GATEWAY_KIND, kind)], "RUNNING").unwrap();
            !Desired::new(&[task]).mesh_gateways.is_empty()
        };
        assert!(is_mesh_gateway("mesh-gateway"));
        assert!(!is_mesh_gateway("ingress-gateway") && !is_mesh_gateway("terminating-gateway"));
        assert!(!is_mesh_gateway(""));
    }

    #[test]
    fn a_task_counts_until_it_has_stopped() {
        for status in ["PROVISIONING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING"] {
            assert!(task(&[(MESH, "true")], status).is_some(), "{status}");
        }
        assert_eq!(task(&[(MESH, "true")], "STOPPED"), None);
    }

    #[test]
    fn a_task_reads_its_secret_before_it_has_started() {
        let at = |seconds| aws_smithy_types::DateTime::from_secs(seconds);
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let start = |created: Option<i64>, started: Option<i64>, status: &str| {
            let task = EcsTask::builder().set_created_at(created.map(at)).set_started_at(started.map(at));
            let Start { created, started } = Task::new(&task.last_status(status).build()).unwrap().start;
            (created, started)
        };
        assert_eq!(start(Some(3), Some(7), "RUNNING"), (time(3), Some(time(7))));
        assert_eq!(start(Some(3), None, "PENDING"), (time(3), None));
        assert_eq!(start(Some(3), None, "STOPPING"), (time(3), Some(time(3))), "it never started");
        assert_eq!(start(None, Some(7), "RUNNING"), (time(7), Some(time(7))));
        assert_eq!(start(None, None, "PENDING"), (time(0), None));
    }

    fn running(arn: &str, service: Option<&str>, stopping: bool, created: u64) -> Task {
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(created);
        let start = Start { created, started: Some(created) };
        let mesh = service.map(|service| {
            Arc::new(Mesh { service: service.into(), is_mesh_gateway: false, scope: "default-default".into() })
        });
        Task { arn: arn.into(), mesh, stopping, start }
    }

    #[test]
    fn only_a_stopping_task_without_tags_keeps_its_service() {
        let mut tagged = Tagged::default();
        let mut after = |task: Task, complete| {
            let mut tasks = [task];
            tagged.restore(&mut tasks, complete);
            tasks[0].mesh.as_ref().map(|mesh| mesh.service.clone())
        };
        assert_eq!(after(running("a", None, true, 1), true), None, "its tags were never seen");
        assert_eq!(after(running("a", Some("web"), false, 1), true).as_deref(), Some("web"));
        assert_eq!(after(running("a", None, false, 1), true), None, "somebody took the tag away");
        assert_eq!(after(running("a", None, true, 1), true).as_deref(), Some("web"));
        assert_eq!(after(running("b", None, true, 1), false), None);
        assert_eq!(after(running("a", None, true, 1), true).as_deref(), Some("web"), "it was only not listed");
        assert_eq!(after(running("b", None, true, 1), true), None);
        assert_eq!(after(running("a", None, true, 1), true), None, "it was gone");
    }

    #[test]
    fn tasks_are_grouped_and_invalid_names_refused() {
        let task = |service: &str, created| running("a", Some(service), false, created);
        let desired = Desired::new(&[task("web", 7), task("web", 5), task(RESERVED, 1), task("a b", 1), task("-a", 1)]);
        let starts = [7, 5].map(|created| running("a", None, false, created).start);
        assert_eq!(desired.services, BTreeMap::from([("web".to_owned(), starts.to_vec())]));
        assert_eq!(desired.refused.keys().collect::<Vec<_>>(), ["-a", "a b", RESERVED]);
        assert!(desired.refused[RESERVED].contains("a secret for consul-clients"));
    }
}
