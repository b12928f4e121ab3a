//! Carries the ECS health of a task's containers into Consul's checks, and takes the task out of the mesh on TERM.
//!
//! What goes on at the same time: the statuses follow the metadata, the heartbeat keeps the checks from running out, and the
//! agent is read back and given again what it lost. None waits for another, so that nothing holds a changed status up. TERM
//! ends them all, and only then are the critical statuses written. A write under way is waited for. A write that was cut off may
//! still arrive. So health-sync then checks the agent for the rest of the second and sets again what such a write undid.

mod health;
mod logout;
mod mesh;
mod probe;
mod shutdown;
mod writes;

use std::cell::{OnceCell, RefCell};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consul_api::{Client, Error as ConsulError, ServiceId, ServiceRegistration};
use ecs_meta::{Answer, MetadataClient, Task, Watch};
use futures_util::future::join_all;
use mesh_config::{CheckTtl, Config, Role, SERVICE_TOKEN_FILE, VARIABLE};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::log;
use sidecar_kit::secret::SecretSource;
use sidecar_kit::signals::{SignalsError, StopSignals};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::health::{Checks, Update};
use crate::logout::NotLoggedOut;
use crate::mesh::{Leave, Place};
use crate::probe::Probe;
pub use crate::probe::{NotHealthy, Question, ask as healthy};
use crate::shutdown::NotSet;
use crate::writes::{WriteError, Writes};

/// How often the agent is asked whether it still has what was registered; also after each write that failed.
const READ_BACK: Duration = Duration::from_secs(60);

/// What asking the agent and registering anew may take.
const READ_BACK_BOUND: Duration = Duration::from_secs(10);

/// How long the first write may wait for the ID of the own container.
const OWN_ID: Duration = Duration::from_secs(3);

/// How soon what failed at the agent is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a write that is under way when TERM comes may still take: most of what is left then belongs to the critical writes.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// The metadata is asked for without end, each time for at most 2 s. If nobody has asked for this much longer than the interval,
/// health-sync hangs.
const HANGS: Duration = Duration::from_secs(30);

/// What the flags say.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often the metadata is asked.
    pub interval: Duration,
    /// How long the critical status may wait on TERM for another instance that is passing.
    pub hold: Duration,
    /// The time to live of the checks.
    pub check_ttl: CheckTtl,
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
    #[error(transparent)]
    Signals(#[from] SignalsError),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("TERM before there was any task metadata: nothing was written to Consul")]
    NothingWritten,
    #[error("cannot use the address of Consul's agent")]
    Consul(#[from] consul_api::ConfigError),
    #[error("{VARIABLE}: consulHTTPAddr or consulCACertFile: cannot use the address of Consul's servers")]
    Servers(#[source] consul_api::ConfigError),
    #[error(transparent)]
    NotSet(#[from] NotSet),
    #[error(transparent)]
    NotLoggedOut(#[from] NotLoggedOut),
}

/// Logs a failure that begins or changes, and its end.
fn report(failure: &mut LastFailure, outcome: &Result<(), String>, over: &str) {
    match outcome {
        Ok(()) if failure.end() => tracing::info!("{over}"),
        Err(error) if failure.is_new(error) => tracing::warn!("{error}; trying again"),
        _ => {}
    }
}

/// The task in the mesh, once its metadata is known.
struct Sync {
    consul: Client,
    options: Options,
    /// Service and proxy, or the gateway, as mesh-init registers them.
    registrations: Vec<ServiceRegistration>,
    checks: RefCell<Checks>,
    place: Place,
    writes: Writes,
    /// A write has failed: the agent may have lost what was registered.
    failed: Notify,
    /// What was written may no longer be what the agent has.
    stale: Notify,
    /// Docker's ID of the container that this process runs in, once it is known.
    own: OnceCell<String>,
    /// When the metadata was last asked for.
    asked: Arc<Mutex<Instant>>,
}

/// Runs until TERM (or INT), then takes the task out of the mesh.
///
/// # Errors
/// See [`RunError`].
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    // Before anything else: a TERM that comes during the start is not lost.
    let signals = StopSignals::catch()?;
    let config = Config::parse(env.get(VARIABLE).ok_or(RunError::NoConfig)?).map_err(RunError::Config)?;
    log::init(env, config.log_level.and_then(|level| level.as_str().parse().ok()))?;
    let metadata = MetadataClient::from_env(env)?;
    let sync = OnceCell::new();
    let probe = Probe::open(env);
    let answering = async {
        match &probe {
            Ok(probe) => probe.serve(async |question| healthy_now(sync.get(), question).await).await,
            Err(error) => {
                tracing::warn!("`health-sync healthy` gets no answer from this process: {}", one_line(error));
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        ended = live(options, env, &config, &metadata, signals, &sync) => ended,
        () = answering => unreachable!("it answers without end"),
    }
}

/// What `health-sync healthy` is answered.
async fn healthy_now(sync: Option<&Sync>, question: Question) -> Result<(), String> {
    match (sync, question) {
        (None, Question::Alive) => Ok(()),
        (None, Question::InMesh) => Err("there is no task metadata yet".to_owned()),
        (Some(sync), _) if sync.hangs() => {
            Err(format!("health-sync hangs: it has not asked for the task metadata for {:?}", sync.not_asked_for()))
        }
        (Some(_), Question::Alive) => Ok(()),
        (Some(sync), Question::InMesh) => sync.place.reached(&sync.consul).await,
    }
}

/// From the first metadata to the end.
async fn live(
    options: Options,
    env: &Env,
    config: &Config,
    metadata: &MetadataClient,
    mut signals: StopSignals,
    known: &OnceCell<Sync>,
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
        let servers = config_of().address(address).ca_file(ca_file).build();
        let client = servers.and_then(|servers| Client::new(servers.within(namespace, partition)));
        client.map(|client| client.no_longer_than(logout::PATIENCE)).map_err(RunError::Servers)
    };
    if login {
        // What is wrong with them is reported now, not at the end.
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
            // Nothing was written: no status is on its way to the servers.
            if let Err(error) = log_out(&[]).await {
                tracing::warn!("{}", one_line(&error));
            }
            return Err(RunError::NothingWritten);
        }
    };
    let names = role.names(&task);
    // A gateway has no check of a container: Consul dials its listener.
    let containers = if matches!(role, Role::Gateway(_)) { &[] } else { &*config.health_sync_containers };
    let sync = known.get_or_init(|| Sync {
        consul,
        options,
        registrations: role.registrations(config, &names, &task, options.check_ttl),
        checks: RefCell::new(Checks::new(containers, &names)),
        place: Place::new(role, &names),
        writes: Writes::default(),
        failed: Notify::new(),
        stale: Notify::new(),
        own: OnceCell::new(),
        asked: watch.clock(),
    });
    if let Some(own) = own {
        let _ = sync.own.set(own);
    }
    tracing::info!(?containers, "syncing the health of {}", names.service_id);
    let leave = sync.until_it_leaves(metadata, &mut watch, task, signals.next()).await;
    let left = match leave {
        Leave::Write => sync.leave().await,
        Leave::Nothing(reason) => {
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

/// The task's metadata, waited for without end: ECS's agent may be away for as long as it likes. With it, Docker's ID of this
/// container, where the endpoint tells it in time.
async fn first_answer(metadata: &MetadataClient, watch: &mut Watch) -> (Arc<Task>, Option<String>) {
    let mut failure = LastFailure::default();
    let mut own = None;
    loop {
        let answer = watch.changed().await;
        if own.is_none() && answer.is_ok() {
            own = timeout(OWN_ID, own_id(metadata)).await.ok();
        }
        match whole(&answer, own.as_deref()) {
            Ok(task) => return (task, own),
            Err(error) => report(&mut failure, &Err(error), ""),
        }
    }
}

/// Docker's ID of this container, asked for until the endpoint tells it.
async fn own_id(metadata: &MetadataClient) -> String {
    loop {
        match metadata.container().await {
            Ok(container) if !container.docker_id.is_empty() => return container.docker_id,
            _ => sleep(AGAIN).await,
        }
    }
}

/// The task, where the answer says something of its containers: one that lacks this container, `own`, is incomplete.
fn whole(answer: &Answer, own: Option<&str>) -> Result<Arc<Task>, String> {
    let no_metadata = |error: &ecs_meta::Error| format!("no task metadata: {}", one_line(error));
    let task = answer.as_ref().map_err(|error| no_metadata(error))?;
    task.lists(own).map_err(|error| no_metadata(&error))?;
    Ok(task.clone())
}

impl Sync {
    /// Keeps the checks until TERM, and says how the task is then to leave the mesh.
    async fn until_it_leaves(
        &self,
        metadata: &MetadataClient,
        watch: &mut Watch,
        task: Arc<Task>,
        term: impl Future,
    ) -> Leave {
        let work = async {
            tokio::join!(self.learn(metadata), self.statuses(watch, task), self.heartbeats(), self.read_backs())
        };
        tokio::pin!(work);
        tokio::select! {
            biased;
            _ = term => {}
            _ = &mut work => {}
        }
        self.writes.stop();
        tracing::info!("TERM: taking {} out of the mesh", self.registrations[0].id);
        let last_writes = async {
            tokio::select! {
                () = self.writes.ended() => {}
                _ = &mut work => {}
                () = sleep(LAST_WRITE) => {}
            }
        };
        let ((), leave) = tokio::join!(last_writes, self.place.until_replaced(&self.consul, self.options.hold));
        leave
    }

    /// The task leaves the mesh.
    async fn leave(&self) -> Result<(), NotSet> {
        let checks = self.checks.borrow().ids();
        let checks = checks.iter().collect::<Vec<_>>();
        shutdown::leave_mesh(&self.consul, &checks, &self.services(), self.writes.may_come_late()).await
    }

    /// The IDs of what is registered.
    fn services(&self) -> Vec<&ServiceId> {
        self.registrations.iter().map(|registration| &registration.id).collect()
    }

    fn hangs(&self) -> bool {
        self.not_asked_for() > self.options.interval + HANGS
    }

    fn not_asked_for(&self) -> Duration {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Asks for this container's ID, which the endpoint did not tell before the first write.
    async fn learn(&self, metadata: &MetadataClient) {
        if self.own.get().is_none() {
            let _ = self.own.set(own_id(metadata).await);
        }
    }

    /// Writes what changed, and again what failed.
    async fn statuses(&self, watch: &mut Watch, first: Arc<Task>) {
        let mut failure = LastFailure::default();
        let mut answer: Answer = Ok(first);
        loop {
            let outcome = match whole(&answer, self.own.get().map(String::as_str)) {
                Ok(task) => self.write_changes(&task).await,
                // No answer is no news: the checks stay as they are.
                Err(error) => Err(error),
            };
            report(&mut failure, &outcome, "syncing again");
            tokio::select! {
                changed = watch.changed() => answer = changed,
                () = self.stale.notified() => {}
                () = sleep(self.options.interval), if outcome.is_err() => {}
            }
        }
    }

    async fn write_changes(&self, task: &Task) -> Result<(), String> {
        let changes = self.checks.borrow().changes(task);
        let written = join_all(changes.into_iter().map(async |change| {
            self.update(&change).await?;
            tracing::info!("{}: {}, check {}", change.container, change.output, change.status.as_str());
            self.checks.borrow_mut().written(change);
            Ok(())
        }));
        written.await.into_iter().collect()
    }

    async fn update(&self, Update { id, status, output, .. }: &Update) -> Result<(), String> {
        self.writes.make(self.consul.update_check(id, *status, output)).await.map_err(|error| {
            self.failed.notify_one();
            self.explained(&error)
        })
    }

    /// Writes each check's status again before its time to live is over, whatever the metadata says; not while the thread that
    /// asks for the metadata hangs.
    async fn heartbeats(&self) {
        // Refresh at least once a day, even with a TTL of 100000h.
        let interval = (self.options.check_ttl.duration() / 3).min(Duration::from_secs(24 * 60 * 60));
        let mut failure = LastFailure::default();
        loop {
            sleep(if failure.lasts() { interval.min(AGAIN) } else { interval }).await;
            if self.hangs() {
                continue;
            }
            let standing = self.checks.borrow().standing();
            let refreshed = join_all(standing.iter().map(async |update| {
                self.update(update).await?;
                self.checks.borrow_mut().refreshed(update);
                Ok(())
            }));
            report(&mut failure, &refreshed.await.into_iter().collect(), "the checks are refreshed again");
            self.stale.notify_one();
        }
    }

    /// Reads back what the agent has, and restores what it lost.
    async fn read_backs(&self) {
        let mut failure = LastFailure::default();
        let mut backoff = Backoff::new(AGAIN, READ_BACK_BOUND);
        loop {
            let restored = timeout(READ_BACK_BOUND, self.restore()).await;
            let restored =
                restored.unwrap_or_else(|_| Err(format!("Consul's agent does not answer within {READ_BACK_BOUND:?}")));
            report(&mut failure, &restored, "the agent has all that was registered");
            if restored.is_err() {
                sleep(backoff.delay()).await;
                continue;
            }
            backoff.reset();
            // A write that fails again and again is no reason to ask more often than that.
            sleep(AGAIN).await;
            tokio::select! {
                () = sleep(READ_BACK) => {}
                () = self.failed.notified() => {}
            }
        }
    }

    /// Registers anew what the agent no longer has (it was restarted without its data), and ends a maintenance that an earlier
    /// run left behind.
    async fn restore(&self) -> Result<(), String> {
        let explained = |error: ConsulError| self.explained(&WriteError::Consul(error));
        let ids = self.services();
        let services = self.consul.agent_services(&ids).await.map_err(explained)?;
        for registration in &self.registrations {
            if !services.contains_key(&registration.id) {
                self.register(registration).await?;
                tracing::warn!("the agent had lost {}: registered it again", registration.id);
            }
        }
        let stood = self.checks.borrow().standing();
        let checks = self.consul.agent_checks(&ids).await.map_err(explained)?;
        for id in ids {
            let maintenance = checks.get(&shutdown::maintenance_check_id(id));
            if maintenance.is_some_and(|check| check.notes == shutdown::REASON) {
                let end = self.consul.set_maintenance(id, false, "");
                self.writes.make(end).await.map_err(|error| self.explained(&error))?;
            }
        }
        let lost = self.checks.borrow_mut().compare(&stood, |id| checks.get(id).map(|check| check.status));
        self.stale.notify_one();
        if lost {
            // A check alone cannot be lost but by hand; the registration brings it back, critical.
            self.register(&self.registrations[0]).await?;
        }
        Ok(())
    }

    async fn register(&self, registration: &ServiceRegistration) -> Result<(), String> {
        let register = self.consul.register_service_keeping_checks(registration);
        self.writes.make(register).await.map_err(|error| self.explained(&error))
    }

    /// What failed, on one line; where the token is refused, with one that would do.
    fn explained(&self, error: &WriteError) -> String {
        let line = one_line(error);
        match error {
            WriteError::Consul(ConsulError::PermissionDenied { .. }) => {
                format!("{line}; expected a token with the service identity {}", self.registrations[0].name)
            }
            _ => line,
        }
    }
}
