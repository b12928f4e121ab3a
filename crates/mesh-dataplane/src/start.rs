//! Before Envoy's start: a token that the servers know, and the proxy's bootstrap.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use consul_grpc::{BootstrapParams, Code, Connection, Servers, Tls, Trust};
use envoy_bootstrap::{Bootstrap, BootstrapError, Endpoint, ProxyOptions, XdsAddress};
use mesh_config::BOOTSTRAP_FILE;
use serde_json::Value;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::file::write_atomically;
use sidecar_kit::secret::Secret;
use sidecar_kit::tls::{Authorities, PublicAuthoritiesError};
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::time::Instant;

use crate::options::Flags;
use crate::run::Error;
use crate::settings::Settings;
use crate::tokens::Tokens;

/// How long a refusal may be temporary: a server may learn of a new token, or of a new proxy, a moment after another server. The time begins
/// with the first refusal.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// The name of the socket for Envoy, in the directory of the bootstrap.
const SOCKET: &str = "xds.sock";
/// Its owner and the volume's group may read the bootstrap. It holds no token.
const MODE: u32 = 0o640;

/// Why Consul does not give this proxy its bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "Consul's servers do not know the token: expected a valid one in CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, or a login \
         (consulLogin in the document of mesh-init)"
    )]
    Token(#[source] consul_grpc::Error),
    #[error(
        "Consul does not know the proxy {proxy} on the node {node}: expected mesh-init to have registered it before the dataplane starts"
    )]
    Proxy { proxy: String, node: String, source: consul_grpc::Error },
    #[error("the token may not read the service of the proxy {proxy}: expected a token with this service's identity")]
    Rights { proxy: String, source: consul_grpc::Error },
    #[error("Consul's servers cannot be used")]
    Servers(#[source] consul_grpc::Error),
}

impl StartError {
    fn of(source: consul_grpc::Error, settings: &Settings) -> Self {
        let proxy = settings.proxy.id.clone();
        match source.code() {
            Some(Code::Unauthenticated) => Self::Token(source),
            Some(Code::NotFound) => Self::Proxy { proxy, node: settings.proxy.node_name.clone(), source },
            Some(Code::PermissionDenied) => Self::Rights { proxy, source },
            _ => Self::Servers(source),
        }
    }
}

/// Consul's servers, as the file names them.
pub(crate) fn servers(settings: &Settings, env: &Env) -> Result<Arc<Servers>, PublicAuthoritiesError> {
    let consul = &settings.consul;
    let tls = if consul.tls.disabled {
        None
    } else {
        let trust = match &consul.tls.ca_certs_path {
            Some(file) => Trust::File(file.clone()),
            None => Trust::Given(Authorities::public(env)?),
        };
        Some(Tls { trust, server_name: consul.tls.server_name.clone() })
    };
    let servers = Servers::new(consul.hosts().map(str::to_owned).collect(), consul.grpc_port, tls);
    Ok(Arc::new(if consul.server_watch_disabled { servers.without_watch() } else { servers }))
}

/// Gets the first token and the proxy's parameters. Each wait takes at most the timeout.
pub(crate) async fn ask(
    settings: &Settings,
    servers: &Arc<Servers>,
    tokens: &mut Tokens,
    bound: Duration,
    env: &Env,
) -> Result<(Option<Secret>, BootstrapParams), Error> {
    let token = tokens.first(servers, bound, env).await?;
    let mut refused = None;
    let what = format!("Consul's servers at {}", settings.consul.hosts().collect::<Vec<_>>().join(","));
    let params =
        until(&what, bound, Backoff::default(), async || match params(settings, servers, token.as_ref()).await {
            Ok(params) => Attempt::Done(params),
            Err(error) => {
                let is_new =
                    matches!(error.code(), Some(Code::Unauthenticated | Code::NotFound | Code::PermissionDenied));
                let unresolved = matches!(error, consul_grpc::Error::Resolve { .. });
                let again = error.is_of_the_server()
                    || unresolved
                    || is_new && refused.get_or_insert_with(Instant::now).elapsed() < KNOWN_WITHIN;
                let error = StartError::of(error, settings);
                if again { Attempt::Again(error) } else { Attempt::Final(error) }
            }
        });
    let params = params.await.map_err(|error| match error {
        WaitError::Final(error) => Error::Start(Box::new(error)),
        waited => Error::Waited(Box::new(waited)),
    })?;
    Ok((token, params))
}

/// For GetEnvoyBootstrapParams, a server treats an unknown token like no token. So a Features call first checks that the server knows the
/// token.
async fn params(
    settings: &Settings,
    servers: &Servers,
    token: Option<&Secret>,
) -> Result<BootstrapParams, consul_grpc::Error> {
    let proxy = &settings.proxy;
    let ask = |server: Connection| async move {
        server.features(token).await?;
        server.bootstrap_params(&proxy.node_name, &proxy.id, proxy.namespace_and_partition(), token).await
    };
    servers.call(true, ask).await
}

/// The files beside the file of the settings.
pub(crate) struct Files {
    pub(crate) bootstrap: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Files {
    pub(crate) fn beside(config: &Path) -> Self {
        Self { bootstrap: config.with_file_name(BOOTSTRAP_FILE), socket: config.with_file_name(SOCKET) }
    }
}

/// Writes Envoy's bootstrap. It has no token.
pub(crate) fn write_bootstrap(
    settings: &Settings,
    params: &BootstrapParams,
    files: &Files,
    flags: &Flags,
    env: &Env,
) -> Result<(), Error> {
    let access_log = params.access_logs.first().map(|log| serde_json::from_str::<Value>(log)).transpose();
    let access_log = access_log.map_err(|_| BootstrapError::AccessLogs {
        field: "JSONFormat",
        expected: "access logs that Consul can turn into JSON",
        got: "a text that is not JSON".to_owned(),
    })?;
    let set = |text: &str| !text.is_empty();
    let xds = XdsAddress { endpoint: Endpoint::Unix(files.socket.display().to_string()), authorities: None };
    let bootstrap = Bootstrap {
        service: &params.service,
        proxy_id: &settings.proxy.id,
        node: Some(&settings.proxy.node_name),
        namespace: Some(&*params.namespace).filter(|text| set(text)),
        partition: Some(&*params.partition).filter(|text| set(text)),
        datacenter: Some(&*params.datacenter).filter(|text| set(text)),
        token: None,
        xds: &xds,
        admin: (flags.admin_bind.ip(), flags.admin_bind.port()),
        prometheus: &flags.prometheus()?,
        ready_bind: Some((settings.envoy.ready_bind_address, settings.envoy.ready_bind_port)),
        admin_access_log_path: &flags.admin_access_log_path,
        access_log: access_log.as_ref(),
        options: &ProxyOptions::parse(&params.config, env)?,
    };
    let text = format!("{:#}\n", bootstrap.to_json()?);
    Ok(write_atomically(&files.bootstrap, text.as_bytes(), MODE)?)
}
