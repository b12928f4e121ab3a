//! The task's start in the mesh, in the order things happen: read the configuration, make sure of the bootstrap
//! directory, ask for the metadata, register service and proxy, write the bootstrap.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use consul_api::{AgentSelf, AgentService, Client, ServiceId, ServiceRegistration, XdsPort, at_start};
use ecs_meta::{MetadataClient, Task};
use mesh_config::{BOOTSTRAP_FILE, CLIENT_TOKEN_FILE, CheckTtl, Config, Names, Role, SERVICE_TOKEN_FILE, VARIABLE};
use serde_json::Map;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::file::{WriteError, create_beside, is_temporary_of, write_if_changed};
use sidecar_kit::log;
use sidecar_kit::secret::{SecretFileError, SecretSource};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::bootstrap::{AccessLogs, Bootstrap, BootstrapError, Endpoint, Prometheus, XdsAddress};
use crate::login::{self, Login, LoginError};
use crate::older_consul;
use crate::xds::{self, AddressError};

/// The bootstrap carries the ACL token: its owner and the volume's group may read it.
const BOOTSTRAP_MODE: u32 = 0o640;
/// How long to look for the datacenter's name in the catalog. Without it one tag of Envoy's metrics is missing.
const DATACENTER_BOUND: Duration = Duration::from_secs(10);
/// How long to look for the access logs of proxy-defaults; without them Envoy's admin interface logs none.
const ACCESS_LOGS_BOUND: Duration = Duration::from_secs(10);
/// How long taking a registration back may keep an error from being told.
const DEREGISTER_BOUND: Duration = Duration::from_secs(5);
const ADMIN_PORT: u16 = 19000;

/// What the flags say.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to wait for the metadata, and then for the agent.
    pub timeout: Duration,
    /// The time to live of the checks that health-sync keeps.
    pub check_ttl: CheckTtl,
    /// The address of Envoy's admin interface, `<host>:<port>`; else the loopback address and 19000.
    pub admin_bind: Option<String>,
    /// The agent's gRPC address in Consul's form; else the agent is asked, else it is the loopback address and 8502.
    pub grpc_addr: Option<String>,
    /// The file with the CA certificate of the agent's gRPC.
    pub grpc_ca_file: Option<String>,
    /// The directory with the CA certificates of the agent's gRPC.
    pub grpc_ca_path: Option<String>,
    /// Where Envoy logs requests to its admin interface, unless proxy-defaults say it.
    pub admin_access_log_path: String,
    /// Where Envoy tells whether it is ready, `<ip>:<port>`; else nowhere.
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
    #[error(
        "{VARIABLE}: bootstrapDir: cannot write to {}: mount the task's shared volume there, writable for this user",
        path.display()
    )]
    BootstrapDir { path: PathBuf, source: io::Error },
    #[error("no task metadata")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("cannot use the address of Consul's agent")]
    ConsulConfig(#[from] consul_api::ConfigError),
    #[error("cannot register {id}")]
    Consul { id: ServiceId, source: Box<WaitError<consul_api::Error>> },
    #[error("cannot register {id}: expected a token with the service identity {service}")]
    Denied { id: ServiceId, service: String, source: Box<WaitError<consul_api::Error>> },
    #[error("cannot register {id}: the agent's Consul does not know the field {field}: {cure}")]
    OlderConsul { id: ServiceId, field: String, cure: &'static str },
    #[error("the agent answered without the proxy's configuration for {0}: something else has registered that ID")]
    NoProxy(ServiceId),
    #[error(
        "the agent serves gRPC with TLS only: expected CONSUL_GRPC_ADDR=https://{0} and CONSUL_GRPC_CACERT, the file with \
         the certificate of its CA"
    )]
    OnlyTls(SocketAddr),
    #[error(
        "the agent serves no gRPC, which Envoy needs: expected ports {{ grpc = 8502 }} in its configuration, as mesh-init \
         agent-config writes it, or another agent in CONSUL_GRPC_ADDR"
    )]
    NoGrpc,
    #[error("CONSUL_HTTP_TOKEN_FILE")]
    Token(#[from] SecretFileError),
    #[error("cannot use an address for the bootstrap")]
    Address(#[from] AddressError),
    #[error("cannot make the bootstrap")]
    Bootstrap(#[from] BootstrapError),
    #[error("no bootstrap")]
    Write(#[from] WriteError),
}

/// Registers the task's service and proxy, or its gateway, and writes the bootstrap. Run again it changes nothing.
///
/// # Errors
/// See [`RunError`]. Before a configuration that cannot be used or a directory that cannot be written to is reported,
/// nothing is registered; if a later step fails, mesh-init tries to deregister what it registered.
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    let config = read_config(env)?;
    let role = Role::of(&config);
    // All that is given is looked at before anything is registered.
    let admin = options
        .admin_bind
        .as_deref()
        .map(|bind| xds::resolve("--admin-bind (MESH_INIT_ADMIN_BIND)", bind))
        .transpose()?;
    let grpc = options.grpc_addr.as_deref();
    let (ca_file, ca_path) = (options.grpc_ca_file.as_deref(), options.grpc_ca_path.as_deref());
    let xds = grpc.map(|address| xds::given(address, ca_file, ca_path, env)).transpose()?;
    let path = config.bootstrap_dir.join(BOOTSTRAP_FILE);
    make_sure_of(&config.bootstrap_dir)?;

    // Where the document says the service is to be, there it is also looked up. The document's consulHTTPAddr is that of
    // the servers, for a login; what is registered here belongs to the agent beside the task.
    let (namespace, partition) = role.place();
    let login = login(&config, partition, options.timeout, env)?;
    let consul = match &login {
        Some((_, file)) => consul_api::Config::builder(env).token(SecretSource::File(file.into())).build()?,
        None => consul_api::Config::from_env(env)?,
    };
    let consul = Client::new(consul.within(namespace, partition))?;
    let given = match &login {
        Some(_) => None,
        None => consul.config().token().map(SecretSource::read).transpose()?,
    };
    let task = MetadataClient::from_env(env)?.task_within(options.timeout).await?;
    let names = role.names(&task);
    let ready_bind = options.ready_bind.or_else(|| role.ready_bind(&task));

    // A draft, so that an option in the document that cannot be used is told before anything is registered.
    let loopback = loopback_of_family(task.private_ip());
    let default_xds = asked_for(None, loopback)?;
    let draft = Bootstrap {
        names: &names,
        namespace: None,
        partition: None,
        datacenter: None,
        token: None,
        xds: xds.as_ref().unwrap_or(&default_xds),
        admin: admin.unwrap_or((loopback, ADMIN_PORT)),
        prometheus: &options.prometheus,
        ready_bind: ready_bind.as_deref(),
        admin_access_log_path: &options.admin_access_log_path,
        access_logs: None,
        config: role.proxy_config(&config),
        env,
    };
    draft.to_json()?;
    let token = match &login {
        Some((login, _)) => Some(login.token(&task, Some(&consul)).await?),
        None => given,
    };
    let draft = Bootstrap { token: token.as_ref(), ..draft };

    let agent = Agent(&consul);
    let registrations = role.registrations(&config, &names, &task, options.check_ttl);
    let mut standing = 0;
    let registered = agent.register(&registrations, &names, options.timeout, &mut standing).await;
    let done = match registered {
        Ok(registered) => finish(&agent, registered, xds.as_ref(), admin, &task, draft, &path).await,
        Err(error) => Err(error),
    };
    if done.is_err() {
        // The task won't start, and nobody else would do it.
        agent.deregister(&registrations[..standing]).await;
        if let (Some((login, _)), Some(token)) = (&login, &token) {
            login.give_back(token).await;
        }
    }
    done.map(|()| ExitCode::SUCCESS)
}

/// Completes the bootstrap with what the agent says, and writes it.
async fn finish(
    agent: &Agent<'_>,
    registered: AgentService,
    xds: Option<&XdsAddress>,
    admin: Option<(IpAddr, u16)>,
    task: &Task,
    draft: Bootstrap<'_>,
    path: &Path,
) -> Result<(), RunError> {
    let consul = agent.0.config();
    let Some(proxy) = registered.proxy else { return Err(RunError::NoProxy(draft.names.proxy_id.clone())) };
    let all_given = xds.is_some() && admin.is_some() && registered.datacenter.is_some();
    let agent_self = if all_given { None } else { agent.agent_self().await };
    let loopback = loopback(agent_self.as_ref(), task);
    let xds = xds.map_or_else(|| asked_for(agent_self.as_ref(), loopback), |given| Ok(given.clone()))?;
    let datacenter = match (registered.datacenter, agent_self) {
        (Some(datacenter), _) => Some(datacenter),
        (None, Some(agent_self)) => Some(agent_self.config.datacenter),
        (None, None) => agent.datacenter(draft.names).await,
    };
    let access_logs = agent.access_logs().await;
    let bootstrap = Bootstrap {
        namespace: registered.namespace.as_deref().or(consul.namespace()),
        partition: registered.partition.as_deref().or(consul.partition()),
        datacenter: datacenter.as_deref(),
        xds: &xds,
        admin: admin.unwrap_or((loopback, ADMIN_PORT)),
        access_logs: access_logs.as_ref(),
        config: &proxy.config.unwrap_or_else(Map::new),
        ..draft
    };
    write_bootstrap(path, &bootstrap)
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

/// The login that the document asks for, and the file that its token goes to.
fn login(
    config: &Config,
    partition: Option<&str>,
    bound: Duration,
    env: &Env,
) -> Result<Option<(Login, String)>, LoginError> {
    let Some(settings) = config.consul_login.as_ref().filter(|login| login.enabled) else { return Ok(None) };
    let (address, ca_file) = (config.consul_http_addr.as_deref(), config.consul_ca_cert_file.as_deref());
    let servers = login::servers(consul_api::Config::builder(env).address(address).ca_file(ca_file), partition)?;
    let file = config.bootstrap_dir.join(SERVICE_TOKEN_FILE);
    let path = file.to_string_lossy().into_owned();
    Ok(Some((Login::new(settings.into(), servers, file, bound, env)?, path)))
}

/// A directory that cannot be written to is told before anything is registered. What an earlier run left there when it
/// was killed is removed: a temporary file may hold a token.
fn make_sure_of(directory: &Path) -> Result<(), RunError> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        // agent-config, which writes the last, has ended by now.
        let files = [BOOTSTRAP_FILE, SERVICE_TOKEN_FILE, CLIENT_TOKEN_FILE];
        if files.iter().any(|file| is_temporary_of(file, &file_name.to_string_lossy()))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!("cannot remove {}, left by an earlier run: {error}", entry.path().display());
        }
    }
    let probe = create_beside(&directory.join(BOOTSTRAP_FILE), BOOTSTRAP_MODE);
    let written = probe.and_then(|(probe, _)| fs::remove_file(probe));
    written.map_err(|source| RunError::BootstrapDir { path: directory.to_owned(), source })
}

/// The agent beside the task.
struct Agent<'a>(&'a Client);

impl Agent<'_> {
    /// Registers the service, then the proxy that refers to it, or a gateway, and gives the proxy or gateway as the agent has
    /// it then, with the central configuration merged in. All can be repeated, so that one wait holds them. `standing` is
    /// how many of them the agent has taken, also where it fails.
    async fn register(
        &self,
        registrations: &[ServiceRegistration],
        names: &Names,
        bound: Duration,
        standing: &mut usize,
    ) -> Result<AgentService, RunError> {
        let what = format!("Consul's agent at {}", self.0.config().address());
        let registered = at_start(&what, bound, async || {
            for (index, registration) in registrations.iter().enumerate() {
                self.0.register_service(registration).await?;
                *standing = (*standing).max(index + 1);
            }
            self.0.agent_service(&names.proxy_id).await
        });
        let older = |field: String| {
            let cure = older_consul::cure(&field);
            RunError::OlderConsul { id: names.service_id.clone(), field, cure }
        };
        let registered = registered.await.map_err(|source| {
            let refused = match &source {
                WaitError::Final(error) => older_consul::refused(error),
                _ => None,
            };
            if let Some(field) = refused {
                return older(field);
            }
            let denied =
                matches!(source, WaitError::TimedOut { last: Some(consul_api::Error::PermissionDenied { .. }), .. });
            let (id, source) = (names.service_id.clone(), Box::new(source));
            if denied {
                RunError::Denied { id, service: names.service.clone(), source }
            } else {
                RunError::Consul { id, source }
            }
        })?;
        if let Some(field) = older_consul::forgotten(self.0.config(), registrations, &registered) {
            return Err(older(field.to_owned()));
        }
        if let [gateway] = registrations {
            tracing::info!("registered gateway {}", gateway.id);
        } else {
            tracing::info!("registered service {} and proxy {}", names.service_id, names.proxy_id);
        }
        Ok(registered)
    }

    /// What the agent says of itself; a token with a service identity alone may not ask.
    async fn agent_self(&self) -> Option<AgentSelf> {
        match self.0.agent_self().await {
            Ok(agent_self) => Some(agent_self),
            Err(error @ consul_api::Error::PermissionDenied { .. }) => {
                tracing::debug!("the gRPC port is not known from the agent: {}", one_line(&error));
                None
            }
            Err(error) => {
                tracing::warn!("the gRPC port is not known from the agent: {}", one_line(&error));
                None
            }
        }
    }

    /// The datacenter's name, for an agent before Consul 1.10: from the servers' own service, which is always there and
    /// which a service identity may read, else from the task's service once the catalog has it.
    async fn datacenter(&self, names: &Names) -> Option<String> {
        let datacenter = until("the datacenter's name", DATACENTER_BOUND, Backoff::default(), async || {
            for service in ["consul", &names.service] {
                match self.0.catalog_service(service).await {
                    Ok(instances) => {
                        if let Some(instance) = instances.into_iter().find(|instance| !instance.datacenter.is_empty()) {
                            return Attempt::Done(instance.datacenter);
                        }
                    }
                    Err(error) if error.may_pass_at_start() => return Attempt::Again(NoDatacenter(Some(error))),
                    Err(error) => return Attempt::Final(NoDatacenter(Some(error))),
                }
            }
            Attempt::Again(NoDatacenter(None))
        });
        let datacenter = datacenter.await;
        if let Err(error) = &datacenter {
            tracing::warn!("Envoy's metrics will lack the datacenter: {}", one_line(error));
        }
        datacenter.ok()
    }

    /// The access logs of proxy-defaults (Consul 1.15); as with Consul's own command, what is not there or may not be read
    /// is none.
    async fn access_logs(&self) -> Option<AccessLogs> {
        let entry = at_start("the access logs of proxy-defaults", ACCESS_LOGS_BOUND, async || {
            match self.0.config_entry("proxy-defaults", "global").await {
                Ok(entry) => Ok(Some(entry)),
                Err(error @ (consul_api::Error::NotFound { .. } | consul_api::Error::PermissionDenied { .. })) => {
                    tracing::debug!("no access logs from proxy-defaults: {}", one_line(&error));
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        match entry.await {
            Ok(entry) => AccessLogs::of_entry(&entry?),
            Err(error) => {
                tracing::warn!("Envoy's admin interface will lack proxy-defaults' access logs: {}", one_line(&error));
                None
            }
        }
    }

    /// Takes registrations back as well as it can: the last first, so that no proxy stands without its service.
    async fn deregister(&self, registrations: &[ServiceRegistration]) {
        let all = async {
            for ServiceRegistration { id, .. } in registrations.iter().rev() {
                match self.0.deregister_service(id).await {
                    Ok(()) => tracing::info!("deregistered {id}"),
                    Err(consul_api::Error::NotFound { .. }) => {}
                    Err(error) => tracing::warn!("cannot deregister {id}: {}", one_line(&error)),
                }
            }
        };
        if tokio::time::timeout(DEREGISTER_BOUND, all).await.is_err() {
            tracing::warn!("cannot deregister what was registered: Consul is too slow");
        }
    }
}

/// The catalog has no instance that this token may see.
#[derive(Debug, thiserror::Error)]
#[error("the catalog does not tell it")]
struct NoDatacenter(#[source] Option<consul_api::Error>);

/// The loopback address of the agent's family: an agent on IPv6 listens on `::1`. Where the agent doesn't say its own, it is
/// the task's, as `agent-config` has it.
fn loopback(agent_self: Option<&AgentSelf>, task: &Task) -> IpAddr {
    let bound = agent_self.and_then(|agent_self| agent_self.debug_config.get("BindAddr")?.as_str());
    loopback_of_family(bound.filter(|bound| bound.parse::<IpAddr>().is_ok()).or(task.private_ip()))
}

fn loopback_of_family(ip: Option<&str>) -> IpAddr {
    match ip.and_then(|ip| ip.parse().ok()) {
        Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::LOCALHOST.into(),
    }
}

/// The port that the agent tells, else the usual one, in plain text.
fn asked_for(agent_self: Option<&AgentSelf>, loopback: IpAddr) -> Result<XdsAddress, RunError> {
    let port = match agent_self.map_or(XdsPort::Unknown, AgentSelf::xds_port) {
        XdsPort::Plain(port) => port,
        XdsPort::Tls(port) => return Err(RunError::OnlyTls((loopback, port).into())),
        XdsPort::Off => return Err(RunError::NoGrpc),
        XdsPort::Unknown => xds::DEFAULT_PORT,
    };
    Ok(XdsAddress { endpoint: Endpoint::Tcp(loopback, port), authorities: None })
}

fn write_bootstrap(path: &Path, bootstrap: &Bootstrap<'_>) -> Result<(), RunError> {
    let mut text = format!("{:#}", bootstrap.to_json()?);
    text.push('\n');
    write_if_changed(path, text.as_bytes(), BOOTSTRAP_MODE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_agent_with_grpc_over_tls_alone_needs_an_address_and_a_ca() {
        let asked = |ports: serde_json::Value| {
            let config = json!({ "Datacenter": "dc1", "NodeName": "n", "Version": "1.17.0" });
            let agent_self = serde_json::from_value(json!({ "Config": config, "xDS": { "Ports": ports } })).unwrap();
            asked_for(Some(&agent_self), Ipv4Addr::LOCALHOST.into()).map(|xds| xds.endpoint)
        };
        let error = asked(json!({ "Plaintext": -1, "TLS": 8503 })).unwrap_err().to_string();
        assert!(error.contains("CONSUL_GRPC_ADDR=https://127.0.0.1:8503 and CONSUL_GRPC_CACERT"), "{error}");
        let plain = asked(json!({ "Plaintext": 18502, "TLS": 8503 })).unwrap();
        assert_eq!(plain, Endpoint::Tcp(Ipv4Addr::LOCALHOST.into(), 18502));
        let neither = asked(json!({ "Plaintext": -1, "TLS": -1 })).unwrap_err();
        assert!(matches!(neither, RunError::NoGrpc), "{neither}");
        // An agent before Consul 1.14 doesn't say it there.
        let older = asked(Value::Null).unwrap();
        assert_eq!(older, Endpoint::Tcp(Ipv4Addr::LOCALHOST.into(), xds::DEFAULT_PORT));
    }

    #[test]
    fn the_loopback_address_is_of_the_agent_s_family_else_of_the_task_s() {
        let agent_self = |bound: &str| -> AgentSelf {
            let config = json!({ "Datacenter": "dc1", "NodeName": "n", "Version": "1.17.0" });
            serde_json::from_value(json!({ "Config": config, "DebugConfig": { "BindAddr": bound } })).unwrap()
        };
        let task = |networks: Value| -> Task {
            serde_json::from_value(json!({
                "Cluster": "blue", "Family": "f", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
                "Containers": [{ "Name": "web", "Networks": [networks] }],
            }))
            .unwrap()
        };
        let (v4, v6) = (task(json!({ "IPv4Addresses": ["10.0.0.1"] })), task(json!({ "IPv6Addresses": ["fd00::1"] })));
        for (agent_self, task, expected) in [
            (Some(agent_self("::")), &v4, "::1"),
            (Some(agent_self("0.0.0.0")), &v6, "127.0.0.1"),
            (Some(agent_self("")), &v6, "::1"),
            (None, &v6, "::1"),
            (None, &v4, "127.0.0.1"),
        ] {
            assert_eq!(loopback(agent_self.as_ref(), task).to_string(), expected);
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let others = ["envoy-bootstrap.json", ".envoy-bootstrap.json.tmp", ".other.0123456789abcdef.tmp"];
        for name in others {
            fs::write(directory.path().join(name), "").unwrap();
        }
        for file in [BOOTSTRAP_FILE, SERVICE_TOKEN_FILE, CLIENT_TOKEN_FILE] {
            create_beside(&directory.path().join(file), 0o600).unwrap();
        }
        make_sure_of(directory.path()).unwrap();
        assert!(others.iter().all(|name| directory.path().join(name).exists()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), others.len());
    }
}
