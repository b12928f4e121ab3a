//! A task's start in the mesh, in the order of events. mesh-init reads the configuration, and checks the addresses and the bootstrap
//! directory. It fetches the metadata and gets the token. Then it registers service and proxy, and writes the bootstrap with what the agent
//! reports.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use consul_api::Client;
use consul_login::{Login, LoginError, LoginToken};
use ecs_meta::{MetadataClient, Task};
use mesh_access::login_settings;
use mesh_config::{CheckTtl, Config, Names, Role, SERVICE_TOKEN_FILE, VARIABLE};
use serde_json::Map;
use sidecar_kit::env::Env;
use sidecar_kit::file::WriteError;
use sidecar_kit::log;
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource};
use sidecar_kit::signals::{SignalsError, Stop, StopSignals};
use sidecar_kit::wait::WaitError;

use crate::address::{self, AddressError};
use crate::agent;
use crate::agentless::{self, AgentlessError};
use crate::register::{RegisterError, Registrar};
use crate::volume::{self, NotWritable};
use envoy_bootstrap::{Bootstrap, BootstrapError, Prometheus, ProxyOptions, XdsAddress, access_log_of, ready_bind};

const ADMIN_PORT: u16 = 19000;

/// The values of the flags.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to wait for the metadata, and after that how long to wait for the agent.
    pub timeout: Duration,
    /// The time to live of the checks that health-sync updates.
    pub check_ttl: CheckTtl,
    /// The address of Envoy's admin interface, `<host>:<port>`; else the loopback address and 19000.
    pub admin_bind: Option<String>,
    /// The agent's gRPC address, in the form of `CONSUL_GRPC_ADDR`. If there is none, mesh-init asks the agent for its port, and takes 8502
    /// if the agent reports none.
    pub grpc_addr: Option<String>,
    /// The file with the CA certificate of the agent's gRPC.
    pub grpc_ca_file: Option<String>,
    /// The directory with the CA certificates of the agent's gRPC.
    pub grpc_ca_path: Option<String>,
    /// Where Envoy logs requests to its admin interface, unless proxy-defaults have access logs.
    pub admin_access_log_path: String,
    /// The address at which Envoy serves `/ready`, `<ip>:<port>`.
    pub ready_bind: Option<String>,
    /// The listener for Prometheus, which `envoy_prometheus_bind_addr` in the proxy's configuration asks for.
    pub prometheus: Prometheus,
}

/// Why the task is not in the mesh.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(
        "{VARIABLE} is not set: expected the configuration document, at least {{\"bootstrapDir\": …, \"service\": …}}"
    )]
    NoConfig,
    #[error("{VARIABLE}")]
    Config(#[source] mesh_config::ConfigError),
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error("{VARIABLE}: consulLogin")]
    Login(#[from] LoginError),
    #[error("{VARIABLE}: bootstrapDir")]
    Volume(#[from] NotWritable),
    #[error("no task metadata")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("cannot use the address of Consul's agent")]
    ConsulConfig(#[from] consul_api::ConfigError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("CONSUL_HTTP_TOKEN_FILE")]
    Token(#[from] SecretFileError),
    #[error("cannot use an address for the bootstrap")]
    Address(#[from] AddressError),
    #[error("cannot make the bootstrap")]
    Bootstrap(#[from] BootstrapError),
    #[error("cannot write the bootstrap")]
    Write(#[from] WriteError),
    #[error(transparent)]
    Agentless(#[from] AgentlessError),
    #[error(transparent)]
    Signals(#[from] SignalsError),
}

/// The addresses that the flags give.
struct Given {
    xds: Option<XdsAddress>,
    admin: Option<(IpAddr, u16)>,
    ready_bind: Option<(IpAddr, u16)>,
}

/// The task's part in the mesh. It is known once the metadata have come.
struct Identity<'a> {
    role: Role<'a>,
    task: Task,
    names: Names,
}

/// The ACL token of the task's service.
enum Token {
    /// None, or the one in the environment.
    Given(Option<Secret>),
    /// One from a login.
    Login(LoginToken),
}

impl Token {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Given(secret) => secret.as_ref(),
            Self::Login(token) => Some(token.secret()),
        }
    }
}

/// Registers the task's service and proxy, or its gateway, and writes the bootstrap. In a task without an agent, it registers them in
/// the catalog and writes what the dataplane needs. A second run changes nothing. TERM ends it with 143, and INT with 130.
///
/// # Errors
/// See [`RunError`]. mesh-init checks the configuration and the directory before it registers anything. If a later step
/// fails, it tries to deregister what it registered.
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    // First of all, so that a TERM during the start is not lost.
    let mut signals = StopSignals::catch()?;
    let config = read_config(env)?;
    let role = Role::of(&config);
    let given = Given::parse(&options, env)?;
    ProxyOptions::parse(role.proxy_config(&config), env)?;
    volume::ensure_writable(&config.bootstrap_dir)?;
    if let Some(servers) = &config.consul_servers {
        return Ok(agentless::run(&config, servers, role, options.timeout, env, signals).await?);
    }
    tokio::select! {
        ended = with_agent(&options, env, &config, role, given) => ended.map(|()| ExitCode::SUCCESS),
        stop = signals.next() => Ok(stopped(stop)),
    }
}

/// The exit code of a program that a signal ended: 128 and the signal's number.
pub(crate) fn stopped(by: Stop) -> ExitCode {
    match by {
        Stop::Term => ExitCode::from(143),
        Stop::Interrupt => ExitCode::from(130),
    }
}

async fn with_agent(
    options: &Options,
    env: &Env,
    config: &Config,
    role: Role<'_>,
    given: Given,
) -> Result<(), RunError> {
    let login = login(config, role, options.timeout, env)?;
    let consul = agent_client(role, login.as_ref(), env)?;
    let source = consul.config().token().filter(|_| login.is_none());
    let secret = source.map(SecretSource::read).transpose()?;

    let task = MetadataClient::from_env(env)?.task_within(options.timeout).await?;
    let names = role.names(&task);
    let identity = Identity { role, task, names };
    let token = match &login {
        Some(login) => Token::Login(login.token(&identity.task, Some(&consul)).await?),
        None => Token::Given(secret),
    };

    let registrations = role.registrations(config, &identity.names, &identity.task, options.check_ttl);
    let mut registrar = Registrar::new(&consul, registrations);
    let joined = join(&mut registrar, &consul, &identity, token.secret(), &given, options, config, env).await;
    if joined.is_err() {
        // ECS will not start the task's other containers, so nothing else would clean up.
        registrar.deregister().await;
        if let (Some(login), Token::Login(token)) = (&login, &token) {
            login.log_out(token).await;
        }
    }
    joined
}

/// Registers, completes the bootstrap with what the agent reports, and writes it.
#[expect(clippy::too_many_arguments, reason = "the bootstrap needs each of them")]
async fn join(
    registrar: &mut Registrar<'_>,
    consul: &Client,
    identity: &Identity<'_>,
    token: Option<&Secret>,
    given: &Given,
    options: &Options,
    config: &Config,
    env: &Env,
) -> Result<(), RunError> {
    let Identity { role, task, names } = identity;
    let registered = registrar.register(names, options.timeout).await?;
    let proxy_options = ProxyOptions::parse(&registered.proxy.config.unwrap_or_else(Map::new), env)?;
    let all_known = given.xds.is_some() && given.admin.is_some() && registered.datacenter.is_some();
    let agent_self = if all_known { None } else { agent::agent_self(consul).await };
    let loopback = address::loopback(agent_self.as_ref(), task);
    let xds = match &given.xds {
        Some(xds) => xds.clone(),
        None => address::of_agent(agent_self.as_ref(), loopback)?,
    };
    let datacenter = match (registered.datacenter, agent_self) {
        (Some(datacenter), _) => Some(datacenter),
        (None, Some(agent_self)) => Some(agent_self.config.datacenter),
        (None, None) => agent::datacenter(consul, names).await,
    };
    let proxy_defaults = agent::proxy_defaults(consul).await;
    let access_log = proxy_defaults.as_ref().map(access_log_of).transpose()?.flatten();
    let scope = consul.config();
    let bootstrap = Bootstrap {
        service: &names.service,
        proxy_id: names.proxy_id.as_str(),
        node: None,
        namespace: registered.namespace.as_deref().or(scope.namespace()),
        partition: registered.partition.as_deref().or(scope.partition()),
        datacenter: datacenter.as_deref(),
        token,
        xds: &xds,
        admin: given.admin.unwrap_or((loopback, ADMIN_PORT)),
        prometheus: &options.prometheus,
        ready_bind: given.ready_bind.or_else(|| role.ready_bind(task)),
        admin_access_log_path: &options.admin_access_log_path,
        access_log: access_log.as_ref(),
        options: &proxy_options,
    };
    Ok(volume::write_bootstrap(&config.bootstrap_dir, &bootstrap.to_json()?)?)
}

/// Reads the document and starts logging with its level.
fn read_config(env: &Env) -> Result<Config, RunError> {
    let read = Config::parse(env.get(VARIABLE).ok_or(RunError::NoConfig)?);
    let (level, warnings) = match &read {
        Ok(config) => (config.log_level.and_then(|level| level.as_str().parse().ok()), &*config.warnings),
        Err(error) => (None, error.warnings()),
    };
    log::init(env, level)?;
    for warning in warnings {
        tracing::warn!("{VARIABLE}: {warning}");
    }
    read.map_err(RunError::Config)
}

impl Given {
    fn parse(options: &Options, env: &Env) -> Result<Self, RunError> {
        let (ca_file, ca_path) = (options.grpc_ca_file.as_deref(), options.grpc_ca_path.as_deref());
        let xds = options.grpc_addr.as_deref().map(|text| address::given(text, ca_file, ca_path, env));
        let admin =
            options.admin_bind.as_deref().map(|bind| address::resolve("--admin-bind (MESH_INIT_ADMIN_BIND)", bind));
        let ready_bind = options.ready_bind.as_deref().map(ready_bind);
        Ok(Self { xds: xds.transpose()?, admin: admin.transpose()?, ready_bind: ready_bind.transpose()? })
    }
}

/// The login that the document enables.
fn login(config: &Config, role: Role<'_>, bound: Duration, env: &Env) -> Result<Option<Login>, LoginError> {
    let Some(settings) = config.consul_login.as_ref().filter(|login| login.enabled) else { return Ok(None) };
    let servers = consul_api::Config::builder(env)
        .address("consulHTTPAddr", config.consul_http_addr.as_deref())
        .ca_file("consulCACertFile", config.consul_ca_cert_file.as_deref());
    let (_, partition) = role.namespace_and_partition();
    let servers = consul_login::servers(servers, partition)?;
    let file = config.bootstrap_dir.join(SERVICE_TOKEN_FILE);
    Login::new(login_settings(settings), servers, Some(file), bound, env).map(Some)
}

/// A client of the agent beside the task. The document's `consulHTTPAddr` is the address of the servers, and only a login
/// uses it.
fn agent_client(role: Role<'_>, login: Option<&Login>, env: &Env) -> Result<Client, consul_api::ConfigError> {
    let config = consul_api::Config::builder(env);
    let config = match login.and_then(Login::file) {
        Some(file) => config.token(SecretSource::File(file.to_owned())),
        None => config,
    };
    let (namespace, partition) = role.namespace_and_partition();
    Client::new(config.build()?.within(namespace, partition))
}
