//! Writes to the agent: bounded, counted, and none begun once the task stops.

use std::cell::Cell;
use std::time::Duration;

use consul_api::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// What one write may take before it counts as failed.
const BOUND: Duration = Duration::from_secs(5);

/// What an agent that gave no answer may still do this much later.
const LATE: Duration = Duration::from_secs(30);

/// The writes of a running task.
#[derive(Debug, Default)]
pub struct Writes {
    under_way: Cell<usize>,
    stopped: Cell<bool>,
    unanswered: Cell<Option<Instant>>,
    ended: Notify,
}

/// A write that was begun.
struct UnderWay<'a> {
    writes: &'a Writes,
    answered: bool,
}

impl Writes {
    /// Makes one write. Once the task stops it is not begun and never ends.
    ///
    /// # Errors
    /// None within [`BOUND`], or the agent's; on one line.
    pub async fn make(&self, write: impl Future<Output = Result<(), Error>>) -> Result<(), WriteError> {
        if self.stopped.get() {
            std::future::pending::<()>().await;
        }
        self.under_way.set(self.under_way.get() + 1);
        let mut under_way = UnderWay { writes: self, answered: false };
        let outcome = timeout(BOUND, write).await.map_err(|_| WriteError::NoAnswer)?;
        under_way.answered = !outcome.as_ref().is_err_and(Error::may_have_arrived);
        outcome.map_err(WriteError::Consul)
    }

    /// From now on no write is begun.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// Waits until no write is under way.
    pub async fn ended(&self) {
        while self.under_way.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// Whether a write may still reach the agent.
    pub fn may_come_late(&self) -> bool {
        self.under_way.get() > 0 || self.unanswered.get().is_some_and(|since| since.elapsed() < LATE)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Self { writes, answered } = self;
        writes.under_way.set(writes.under_way.get() - 1);
        if !*answered {
            writes.unanswered.set(Some(Instant::now()));
        }
        writes.ended.notify_one();
    }
}

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("Consul's agent gives no answer within {}", humantime::format_duration(BOUND))]
    NoAnswer,
    #[error(transparent)]
    Consul(Error),
}
