//! The time in which this controller holds the lock, and the proof of it that every write needs.
//!
//! Consul's TTL is a lower bound: a session that was renewed lives for at least [`TTL`] from then on. A controller counts
//! from the moment *before* it asked for the renewal and stops at half of that, so that a write it has sent arrives before
//! another can hold the lock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// How long a session outlives its last renewal, at least; the shortest that Consul takes.
pub const TTL: Duration = Duration::from_secs(10);
/// How long after a good renewal a write may begin.
pub const WRITES_FOR: Duration = TTL.checked_div(2).expect("2 is not 0");

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

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

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
