//! Writes to Consul. Each has a bound and is counted. Once the task stops, no new write begins.

use std::cell::Cell;
use std::time::Duration;

use consul_api::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How long one write may take before it counts as failed.
const BOUND: Duration = Duration::from_secs(5);

/// How long after a write without an answer Consul may still carry it out.
const LATE: Duration = Duration::from_secs(30);

/// The writes of a running task.
#[derive(Debug, Default)]
pub struct Writes {
    under_way: Cell<usize>,
    stopped: Cell<bool>,
    unanswered: Cell<Option<Instant>>,
    ended: Notify,
}

/// A write that has begun.
struct UnderWay<'a> {
    writes: &'a Writes,
    answered: bool,
}

impl Writes {
    /// Makes one write. After [`Writes::stop`] the write doesn't begin, and this never returns.
    ///
    /// # Errors
    /// If Consul gives no answer within [`BOUND`], or refuses the write.
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

    /// From now on no write begins.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// Waits until no write is under way.
    pub async fn ended(&self) {
        while self.under_way.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// Whether Consul may still carry out an earlier write.
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
    #[error("Consul gives no answer within {}", humantime::format_duration(BOUND))]
    NoAnswer,
    #[error(transparent)]
    Consul(#[from] Error),
}
