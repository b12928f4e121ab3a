//! The data for the bootstrap that mesh-init reads from Consul's agent.

use std::time::Duration;

use consul_api::{AgentSelf, Client, at_start};
use mesh_config::Names;
use serde_json::Value;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::wait::{Attempt, until};

/// How long to look for the datacenter's name in the catalog. Without it, one tag of Envoy's metrics is missing.
const DATACENTER_BOUND: Duration = Duration::from_secs(10);
/// How long to wait for proxy-defaults. Without it, Envoy's admin interface has no access log.
const PROXY_DEFAULTS_BOUND: Duration = Duration::from_secs(10);

/// The agent's `/v1/agent/self`. None if the agent does not answer it, for example because a token with only a service identity may not
/// read it.
pub async fn agent_self(consul: &Client) -> Option<AgentSelf> {
    match consul.agent_self().await {
        Ok(agent_self) => Some(agent_self),
        Err(error @ consul_api::Error::PermissionDenied { .. }) => {
            tracing::debug!("the agent does not report its gRPC port: {}", one_line(&error));
            None
        }
        Err(error) => {
            tracing::warn!("the agent does not report its gRPC port: {}", one_line(&error));
            None
        }
    }
}

/// The catalog lists no instance that this token may read.
#[derive(Debug, thiserror::Error)]
#[error("the catalog has no instance that this token may read")]
struct NoDatacenter(#[source] Option<consul_api::Error>);

/// The datacenter's name from the catalog. Agents before Consul 1.10 do not report it with a service. mesh-init looks at the
/// service `consul` first, which every datacenter has and every service identity may read, then at the task's own service.
pub async fn datacenter(consul: &Client, names: &Names) -> Option<String> {
    let datacenter = until("the datacenter's name", DATACENTER_BOUND, Backoff::default(), async || {
        for service in ["consul", &names.service] {
            match consul.catalog_service(service).await {
                Ok(instances) => {
                    if let Some(instance) = instances.into_iter().find(|instance| !instance.datacenter.is_empty()) {
                        return Attempt::Done(instance.datacenter);
                    }
                }
                Err(error) if error.may_pass_at_start() => return Attempt::Again(NoDatacenter(Some(error))),
                Err(error) => return Attempt::Final(NoDatacenter(Some(error))),
            }
        }
        Attempt::Again(NoDatacenter(None))
    });
    let datacenter = datacenter.await;
    if let Err(error) = &datacenter {
        tracing::warn!("Envoy's metrics will lack the datacenter: {}", one_line(error));
    }
    datacenter.ok()
}

/// The config entry `proxy-defaults`, which holds access logs since Consul 1.15. None if the entry does not exist, if it cannot be read,
/// or if it does not come in time. Consul's own command also continues without it.
pub async fn proxy_defaults(consul: &Client) -> Option<Value> {
    let entry = at_start("proxy-defaults", PROXY_DEFAULTS_BOUND, async || {
        match consul.config_entry("proxy-defaults", "global").await {
            Ok(entry) => Ok(Some(entry)),
            Err(error @ (consul_api::Error::NotFound { .. } | consul_api::Error::PermissionDenied { .. })) => {
                tracing::debug!("no access log from proxy-defaults: {}", one_line(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    });
    entry.await.unwrap_or_else(|error| {
        tracing::warn!("Envoy's admin interface will lack the access log of proxy-defaults: {}", one_line(&error));
        None
    })
}
