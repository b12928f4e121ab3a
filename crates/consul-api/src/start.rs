//! The retry policy while a task is starting.

use std::time::Duration;

use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::error::Error;

/// How long a starting task waits for Consul by default. An agent that has just found its leader needs some seconds until it
/// knows a token. A cluster that starts at the same time needs longer.
pub const START_BOUND: Duration = Duration::from_secs(90);

/// Repeats a call while its failure may pass ([`Error::may_pass_at_start`]), for at most `bound`. The log says that it waits for
/// `what`.
///
/// # Errors
/// The call's error if it is final, else the last error when the bound was reached.
pub async fn at_start<T>(
    what: &str,
    bound: Duration,
    mut call: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, WaitError<Error>> {
    until(what, bound, Backoff::default(), async || match call().await {
        Ok(value) => Attempt::Done(value),
        Err(error) if error.may_pass_at_start() => Attempt::Again(error),
        Err(error) => Attempt::Final(error),
    })
    .await
}
