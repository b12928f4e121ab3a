//! A token that is replaced before it expires.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consul_api::Client;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::login::LoginError;

/// When a new token has been in use for this long, the old one is deleted. Calls with the old one may still be under way.
const OVERLAP: Duration = Duration::from_secs(10);

/// A token, and when it expires.
#[derive(Debug, Clone)]
pub struct Held {
    /// The token.
    pub secret: Secret,
    /// How long it is still valid; none if it does not expire.
    pub left: Option<Duration>,
}

/// Makes and deletes tokens.
pub trait Source: Send + Sync + 'static {
    /// Logs in.
    fn log_in(&self) -> impl Future<Output = Result<Held, LoginError>> + Send;
    /// Deletes a token. The source itself reports a failure.
    fn log_out(&self, token: &Secret) -> impl Future<Output = ()> + Send;
}

/// How long a token is still valid; none if it does not expire. It is asked for with the token itself.
///
/// # Errors
/// [`consul_api::Error::is_unknown_token`] if the server does not know the token. [`consul_api::Error::Undecodable`] if the answer has a text
/// that is not a time: a token that expires must never count as one that does not.
pub async fn expiry(consul: &Client, token: &Secret) -> Result<Option<Duration>, consul_api::Error> {
    let Some(at) = consul.token_expiration(token).await? else { return Ok(None) };
    let at = OffsetDateTime::parse(&at, &Rfc3339).map_err(|source| consul_api::Error::Undecodable {
        request: "GET /v1/acl/token/self".to_owned(),
        source: source.into(),
    })?;
    Ok(Some(SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default()))
}

/// Holds a token, and replaces it when about two thirds of its remaining time are over, or when the caller says that it no longer works.
/// Dropping the keeper ends this, and does not log out.
#[derive(Debug)]
pub struct Keeper {
    token: watch::Receiver<Secret>,
    refused: watch::Sender<Option<Secret>>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Logs in and keeps the token. Tries without end: without a token the task can do nothing.
    pub async fn log_in(source: Arc<impl Source>) -> Self {
        let first = log_in(&*source).await;
        Self::start(source, first)
    }

    /// Starts to keep this token.
    #[must_use]
    pub fn start(source: Arc<impl Source>, first: Held) -> Self {
        let (publish, token) = watch::channel(first.secret.clone());
        let refused = watch::Sender::new(None);
        let task = tokio::spawn(keep(source, first, publish, refused.subscribe()));
        Self { token, refused, task }
    }

    /// The token now, and a way to wait for the next one.
    #[must_use]
    pub fn token(&self) -> watch::Receiver<Secret> {
        self.token.clone()
    }

    /// Says that the servers no longer know this token. The keeper replaces it now, unless it has done so already.
    pub fn refused(&self, token: Secret) {
        self.refused.send_replace(Some(token));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    source: Arc<impl Source>,
    first: Held,
    publish: watch::Sender<Secret>,
    mut refused: watch::Receiver<Option<Secret>>,
) {
    let mut held = first;
    loop {
        let due = held.left.map(|left| Instant::now() + renewed_after(left));
        tokio::select! {
            () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {}
            // An error means that the keeper is dropped, which ends this task.
            _ = refused.wait_for(|token| token.as_ref() == Some(&held.secret)) => {}
        }
        let new = log_in(&*source).await;
        publish.send_replace(new.secret.clone());
        let (old, source) = (std::mem::replace(&mut held, new).secret, source.clone());
        tokio::spawn(async move {
            sleep(OVERLAP).await;
            source.log_out(&old).await;
        });
    }
}

/// About two thirds of the remaining time. The random part keeps tasks that started together from logging in at the same time.
fn renewed_after(left: Duration) -> Duration {
    left.mul_f64(2.0 / 3.0 - fastrand::f64() / 15.0)
}

async fn log_in(source: &impl Source) -> Held {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut reported = Reported::default();
    loop {
        match source.log_in().await {
            Ok(held) => return held,
            Err(error) => {
                let reason = one_line(&error);
                if reported.is_new(&reason) {
                    tracing::warn!("cannot log in, trying again: {reason}");
                } else {
                    tracing::debug!("cannot log in, trying again: {reason}");
                }
            }
        }
        sleep(backoff.delay()).await;
    }
}

/// The kinds of failure that the log has. Several servers may fail in turn, each in its own way.
#[derive(Default)]
struct Reported(HashSet<String>);

impl Reported {
    /// Whether no failure of this kind was reported yet. Words with a digit don't count: addresses, IDs and times.
    fn is_new(&mut self, reason: &str) -> bool {
        let has_no_digit = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
        self.0.insert(reason.split_whitespace().filter(has_no_digit).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::Reported;

    #[test]
    fn a_kind_of_failure_is_reported_once() {
        let mut reported = Reported::default();
        let expired = |server: &str| format!("Consul's server at {server} answered Unauthenticated: token is expired");
        assert!(reported.is_new(&expired("10.0.0.1:8502")));
        assert!(!reported.is_new(&expired("10.0.0.2:8502")));
        assert!(reported.is_new("cannot reach https://10.0.0.1:8501"));
        assert!(!reported.is_new(&expired("10.0.0.1:8502")), "another kind in between changes nothing");
    }
}
