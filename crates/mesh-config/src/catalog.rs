//! The registrations in the catalog of a task without an agent, as of consul-ecs 0.7 to 0.10.

use consul_types::{CatalogCheck, CatalogRegistration, CheckId, CheckStatus, Locality, ServiceId};
use ecs_meta::Task;

use crate::{CheckTtl, Config, Names, Role};

/// The type of every check that health-sync writes.
pub const CHECK_TYPE: &str = "consul-ecs-health-check";
/// The name of a container's check.
pub const CONTAINER_CHECK: &str = "Consul ECS health check synced";
/// The name of the check of a service, proxy or gateway that shows whether its whole task is healthy.
pub const READINESS_CHECK: &str = "Consul dataplane readiness";
/// The key in the meta with the version of ecs-mesh that registered the task.
pub const VERSION_KEY: &str = "ecs-mesh-version";

/// The names of a task without an agent. They are in lower case, also that of a gateway.
#[must_use]
pub fn names(role: Role<'_>, task: &Task) -> Names {
    match role {
        Role::Service(_) => role.names(task),
        Role::Gateway(_) => {
            let service = role.identity(&task.family);
            let service_id = ServiceId::from(format!("{service}-{}", task.task_id()));
            Names { proxy: service.clone(), proxy_id: service_id.clone(), service, service_id }
        }
    }
}

/// The ID of a container's check.
#[must_use]
pub fn container_check_id(names: &Names, container: &str) -> CheckId {
    format!("{}-{container}", names.service_id).into()
}

/// The ID of the check that shows whether the whole task of this service, proxy or gateway is healthy. Only that of the proxy or gateway
/// decides whether other proxies send requests.
#[must_use]
pub fn readiness_check_id(id: &ServiceId) -> CheckId {
    format!("{id}-consul-dataplane").into()
}

/// The registrations, in order, for the node of the task's cluster. The last one is the proxy or gateway for which Envoy runs. Each has
/// its checks, which are critical until health-sync writes them.
#[must_use]
pub fn registrations(
    role: Role<'_>,
    config: &Config,
    names: &Names,
    task: &Task,
    node: &str,
) -> Vec<CatalogRegistration> {
    // The time to live is that of an agent's checks, which are left out.
    let all = role.registrations(config, names, task, CheckTtl::default()).into_iter();
    all.enumerate()
        .map(|(index, registration)| {
            let containers = match role {
                Role::Service(_) if index == 0 => &config.health_sync_containers[..],
                _ => &[],
            };
            let checks = containers.iter().map(|container| {
                let notes = format!("The ECS health of container {container}, written by health-sync.");
                (container_check_id(names, container), CONTAINER_CHECK, notes)
            });
            let notes =
                "Whether the dataplane and all containers in healthSyncContainers are healthy, written by health-sync."
                    .to_owned();
            let readiness = (readiness_check_id(&registration.id), READINESS_CHECK, notes);
            let check = |(check_id, name, notes): (CheckId, &str, String)| CatalogCheck {
                check_id,
                service_id: registration.id.clone(),
                name: name.to_owned(),
                kind: CHECK_TYPE,
                notes,
                status: CheckStatus::Critical,
                output: format!("Service {} is not ready", registration.name),
                namespace: registration.namespace.clone(),
            };
            let checks = checks.chain([readiness]).map(check).collect();
            let mut made = CatalogRegistration::new(node.to_owned(), registration, checks);
            let service = &mut made.service;
            if service.address.is_none() {
                service.address = task.private_ip().map(str::to_owned);
            }
            service.meta.entry(VERSION_KEY.to_owned()).or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
            if let Role::Service(_) = role {
                service.locality = locality(task);
            }
            if let Some(proxy) = &mut service.proxy {
                proxy.local_service_address.clone_from(&config.proxy.local_service_address);
            }
            made
        })
        .collect()
}

fn locality(task: &Task) -> Option<Locality> {
    let region = Some(task.task_arn.region()).filter(|region| !region.is_empty())?;
    Some(Locality { region: region.to_owned(), zone: task.availability_zone.clone().unwrap_or_default() })
}
