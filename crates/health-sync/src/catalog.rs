//! The services and checks of a task without an agent, in the servers' catalog.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use consul_api::{
    CatalogCheck, CatalogRegistration, CheckId, CheckStatus, Client, ConfigError, Error, HealthCheck, ServiceId,
};
use consul_login::Keeper;
use futures_util::future::select_ok;
use mesh_config::catalog::readiness_check_id;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use tokio::time::{Instant, sleep, timeout};

use crate::health::{Checks, Update};
use crate::registry::Registry;
use crate::shutdown::{REASON, maintenance_check_id, retried};
use crate::sync::report;
use crate::writes::{WriteError, Writes};

/// How soon the critical statuses also go to the next server if one gives no answer.
const NEXT_SERVER: Duration = Duration::from_millis(50);

/// How long one attempt to write at the end may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long health-sync tries to write the critical statuses before it reports that it could not.
const CRITICAL_BOUND: Duration = Duration::from_secs(1);

/// How often health-sync looks whether a late write undid the critical statuses.
const LOOK: Duration = Duration::from_millis(100);

/// How long the deregistration may take.
const DEREGISTER_BOUND: Duration = Duration::from_secs(3);

/// After a refused token, another refusal counts only after this time. An earlier one may still be for the old token.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// The catalog.
#[derive(Debug)]
pub struct Catalog {
    consul: Client,
    /// Holds the token of the task's login; none if the token was given.
    keeper: Option<Keeper>,
    refused: Cell<Option<Instant>>,
    node: String,
    /// Service and proxy, or the gateway, as mesh-init registers them.
    registrations: Vec<CatalogRegistration>,
    writes: Writes,
}

/// What the catalog still has of the task.
#[derive(Debug, thiserror::Error)]
#[error(
    "not deregistered within {}: {}; acl-controller with --agentless does it once the task has stopped",
    humantime::format_duration(DEREGISTER_BOUND),
    .0.join("; ")
)]
pub struct NotDeregistered(Vec<String>);

impl Catalog {
    pub fn new(consul: Client, keeper: Option<Keeper>, node: String, registrations: Vec<CatalogRegistration>) -> Self {
        if let Some(keeper) = &keeper {
            consul.use_token(keeper.token().borrow().clone());
        }
        let (refused, writes) = (Cell::new(None), Writes::default());
        Self { consul, keeper, refused, node, registrations, writes }
    }

    /// Uses each new token of the login. It never ends.
    pub async fn renewals(&self) {
        if let Some(keeper) = &self.keeper {
            let mut token = keeper.token();
            while token.changed().await.is_ok() {
                self.consul.use_token(token.borrow_and_update().clone());
                // A refusal that comes now may still be for the token before.
                self.refused.set(Some(Instant::now()));
            }
        }
        std::future::pending().await
    }

    /// Takes the task out of the mesh, and then does so again whenever a late write has undone it. Ends when `stopped` does, at the latest after
    /// `bound`; false if the bound came first.
    pub async fn stay_critical(&self, stopped: impl Future<Output = ()>, bound: Duration) -> Result<bool, ConfigError> {
        let servers = self.consul.each().await?;
        let stay = async {
            let first = retried(Instant::now() + CRITICAL_BOUND, ATTEMPT, async || self.set_critical(&servers).await);
            let mut failure = LastFailure::default();
            let mut note = |outcome: Result<(), String>| {
                let outcome = outcome.map_err(|reason| format!("the checks are not critical yet: {reason}"));
                report(&mut failure, &outcome, "the checks are critical");
                outcome.is_ok()
            };
            let mut set = note(first.await);
            loop {
                if set && !self.writes.may_come_late() {
                    return;
                }
                sleep(LOOK).await;
                if !set || self.is_undone().await {
                    let outcome = timeout(ATTEMPT, self.set_critical(&servers)).await;
                    set = note(outcome.unwrap_or_else(|_| Err("no answer".to_owned())));
                }
            }
        };
        let ends = timeout(bound, stopped);
        tokio::pin!(ends, stay);
        tokio::select! {
            ended = &mut ends => Ok(ended.is_ok()),
            () = &mut stay => Ok(ends.await.is_ok()),
        }
    }

    /// Deregisters the service, then the proxy.
    ///
    /// # Errors
    /// With each service that is still registered.
    pub async fn deregister(&self) -> Result<(), NotDeregistered> {
        let deadline = Instant::now() + DEREGISTER_BOUND;
        let servers = self.consul.each().await.map_err(|error| NotDeregistered(vec![one_line(&error)]))?;
        let mut failed = Vec::new();
        for CatalogRegistration { service, .. } in &self.registrations {
            let deregister = async || {
                let at = async |server: &Client| server.deregister_from_catalog(&self.node, &service.id).await;
                self.at_first(&servers, at).await
            };
            match retried(deadline, ATTEMPT, deregister).await {
                Ok(()) => tracing::info!("deregistered {}", service.id),
                Err(reason) => failed.push(format!("{}: {reason}", service.id)),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(NotDeregistered(failed)) }
    }

    /// Sets all checks critical and puts service and proxy into maintenance. A status that arrives later does not end the maintenance.
    async fn set_critical(&self, servers: &[Client]) -> Result<(), String> {
        let checks = self.registrations.iter().map(critical).collect::<Vec<_>>();
        self.at_first(servers, async |server| self.write_registered_at(server, &checks).await).await
    }

    /// Makes a call at the server that answers first. The servers are asked one after the other, each 50 ms after the one before. So a
    /// second call must do no harm.
    async fn at_first(
        &self,
        servers: &[Client],
        call: impl AsyncFn(&Client) -> Result<(), Error>,
    ) -> Result<(), String> {
        let call = &call;
        let mut wait = Duration::ZERO;
        let attempts = servers.iter().map(|server| {
            let before = wait;
            wait += NEXT_SERVER;
            if let Some(keeper) = &self.keeper {
                server.use_token(keeper.token().borrow().clone());
            }
            Box::pin(async move {
                sleep(before).await;
                call(server).await
            })
        });
        select_ok(attempts).await.map(|_| ()).map_err(|error| self.explained(&error.into()))
    }

    /// Writes the checks of each registration, with one request. If a service is missing, Consul refuses the whole request. Then each
    /// registration gets a request of its own. A service that is not registered needs no write.
    async fn write_registered_at(&self, server: &Client, checks: &[Vec<CatalogCheck>]) -> Result<(), Error> {
        match self.write_checks_at(server, &checks.concat()).await {
            Err(error) if may_be_missing(&error) => {}
            other => return other,
        }
        let (mut denied, mut written) = (None, false);
        for checks in checks {
            match self.write_checks_at(server, checks).await {
                Ok(()) => written = true,
                Err(Error::NotFound { .. }) => {}
                Err(error) if may_be_missing(&error) => denied = Some(error),
                other => return other,
            }
        }
        denied.filter(|_| !written).map_or(Ok(()), Err)
    }

    /// Whether a check of health-sync is no longer critical. False if no server answers.
    async fn is_undone(&self) -> bool {
        let Ok(Ok(found)) = timeout(ATTEMPT, self.found()).await else { return false };
        let own = self.registrations.iter().flat_map(|registration| &registration.checks);
        own.filter_map(|check| found.get(&check.check_id)).any(|check| check.status != CheckStatus::Critical)
    }

    async fn write_checks_at(&self, consul: &Client, checks: &[CatalogCheck]) -> Result<(), Error> {
        consul.write_checks(&self.node, self.registrations[0].partition.as_deref(), checks).await
    }

    /// The checks of the task's services in the catalog, also those that others have added.
    async fn found(&self) -> Result<BTreeMap<CheckId, HealthCheck>, Error> {
        let mut found = BTreeMap::new();
        for CatalogRegistration { service, .. } in &self.registrations {
            let checks = self.consul.checks_of(&service.service, &service.id).await?;
            found.extend(checks.into_iter().map(|check| (check.check_id.clone(), check)));
        }
        Ok(found)
    }

    /// The error on one line. If the servers no longer know the login's token, this also tells the keeper to log in again.
    fn explained(&self, error: &WriteError) -> String {
        let line = one_line(error);
        let WriteError::Consul(error @ Error::PermissionDenied { .. }) = error else { return line };
        if let Some(keeper) = self.keeper.as_ref().filter(|_| error.is_unknown_token()) {
            if self.refused.get().is_none_or(|refused| refused.elapsed() > REFUSED_AGAIN) {
                self.refused.set(Some(Instant::now()));
                keeper.refused(keeper.token().borrow().clone());
            }
            return format!("{line}; logging in again");
        }
        let service = &self.registrations[0].service.service;
        format!(
            "{line}; expected a token with the service identity {service}, and in the catalog the node {}, which acl-controller with \
             --agentless registers",
            self.node
        )
    }
}

/// Whether this may be the answer for a service that is not registered. Which one it is depends on Consul's version.
fn may_be_missing(error: &Error) -> bool {
    let denied = matches!(error, Error::PermissionDenied { .. }) && !error.is_unknown_token();
    denied || matches!(error, Error::NotFound { .. })
}

/// The checks of a registration, all critical, and its maintenance.
fn critical(registration: &CatalogRegistration) -> Vec<CatalogCheck> {
    let critical = |check: &CatalogCheck| CatalogCheck {
        status: CheckStatus::Critical,
        output: REASON.to_owned(),
        ..check.clone()
    };
    registration.checks.iter().map(critical).chain([maintenance(registration)]).collect()
}

/// The check by which an agent shows maintenance, for a service in the catalog.
fn maintenance(CatalogRegistration { service, .. }: &CatalogRegistration) -> CatalogCheck {
    CatalogCheck {
        check_id: maintenance_check_id(&service.id),
        service_id: service.id.clone(),
        name: "Service Maintenance Mode".to_owned(),
        kind: "maintenance",
        notes: REASON.to_owned(),
        status: CheckStatus::Critical,
        output: String::new(),
        namespace: service.namespace.clone(),
    }
}

impl Registry for Catalog {
    const READ_BACK: Duration = Duration::from_secs(45);

    fn consul(&self) -> &Client {
        &self.consul
    }

    fn writes(&self) -> &Writes {
        &self.writes
    }

    fn service_id(&self) -> &ServiceId {
        &self.registrations[0].service.id
    }

    /// A check in the catalog has no time to live.
    fn heartbeat(&self) -> Option<Duration> {
        None
    }

    /// Only health-sync sets the check of the proxy or gateway to passing.
    async fn was_in_mesh(&self, _own: &[CheckId], id: &ServiceId) -> Result<bool, Error> {
        let found = self.found().await?;
        Ok(found.get(&readiness_check_id(id)).is_some_and(|check| check.status == CheckStatus::Passing))
    }

    /// All or none: one request has the checks of both services.
    async fn write(&self, updates: Vec<Update>, accepted: impl Fn(Update)) -> Result<(), String> {
        if updates.is_empty() {
            return Ok(());
        }
        let checks = self.registrations.iter().flat_map(|registration| &registration.checks);
        let checks = checks.filter_map(|check| {
            let update = updates.iter().find(|update| update.id == check.check_id)?;
            Some(CatalogCheck { status: update.status, output: update.output.clone(), ..check.clone() })
        });
        let checks = checks.collect::<Vec<_>>();
        let write = self.write_checks_at(&self.consul, &checks);
        self.writes.make(write).await.map_err(|error| self.explained(&error))?;
        updates.into_iter().for_each(accepted);
        Ok(())
    }

    /// Registers again each service of which the catalog lacks a check: the service, and the missing checks as critical. Ends a
    /// maintenance that an earlier run set.
    async fn restore(&self, checks: &RefCell<Checks>) -> Result<(), String> {
        let written = checks.borrow().written();
        let found = self.found().await.map_err(|error| self.explained(&error.into()))?;
        for registration in &self.registrations {
            let maintenance = maintenance(registration);
            if found.get(&maintenance.check_id).is_some_and(|check| check.notes == maintenance.notes) {
                let end = self.consul.deregister_check(&self.node, &maintenance.check_id);
                self.writes.make(end).await.map_err(|error| self.explained(&error))?;
            }
            let mut missing = registration.clone();
            missing.checks.retain(|check| !found.contains_key(&check.check_id));
            if missing.checks.is_empty() {
                continue;
            }
            let register = self.consul.register_in_catalog(&missing);
            self.writes.make(register).await.map_err(|error| self.explained(&error))?;
            tracing::warn!("the catalog had lost {} or a check of it: registered it again", missing.service.id);
        }
        checks.borrow_mut().compare(&written, |id| found.get(id).map(|check| check.status));
        Ok(())
    }
}
