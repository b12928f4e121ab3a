//! The one way to wait for something: bounded, backed off, and said in the log.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::exit::one_line;

/// Less time than this is not enough for an attempt.
const LAST_ATTEMPT: Duration = Duration::from_millis(100);

/// What one attempt came to.
#[derive(Debug)]
pub enum Attempt<T, E> {
    /// It is there.
    Done(T),
    /// Not yet; the reason is logged and the attempt repeated.
    Again(E),
    /// It won't come; waiting ends.
    Final(E),
}

/// Why a wait ended without what it waited for.
#[derive(Debug)]
pub enum WaitError<E> {
    /// An attempt said that waiting is of no use.
    Final(E),
    /// The bound was reached.
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        bound: Duration,
        /// The last attempt's reason; none if no attempt ended in time.
        last: Option<E>,
    },
}

impl<E: Error> fmt::Display for WaitError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Final(error) => fmt::Display::fmt(error, f),
            Self::TimedOut { what, bound, .. } => {
                write!(f, "gave up waiting for {what} after {}", humantime::format_duration(*bound))
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

/// Repeats `attempt` until it is done or final, at most for `bound`; the last attempt is cut off there. The log says
/// what is waited for when the first attempt fails, when the reason changes, and every ten seconds.
///
/// # Errors
/// [`WaitError::Final`] with an attempt's own word, [`WaitError::TimedOut`] at the bound.
pub async fn until<T, E: Error>(
    what: &str,
    bound: Duration,
    mut backoff: Backoff,
    mut attempt: impl AsyncFnMut() -> Attempt<T, E>,
) -> Result<T, WaitError<E>> {
    let deadline = Instant::now() + bound;
    let mut last: Option<E> = None;
    let mut said = (String::new(), Instant::now());
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Attempt::Done(value)) => return Ok(value),
            Ok(Attempt::Final(error)) => return Err(WaitError::Final(error)),
            Ok(Attempt::Again(error)) => {
                let reason = one_line(&error);
                if reason != said.0 || said.1.elapsed() >= Duration::from_secs(10) {
                    let bound = humantime::format_duration(bound);
                    tracing::info!("waiting for {what}, at most {bound}: {reason}");
                    said = (reason, Instant::now());
                }
                last = Some(error);
            }
            Err(_) => return Err(WaitError::TimedOut { what: what.to_owned(), bound, last }),
        }
        // Another attempt is made before the bound, unless hardly any time is left for it.
        let left = deadline - Instant::now();
        if left < LAST_ATTEMPT {
            sleep_until(deadline).await;
            return Err(WaitError::TimedOut { what: what.to_owned(), bound, last });
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
    async fn gives_up_at_the_bound_and_says_for_what_it_waited() {
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
        assert!(hangs.await.is_err());
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
