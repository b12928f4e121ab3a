//! What the servers say of the task's proxy and of the other proxies of its service: whether the task is in the mesh, and
//! whether another one can take over when it leaves.

use std::cell::Cell;
use std::time::Duration;

use consul_api::{Client, Instances, ServiceHealth, ServiceId};
use mesh_config::{Names, Role};
use sidecar_kit::exit::one_line;
use tokio::time::{Instant, sleep, timeout};

/// How long one answer about the own proxy may take: whoever asks for it waits.
const ANSWER: Duration = Duration::from_secs(2);

/// How long the first answer about the others may take. What the servers don't say is not waited for: where they are out of
/// reach, they don't hear of a critical status either.
const FIRST_LOOK: Duration = Duration::from_millis(150);

/// How long the servers may say nothing while the write is held. The task's node may have left since then.
const SILENCE: Duration = Duration::from_secs(1);

/// How often the servers are asked while the write is held.
const LOOK: Duration = Duration::from_millis(100);

/// The task's place among the instances of its service.
#[derive(Debug)]
pub struct Place {
    service: String,
    /// The proxy's ID, which for a gateway is its own.
    id: ServiceId,
    gateway: bool,
    in_mesh: Cell<bool>,
}

/// What is to be done when the task stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its checks are to be set critical.
    Write,
    /// Its node has left the cluster, or may have: the write would register it anew. With the reason.
    Nothing(&'static str),
}

impl Place {
    /// Of a task with these names.
    pub fn new(role: Role, names: &Names) -> Self {
        let gateway = matches!(role, Role::Gateway(_));
        Self { service: names.service.clone(), id: names.proxy_id.clone(), gateway, in_mesh: Cell::new(false) }
    }

    fn instances(&self) -> Instances<'_> {
        if self.gateway { Instances::Of(&self.service) } else { Instances::ProxiesOf(&self.service) }
    }

    /// Whether the servers have listed the proxy as passing once. They are not asked again: what happens to them later says
    /// nothing of this task.
    ///
    /// # Errors
    /// Why not, or that the servers can't be asked.
    pub async fn reached(&self, consul: &Client) -> Result<(), String> {
        if self.in_mesh.get() {
            return Ok(());
        }
        let Self { id, .. } = self;
        let found = timeout(ANSWER, consul.instance_health(self.instances(), id)).await;
        let found =
            found.map_err(|_| format!("Consul's servers do not say within {ANSWER:?} whether they have {id}"))?;
        let instance = found.map_err(|error| one_line(&error))?;
        let instance = instance.ok_or_else(|| format!("Consul's servers do not have {id} yet"))?;
        if !instance.is_routed_to() {
            return Err(format!("Consul's servers do not have {id} as passing yet: {}", critical(&instance)));
        }
        self.in_mesh.set(true);
        tracing::info!("in the mesh: Consul's servers list {id} as passing");
        Ok(())
    }

    /// Waits until another instance can take over, for at most `bound`; not at all where there is no other that could.
    pub async fn until_replaced(&self, consul: &Client, bound: Duration) -> Leave {
        if bound.is_zero() {
            return Leave::Write;
        }
        let deadline = Instant::now() + bound;
        let mut held = false;
        let mut answered = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if held { SILENCE.saturating_sub(answered.elapsed()) } else { FIRST_LOOK };
            let patience = left.min(patience);
            let listed = match timeout(patience, consul.consistent_health(self.instances())).await {
                Ok(Ok(listed)) => Some(listed),
                Ok(Err(error)) => {
                    tracing::debug!("{}", one_line(&error));
                    None
                }
                Err(_) => None,
            };
            match listed.map(|listed| self.see(&listed)) {
                Some(seen) if held && !seen.own => return Leave::Nothing("the task's node has left the cluster"),
                Some(seen) if seen.own && seen.one_is_coming => answered = Instant::now(),
                None if held && answered.elapsed() >= SILENCE => {
                    return Leave::Nothing(
                        "Consul's servers give no answer: the task's node may have left the cluster",
                    );
                }
                None if held => {}
                _ => return Leave::Write,
            }
            if !held {
                tracing::info!(
                    "no other instance of {} is passing yet: the critical status waits for one, at most {}",
                    self.service,
                    humantime::format_duration(bound)
                );
                held = true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Leave::Write;
            }
            sleep(LOOK.min(left)).await;
        }
    }

    fn see(&self, listed: &[ServiceHealth]) -> Seen {
        let own = listed.iter().any(|instance| instance.service.id == self.id);
        let others = listed.iter().filter(|instance| instance.service.id != self.id).collect::<Vec<_>>();
        let passing = others.iter().any(|instance| instance.is_routed_to());
        Seen { own, one_is_coming: !passing && others.iter().any(|instance| may_come(instance)) }
    }
}

/// What the servers list.
struct Seen {
    /// The task's own instance.
    own: bool,
    /// Others, of which none is passing and one may be soon.
    one_is_coming: bool,
}

/// One in maintenance is going itself, and one whose node is gone won't come back.
fn may_come(instance: &ServiceHealth) -> bool {
    let mut critical = instance.checks.iter().filter(|check| check.status == consul_api::CheckStatus::Critical);
    critical.all(|check| !check.service_id.is_empty() && !check.check_id.as_str().starts_with("_service_maintenance"))
}

fn critical(instance: &ServiceHealth) -> String {
    let critical = instance.checks.iter().filter(|check| check.status == consul_api::CheckStatus::Critical);
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

    fn one_is_coming(others: Value) -> bool {
        let names = Names::new(None, "shop", &"f1a2".into());
        let place = Place { service: names.service, id: names.proxy_id, gateway: false, in_mesh: Cell::new(false) };
        place.see(&serde_json::from_value::<Vec<_>>(others).unwrap()).one_is_coming
    }

    #[test]
    fn one_is_coming_where_others_are_listed_none_is_passing_and_one_can_be() {
        let own = instance("shop-f1a2-sidecar-proxy", &[("service:listener", "p", "passing")]);
        let new = instance("b", &[("serfHealth", "", "passing"), ("service:listener", "b", "critical")]);
        let passing = instance("c", &[("service:listener", "c", "passing")]);
        let warning = instance("c", &[("service:listener", "c", "warning")]);
        let going = instance("d", &[("_service_maintenance:d", "d", "critical"), ("service:listener", "d", "passing")]);
        let held = instance("d", &[("_node_maintenance", "", "critical")]);
        let gone = instance("e", &[("serfHealth", "", "critical"), ("service:listener", "e", "critical")]);
        let rows = [
            (json!([]), false),
            (json!([own]), false),
            (json!([own, new]), true),
            (json!([new, gone, going]), true),
            (json!([own, new, passing]), false),
            (json!([own, new, warning]), false),
            (json!([own, going]), false),
            (json!([own, held]), false),
            (json!([own, gone]), false),
        ];
        for (listed, expected) in rows {
            assert_eq!(one_is_coming(listed.clone()), expected, "{listed}");
        }
    }
}
