//! Copies the ECS health of a task's containers to Consul's checks, and takes the task out of the mesh on TERM.
//!
//! Three loops run at the same time. One writes a status when the metadata changes. The heartbeat refreshes the checks before their time to
//! live is over. The read-back restores what the agent lost. No loop waits for another, so a changed status is written at once. TERM ends
//! all three. health-sync waits for a write that is under way, but not for long. Then it writes the critical statuses, for at most a
//! second. A write that was cut off may still arrive. So health-sync reads the agent's checks for the rest of this second, and sets again
//! what such a write undid.

mod health;
mod logout;
mod mesh;
mod probe;
mod shutdown;
mod sync;
mod writes;

use std::cell::OnceCell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use consul_api::{Client, ServiceId};
use ecs_meta::{Answer, MetadataClient, Task, Watch};
use mesh_config::{CheckTtl, Config, Mode, Role, SERVICE_TOKEN_FILE, VARIABLE};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::log;
use sidecar_kit::secret::SecretSource;
use sidecar_kit::signals::{SignalsError, StopSignals};
use tokio::time::{sleep, timeout};

use crate::logout::NotLoggedOut;
use crate::mesh::LastWrite;
use crate::probe::Probe;
pub use crate::probe::{NotHealthy, Question, ask as healthy};
use crate::shutdown::NotSet;
use crate::sync::{Syncer, report};

/// How long the first write may wait for the ID of this container.
const OWN_ID: Duration = Duration::from_secs(3);

/// How soon a request that failed is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// The flags.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often health-sync asks for the metadata.
    pub interval: Duration,
    /// After TERM: how long the critical statuses may be held back until another instance is passing.
    pub hold: Duration,
    /// The time to live of the checks.
    pub check_ttl: CheckTtl,
}

impl Options {
    /// Refuses a hold that is longer than two thirds of the time to live. No heartbeat refreshes the checks during the hold, and when the
    /// hold begins, the last heartbeat may be a third of the time to live ago.
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
    #[error(
        "{VARIABLE}: consulServers: expected none, since this health-sync cannot serve a task without a Consul agent: keep \
         consul-ecs for this task, or give it an agent"
    )]
    Agentless,
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Signals(#[from] SignalsError),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("TERM before there was any task metadata: nothing was written to Consul")]
    NothingWritten,
    #[error("cannot use the address of Consul's agent")]
    Consul(#[from] consul_api::ConfigError),
    #[error("cannot use the address of Consul's servers")]
    Servers(#[source] consul_api::ConfigError),
    #[error(transparent)]
    NotSet(#[from] NotSet),
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
    options.check()?;
    let config = Config::parse(env.get(VARIABLE).ok_or(RunError::NoConfig)?).map_err(RunError::Config)?;
    log::init(env, config.log_level.and_then(|level| level.as_str().parse().ok()))?;
    if config.mode() == Mode::Agentless {
        return Err(RunError::Agentless);
    }
    let metadata = MetadataClient::from_env(env)?;
    let sync = OnceCell::new();
    let probe = Probe::open(env);
    let answering = async {
        match &probe {
            Ok(probe) => probe.serve(async |question| is_healthy(sync.get(), question).await).await,
            Err(error) => {
                tracing::warn!("`health-sync healthy` gets no answer from this process: {}", one_line(error));
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        ended = sync_until_term(options, env, &config, &metadata, signals, &sync) => ended,
        () = answering => unreachable!("it answers without end"),
    }
}

/// The answer to `health-sync healthy`.
async fn is_healthy(sync: Option<&Syncer>, question: Question) -> Result<(), String> {
    match (sync, question) {
        (None, Question::Alive) => Ok(()),
        (None, Question::InMesh) => Err("there is no task metadata yet".to_owned()),
        (Some(sync), _) if sync.hangs() => {
            Err(format!("health-sync hangs: it has not asked for the task metadata for {:?}", sync.since_last_poll()))
        }
        (Some(_), Question::Alive) => Ok(()),
        (Some(sync), Question::InMesh) => sync.is_in_mesh().await,
    }
}

/// Waits for the metadata, syncs until TERM, takes the task out of the mesh, and logs out. Sets `known` once the task is known.
async fn sync_until_term(
    options: Options,
    env: &Env,
    config: &Config,
    metadata: &MetadataClient,
    mut signals: StopSignals,
    known: &OnceCell<Syncer>,
) -> Result<ExitCode, RunError> {
    let role = Role::of(config);
    let login = config.consul_login.as_ref().is_some_and(|login| login.enabled);
    let (namespace, partition) = role.place();
    let config_of = || {
        let builder = consul_api::Config::builder(env);
        let token = config.bootstrap_dir.join(SERVICE_TOKEN_FILE);
        if login { builder.token(SecretSource::File(token)) } else { builder }
    };
    let consul = Client::new(config_of().build()?.within(namespace, partition))?;
    let (address, ca_file) = (config.consul_http_addr.as_deref(), config.consul_ca_cert_file.as_deref());
    let servers = || {
        let servers = config_of()
            .address("consulHTTPAddr (CONSUL_ECS_CONFIG_JSON)", address)
            .ca_file("consulCACertFile (CONSUL_ECS_CONFIG_JSON)", ca_file)
            .build();
        let client = servers.and_then(|servers| Client::new(servers.within(namespace, partition)));
        client.map(|client| client.no_longer_than(logout::PATIENCE)).map_err(RunError::Servers)
    };
    if login {
        // A wrong setting is reported now, not only when the task stops.
        servers()?;
    }
    let log_out = async |instances: &[(&str, &ServiceId)]| {
        let tokens = logout::files(&config.bootstrap_dir, login);
        match servers() {
            _ if tokens.is_empty() => Ok(()),
            Ok(servers) => logout::log_out(&servers, &tokens, instances).await.map_err(RunError::from),
            Err(error) => Err(error),
        }
    };
    let mut watch = metadata.watch(options.interval);
    let (task, own) = tokio::select! {
        first = first_answer(metadata, &mut watch) => first,
        _ = signals.next() => {
            // Nothing was written, so there is nothing to wait for.
            if let Err(error) = log_out(&[]).await {
                tracing::warn!("{}", one_line(&error));
            }
            return Err(RunError::NothingWritten);
        }
    };
    let names = role.names(&task);
    let sync = known.get_or_init(|| Syncer::new(consul, options, config, role, &names, &task, watch.last_fetch()));
    if let Some(own) = own {
        sync.set_own_id(own);
    }
    let left = match sync.run(metadata, &mut watch, task, signals.next()).await {
        LastWrite::Critical => sync.leave_mesh().await,
        LastWrite::Nothing(reason) => {
            tracing::info!("{reason}: nothing is written");
            Ok(())
        }
    };
    let instances = [(names.service.as_str(), &names.service_id), (&names.proxy, &names.proxy_id)];
    let logged_out = log_out(&instances).await;
    if let (Err(_), Err(error)) = (&left, &logged_out) {
        tracing::warn!("{}", one_line(error));
    }
    left?;
    logged_out?;
    Ok(ExitCode::SUCCESS)
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
            Options { interval: AGAIN, hold, check_ttl: ttl.parse().unwrap() }
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
