//! The one way to try again: bounded, with a backoff, and logged.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::exit::one_line;
use crate::failure::LastFailure;

/// How often a reason that does not change is logged again.
const LOG_AGAIN: Duration = Duration::from_secs(10);

/// Less time than this is not enough for an attempt.
const LAST_ATTEMPT: Duration = Duration::from_millis(100);

/// The outcome of one attempt.
#[derive(Debug)]
pub enum Attempt<T, E> {
    /// It succeeded.
    Done(T),
    /// It failed, and another attempt may succeed.
    Again(E),
    /// It failed, and so would every other attempt.
    Final(E),
}

/// Why [`until`] ended without a result.
#[derive(Debug)]
pub enum WaitError<E> {
    /// An attempt's error is final.
    Final(E),
    /// The bound was reached.
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        bound: Duration,
        /// The last attempt's error; none if no attempt ended in time.
        last: Option<E>,
    },
}

impl<E: Error> fmt::Display for WaitError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Final(error) => fmt::Display::fmt(error, f),
            Self::TimedOut { what, bound, last } => {
                write!(f, "gave up waiting for {what} after {}", humantime::format_duration(*bound))?;
                if last.is_none() { f.write_str(": no answer") } else { Ok(()) }
            }
        }
    }
}

impl<E: Error + 'static> Error for WaitError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Final(error) => error.source(),
            Self::TimedOut { last, .. } => last.as_ref().map(|error| error as _),
        }
    }
}

/// Repeats `attempt` until it is done or final, at most for `bound`. The log says what is waited for when the first attempt fails,
/// when the reason changes, and every ten seconds.
///
/// # Errors
/// [`WaitError::Final`] with the attempt's error, [`WaitError::TimedOut`] at the bound.
pub async fn until<T, E: Error>(
    what: &str,
    bound: Duration,
    backoff: Backoff,
    attempt: impl AsyncFnMut() -> Attempt<T, E>,
) -> Result<T, WaitError<E>> {
    let mut failure = LastFailure::default();
    let mut logged = Instant::now();
    let log = |error: &E| {
        let reason = one_line(error);
        if failure.is_new(&reason) || logged.elapsed() >= LOG_AGAIN {
            logged = Instant::now();
            tracing::info!("waiting for {what}, at most {}: {reason}", humantime::format_duration(bound));
        }
    };
    retry(Instant::now() + bound, backoff, attempt, log).await.map_err(|error| match error {
        RetryError::Final(error) => WaitError::Final(error),
        RetryError::TimedOut(last) => WaitError::TimedOut { what: what.to_owned(), bound, last },
    })
}

/// Why [`retry`] ended without a result.
#[derive(Debug, PartialEq, Eq)]
pub enum RetryError<E> {
    /// An attempt's error is final.
    Final(E),
    /// The deadline has come; with the last error, unless no attempt ended in time.
    TimedOut(Option<E>),
}

/// Repeats `attempt` until it is done or final, or the deadline comes, which also cuts off the last attempt. Calls `failed` after
/// each failure, and logs nothing.
///
/// # Errors
/// [`RetryError::Final`] with the attempt's error, [`RetryError::TimedOut`] at the deadline.
pub async fn retry<T, E>(
    deadline: Instant,
    mut backoff: Backoff,
    mut attempt: impl AsyncFnMut() -> Attempt<T, E>,
    mut failed: impl FnMut(&E),
) -> Result<T, RetryError<E>> {
    let mut last = None;
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Attempt::Done(value)) => return Ok(value),
            Ok(Attempt::Final(error)) => return Err(RetryError::Final(error)),
            Ok(Attempt::Again(error)) => {
                failed(&error);
                last = Some(error);
            }
            Err(_) => return Err(RetryError::TimedOut(last)),
        }
        // Another attempt is made before the deadline, unless hardly any time is left for it.
        let left = deadline - Instant::now();
        if left < LAST_ATTEMPT {
            sleep_until(deadline).await;
            return Err(RetryError::TimedOut(last));
        }
        sleep(backoff.delay().min(left / 2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("not yet")]
    struct NotYet;

    #[tokio::test(start_paused = true)]
    async fn waits_until_it_is_done() {
        let mut attempts = 0;
        let done = until("it", Duration::from_secs(60), Backoff::default(), async || {
            attempts += 1;
            if attempts < 5 { Attempt::Again(NotYet) } else { Attempt::Done(attempts) }
        });
        assert_eq!(done.await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_bound_the_error_names_what_was_waited_for() {
        let start = Instant::now();
        let bound = Duration::from_secs(30);
        // The first delay alone is longer than the bound.
        let backoff = Backoff::new(Duration::from_secs(90), Duration::from_secs(90));
        let mut attempts = Vec::new();
        let waited = until("the agent", bound, backoff, async || {
            attempts.push(start.elapsed());
            Attempt::<(), _>::Again(NotYet)
        });
        let waited = waited.await.unwrap_err();
        assert_eq!(start.elapsed(), bound);
        assert!(attempts.last().unwrap() > &Duration::from_secs(29), "{attempts:?}");
        assert_eq!(one_line(&waited), "gave up waiting for the agent after 30s: not yet");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_is_cut_off_at_the_bound() {
        let start = Instant::now();
        let bound = Duration::from_secs(3);
        let hangs =
            until("it", bound, Backoff::default(), async || std::future::pending::<Attempt<(), NotYet>>().await);
        assert_eq!(one_line(&hangs.await.unwrap_err()), "gave up waiting for it after 3s: no answer");
        assert_eq!(start.elapsed(), bound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_ends_the_wait_at_once() {
        let start = Instant::now();
        let waited = until("it", Duration::from_secs(30), Backoff::default(), async || Attempt::<(), _>::Final(NotYet));
        assert_eq!(waited.await.unwrap_err().to_string(), "not yet");
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
