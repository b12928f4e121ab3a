//! The term: the time in which this controller holds the lock. Each write needs a term as proof.
//!
//! After a renewal a session lives for at least [`TTL`]. The controller counts from the moment *before* it sent the renewal, and stops at
//! half of the TTL. So a write that it has sent arrives before another controller can hold the lock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// The shortest TTL that Consul accepts. A session lives for at least this long after its last renewal.
pub const TTL: Duration = Duration::from_secs(10);
/// A write may begin for this long after a successful renewal.
pub const WRITES_FOR: Duration = TTL.checked_div(2).expect("2 is not 0");

/// The controller does not hold the lock, or is not sure that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this controller does not hold the lock")]
pub struct NotLeader;

/// The time between getting the lock and losing it. All clones share one state.
#[derive(Debug, Clone)]
pub struct Term(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The moment before the last successful renewal was sent. The monotonic clock goes on while the process is stopped.
    good: Instant,
    over: bool,
}

impl Term {
    /// A term that begins with a renewal at `good`.
    #[must_use]
    pub fn new(good: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { good, over: false })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a successful renewal, sent after `good`.
    pub fn renewed(&self, good: Instant) {
        self.state().good = good;
    }

    /// Ends the term.
    pub fn end(&self) {
        self.state().over = true;
    }

    /// Whether the term has ended. A term that goes on may still lack a recent renewal: see [`Term::holds`].
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

    /// Runs a write, and checks the term before each of its steps. So a process that was frozen between two steps stops there, and
    /// a retry does too.
    ///
    /// # Errors
    /// [`NotLeader`] as soon as a check fails. A request that was already sent may have arrived.
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
    async fn a_write_begins_at_most_half_a_ttl_after_a_renewal() {
        let term = Term::new(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Ok(1));
        advance(WRITES_FOR).await;
        assert_eq!(term.hold(async { 1 }).await, Err(NotLeader));
        term.renewed(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Ok(1), "it is held again");
        term.end();
        term.renewed(Instant::now());
        assert_eq!(term.hold(async { 1 }).await, Err(NotLeader), "a lost term cannot be renewed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_frozen_between_two_steps_does_not_continue() {
        let term = Term::new(Instant::now());
        let mut sent = false;
        let write = async {
            // As after SIGSTOP, the next step comes much later.
            sleep(WRITES_FOR + Duration::from_secs(1)).await;
            sent = true;
        };
        assert_eq!(term.hold(write).await, Err(NotLeader));
        assert!(!sent);
    }
}
