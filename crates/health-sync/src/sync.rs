//! The three loops that keep a task's checks up to date, from the first metadata to TERM.

use std::cell::{OnceCell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consul_api::{Client, Error as ConsulError, ServiceId, ServiceRegistration};
use ecs_meta::{Answer, MetadataClient, Task, Watch};
use futures_util::future::join_all;
use mesh_config::{Config, Names, Role};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::health::{Checks, Update};
use crate::mesh::{Instance, LastWrite};
use crate::shutdown::{self, NotSet};
use crate::writes::{WriteError, Writes};
use crate::{AGAIN, Options, complete, own_id};

/// How often health-sync asks the agent for its services and checks. It also asks after each write that failed.
const READ_BACK: Duration = Duration::from_secs(60);

/// How long one read-back may take, with registering again.
const READ_BACK_BOUND: Duration = Duration::from_secs(10);

/// How long a write that is under way may still take after TERM. The critical writes have a second after that.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// A thread asks for the metadata at each interval, and waits at most 2 s for an answer. If the last request is longer ago
/// than the interval and this time together, health-sync hangs.
const HANGS: Duration = Duration::from_secs(30);

/// Logs when a failure begins or changes, and `over` when it ends.
pub fn report(failure: &mut LastFailure, outcome: &Result<(), String>, over: &str) {
    match outcome {
        Ok(()) if failure.end() => tracing::info!("{over}"),
        Err(error) if failure.is_new(error) => tracing::warn!("{error}; trying again"),
        _ => {}
    }
}

/// Syncs a task whose metadata is known.
pub struct Syncer {
    consul: Client,
    options: Options,
    /// Service and proxy, or the gateway, as mesh-init registers them.
    registrations: Vec<ServiceRegistration>,
    checks: RefCell<Checks>,
    instance: Instance,
    writes: Writes,
    /// A write has failed: the agent may have lost what was registered.
    failed: Notify,
    /// The agent may have other statuses than those written last.
    stale: Notify,
    /// Docker's ID of this container, once it is known.
    own: OnceCell<String>,
    /// The time of the last request for the metadata.
    asked: Arc<Mutex<Instant>>,
}

impl Syncer {
    pub fn new(
        consul: Client,
        options: Options,
        config: &Config,
        role: Role,
        names: &Names,
        task: &Task,
        asked: Arc<Mutex<Instant>>,
    ) -> Self {
        // A gateway has no check of a container: Consul connects to its listener.
        let containers = if matches!(role, Role::Gateway(_)) { &[] } else { &*config.health_sync_containers };
        tracing::info!(?containers, "syncing the health of {}", names.service_id);
        Self {
            consul,
            options,
            registrations: role.registrations(config, names, task, options.check_ttl),
            checks: RefCell::new(Checks::new(containers, names)),
            instance: Instance::new(role, names),
            writes: Writes::default(),
            failed: Notify::new(),
            stale: Notify::new(),
            own: OnceCell::new(),
            asked,
        }
    }

    /// Syncs until `term`, then holds the critical statuses back for as long as the task must still serve. Returns what to write last.
    pub async fn run(
        &self,
        metadata: &MetadataClient,
        watch: &mut Watch,
        task: Arc<Task>,
        term: impl Future,
    ) -> LastWrite {
        let latest = watch.clone();
        let loops = async {
            let checks = self.checks.borrow().ids();
            self.instance.recall(&self.consul, &checks, &self.services()).await;
            tokio::join!(self.learn_own_id(metadata), self.statuses(watch, task), self.heartbeats(), self.read_backs())
        };
        tokio::pin!(loops);
        tokio::select! {
            biased;
            _ = term => {}
            _ = &mut loops => {}
        }
        self.writes.stop();
        tracing::info!("TERM: taking {} out of the mesh", self.registrations[0].id);
        let last_writes = async {
            tokio::select! {
                () = self.writes.ended() => {}
                _ = &mut loops => {}
                () = sleep(LAST_WRITE) => {}
            }
        };
        let healthy = || latest.latest().is_none_or(|answer| self.containers_are_healthy(&answer));
        let ((), last) = tokio::join!(last_writes, self.instance.hold(&self.consul, self.options.hold, healthy));
        last
    }

    /// Sets the checks critical and puts service and proxy into maintenance.
    pub async fn leave_mesh(&self) -> Result<(), NotSet> {
        let checks = self.checks.borrow().ids();
        let checks = checks.iter().collect::<Vec<_>>();
        shutdown::leave_mesh(&self.consul, &checks, &self.services(), self.writes.may_come_late()).await
    }

    /// Whether Consul's servers have listed the task's proxy as passing at least one time.
    pub async fn is_in_mesh(&self) -> Result<(), String> {
        self.instance.is_in_mesh(&self.consul).await
    }

    pub fn hangs(&self) -> bool {
        self.since_last_poll() > self.options.interval + HANGS
    }

    pub fn since_last_poll(&self) -> Duration {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    pub fn set_own_id(&self, id: String) {
        let _ = self.own.set(id);
    }

    /// The IDs of service and proxy, or of the gateway.
    fn services(&self) -> Vec<&ServiceId> {
        self.registrations.iter().map(|registration| &registration.id).collect()
    }

    /// False only if the answer shows that a synced container isn't healthy.
    fn containers_are_healthy(&self, answer: &Answer) -> bool {
        self.complete(answer).map_or(true, |task| self.checks.borrow().all_healthy(&task))
    }

    fn complete(&self, answer: &Answer) -> Result<Arc<Task>, String> {
        complete(answer, self.own.get().map(String::as_str))
    }

    /// Asks for this container's ID if the endpoint did not give it before the first write.
    async fn learn_own_id(&self, metadata: &MetadataClient) {
        if self.own.get().is_none() {
            self.set_own_id(own_id(metadata).await);
        }
    }

    /// Writes each status that changed, and writes again what failed.
    async fn statuses(&self, watch: &mut Watch, first: Arc<Task>) {
        let mut failure = LastFailure::default();
        let mut answer: Answer = Ok(first);
        loop {
            let outcome = match self.complete(&answer) {
                Ok(task) => self.write_changes(&task).await,
                // Without metadata the checks stay as they are.
                Err(error) => Err(error),
            };
            report(&mut failure, &outcome, "syncing again");
            tokio::select! {
                changed = watch.changed() => answer = changed,
                () = self.stale.notified() => {}
                () = sleep(self.options.interval), if outcome.is_err() => {}
            }
        }
    }

    async fn write_changes(&self, task: &Task) -> Result<(), String> {
        let changes = self.checks.borrow().changes(task);
        let written = join_all(changes.into_iter().map(async |change| {
            self.update(&change).await?;
            tracing::info!("{}: {}, check {}", change.container, change.output, change.status.as_str());
            self.checks.borrow_mut().record(change);
            Ok(())
        }));
        written.await.into_iter().collect()
    }

    async fn update(&self, Update { id, status, output, .. }: &Update) -> Result<(), String> {
        self.writes.make(self.consul.update_check(id, *status, output)).await.map_err(|error| {
            self.failed.notify_one();
            self.explained(&error)
        })
    }

    /// Writes each check's status again before its time to live is over. It does so even while there is no metadata. It stops while the
    /// thread that asks for the metadata hangs: the checks then turn critical.
    async fn heartbeats(&self) {
        // At least once a day, even with a time to live of 100000h.
        let interval = (self.options.check_ttl.duration() / 3).min(Duration::from_secs(24 * 60 * 60));
        let mut failure = LastFailure::default();
        loop {
            sleep(if failure.lasts() { interval.min(AGAIN) } else { interval }).await;
            if self.hangs() {
                continue;
            }
            let written = self.checks.borrow().written();
            let refreshed = join_all(written.iter().map(async |update| {
                self.update(update).await?;
                self.checks.borrow_mut().record_heartbeat(update);
                Ok(())
            }));
            report(&mut failure, &refreshed.await.into_iter().collect(), "the checks are refreshed again");
            self.stale.notify_one();
        }
    }

    /// Compares the agent's services and checks with those registered and written, and restores what the agent lost.
    async fn read_backs(&self) {
        let mut failure = LastFailure::default();
        let mut backoff = Backoff::new(AGAIN, READ_BACK_BOUND);
        loop {
            let restored = timeout(READ_BACK_BOUND, self.restore()).await;
            let restored =
                restored.unwrap_or_else(|_| Err(format!("Consul's agent does not answer within {READ_BACK_BOUND:?}")));
            report(&mut failure, &restored, "the agent has all that was registered");
            if restored.is_err() {
                sleep(backoff.delay()).await;
                continue;
            }
            backoff.reset();
            // At most one read-back a second, even if a write fails again and again.
            sleep(AGAIN).await;
            tokio::select! {
                () = sleep(READ_BACK) => {}
                () = self.failed.notified() => {}
            }
        }
    }

    /// Registers again what the agent lost when it restarted without its data, and ends a maintenance that an earlier run set.
    async fn restore(&self) -> Result<(), String> {
        let explained = |error: ConsulError| self.explained(&WriteError::Consul(error));
        let ids = self.services();
        let services = self.consul.agent_services(&ids).await.map_err(explained)?;
        for registration in &self.registrations {
            if !services.contains_key(&registration.id) {
                self.register(registration).await?;
                tracing::warn!("the agent had lost {}: registered it again", registration.id);
            }
        }
        let written = self.checks.borrow().written();
        let checks = self.consul.agent_checks(&ids).await.map_err(explained)?;
        for id in ids {
            let maintenance = checks.get(&shutdown::maintenance_check_id(id));
            if maintenance.is_some_and(|check| check.notes == shutdown::REASON) {
                let end = self.consul.set_maintenance(id, false, "");
                self.writes.make(end).await.map_err(|error| self.explained(&error))?;
            }
        }
        let lost = self.checks.borrow_mut().compare(&written, |id| checks.get(id).map(|check| check.status));
        // Somebody deregistered a check by hand. Registering the service restores the check, as critical.
        let registered = if lost { self.register(&self.registrations[0]).await } else { Ok(()) };
        // The agent now has all checks, so their statuses can be written.
        self.stale.notify_one();
        registered
    }

    async fn register(&self, registration: &ServiceRegistration) -> Result<(), String> {
        let register = self.consul.register_service_keeping_checks(registration);
        self.writes.make(register).await.map_err(|error| self.explained(&error))
    }

    /// The error on one line. If the agent refused the token, the line names the service identity that a token needs.
    fn explained(&self, error: &WriteError) -> String {
        let line = one_line(error);
        match error {
            WriteError::Consul(ConsulError::PermissionDenied { .. }) => {
                format!("{line}; expected a token with the service identity {}", self.registrations[0].name)
            }
            _ => line,
        }
    }
}
