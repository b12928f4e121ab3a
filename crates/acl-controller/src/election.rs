//! The election: of several controllers, the one whose Consul session holds the lock is the leader.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consul_api::{NewSession, SessionId};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::consul::{Consul, Error};
use crate::metrics::Metrics;
use crate::term::{TTL, Term, WRITES_FOR};

/// How long nobody can acquire the lock after its holder's session has ended.
const LOCK_DELAY: Duration = Duration::from_secs(1);
/// How often the leader renews its session. One renewal within [`WRITES_FOR`] may fail.
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// The time limit of one request. It leaves time to ask another server.
const WITHIN: Duration = Duration::from_millis(1500);
/// How often a standby controller reads the lock.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a controller tries to acquire a lock without a holder. The lock-delay may still run.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// A controller's part in the election.
#[derive(Debug)]
pub struct Election {
    consul: Arc<Consul>,
    metrics: Arc<Metrics>,
    key: String,
    /// The name of this controller in the lock. An operator can read there who holds it.
    name: String,
    session: Mutex<Option<SessionId>>,
}

impl Election {
    /// An election by the lock on this key.
    #[must_use]
    pub fn new(consul: Arc<Consul>, metrics: Arc<Metrics>, key: String, name: String) -> Self {
        Self { consul, metrics, key, name, session: Mutex::new(None) }
    }

    /// Waits for the lock, acquires and renews it, and publishes the term while it lasts. Never returns.
    pub async fn run(&self, publish: &watch::Sender<Option<Term>>) {
        let mut backoff = Backoff::default();
        let mut failure = LastFailure::default();
        loop {
            let term = self.serve_a_term(publish).await;
            publish.send_replace(None);
            match term {
                Ok(()) => {
                    backoff.reset();
                    failure.end();
                }
                Err(error) => {
                    self.metrics.standing_by(false);
                    let error = one_line(&error);
                    if failure.is_new(&error) {
                        tracing::warn!("cannot wait for the lock {}: {error}; trying again", self.key);
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

    /// Renews until the session has ended or another controller has the lock.
    async fn keep(&self, session: &SessionId, term: &Term, mut good: Instant) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let mut failure = LastFailure::default();
        loop {
            sleep_until(good + RENEW_EVERY).await;
            let asked = Instant::now();
            match self.prove(session).await {
                Ok(true) => {
                    if !term.holds() {
                        tracing::info!("this controller holds the lock {} again", self.key);
                    }
                    term.renewed(asked);
                    self.metrics.leading(true);
                    good = asked;
                    backoff.reset();
                    failure.end();
                }
                Ok(false) => return,
                Err(error) => {
                    let reason = one_line(&error);
                    if failure.is_new(&reason) {
                        tracing::warn!("cannot renew the lock {}: {reason}; trying again", self.key);
                    }
                    if !term.holds() {
                        self.metrics.leading(false);
                    }
                    sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// Renews the session and checks the lock. An operator may have released the lock of a live session.
    async fn prove(&self, session: &SessionId) -> Result<bool, Error> {
        Ok(self.consul.renew_session(session, WITHIN).await?
            && self.consul.lock_holder(&self.key, WITHIN).await?.as_ref() == Some(session))
    }

    /// Releases the lock, so that another controller need not wait for the session's end. If this fails, the session ends when its TTL is
    /// over.
    pub async fn give_up(&self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = session else { return };
        let released = self.consul.release(&self.key, &session, WITHIN).await.map(|_| ());
        if let Err(error) = released.and(self.consul.destroy_session(&session, WITHIN).await) {
            tracing::debug!("cannot release the lock: {}; it is free when the session's TTL is over", one_line(&error));
        }
    }
}
