//! Copies the ECS health of a task's containers to Consul's checks, and takes the task out of the mesh on TERM.
//!
//! Three loops run at the same time. One writes a status when the metadata changes. The heartbeat refreshes the checks at an agent before
//! their time to live is over. The read-back restores what Consul lost. No loop waits for another, so a changed status is written at once.
//! TERM ends all three. health-sync waits for a write that is under way, but not for long. Then it writes the critical statuses. A write
//! that was cut off may still arrive. So health-sync then reads the checks, and sets again what such a write undid.
//!
//! `Registry` is where the checks are: at the agent in the task (`agent`), or in the catalog of the servers
//! (`catalog`, `agentless`).

mod agent;
mod agentless;
mod catalog;
mod health;
mod logout;
mod mesh;
mod probe;
mod registry;
mod shutdown;
mod sync;
mod writes;

use std::cell::OnceCell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ecs_meta::{Answer, MetadataClient, Task, Watch};
use mesh_access::AccessError;
use mesh_config::{CheckTtl, Config, VARIABLE};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::log;
use sidecar_kit::signals::{SignalsError, StopSignals};
use tokio::time::{sleep, timeout};

use crate::catalog::NotDeregistered;
use crate::logout::NotLoggedOut;
use crate::probe::Probe;
pub use crate::probe::{NotHealthy, Question, ask as healthy};
use crate::registry::Registry;
use crate::shutdown::NotSet;
use crate::sync::{Syncer, report};

/// How long the first write may wait for the ID of this container.
const OWN_ID: Duration = Duration::from_secs(3);

/// How soon a request that failed is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// What `health-sync healthy` says at the start of a task without an agent.
const NOT_YET: &str = "there is no task metadata yet, or no login has succeeded yet";

/// The flags.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often health-sync asks for the metadata.
    pub interval: Duration,
    /// After TERM: how long the critical statuses may be held back until another instance is passing.
    pub hold: Duration,
    /// The time to live of the checks at an agent.
    pub check_ttl: CheckTtl,
    /// After TERM, in a task without an agent: how long the deregistration waits until the dataplane has stopped.
    pub dataplane_wait: Duration,
}

impl Options {
    /// Refuses a hold that is longer than two thirds of the checks' time to live. Only checks at an agent have one. No heartbeat refreshes
    /// them during the hold, and when the hold begins, the last heartbeat may be a third of the time to live ago.
    fn check(&self) -> Result<(), RunError> {
        let longest = self.check_ttl.duration() * 2 / 3;
        if self.hold <= longest {
            return Ok(());
        }
        Err(RunError::HoldTooLong { hold: self.hold, longest, check_ttl: self.check_ttl })
    }
}

/// Why health-sync did not end with exit code 0.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(
        "HEALTH_SYNC_HOLD is {}: expected at most {}, two thirds of CONSUL_ECS_CHECK_TTL ({check_ttl}), or the checks turn critical \
         during the hold; 0s turns the hold off",
        humantime::format_duration(*hold),
        humantime::format_duration(*longest)
    )]
    HoldTooLong { hold: Duration, longest: Duration, check_ttl: CheckTtl },
    #[error("{VARIABLE} is not set: expected the configuration document that mesh-init has")]
    NoConfig,
    #[error("{VARIABLE}")]
    Config(#[source] mesh_config::ConfigError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Signals(#[from] SignalsError),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("TERM before there was any task metadata: nothing was written to Consul")]
    NothingWritten,
    #[error(
        "TERM before a login succeeded: nothing was written to Consul; acl-controller with --agentless deregisters the task once it \
         has stopped"
    )]
    NotLoggedIn,
    #[error("the task metadata has no usable cluster")]
    Cluster(#[source] ecs_meta::ArnError),
    #[error("cannot use the address of Consul's agent")]
    Consul(#[from] consul_api::ConfigError),
    #[error("cannot use the address of Consul's servers")]
    Servers(#[source] consul_api::ConfigError),
    #[error(transparent)]
    NotSet(#[from] NotSet),
    #[error(transparent)]
    NotDeregistered(#[from] NotDeregistered),
    #[error(transparent)]
    NotLoggedOut(#[from] NotLoggedOut),
}

/// Runs until TERM or INT, then takes the task out of the mesh.
///
/// # Errors
/// If a setting is wrong, or if a write or a logout failed at the end.
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    // First of all, so that a TERM during the start is not lost.
    let signals = StopSignals::catch()?;
    let config = Config::parse(env.get(VARIABLE).ok_or(RunError::NoConfig)?).map_err(RunError::Config)?;
    if config.consul_servers.is_none() {
        options.check()?;
    }
    log::init(env, config.log_level.and_then(|level| level.as_str().parse().ok()))?;
    let metadata = MetadataClient::from_env(env)?;
    match &config.consul_servers {
        None => {
            let known = OnceCell::new();
            tokio::select! {
                ended = agent::run(options, env, &config, &metadata, signals, &known) => ended,
                () = answer(env, &known, "there is no task metadata yet") => unreachable!("it answers without end"),
            }
        }
        Some(servers) => {
            let known = OnceCell::new();
            tokio::select! {
                ended = agentless::run(options, env, &config, servers, &metadata, signals, &known) => ended,
                () = answer(env, &known, NOT_YET) => unreachable!("it answers without end"),
            }
        }
    }
}

/// Answers `health-sync healthy`, without end. `not_yet`: why `sync` is not there yet.
async fn answer(env: &Env, sync: &OnceCell<Syncer<impl Registry>>, not_yet: &str) {
    match Probe::open(env) {
        Ok(probe) => probe.serve(async |question| is_healthy(sync.get(), not_yet, question).await).await,
        Err(error) => {
            tracing::warn!("`health-sync healthy` gets no answer from this process: {}", one_line(&error));
            std::future::pending().await
        }
    }
}

/// The answer to `health-sync healthy`.
async fn is_healthy(sync: Option<&Syncer<impl Registry>>, not_yet: &str, question: Question) -> Result<(), String> {
    match (sync, question) {
        (None, Question::Alive) => Ok(()),
        (None, Question::InMesh) => Err(not_yet.to_owned()),
        (Some(sync), _) if sync.hangs() => {
            Err(format!("health-sync hangs: it has not asked for the task metadata for {:?}", sync.since_last_poll()))
        }
        (Some(_), Question::Alive) => Ok(()),
        (Some(sync), Question::InMesh) => sync.is_in_mesh().await,
    }
}

/// The task's metadata, and Docker's ID of this container if the endpoint gives it in time. Waits for the metadata without end: ECS's
/// agent may be away for any time.
async fn first_answer(metadata: &MetadataClient, watch: &mut Watch) -> (Arc<Task>, Option<String>) {
    let mut failure = LastFailure::default();
    let mut own = None;
    loop {
        let answer = watch.changed().await;
        if own.is_none() && answer.is_ok() {
            own = timeout(OWN_ID, own_id(metadata)).await.ok();
        }
        match complete(&answer, own.as_deref()) {
            Ok(task) => return (task, own),
            Err(error) => report(&mut failure, &Err(error), ""),
        }
    }
}

/// Docker's ID of this container. Asks until the endpoint gives it.
async fn own_id(metadata: &MetadataClient) -> String {
    loop {
        match metadata.own_id().await {
            Ok(id) => return id,
            Err(_) => sleep(AGAIN).await,
        }
    }
}

/// The task, if the answer lists containers and this container, `own`, among them. Any other answer says nothing about containers.
fn complete(answer: &Answer, own: Option<&str>) -> Result<Arc<Task>, String> {
    let no_metadata = |error: &ecs_meta::Error| format!("no task metadata: {}", one_line(error));
    let task = answer.as_ref().map_err(|error| no_metadata(error))?;
    task.ensure_lists(own).map_err(|error| no_metadata(&error))?;
    Ok(task.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_longer_than_two_thirds_of_the_ttl_is_refused() {
        let check = |hold: u64, ttl: &str| {
            let hold = Duration::from_millis(hold);
            Options { interval: AGAIN, hold, check_ttl: ttl.parse().unwrap(), dataplane_wait: AGAIN }
                .check()
                .map_err(|error| error.to_string())
        };
        for (hold, ttl) in [(2500, "30s"), (2500, "4s"), (2000, "3s"), (0, "1s")] {
            assert_eq!(check(hold, ttl), Ok(()), "{hold} {ttl}");
        }
        let error = "HEALTH_SYNC_HOLD is 2s 500ms: expected at most 2s, two thirds of CONSUL_ECS_CHECK_TTL (3s), or the checks turn \
                     critical during the hold; 0s turns the hold off";
        assert_eq!(check(2500, "3s"), Err(error.to_owned()));
    }
}
