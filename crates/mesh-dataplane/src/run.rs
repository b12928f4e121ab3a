//! The program's life, in the order of events.

use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use consul_grpc::{BootstrapParams, Follower, Servers};
use envoy_bootstrap::BootstrapError;
use sidecar_kit::env::Env;
use sidecar_kit::file::WriteError;
use sidecar_kit::secret::Secret;
use sidecar_kit::tls::PublicAuthoritiesError;
use sidecar_kit::wait::WaitError;
use supervise::envoy::{self, DialError, Failure};
use supervise::{Ended, HeldSignals, entrypoint};
use tokio::net::{TcpListener, UdpSocket};

use crate::dns::Dns;
use crate::options::{Flags, IncompleteTls};
use crate::relay::{self, Relay};
use crate::settings::{Settings, SettingsError};
use crate::start::{self, Files, StartError};
use crate::status::{self, Metrics};
use crate::tokens::{TokenError, Tokens};

/// 128 + TERM.
const TERMINATED: u8 = 143;

/// Why mesh-dataplane failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Prometheus(#[from] IncompleteTls),
    #[error("cannot read the public CA certificates, which are needed because the file has no consul.tls.caCertsPath")]
    PublicAuthorities(#[from] PublicAuthoritiesError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Start(Box<StartError>),
    #[error("Envoy cannot start")]
    Waited(#[source] Box<WaitError<StartError>>),
    #[error("cannot make Envoy's bootstrap")]
    Bootstrap(#[from] BootstrapError),
    #[error("cannot write Envoy's bootstrap")]
    Write(#[from] WriteError),
    #[error("cannot listen on {address} ({flag}): choose a port that is not in use")]
    Listen { address: String, flag: &'static str, source: std::io::Error },
    #[error("cannot listen on {file}, the socket for Envoy")]
    Socket { file: String, source: std::io::Error },
    #[error("cannot read signals")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Entrypoint(#[from] entrypoint::Error),
    #[error(
        "Envoy got no listeners from Consul within {}, so it was ended: is the proxy {proxy} still registered on the node {node}, and \
         has its token the identity of its service? (An ingress gateway has no listeners before its config entry exists: set \
         --listener-timeout 0s.)",
        humantime::format_duration(*bound)
    )]
    NoListeners { bound: Duration, proxy: String, node: String },
    #[error(
        "Envoy gave no answer at its admin page {page} within {}, so it was ended: has the container enough CPU and memory?",
        humantime::format_duration(*bound)
    )]
    NoAnswer { page: SocketAddr, bound: Duration },
    #[error(
        "Consul refuses the proxy {proxy} its configuration: {reason}: expected a token with the service identity of the proxy's service"
    )]
    Refused { proxy: String, reason: String },
    #[error("Envoy is not ready")]
    Dial(#[from] DialError),
}

impl Error {
    /// The exit code. If Envoy could not start, this is a shell's exit code for that: 126 or 127.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Entrypoint(error) => error.exit_code(),
            Self::Prometheus(_) => sidecar_kit::exit::USAGE,
            _ => sidecar_kit::exit::FAILURE,
        }
    }
}

/// Runs Envoy's command to its end.
pub(crate) async fn run(
    held: HeldSignals,
    command: Vec<OsString>,
    flags: &Flags,
    env: &Env,
) -> Result<ExitCode, Error> {
    let settings = Settings::read(&flags.config);
    let level = settings.as_ref().ok().and_then(|settings| settings.logging.log_level.as_deref()?.parse().ok());
    entrypoint::start_logging(env, level);
    let settings = settings?;
    flags.prometheus()?;
    let servers = start::servers(&settings, env)?;
    let mut tokens = Tokens::of(&settings, env)?;
    let asked = tokio::select! {
        asked = start::ask(&settings, &servers, &mut tokens, flags.timeout, env) => asked.map(Some),
        stopped = held.stop() => stopped.map(|()| None).map_err(Error::Signals),
    };
    let ended = match asked {
        Ok(Some(asked)) => {
            run_envoy(held, command, &settings, servers, &tokens, asked, flags, env).await.map(Into::into)
        }
        Ok(None) => {
            tracing::info!("ended by a signal before Envoy's start");
            Ok(TERMINATED.into())
        }
        Err(error) => Err(error),
    };
    tokens.give_back().await;
    ended
}

/// Runs Envoy, and what it needs beside it.
#[expect(clippy::too_many_arguments, reason = "Envoy's life needs each of them")]
async fn run_envoy(
    held: HeldSignals,
    mut command: Vec<OsString>,
    settings: &Settings,
    servers: Arc<Servers>,
    tokens: &Tokens,
    (token, params): (Option<Secret>, BootstrapParams),
    flags: &Flags,
    env: &Env,
) -> Result<Ended, Error> {
    let metadata = envoy::metadata(env)?;
    let files = Files::beside(&flags.config);
    start::write_bootstrap(settings, &params, &files, flags, env)?;
    let socket = relay::listen(&files.socket)
        .map_err(|source| Error::Socket { file: files.socket.display().to_string(), source })?;
    let (udp, tcp) = bind_dns(flags.dns_bind).await?;
    let status = TcpListener::bind(flags.status_bind).await;
    let status = status.map_err(|source| listen_error(flags.status_bind, "--status-bind", source))?;

    let follower = Follower::start(servers.clone(), token);
    let metrics = Arc::new(Metrics::new());
    let relay = Arc::new(Relay::new(servers.clone(), follower.state(), metrics.clone()));
    let dns = Dns::new(servers, follower.state(), metrics.clone());
    command.extend(["--config-path".into(), files.bootstrap.clone().into()]);
    let options = flags.envoy();
    let beside = async {
        tokio::join!(
            relay.clone().serve(socket),
            dns.serve(udp, tcp),
            status::serve(status, metrics.clone(), flags.ready_outage),
            metrics.follow(follower.state()),
            tokens.keep(&follower),
        );
        pending::<Ended>().await
    };
    let ended = tokio::select! {
        ended = envoy::run(held, &command, &options, metadata, relay.refused()) => ended,
        ended = beside => Ok(ended),
    };
    // It is only a leftover.
    let _ = std::fs::remove_file(&files.socket);
    let proxy = settings.proxy.id.clone();
    ended.map_err(|failure| match failure {
        Failure::Start(error) => error.into(),
        Failure::NoListeners => {
            Error::NoListeners { bound: options.listener_timeout, proxy, node: settings.proxy.node_name.clone() }
        }
        Failure::NoAnswer(page) => Error::NoAnswer { page, bound: options.listener_timeout },
        Failure::Refused(reason) => Error::Refused { proxy, reason },
    })
}

async fn bind_dns(address: SocketAddr) -> Result<(UdpSocket, TcpListener), Error> {
    let failed = |source| listen_error(address, "--dns-bind", source);
    let udp = UdpSocket::bind(address).await.map_err(failed)?;
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    Ok((udp, tcp))
}

fn listen_error(address: SocketAddr, flag: &'static str, source: std::io::Error) -> Error {
    Error::Listen { address: address.to_string(), flag, source }
}
