//! The task leaves the mesh: its checks critical, service and proxy in maintenance, for about a second and no longer.

use std::time::Duration;

use consul_api::{CheckStatus, Client, Error};
use futures_util::future::join_all;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use tokio::time::{Instant, sleep, timeout};

/// Why the service is in maintenance; also how a later run knows its own doing.
pub const REASON: &str = "the ECS task is stopping";

/// The agent leaves the cluster at the same time: what it takes after about a second it would register with the servers anew,
/// as a node that is gone, until they reconcile a minute later.
const BOUND: Duration = Duration::from_secs(1);

/// A write that hangs is tried again within the bound.
const ATTEMPT: Duration = Duration::from_millis(300);

/// What could not be set, and why; the task ends all the same.
#[derive(Debug, thiserror::Error)]
#[error("not told to Consul within {}: {}", humantime::format_duration(BOUND), .0.join("; "))]
pub struct NotSet(Vec<String>);

/// Sets everything at once and retries each until the bound.
///
/// # Errors
/// With all that could not be set.
pub async fn leave_mesh<'a>(
    consul: &Client,
    checks: impl Iterator<Item = &'a str>,
    services: [&str; 2],
) -> Result<(), NotSet> {
    let deadline = Instant::now() + BOUND;
    let critical = join_all(checks.map(async |id| {
        let set = retried(deadline, async || consul.update_check(id, CheckStatus::Critical, REASON).await).await;
        set.err().map(|reason| format!("check {id} critical: {reason}"))
    }));
    let maintenance = join_all(services.map(async |id| {
        let set = retried(deadline, async || consul.set_maintenance(id, true, REASON).await).await;
        set.err().map(|reason| format!("maintenance of {id}: {reason}"))
    }));
    let (critical, maintenance) = tokio::join!(critical, maintenance);
    let failed = critical.into_iter().chain(maintenance).flatten().collect::<Vec<_>>();
    if failed.is_empty() { Ok(()) } else { Err(NotSet(failed)) }
}

/// Until it is set or the deadline has come. What the agent doesn't have needs no setting.
async fn retried(deadline: Instant, mut write: impl AsyncFnMut() -> Result<(), Error>) -> Result<(), String> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let reason = match timeout(ATTEMPT.min(left), write()).await {
            Ok(Ok(()) | Err(Error::NotFound { .. })) => return Ok(()),
            Ok(Err(error)) => one_line(&error),
            Err(_) => "the agent does not answer".to_owned(),
        };
        let delay = backoff.delay();
        if Instant::now() + delay >= deadline {
            return Err(reason);
        }
        sleep(delay).await;
    }
}
