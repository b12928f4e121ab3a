//! From the cluster's tasks to the services that must have a token.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// The tag that puts a task into the mesh.
const MESH: &str = "consul.hashicorp.com/mesh";
/// The tag that names a task's service.
const SERVICE_NAME: &str = "consul.hashicorp.com/service-name";
/// The tags that name a task's namespace and admin partition (Consul Enterprise).
const NAMESPACE: &str = "consul.hashicorp.com/namespace";
const PARTITION: &str = "consul.hashicorp.com/partition";
/// The name whose secret would be that of the client token.
const RESERVED: &str = "consul-client-token";

/// A task whose containers run or may run, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// The service's name, lower case; none if it isn't in the mesh.
    pub service: Option<String>,
    /// Its namespace and admin partition, as consul-ecs 0.4 has them at the end of its secret's name (Consul Enterprise).
    pub scope: String,
    /// When it was created, which is before its containers got their secrets; the epoch if ECS doesn't say.
    pub created: SystemTime,
}

impl Task {
    /// From what ECS says; none for a task that has stopped.
    #[must_use]
    pub fn new(task: &aws_sdk_ecs::types::Task) -> Option<Self> {
        if task.last_status() == Some("STOPPED") {
            return None;
        }
        let tag = |key: &str| {
            let tag = task.tags().iter().find(|tag| tag.key() == Some(key))?;
            tag.value().filter(|value| !value.is_empty())
        };
        // …:task-definition/<family>:<revision>
        let definition = task.task_definition_arn().and_then(|arn| arn.rsplit('/').next()).unwrap_or_default();
        let family = definition.rsplit_once(':').map_or(definition, |(family, _)| family);
        let service = tag(MESH).is_some_and(|value| value == "true");
        let service = service.then(|| tag(SERVICE_NAME).unwrap_or(family).to_lowercase());
        let created = task.created_at().or(task.started_at()).and_then(|at| SystemTime::try_from(*at).ok());
        let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
        let scope = [NAMESPACE, PARTITION].map(|key| tag(key).unwrap_or("default")).join("-");
        Some(Self { arn: task.task_arn().unwrap_or_default().to_owned(), service, scope, created })
    }
}

/// The services that have tasks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Each with the creation of its oldest task.
    pub services: BTreeMap<String, SystemTime>,
    /// The namespace and admin partition of one of its tasks.
    pub scopes: BTreeMap<String, String>,
    /// Names that can't be a service's, each with why, and with the task that has it.
    pub refused: BTreeMap<String, String>,
}

impl Desired {
    /// What these tasks need.
    #[must_use]
    pub fn new(tasks: &[Task]) -> Self {
        let mut desired = Self::default();
        for task in tasks {
            let Some(service) = &task.service else { continue };
            if let Some(why) = refusal(service) {
                desired.refused.entry(service.clone()).or_insert_with(|| {
                    format!(
                        "{service:?}, the service of {}, {why}: change the tag {SERVICE_NAME} or the family",
                        task.arn
                    )
                });
                continue;
            }
            desired.scopes.insert(service.clone(), task.scope.clone());
            let oldest = desired.services.entry(service.clone()).or_insert(task.created);
            *oldest = task.created.min(*oldest);
        }
        desired
    }
}

/// Whether Consul takes a name for a service identity: lower case letters, digits, `-` and `_`, a letter or digit at both ends,
/// at most 256 characters.
pub(crate) fn may_be_identity(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let whole = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    whole && name.len() <= 256 && end(name.chars().next()) && end(name.chars().next_back())
}

/// Why a name can't be a service's.
fn refusal(name: &str) -> Option<&'static str> {
    if name == RESERVED || name.ends_with("-consul-client-token") {
        Some("would have the secret of the consul-clients, of this cluster or of one whose prefix is longer")
    } else if !may_be_identity(name) {
        Some("is not a name that Consul takes (letters, digits, - and _, a letter or digit at both ends, at most 256)")
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
    fn the_service_is_the_tag_else_the_family_in_lower_case_and_needs_the_mesh_tag() {
        let service = |tags| task(tags, "RUNNING").unwrap().service;
        assert_eq!(service(&[(MESH, "true")]).as_deref(), Some("shop"));
        assert_eq!(service(&[(MESH, "true"), (SERVICE_NAME, "Web")]).as_deref(), Some("web"));
        assert_eq!(service(&[(MESH, "true"), (SERVICE_NAME, "")]).as_deref(), Some("shop"));
        assert_eq!(service(&[(MESH, "false"), (SERVICE_NAME, "web")]), None);
        assert_eq!(service(&[]), None);
    }

    #[test]
    fn the_scope_is_that_of_the_tags_or_the_default() {
        let scope = |tags| task(tags, "RUNNING").unwrap().scope;
        assert_eq!(scope(&[(MESH, "true")]), "default-default");
        assert_eq!(scope(&[(MESH, "true"), (NAMESPACE, "shop"), (PARTITION, "eu")]), "shop-eu");
    }

    #[test]
    fn a_task_counts_until_it_has_stopped() {
        for status in ["PROVISIONING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING"] {
            assert!(task(&[(MESH, "true")], status).is_some(), "{status}");
        }
        assert_eq!(task(&[(MESH, "true")], "STOPPED"), None);
    }

    #[test]
    fn a_service_has_its_oldest_task_and_a_name_that_cannot_be_one_is_refused() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let task = |service: &str, seconds| Task {
            arn: "a".into(),
            service: Some(service.into()),
            scope: "default-default".into(),
            created: at(seconds),
        };
        let desired = Desired::new(&[task("web", 7), task("web", 5), task(RESERVED, 1), task("a b", 1), task("-a", 1)]);
        assert_eq!(desired.services, BTreeMap::from([("web".to_owned(), at(5))]));
        assert_eq!(desired.refused.keys().collect::<Vec<_>>(), ["-a", "a b", RESERVED]);
        assert!(desired.refused[RESERVED].contains("the secret of the consul-clients"));
    }
}
