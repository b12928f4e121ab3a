//! Registering in the catalog, and taking registrations out again if the task cannot start.

use std::time::Duration;

use consul_api::{CatalogRegistration, Client, ServiceId, at_start};
use mesh_config::Names;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::step::{StepError, deregister_all};

/// Why the task is not registered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RegisterError {
    #[error(
        "no node for the task's cluster in Consul's catalog: run acl-controller with --agentless in this cluster; it registers the node"
    )]
    NoNode(#[source] Box<WaitError<NodeError>>),
    #[error("cannot read the node of the task's cluster from Consul's servers at {address}")]
    NodeUnread { address: String, source: Box<WaitError<NodeError>> },
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Why the node is not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NodeError {
    #[error("the catalog has no node {0}, or this token may not read it")]
    Missing(String),
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
}

/// Registers services of one node, and remembers which of them are new.
pub(crate) struct Catalog<'a> {
    consul: &'a Client,
    node: &'a str,
    registrations: Vec<CatalogRegistration>,
    created: Vec<ServiceId>,
}

impl<'a> Catalog<'a> {
    /// For these registrations, in this order. Nothing is registered yet.
    pub(crate) fn new(consul: &'a Client, node: &'a str, registrations: Vec<CatalogRegistration>) -> Self {
        Self { consul, node, registrations, created: Vec::new() }
    }

    /// Waits for the node, then registers the service and the proxy, or a gateway. Each wait takes at most `bound`. Checks that exist
    /// keep their statuses.
    ///
    /// # Errors
    /// See [`RegisterError`]. Some of the registrations may have succeeded.
    pub(crate) async fn register(&mut self, names: &Names, bound: Duration) -> Result<(), RegisterError> {
        let existing = self.existing(bound).await?;
        for registration in &mut self.registrations {
            let service = &registration.service;
            let id = service.id.clone();
            let failed = |step: &str, source| StepError::new(format!("{step} {id}"), source, names);
            let exists = existing.contains(&id);
            if exists {
                let known = at_start("the checks in the catalog", bound, async || {
                    self.consul.checks_of(&service.service, &id).await
                });
                let known = known.await.map_err(|source| failed("read the checks of", source))?;
                registration.checks.retain(|check| known.iter().all(|known| known.check_id != check.check_id));
            }
            let registered =
                at_start("Consul's servers", bound, async || self.consul.register_in_catalog(registration).await).await;
            if !exists && registered.as_ref().map_or_else(may_have_arrived, |()| true) {
                self.created.push(id.clone());
            }
            registered.map_err(|source| failed("register", source))?;
        }
        if let [gateway] = &*self.registrations {
            tracing::info!("registered gateway {} on node {}", gateway.service.id, self.node);
        } else {
            tracing::info!(
                "registered service {} and proxy {} on node {}",
                names.service_id,
                names.proxy_id,
                self.node
            );
        }
        Ok(())
    }

    /// Waits for the node, and returns the services that an earlier run has registered.
    async fn existing(&self, bound: Duration) -> Result<Vec<ServiceId>, RegisterError> {
        let what = format!("the node {}", self.node);
        let existing = until(&what, bound, Backoff::default(), async || {
            match self.consul.registered(self.node, &self.registrations).await {
                Ok(Some(existing)) => Attempt::Done(existing),
                Ok(None) => Attempt::Again(NodeError::Missing(self.node.to_owned())),
                Err(error) if error.may_pass_at_start() => Attempt::Again(error.into()),
                Err(error) => Attempt::Final(error.into()),
            }
        });
        existing.await.map_err(|error| {
            let source = Box::new(error);
            match &*source {
                WaitError::TimedOut { last: Some(NodeError::Missing(_)), .. } => RegisterError::NoNode(source),
                _ => RegisterError::NodeUnread { address: self.consul.config().address().to_owned(), source },
            }
        })
    }

    /// Deregisters what was new, the last first: a proxy never remains without its service. A failure is only logged.
    pub(crate) async fn deregister(self) {
        let deregister = async |id: &ServiceId| self.consul.deregister_from_catalog(self.node, id).await;
        deregister_all(self.created.iter().rev(), deregister).await;
    }
}

fn may_have_arrived(error: &WaitError<consul_api::Error>) -> bool {
    match error {
        WaitError::Final(error) | WaitError::TimedOut { last: Some(error), .. } => error.may_have_arrived(),
        WaitError::TimedOut { last: None, .. } => true,
    }
}
