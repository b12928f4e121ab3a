//! Carries the ECS health of a task's containers into Consul's checks, and takes the task out of the mesh on TERM.
//!
//! One loop is the only writer. It reads the metadata, writes what changed, and waits; TERM ends it, and only then are the
//! critical statuses written. Nothing that was on its way before can turn one back: a write under way is waited for; what had
//! to be cut off may still reach the agent, so the agent is then asked until the end what it has, and told again.

mod health;
mod logout;
mod shutdown;

use std::process::ExitCode;
use std::time::Duration;

use consul_api::{Client, Error as ConsulError, ServiceRegistration};
use ecs_meta::{MetadataClient, Task};
use futures_util::future::{LocalBoxFuture, Shared};
use futures_util::{FutureExt, StreamExt};
use mesh_config::{Config, Role, SERVICE_TOKEN_FILE, VARIABLE};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::log;
use sidecar_kit::wait::WaitError;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::sleep;

use crate::health::Checks;
use crate::logout::NotLoggedOut;
use crate::shutdown::NotSet;

/// How often the agent is asked whether it still has what was registered, in rounds.
const ROUNDS_PER_LOOK: u32 = 4;

/// What a write that is under way when TERM comes may still take: most of what is left then belongs to the critical writes.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// What the flags say.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often the metadata is asked.
    pub interval: Duration,
    /// How long to wait for the metadata at start.
    pub timeout: Duration,
}

/// Why it ended otherwise than by TERM with all set.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error("{VARIABLE} is not set: expected the configuration document that mesh-init has")]
    NoConfig,
    #[error("{VARIABLE}")]
    Config(#[source] mesh_config::ConfigError),
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    #[error("no task metadata")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("TERM before there was any task metadata: nothing was told to Consul")]
    NothingTold,
    #[error("cannot use the address of Consul's agent")]
    Consul(#[from] consul_api::ConfigError),
    #[error("{VARIABLE}: consulHTTPAddr or consulCACertFile: cannot use the address of Consul's servers")]
    Servers(#[source] consul_api::ConfigError),
    #[error(transparent)]
    NotSet(#[from] NotSet),
    #[error(transparent)]
    NotLoggedOut(#[from] NotLoggedOut),
}

/// TERM has come; may be awaited by many and again.
type Term = Shared<LocalBoxFuture<'static, ()>>;

/// What became of the last write before TERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastWrite {
    /// The agent has answered it, or there was none.
    Ended,
    /// It may still reach the agent.
    CutOff,
}

/// What one round needs.
struct Sync {
    consul: Client,
    metadata: MetadataClient,
    /// Service and proxy, or the gateway, as mesh-init registers them.
    registrations: Vec<ServiceRegistration>,
    checks: Checks,
    rounds: u32,
    /// What was last said of a failure, so that a lasting one is said once.
    said: Option<String>,
}

/// Runs until TERM (or INT), then takes the task out of the mesh.
///
/// # Errors
/// See [`RunError`].
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    // Before anything else: a TERM that comes during the start is not lost.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(RunError::Signals)?;
    let config = Config::parse(env.get(VARIABLE).ok_or(RunError::NoConfig)?).map_err(RunError::Config)?;
    log::init(env, config.log_level.and_then(|level| level.as_str().parse().ok()))?;
    let role = Role::of(&config);
    let login = config.consul_login.as_ref().is_some_and(|login| login.enabled);
    let with_login;
    let env = if login {
        with_login =
            env.clone().with("CONSUL_HTTP_TOKEN_FILE", config.bootstrap_dir.join(SERVICE_TOKEN_FILE).to_string_lossy());
        &with_login
    } else {
        env
    };
    let (namespace, partition) = role.place();
    let consul = Client::new(consul_api::Config::from_env(env)?.within(namespace, partition))?;
    let (address, ca_file) = (config.consul_http_addr.as_deref(), config.consul_ca_cert_file.as_deref());
    let servers = || {
        let servers = consul_api::Config::of_servers(env, address, ca_file);
        let client = servers.and_then(|servers| Client::new(servers.within(namespace, partition)));
        client.map(|client| client.no_longer_than(logout::PATIENCE)).map_err(RunError::Servers)
    };
    if login {
        // What is wrong with them is told now, not at the end.
        servers()?;
    }
    let log_out = async |instances: &[(&str, &str)]| {
        let tokens = logout::files(&config.bootstrap_dir, login);
        match servers() {
            _ if tokens.is_empty() => Ok(()),
            Ok(servers) => logout::log_out(&servers, &tokens, instances).await.map_err(RunError::from),
            Err(error) => Err(error),
        }
    };
    let metadata = MetadataClient::from_env(env)?;
    let task = tokio::select! {
        task = metadata.task_within(options.timeout) => task?,
        _ = signals.next() => {
            // Nothing was written: no status is on its way to the servers.
            if let Err(error) = log_out(&[]).await {
                tracing::warn!("{}", one_line(&error));
            }
            return Err(RunError::NothingTold);
        }
    };
    let names = role.names(&task);
    // A gateway has no check of a container: Consul dials its listener.
    let containers = if matches!(role, Role::Gateway(_)) { &[] } else { &*config.health_sync_containers };
    let mut sync = Sync {
        consul,
        metadata,
        registrations: role.registrations(&config, &names, &task),
        checks: Checks::new(containers, &names),
        rounds: 0,
        said: None,
    };
    tracing::info!(?containers, "syncing the health of {}", names.service_id);
    let term = async move {
        signals.next().await;
    };
    let last_write = sync.until(term.boxed_local().shared(), options.interval).await;
    tracing::info!("TERM: taking {} out of the mesh", names.service_id);
    let checks = sync.checks.ids().collect::<Vec<_>>();
    let services = sync.registrations.iter().map(|registration| registration.id.as_str()).collect::<Vec<_>>();
    let left = shutdown::leave_mesh(&sync.consul, &checks, &services, last_write).await;
    let instances = [(names.service.as_str(), names.service_id.as_str()), (&names.proxy, &names.proxy_id)];
    let logged_out = log_out(&instances).await;
    if let (Err(_), Err(error)) = (&left, &logged_out) {
        tracing::warn!("{}", one_line(error));
    }
    left?;
    logged_out?;
    Ok(ExitCode::SUCCESS)
}

impl Sync {
    /// Round after round until `term`. A read is dropped then, a write has [`LAST_WRITE`] to end.
    async fn until(&mut self, term: Term, interval: Duration) -> LastWrite {
        loop {
            let task = tokio::select! {
                biased;
                () = term.clone() => return LastWrite::Ended,
                task = self.metadata.task() => task,
            };
            let cut_off = async {
                term.clone().await;
                sleep(LAST_WRITE).await;
            };
            tokio::select! {
                biased;
                () = cut_off => return LastWrite::CutOff,
                () = self.round(task) => {}
            }
            tokio::select! {
                biased;
                () = term.clone() => return LastWrite::Ended,
                () = sleep(interval) => {}
            }
        }
    }

    /// Restores what the agent lost and writes what changed.
    async fn round(&mut self, task: Result<Task, ecs_meta::Error>) {
        let outcome = match task {
            Ok(task) => self.write(&task).await.map_err(|error| self.told(&error)),
            // No word is no news: the checks stay as they are.
            Err(error) => Err(format!("no task metadata: {}", one_line(&error))),
        };
        match outcome {
            Ok(()) if self.said.take().is_some() => tracing::info!("syncing again"),
            Ok(()) => {}
            Err(error) if self.said.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!("{error}; trying again");
                self.said = Some(error);
            }
        }
    }

    /// What failed, on one line; where the token is refused, with one that would do.
    fn told(&self, error: &ConsulError) -> String {
        let told = one_line(error);
        let service = &self.registrations[0].name;
        match error {
            ConsulError::PermissionDenied { .. } => {
                format!("{told}; expected a token with the service identity {service}")
            }
            _ => told,
        }
    }

    async fn write(&mut self, task: &Task) -> Result<(), ConsulError> {
        if self.rounds.is_multiple_of(ROUNDS_PER_LOOK) {
            self.restore().await?;
        }
        self.rounds = self.rounds.wrapping_add(1);
        let mut outcome = Ok(());
        for (container, id, status, said) in self.checks.changes(task) {
            match self.consul.update_check(&id, status, &said).await {
                Ok(()) => {
                    tracing::info!("{container}: {said}, check {}", status.as_str());
                    self.checks.written(&container, status);
                }
                Err(error) => {
                    // The agent may have lost the check: look before the next write.
                    self.rounds = 0;
                    outcome = outcome.and(Err(error));
                }
            }
        }
        outcome
    }

    /// Registers anew what the agent no longer has (it was restarted without its data), and takes back a maintenance that an
    /// earlier run of ours left behind.
    async fn restore(&mut self) -> Result<(), ConsulError> {
        let services = self.consul.agent_services().await?;
        for registration in &self.registrations {
            if !services.contains_key(&registration.id) {
                self.consul.register_service_keeping_checks(registration).await?;
                tracing::warn!("the agent had lost {}: registered it again", registration.id);
            }
        }
        let checks = self.consul.agent_checks().await?;
        for registration in &self.registrations {
            let id = shutdown::maintenance_check_id(&registration.id);
            if checks.get(&id).is_some_and(|check| check.notes == shutdown::REASON) {
                self.consul.set_maintenance(&registration.id, false, "").await?;
            }
        }
        let lost = self.checks.compare(|id| checks.get(id).map(|check| check.status));
        if lost {
            // A check alone cannot be lost but by hand; the registration brings it back, critical.
            self.consul.register_service_keeping_checks(&self.registrations[0]).await?;
        }
        Ok(())
    }
}
