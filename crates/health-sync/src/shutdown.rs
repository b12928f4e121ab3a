//! Takes the task out of the mesh: sets its checks critical and puts service and proxy (or the gateway) into maintenance. These writes
//! take a second at most. They begin after TERM and the hold, and after a short wait for an earlier write.

use std::time::Duration;

use consul_api::{CheckId, CheckStatus, Client, Error, ServiceId};
use futures_util::future::join_all;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::wait::{Attempt, RetryError, retry};
use tokio::time::{Instant, sleep, timeout};

/// The reason for the maintenance. A later run recognises health-sync's own maintenance by this text.
pub const REASON: &str = "the ECS task is stopping";

/// How long the writes may take. The agent leaves the cluster at the same time. A later write would put the service back at the
/// servers, on a node that has left, until they reconcile a minute later.
const BOUND: Duration = Duration::from_secs(1);

/// How often health-sync asks the agent whether a late write undid something.
const LOOK: Duration = Duration::from_millis(100);

/// The writes that failed, and why. The task ends all the same.
#[derive(Debug, thiserror::Error)]
#[error("not written to Consul within {}: {}", humantime::format_duration(BOUND), .0.join("; "))]
pub struct NotSet(Vec<String>);

/// Makes all writes at the same time and retries what fails, until the bound. If an earlier write `may_come_late`, also sets again
/// what that write undid.
///
/// # Errors
/// With each write that failed.
pub async fn leave_mesh(
    consul: &Client,
    checks: &[&CheckId],
    services: &[&ServiceId],
    may_come_late: bool,
) -> Result<(), NotSet> {
    let deadline = Instant::now() + BOUND;
    set(consul, checks, services, deadline).await?;
    if !may_come_late {
        return Ok(());
    }
    loop {
        sleep(LOOK).await;
        let left = deadline.saturating_duration_since(Instant::now());
        // If the agent gives no answer, it is leaving the cluster or hangs. It has accepted all writes before that.
        let Ok(Ok(agent)) = timeout(left, consul.agent_checks(services)).await else { return Ok(()) };
        let critical = |id: &CheckId| agent.get(id).is_none_or(|check| check.status == CheckStatus::Critical);
        let undone = checks.iter().copied().filter(|id| !critical(id)).collect::<Vec<_>>();
        let maintained = |id: &&ServiceId| agent.contains_key(&maintenance_check_id(id));
        let outside = services.iter().copied().filter(|id| !maintained(id)).collect::<Vec<_>>();
        set(consul, &undone, &outside, deadline).await?;
    }
}

/// The ID of the check by which an agent shows that a service is in maintenance.
pub fn maintenance_check_id(service_id: &ServiceId) -> CheckId {
    format!("_service_maintenance:{service_id}").into()
}

async fn set(consul: &Client, checks: &[&CheckId], services: &[&ServiceId], deadline: Instant) -> Result<(), NotSet> {
    let critical = join_all(checks.iter().map(async |id| {
        let set = retried(deadline, BOUND, async || {
            set_or_absent(consul.update_check(id, CheckStatus::Critical, REASON).await)
        })
        .await;
        set.err().map(|reason| format!("check {id} critical: {reason}"))
    }));
    let maintenance = join_all(services.iter().map(async |id| {
        let set =
            retried(deadline, BOUND, async || set_or_absent(consul.set_maintenance(id, true, REASON).await)).await;
        set.err().map(|reason| format!("maintenance of {id}: {reason}"))
    }));
    let (critical, maintenance) = tokio::join!(critical, maintenance);
    let failed = critical.into_iter().chain(maintenance).flatten().collect::<Vec<_>>();
    if failed.is_empty() { Ok(()) } else { Err(NotSet(failed)) }
}

/// Repeats `attempt` until it succeeds or the deadline has come. An attempt that hangs is cut off after `each`.
pub async fn retried(
    deadline: Instant,
    each: Duration,
    mut attempt: impl AsyncFnMut() -> Result<(), String>,
) -> Result<(), String> {
    let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    let no_answer = || "no answer".to_owned();
    let attempt = async || match timeout(each, attempt()).await {
        Ok(Ok(())) => Attempt::Done(()),
        Ok(Err(reason)) => Attempt::Again(reason),
        Err(_) => Attempt::Again(no_answer()),
    };
    retry(deadline, backoff, attempt, |_| ()).await.map_err(|error| match error {
        RetryError::Final(reason) => reason,
        RetryError::TimedOut(reason) => reason.unwrap_or_else(no_answer),
    })
}

/// A check or service that the agent doesn't have needs no write.
fn set_or_absent(set: Result<(), Error>) -> Result<(), String> {
    match set {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(one_line(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_write_is_retried_until_success_or_the_deadline() {
        let within = |time| (Instant::now() + time, Duration::from_millis(10));
        let mut attempts = 0;
        let (deadline, each) = within(Duration::from_secs(60));
        let third = retried(deadline, each, async || {
            attempts += 1;
            match attempts {
                1 => Err("refused".to_owned()),
                // One that hangs is cut off.
                2 => pending().await,
                _ => Ok(()),
            }
        });
        assert_eq!(third.await, Ok(()));
        assert_eq!(attempts, 3);

        let mut attempts = 0;
        let (deadline, each) = within(Duration::ZERO);
        let never = retried(deadline, each, async || {
            attempts += 1;
            Err("refused".to_owned())
        });
        assert_eq!(never.await, Err("refused".to_owned()));
        assert_eq!(attempts, 1, "the deadline had come");
    }
}
