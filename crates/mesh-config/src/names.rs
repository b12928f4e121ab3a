//! The names of a task's service, proxy and checks in Consul, and the names of sidecar containers.

use std::collections::BTreeMap;

use consul_types::{CheckId, ServiceId};
use ecs_meta::TaskId;

/// The name of the bootstrap in the bootstrap directory.
pub const BOOTSTRAP_FILE: &str = "envoy-bootstrap.json";
/// The name of the file in the bootstrap directory with what mesh-dataplane needs, in a task without an agent.
pub const DATAPLANE_FILE: &str = "dataplane.json";
/// The file in the bootstrap directory with the service's token, if mesh-init logs in for it.
pub const SERVICE_TOKEN_FILE: &str = "service-token";
/// The file in the bootstrap directory with the agent's token, if `mesh-init agent-config` logs in for it.
pub const CLIENT_TOKEN_FILE: &str = "client-token";
/// The name of every check that health-sync updates.
pub const HEALTH_SYNC_NAME: &str = "consul ecs synced";
/// The port of Envoy's public listener unless `proxy.publicListenerPort` says otherwise.
pub const PUBLIC_LISTENER_PORT: u16 = 20000;

/// The containers that ecs-mesh and consul-ecs add to a task.
const SIDECARS: [&str; 12] = [
    "app-entrypoint",
    "consul-client",
    "consul-config",
    "consul-dataplane",
    "consul-ecs-control-plane",
    "consul-ecs-health-sync",
    "consul-ecs-mesh-init",
    "dataplane",
    "envoy-entrypoint",
    "health-sync",
    "mesh-init",
    "sidecar-proxy",
];

/// Whether a container with this name is a sidecar and not an app. Sidecars are added by ecs-mesh and consul-ecs, and by AWS for ECS Service
/// Connect (`ecs-service-connect-*`) and GuardDuty (`aws-guardduty-agent*`). This function does not look at `Type` in the task metadata.
#[must_use]
pub fn is_sidecar(container: &str) -> bool {
    SIDECARS.contains(&container)
        || container.starts_with("ecs-service-connect-")
        || container.starts_with("aws-guardduty-agent")
}

/// Whether a container with this name runs the proxy of a task without an agent: that of ecs-mesh or that of consul-ecs.
#[must_use]
pub fn is_dataplane(container: &str) -> bool {
    ["dataplane", "consul-dataplane"].contains(&container)
}

/// The names of one task in Consul, as of consul-ecs 0.6. The fields describe a service. For a gateway, see `Role::names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The service: `service.name`, else the task family, in lower case.
    pub service: String,
    /// The ID of this task's instance: `<service>-<task id>`.
    pub service_id: ServiceId,
    /// The proxy's service name: `<service>-sidecar-proxy`.
    pub proxy: String,
    /// The ID of this task's proxy: `<service ID>-sidecar-proxy`.
    pub proxy_id: ServiceId,
}

impl Names {
    /// The names of a task. They are in lower case, because Consul refuses a service identity with capitals, and a family may have some.
    #[must_use]
    pub fn new(service_name: Option<&str>, family: &str, task_id: &TaskId) -> Self {
        let service = service_name.filter(|name| !name.is_empty()).unwrap_or(family).to_lowercase();
        let service_id = ServiceId::from(format!("{service}-{task_id}"));
        let proxy = format!("{service}-sidecar-proxy");
        let proxy_id = format!("{service_id}-sidecar-proxy").into();
        Self { service, service_id, proxy, proxy_id }
    }

    /// The ID of the check that health-sync updates for a container.
    #[must_use]
    pub fn health_sync_check_id(&self, container: &str) -> CheckId {
        format!("{}-{container}-consul-ecs", self.service_id).into()
    }
}

/// The meta of service and proxy: `task-id`, `task-arn`, `source`, and the user's, which wins.
#[must_use]
pub fn meta(task_id: &TaskId, task_arn: &str, user: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours = [("task-id", task_id.as_str()), ("task-arn", task_arn), ("source", "consul-ecs")];
    let mut meta: BTreeMap<_, _> = ours.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    meta.extend(user.clone());
    meta
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_service_name_or_the_family() {
        let names = Names::new(None, "Shop-Web", &"f1a2".into());
        assert_eq!(names.service, "shop-web");
        assert_eq!(names.service_id, "shop-web-f1a2");
        assert_eq!(names.proxy, "shop-web-sidecar-proxy");
        assert_eq!(names.proxy_id, "shop-web-f1a2-sidecar-proxy");
        assert_eq!(names.health_sync_check_id("app"), "shop-web-f1a2-app-consul-ecs");
        assert_eq!(Names::new(Some("api"), "Shop-Web", &"f1a2".into()).service, "api");
        assert_eq!(Names::new(Some(""), "web", &"f1a2".into()).service, "web");
    }

    #[test]
    fn the_users_meta_comes_last() {
        let user = BTreeMap::from([("source".to_owned(), "mine".to_owned()), ("env".to_owned(), "test".to_owned())]);
        let meta = meta(&"f1a2".into(), "arn:aws:ecs:eu-west-1:1:task/c/f1a2", &user);
        assert_eq!(meta["source"], "mine");
        assert_eq!(meta["env"], "test");
        assert_eq!(meta["task-id"], "f1a2");
        assert_eq!(meta["task-arn"], "arn:aws:ecs:eu-west-1:1:task/c/f1a2");
    }

    #[test]
    fn every_container_except_the_known_sidecars_is_an_app() {
        for name in [
            "consul-client",
            "consul-ecs-mesh-init",
            "consul-dataplane",
            "dataplane",
            "ecs-service-connect-Xy12",
            "aws-guardduty-agent-a",
        ] {
            assert!(is_sidecar(name), "{name}");
        }
        for name in ["web", "consul", "my-sidecar-proxy", "ecs-service"] {
            assert!(!is_sidecar(name), "{name}");
        }
    }
}
