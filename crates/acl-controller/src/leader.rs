//! Which of several controllers works: a Consul session that holds a lock, and the proof of it that every write needs.
//!
//! Consul's TTL is a lower bound: a session that was renewed lives for at least [`TTL`] from then on. A controller counts
//! from the moment *before* it asked for the renewal and stops at half of that, so that a write it has sent arrives before
//! another can hold the lock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use consul_api::{NewSession, SessionId};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::consul::{Consul, Error};
use crate::metrics::Metrics;

/// How long a session outlives its last renewal, at least; the shortest that Consul takes.
pub const TTL: Duration = Duration::from_secs(10);
/// How long the lock stays free after its holder's session has ended.
pub const LOCK_DELAY: Duration = Duration::from_secs(1);
/// How long after a good renewal a write may begin.
pub const WRITES_FOR: Duration = TTL.checked_div(2).expect("2 is not 0");
/// Twice within [`WRITES_FOR`], so that one may fail.
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// One server that hangs leaves time to ask another.
const WITHIN: Duration = Duration::from_millis(1500);
/// How often a controller that stands by looks at the lock.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it tries to take a lock that nobody holds, but whose lock-delay may not be over.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// The lock isn't held, or it is not sure that it still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this controller does not hold the lock")]
pub struct NotLeader;

/// The time between getting the lock and losing it. Cheap to copy; all copies are one.
#[derive(Debug, Clone)]
pub struct Term(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Before the last renewal that succeeded was asked for. The clock is the monotonic one, which goes on while the process
    /// is stopped.
    good: Instant,
    over: bool,
}

impl Term {
    /// A term proven at `good`.
    #[must_use]
    pub fn new(good: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { good, over: false })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock was proven to be held after `good`.
    pub fn renewed(&self, good: Instant) {
        self.state().good = good;
    }

    /// The lock is lost, for good.
    pub fn end(&self) {
        self.state().over = true;
    }

    /// Whether it has been lost for good. A term that is not may still be unproven, see [`Term::holds`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state().over
    }

    /// Whether a write may begin now.
    #[must_use]
    pub fn holds(&self) -> bool {
        let state = self.state();
        !state.over && state.good.elapsed() < WRITES_FOR
    }

    /// Runs a write, and looks before each of its steps whether it still may: a process that was frozen between two steps
    /// goes no further, and neither does a retry.
    ///
    /// # Errors
    /// [`NotLeader`] as soon as it may not; whether a request that was under way has arrived is then unknown.
    pub async fn hold<F: Future>(&self, write: F) -> Result<F::Output, NotLeader> {
        let mut write = pin!(write);
        poll_fn(|context| if self.holds() { write.as_mut().poll(context).map(Ok) } else { Poll::Ready(Err(NotLeader)) })
            .await
    }
}

/// A controller's standing for the lock.
#[derive(Debug)]
pub struct Campaign {
    consul: Arc<Consul>,
    metrics: Arc<Metrics>,
    key: String,
    /// Who holds the lock, for people.
    name: String,
    session: Mutex<Option<SessionId>>,
}

impl Campaign {
    /// For the lock on this key.
    #[must_use]
    pub fn new(consul: Arc<Consul>, metrics: Arc<Metrics>, key: String, name: String) -> Self {
        Self { consul, metrics, key, name, session: Mutex::new(None) }
    }

    /// Without end: waits for the lock, takes it, keeps it, and publishes the term while it lasts.
    pub async fn run(&self, publish: &watch::Sender<Option<Term>>) {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        loop {
            let term = self.serve_a_term(publish).await;
            publish.send_replace(None);
            match term {
                Ok(()) => {
                    backoff.reset();
                    said.clear();
                }
                Err(error) => {
                    self.metrics.standing_by(false);
                    let error = one_line(&error);
                    if said != error {
                        tracing::warn!("cannot stand for the lock {}: {error}; trying again", self.key);
                        said = error;
                    }
                    sleep(backoff.delay()).await;
                }
            }
        }
    }

    async fn serve_a_term(&self, publish: &watch::Sender<Option<Term>>) -> Result<(), Error> {
        self.give_up().await;
        let mut waiting = false;
        while self.consul.lock_holder(&self.key, WITHIN).await?.is_some() {
            if !waiting {
                tracing::info!("standing by: another controller holds the lock {}", self.key);
                waiting = true;
            }
            self.metrics.standing_by(true);
            sleep(LOOK_EVERY).await;
        }
        let asked = Instant::now();
        let new = NewSession { name: &self.name, ttl: TTL, lock_delay: LOCK_DELAY };
        let session = self.consul.create_session(new, WITHIN).await?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        while !self.consul.acquire(&self.key, &session, &self.name, WITHIN).await? {
            let another = self.consul.lock_holder(&self.key, WITHIN).await?.is_some();
            if another || asked.elapsed() > WRITES_FOR / 2 {
                return Ok(());
            }
            sleep(TRY_EVERY).await;
        }
        let term = Term::new(asked);
        tracing::info!("holding the lock {}", self.key);
        publish.send_replace(Some(term.clone()));
        self.metrics.leading(true);
        self.keep(&session, &term, asked).await;
        term.end();
        self.metrics.leading(false);
        tracing::warn!("the lock {} is lost", self.key);
        Ok(())
    }

    /// Renews until the session has ended or the lock is another's.
    async fn keep(&self, session: &SessionId, term: &Term, mut good: Instant) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let mut said = String::new();
        loop {
            sleep_until(good + RENEW_EVERY).await;
            let asked = Instant::now();
            match self.prove(session).await {
                Ok(true) => {
                    if !term.holds() {
                        tracing::info!("the lock {} is held again", self.key);
                    }
                    term.renewed(asked);
                    self.metrics.leading(true);
                    good = asked;
                    backoff.reset();
                    said.clear();
                }
                Ok(false) => return,
                Err(error) => {
                    let reason = one_line(&error);
                    if reason != said {
                        tracing::warn!("cannot renew the lock {}: {reason}; trying again", self.key);
                        said = reason;
                    }
                    if !term.holds() {
                        self.metrics.leading(false);
                    }
                    sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// Both the session and its lock: an operator may have released the lock of a session that lives.
    async fn prove(&self, session: &SessionId) -> Result<bool, Error> {
        Ok(self.consul.renew_session(session, WITHIN).await?
            && self.consul.lock_holder(&self.key, WITHIN).await?.as_ref() == Some(session))
    }

    /// Gives the lock back, so that another needn't wait for the session's end. Best effort: the session ends by itself.
    pub async fn give_up(&self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = session else { return };
        let released = self.consul.release(&self.key, &session, WITHIN).await.map(|_| ());
        if let Err(error) = released.and(self.consul.destroy_session(&session, WITHIN).await) {
            tracing::debug!("the lock's session ends by its TTL: {}", one_line(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_begins_only_within_half_a_ttl_of_a_good_renewal() {
        let term = Term::new(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Ok(1));
        advance(WRITES_FOR).await;
        assert_eq!(term.hold(async { 1 }).await, Err(NotLeader));
        term.renewed(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Ok(1), "it is held again");
        term.end();
        term.renewed(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Err(NotLeader), "what is lost is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_was_frozen_between_two_steps_goes_no_further() {
        let term = Term::new(Instant::now());
        let mut sent = false;
        let write = async {
            // As after SIGSTOP: the next step comes long after.
            sleep(WRITES_FOR + Duration::from_secs(1)).await;
            sent = true;
        };
        assert_eq!(term.hold(write).await, Err(NotLeader));
        assert!(!sent);
    }
}
