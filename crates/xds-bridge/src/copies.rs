//! Copies of the catalog's proxies at the local agent. Consul 1.8 serves xDS only for a proxy that is registered at the agent that Envoy
//! asks. A proxy of a task without an agent is registered in the catalog alone, so the bridge registers a copy for as long as
//! Envoy's stream is open.
//!
//! A copy has two checks. One never passes, so that nothing sends traffic to the copy. The other passes while the stream is open. When that
//! check is critical (the token was deleted, or Consul was killed), the agent removes the copy after about two minutes.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consul_api::{CheckDefinition, CheckId, CheckStatus, Client, Error, ServiceId, ServiceOfNode, ServiceRegistration};
use sidecar_kit::exit::one_line;
use tokio::time::sleep;
use tonic::{Code, Status};
use tracing::{debug, info};

use crate::consul::Token;
use crate::local::{Local, status};
use crate::wire::{self, Malformed, Value, put_bytes};

/// How often the check of the stream is refreshed.
const REFRESH: Duration = Duration::from_secs(10);
/// How long the check of the stream stays passing without a refresh.
const STREAM_TTL: &str = "30s";
/// The agent removes a copy whose stream's check has been critical for this long. Consul allows no shorter time.
const REMOVED_AFTER: &str = "1m";
/// The pause between two queries of the catalog.
const PAUSE: Duration = Duration::from_millis(200);

/// The copies at this agent.
#[derive(Debug, Clone)]
pub struct Copies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    local: Local,
    streams: AtomicU64,
    copies: Mutex<BTreeMap<ServiceId, Held>>,
}

/// What belongs to a copy: its stream, and the agent's node once it is known.
#[derive(Debug, Clone)]
struct Held {
    stream: Stream,
    token: Token,
    node: Option<String>,
}

/// One stream of an Envoy. After a reconnect, the copy belongs to the new stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream(u64);

impl Copies {
    /// No copies yet.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self(Arc::new(Inner { local, streams: AtomicU64::new(0), copies: Mutex::default() }))
    }

    pub(crate) fn local(&self) -> &Local {
        &self.0.local
    }

    /// A new stream.
    pub(crate) fn stream(&self) -> Stream {
        Stream(self.0.streams.fetch_add(1, Ordering::Relaxed))
    }

    /// Registers a copy of the proxy `id` of `node` for a stream, and updates it when the catalog changes. As long as the catalog has no
    /// such proxy, there is no copy, and Consul sends nothing. Returns only if Consul refuses the token.
    pub(crate) async fn keep(self, stream: Stream, token: Token, node: String, id: ServiceId) -> Status {
        let client = match self.local().client(&token) {
            Ok(client) => client,
            Err(status) => return status,
        };
        let (mut index, mut copied) = (None, None);
        loop {
            let step = async {
                let found = client.service_of_node(&node, &id, index, REFRESH).await?;
                if copied.is_some() && !self.has(stream, &id) {
                    return Ok(None);
                }
                match &found.value {
                    Some((proxy, _)) if copied.as_ref() != Some(proxy) => {
                        register(&client, proxy).await?;
                        // From here on, the copy belongs to this stream. A stream whose token Consul refuses does not get here, so it
                        // cannot take the copy from another stream.
                        self.change(|copies| {
                            copies.insert(id.clone(), Held { stream, token: token.clone(), node: None })
                        });
                        self.note_node(stream, &client, &id).await;
                        info!(node = id.as_str(), "the agent has a copy of the proxy");
                        copied = Some(proxy.clone());
                    }
                    // A proxy that the catalog no longer has keeps its copy: later Consuls do not end its stream either.
                    _ if copied.is_some() => {
                        client.update_check(&stream_check(&id), CheckStatus::Passing, "").await?;
                    }
                    _ => {}
                }
                Ok(Some(found.index))
            };
            index = match step.await {
                Ok(Some(index)) => index,
                // Envoy's next stream has the copy now.
                Ok(None) => pending().await,
                Err(Error::NotFound { .. }) => {
                    copied = None;
                    None
                }
                Err(error) => match status(&error) {
                    status if status.code() == Code::Unavailable => None,
                    status => return status,
                },
            };
            sleep(PAUSE).await;
        }
    }

    /// Removes the copy of a stream that has ended.
    pub(crate) async fn remove_that_of(&self, stream: Stream) {
        self.remove(|copy| copy.stream == stream).await;
    }

    /// Removes the copies that this token registered.
    pub(crate) async fn remove_those_of(&self, token: &Token) {
        self.remove(|copy| copy.token == *token).await;
    }

    async fn remove(&self, which: impl Fn(&Held) -> bool) {
        let removed = self.change(|copies| {
            let removed = copies.iter().filter(|(_, copy)| which(copy));
            let removed = removed.map(|(id, copy)| (id.clone(), copy.clone())).collect::<Vec<_>>();
            copies.retain(|_, copy| !which(copy));
            removed
        });
        for (id, copy) in removed {
            let Ok(client) = self.local().client(&copy.token) else { continue };
            let mut outcome = client.deregister_service(&id).await;
            // The agent removes the copy from the catalog later, when the token may be gone.
            if let (Ok(()), Some(node)) = (&outcome, &copy.node) {
                outcome = client.deregister_from_catalog(node, &id).await;
            }
            match outcome {
                Ok(()) | Err(Error::NotFound { .. }) => debug!(node = id.as_str(), "removed the copy of the proxy"),
                Err(error) => debug!(node = id.as_str(), "the agent will remove the copy: {}", one_line(&error)),
            }
        }
    }

    /// Whether the copy belongs to this stream.
    fn has(&self, stream: Stream, id: &ServiceId) -> bool {
        self.change(|copies| copies.get(id).is_some_and(|copy| copy.stream == stream))
    }

    /// Notes the name of the agent's node. A service token may not ask for it, but its checks have it.
    async fn note_node(&self, stream: Stream, client: &Client, id: &ServiceId) {
        let checks = client.agent_checks(&[id]).await.unwrap_or_default();
        let node = checks.into_values().next().map(|check| check.node);
        self.change(|copies| {
            if let Some(copy) = copies.get_mut(id).filter(|copy| copy.stream == stream) {
                copy.node = node;
            }
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<ServiceId, Held>) -> T) -> T {
        change(&mut self.0.copies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn stream_check(id: &ServiceId) -> CheckId {
    format!("{id}-stream").as_str().into()
}

async fn register(client: &Client, proxy: &ServiceOfNode) -> Result<(), Error> {
    let ServiceOfNode { kind, id, service, address, port, tagged_addresses, proxy } = proxy.clone();
    let never = CheckDefinition {
        check_id: Some(format!("{id}-copy").as_str().into()),
        name: "Copy for xDS: never passing".to_owned(),
        ttl: Some("1h".to_owned()),
        status: Some(CheckStatus::Critical),
        ..CheckDefinition::default()
    };
    let open = CheckDefinition {
        check_id: Some(stream_check(&id)),
        name: "Copy for xDS: Envoy's stream is open".to_owned(),
        ttl: Some(STREAM_TTL.to_owned()),
        status: Some(CheckStatus::Passing),
        deregister_critical_service_after: Some(REMOVED_AFTER.to_owned()),
        ..CheckDefinition::default()
    };
    let copy = ServiceRegistration {
        kind,
        id,
        name: service,
        port: Some(port),
        address: Some(address),
        tagged_addresses,
        checks: vec![never, open],
        proxy: Some(proxy),
        ..ServiceRegistration::default()
    };
    client.register_service(&copy).await
}

/// `HealthStatus.UNHEALTHY`.
const UNHEALTHY: u64 = 2;

/// A ClusterLoadAssignment without copies. An unhealthy endpoint (2) is left out if another endpoint has the same address. It is the copy of
/// a proxy, and Envoy might use its health for both.
pub(crate) fn without_copies(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            2 => put_bytes(out, 2, &locality_without_copies(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// The same for a LocalityLbEndpoints: its `lb_endpoints` (2), with their `endpoint` (1) and `health_status` (2).
fn locality_without_copies(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    let read = |endpoint: &'_ [u8]| -> Result<(Vec<u8>, bool), Malformed> {
        let (mut address, mut unhealthy) = (Vec::new(), false);
        for field in wire::fields(endpoint) {
            match field? {
                field if field.number == 1 => address = field.bytes()?.to_vec(),
                field if field.number == 2 => unhealthy = field.value == Value::Varint(UNHEALTHY),
                _ => {}
            }
        }
        Ok((address, unhealthy))
    };
    let mut healthy = Vec::new();
    for field in wire::fields(v2) {
        let field = field?;
        if field.number == 2
            && let (address, false) = read(field.bytes()?)?
        {
            healthy.push(address);
        }
    }
    wire::rewrite(v2, |field, out| {
        let is_copy =
            field.number == 2 && matches!(read(field.bytes()?)?, (address, true) if healthy.contains(&address));
        if !is_copy {
            out.extend_from_slice(field.raw);
        }
        Ok(())
    })
}
