//! The three loops that keep a task's checks up to date, from the first metadata to TERM.

use std::cell::{OnceCell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consul_api::CheckId;
use ecs_meta::{Answer, MetadataClient, Task, Watch};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::failure::LastFailure;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::health::{Checks, Update};
use crate::mesh::{Instance, LastWrite};
use crate::registry::Registry;
use crate::{AGAIN, Options, complete, own_id};

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
pub struct Syncer<R> {
    registry: R,
    options: Options,
    checks: RefCell<Checks>,
    instance: Instance,
    /// A write has failed: Consul may have lost what was registered.
    failed: Notify,
    /// Consul may have other statuses than those written last.
    stale: Notify,
    /// Docker's ID of this container, once it is known.
    own: OnceCell<String>,
    /// The time of the last request for the metadata.
    asked: Arc<Mutex<Instant>>,
}

impl<R: Registry> Syncer<R> {
    pub fn new(
        registry: R,
        options: Options,
        checks: Checks,
        instance: Instance,
        own: Option<String>,
        asked: Arc<Mutex<Instant>>,
    ) -> Self {
        tracing::info!(checks = ?checks.ids(), "syncing the health of {}", registry.service_id());
        Self {
            registry,
            options,
            checks: RefCell::new(checks),
            instance,
            failed: Notify::new(),
            stale: Notify::new(),
            own: own.map(OnceCell::from).unwrap_or_default(),
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
            self.instance.recall(&self.registry, &self.check_ids()).await;
            tokio::join!(self.learn_own_id(metadata), self.statuses(watch, task), self.heartbeats(), self.read_backs())
        };
        tokio::pin!(loops);
        tokio::select! {
            biased;
            _ = term => {}
            _ = &mut loops => {}
        }
        self.registry.writes().stop();
        tracing::info!("TERM: taking {} out of the mesh", self.registry.service_id());
        let last_writes = async {
            tokio::select! {
                () = self.registry.writes().ended() => {}
                _ = &mut loops => {}
                () = sleep(LAST_WRITE) => {}
            }
        };
        let healthy = || latest.latest().is_none_or(|answer| self.containers_are_healthy(&answer));
        let ((), last) =
            tokio::join!(last_writes, self.instance.hold(self.registry.consul(), self.options.hold, healthy));
        last
    }

    /// Waits until complete metadata fulfil the condition.
    pub async fn until(&self, watch: &mut Watch, condition: impl Fn(&Task) -> bool) {
        let fulfilled = |answer: &Answer| self.complete(answer).is_ok_and(|task| condition(&task));
        if watch.latest().is_none_or(|answer| !fulfilled(&answer)) {
            while !fulfilled(&watch.changed().await) {}
        }
    }

    pub fn registry(&self) -> &R {
        &self.registry
    }

    pub fn check_ids(&self) -> Vec<CheckId> {
        self.checks.borrow().ids()
    }

    /// Whether Consul's servers have listed the task's proxy as passing at least one time.
    pub async fn is_in_mesh(&self) -> Result<(), String> {
        self.instance.is_in_mesh(self.registry.consul()).await
    }

    pub fn hangs(&self) -> bool {
        self.since_last_poll() > self.options.interval + HANGS
    }

    pub fn since_last_poll(&self) -> Duration {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
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
            let _ = self.own.set(own_id(metadata).await);
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
        let accepted = |change: Update| {
            tracing::info!("{}: {}, check {}", change.subject, change.output, change.status.as_str());
            self.checks.borrow_mut().record(change);
        };
        self.noting(self.registry.write(changes, accepted)).await
    }

    /// A write that fails causes a read-back.
    async fn noting(&self, write: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        write.await.inspect_err(|_| self.failed.notify_one())
    }

    /// Writes each check's status again before its time to live is over. It does so even while there is no metadata. It stops while the
    /// thread that asks for the metadata hangs: the checks then turn critical.
    async fn heartbeats(&self) {
        let Some(interval) = self.registry.heartbeat() else { return };
        let mut failure = LastFailure::default();
        loop {
            sleep(if failure.lasts() { interval.min(AGAIN) } else { interval }).await;
            if self.hangs() {
                continue;
            }
            let written = self.checks.borrow().written();
            let accepted = |update: Update| self.checks.borrow_mut().record_heartbeat(&update);
            let refreshed = self.noting(self.registry.write(written, accepted)).await;
            report(&mut failure, &refreshed, "the checks are refreshed again");
            self.stale.notify_one();
        }
    }

    /// Compares what Consul has with what was registered and written, and restores what Consul lost.
    async fn read_backs(&self) {
        let mut failure = LastFailure::default();
        let mut backoff = Backoff::new(AGAIN, READ_BACK_BOUND);
        loop {
            let restored = timeout(READ_BACK_BOUND, self.registry.restore(&self.checks)).await;
            let restored =
                restored.unwrap_or_else(|_| Err(format!("Consul does not answer within {READ_BACK_BOUND:?}")));
            report(&mut failure, &restored, "Consul has all that was registered");
            if restored.is_err() {
                sleep(backoff.delay()).await;
                continue;
            }
            // Consul now has all checks, so their statuses can be written.
            self.stale.notify_one();
            backoff.reset();
            // At most one read-back a second, even if a write fails again and again.
            sleep(AGAIN).await;
            tokio::select! {
                () = sleep(R::READ_BACK) => {}
                () = self.failed.notified() => {}
            }
        }
    }
}
