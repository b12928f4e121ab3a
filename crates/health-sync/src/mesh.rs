//! The task's proxy in Consul's catalog, and the other proxies of its service: whether the task is in the mesh, and whether another
//! instance can replace it when it stops.

use std::cell::Cell;
use std::time::Duration;

use consul_api::{CheckId, CheckStatus, Client, Instances, ServiceHealth, ServiceId};
use mesh_config::{Names, Role};
use sidecar_kit::exit::one_line;
use tokio::time::{Instant, sleep, timeout};

use crate::registry::Registry;

/// How long the servers may take to answer whether the task is in the mesh: the container's health check waits for the answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How long Consul may take to answer whether an earlier run of health-sync has seen the task in the mesh. The first write waits for the
/// answer.
const GATE_BOUND: Duration = Duration::from_secs(1);

/// How long the servers may take for the first answer about other instances. Servers that are out of reach don't see a critical
/// status either, so waiting longer is of no use.
const FIRST_LOOK: Duration = Duration::from_millis(150);

/// How long the servers may give no answer during the hold. After that, the task's node may have left.
const SILENCE: Duration = Duration::from_secs(1);

/// How often health-sync asks the servers during the hold.
const LOOK: Duration = Duration::from_millis(100);

/// The task's own instance of its service.
#[derive(Debug)]
pub struct Instance {
    service: String,
    /// The ID of the proxy or the gateway.
    id: ServiceId,
    gateway: bool,
    /// Whether the servers have listed the instance as passing at least one time.
    in_mesh: Cell<bool>,
}

/// What to write when the task stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWrite {
    /// The critical statuses.
    Critical,
    /// Nothing, for this reason. The task's node has left the cluster, or may have, and a write would register it again.
    Nothing(&'static str),
}

impl Instance {
    pub fn new(role: Role, names: &Names) -> Self {
        let gateway = matches!(role, Role::Gateway(_));
        Self { service: names.service.clone(), id: names.proxy_id.clone(), gateway, in_mesh: Cell::new(false) }
    }

    /// All instances of the service.
    fn instances(&self) -> Instances<'_> {
        if self.gateway { Instances::Of(&self.service) } else { Instances::ProxiesOf(&self.service) }
    }

    /// Whether the servers have listed the instance as passing at least one time. After that, health-sync does not ask them again:
    /// an outage of the servers says nothing about this task.
    ///
    /// # Errors
    /// Why not, or that the servers give no answer.
    pub async fn is_in_mesh(&self, consul: &Client) -> Result<(), String> {
        if self.in_mesh.get() {
            return Ok(());
        }
        let Self { id, .. } = self;
        let found = timeout(ANSWER, consul.instance_health(self.instances(), id)).await;
        let found =
            found.map_err(|_| format!("Consul's servers do not say within {ANSWER:?} whether they list {id}"))?;
        let instance = found.map_err(|error| one_line(&error))?;
        let instance = instance.ok_or_else(|| format!("Consul's servers do not list {id} yet"))?;
        if !instance.is_routed_to() {
            return Err(format!("Consul's servers do not list {id} as passing yet: {}", critical(&instance)));
        }
        self.in_mesh.set(true);
        tracing::info!("in the mesh: Consul's servers list {id} as passing");
        Ok(())
    }

    /// Counts the task as in the mesh if an earlier run of health-sync has seen its instance there. Then the gate, `healthy --in-mesh`,
    /// succeeds. Call this before the first write.
    pub async fn recall(&self, consul: &impl Registry, own: &[CheckId]) {
        if matches!(timeout(GATE_BOUND, consul.was_in_mesh(own, &self.id)).await, Ok(Ok(true))) {
            self.in_mesh.set(true);
            tracing::info!("{} is passing since an earlier run: the task has been in the mesh", self.id);
        }
    }

    /// Holds the critical statuses back until another instance is passing, for at most `bound`. There is no hold if no other instance
    /// can become passing. The hold ends early when this task's own containers are no longer healthy.
    pub async fn hold(&self, consul: &Client, bound: Duration, healthy: impl Fn() -> bool) -> LastWrite {
        if bound.is_zero() {
            return LastWrite::Critical;
        }
        let deadline = Instant::now() + bound;
        let mut held = false;
        let mut answered = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if held { SILENCE.saturating_sub(answered.elapsed()) } else { FIRST_LOOK };
            let listed = match timeout(left.min(patience), consul.consistent_health(self.instances())).await {
                Ok(Ok(listed)) => Some(self.listed(&listed)),
                Ok(Err(error)) => {
                    tracing::debug!("{}", one_line(&error));
                    None
                }
                Err(_) => None,
            };
            match listed {
                Some(listed) if held && !listed.own => {
                    return LastWrite::Nothing("the task's node has left the cluster");
                }
                Some(listed) if listed.own && listed.other_is_coming && healthy() => answered = Instant::now(),
                None if held && answered.elapsed() >= SILENCE => {
                    return LastWrite::Nothing(
                        "Consul's servers give no answer: the task's node may have left the cluster",
                    );
                }
                None if held => {}
                _ => return LastWrite::Critical,
            }
            if !held {
                tracing::info!(
                    "no other instance of {} is passing yet: this task stays passing until one is, at most for {}",
                    self.service,
                    humantime::format_duration(bound)
                );
                held = true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return LastWrite::Critical;
            }
            sleep(LOOK.min(left)).await;
        }
    }

    fn listed(&self, instances: &[ServiceHealth]) -> Listed {
        let own = instances.iter().any(|instance| instance.service.id == self.id);
        let others = instances.iter().filter(|instance| instance.service.id != self.id).collect::<Vec<_>>();
        let passing = others.iter().any(|instance| instance.is_routed_to());
        Listed { own, other_is_coming: !passing && others.iter().any(|instance| can_become_passing(instance)) }
    }
}

/// What the servers list.
struct Listed {
    /// The task's own instance.
    own: bool,
    /// Other instances, of which none is passing and at least one can become passing.
    other_is_coming: bool,
}

/// False for an instance in maintenance (its task is stopping) and for an instance whose node has failed.
fn can_become_passing(instance: &ServiceHealth) -> bool {
    let mut critical = instance.checks.iter().filter(|check| check.status == CheckStatus::Critical);
    critical.all(|check| !check.service_id.is_empty() && !check.check_id.as_str().starts_with("_service_maintenance"))
}

fn critical(instance: &ServiceHealth) -> String {
    let critical = instance.checks.iter().filter(|check| check.status == CheckStatus::Critical);
    let critical = critical.map(|check| format!("{:?} is critical", check.name)).collect::<Vec<_>>();
    critical.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(id: &str, checks: &[(&str, &str, &str)]) -> Value {
        let checks = checks
            .iter()
            .map(|(id, service, status)| json!({ "CheckID": id, "Name": id, "ServiceID": service, "Status": status }));
        json!({
            "Node": { "Node": id, "Address": "10.1.0.9" }, "Service": { "ID": id, "Service": "shop-sidecar-proxy" },
            "Checks": checks.collect::<Vec<_>>(),
        })
    }

    fn other_is_coming(listed: Value) -> bool {
        let names = Names::new(None, "shop", &"f1a2".into());
        let own = Instance { service: names.service, id: names.proxy_id, gateway: false, in_mesh: Cell::new(false) };
        own.listed(&serde_json::from_value::<Vec<_>>(listed).unwrap()).other_is_coming
    }

    #[test]
    fn the_hold_needs_an_instance_that_can_become_passing() {
        let own = instance("shop-f1a2-sidecar-proxy", &[("service:listener", "p", "passing")]);
        let new = instance("b", &[("serfHealth", "", "passing"), ("service:listener", "b", "critical")]);
        let passing = instance("c", &[("service:listener", "c", "passing")]);
        let warning = instance("c", &[("service:listener", "c", "warning")]);
        let going = instance("d", &[("_service_maintenance:d", "d", "critical"), ("service:listener", "d", "passing")]);
        let node_maintained = instance("d", &[("_node_maintenance", "", "critical")]);
        let gone = instance("e", &[("serfHealth", "", "critical"), ("service:listener", "e", "critical")]);
        let rows = [
            (json!([]), false),
            (json!([own]), false),
            (json!([own, new]), true),
            (json!([new, gone, going]), true),
            (json!([own, new, passing]), false),
            (json!([own, new, warning]), false),
            (json!([own, going]), false),
            (json!([own, node_maintained]), false),
            (json!([own, gone]), false),
        ];
        for (listed, expected) in rows {
            assert_eq!(other_is_coming(listed.clone()), expected, "{listed}");
        }
    }
}
