//! Serves Envoys, which need xDS v3, with the configuration from Consul 1.8, which serves xDS v2.
//!
//! Consul runs as the bridge's child with its gRPC on a unix socket, and the bridge listens on Consul's address. [`server`] is
//! Envoy's side, [`consul`] is Consul's side, and `relay` joins the two streams. [`convert`] turns a v2 resource into a v3
//! resource. `delta` decides what an Envoy gets next. [`wire`], [`messages`] and [`codec`] read and write the messages.
//!
//! For tasks without an agent, `services` answers the calls that later servers have, from Consul's HTTP API ([`local`]). [`copies`] are the
//! proxies of such tasks at this agent.

pub mod codec;
pub mod consul;
pub mod convert;
pub mod copies;
mod delta;
pub mod local;
pub mod messages;
mod relay;
pub mod resource;
pub mod server;
mod services;
pub mod tls;
pub mod wire;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use supervise::{Ended, HeldSignals, StartError, Supervised, Target};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

use crate::consul::Consul;
use crate::copies::Copies;
use crate::local::Local;
use crate::server::Incoming;

/// The command line.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "xds-bridge",
    version,
    about = "Runs Consul 1.8, which serves xDS v2, and serves Envoys its configuration as xDS v3.",
    after_help = "The bridge adds an option to the agent's command line, so that the agent serves gRPC on the socket. The bridge \
        listens on the agent's gRPC address. It runs any other command than `consul agent` unchanged. LOG_LEVEL (trace, debug, \
        info, warn, error) and LOG_FORMAT (text, json) set the bridge's own log.\n\n\
        Exit codes: Consul's own, 128 + n if signal n ended Consul; 1 if the bridge cannot listen on the address; 2 for a wrong \
        command line; 126 or 127 if Consul cannot be run."
)]
pub struct Arguments {
    /// The address for Envoys: the gRPC address and port of the agent's configuration
    #[arg(long, env = "XDS_BRIDGE_LISTEN", default_value = "127.0.0.1:8502", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// The unix socket for Consul's gRPC; its directory must exist and be writable
    #[arg(long, env = "XDS_BRIDGE_SOCKET", default_value = "/consul/data/xds-bridge.sock", value_name = "PATH", value_parser = socket)]
    pub socket: PathBuf,

    /// Consul uses TLS on the socket, as it does if it has an HTTPS port
    #[arg(long, env = "XDS_BRIDGE_SOCKET_TLS")]
    pub socket_tls: bool,

    /// The address for tasks without an agent, which use TLS
    #[arg(long, env = "XDS_BRIDGE_TLS_LISTEN", value_name = "ADDRESS:PORT", requires_all = ["tls_cert", "tls_key"])]
    pub tls_listen: Option<SocketAddr>,

    /// The file with the certificate for --tls-listen, in PEM form
    #[arg(long, env = "XDS_BRIDGE_TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<PathBuf>,

    /// The file with its key, in PEM form
    #[arg(long, env = "XDS_BRIDGE_TLS_KEY", value_name = "PATH")]
    pub tls_key: Option<PathBuf>,

    /// Consul's HTTP API, for the calls of tasks without an agent
    #[arg(long, env = "XDS_BRIDGE_HTTP", default_value = "127.0.0.1:8500", value_name = "ADDRESS:PORT")]
    pub http: String,

    /// Consul's DNS, for the DNS queries of tasks without an agent
    #[arg(long, env = "XDS_BRIDGE_DNS", default_value = "127.0.0.1:8600", value_name = "ADDRESS:PORT")]
    pub dns: SocketAddr,

    /// Consul and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONSUL")]
    pub command: Vec<OsString>,
}

/// Checks the path of the socket. Linux allows at most 107 bytes (unix(7)), and the path is quoted in HCL.
fn socket(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err("expected an absolute path".into());
    }
    if path.len() > 107 {
        return Err("expected at most 107 bytes".into());
    }
    if path.contains(['"', '\\', '$']) || path.contains(char::is_control) {
        return Err("expected a path without quotes, backslashes, dollar signs and control characters".into());
    }
    Ok(path.into())
}

/// Why the bridge could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(#[from] sidecar_kit::log::LogError),
    /// Another program uses the address, or this machine does not have it.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The HTTP address cannot be used.
    #[error(transparent)]
    Http(#[from] consul_api::ConfigError),
    /// The certificate cannot be used.
    #[error("no TLS for tasks without an agent")]
    Tls(#[from] tls::TlsError),
    /// TLS on Consul's socket cannot be used.
    #[error(transparent)]
    SocketTls(#[from] sidecar_kit::tls::TlsOptionsError),
    /// Consul could not be run.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Error {
    /// The program's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Log(_) | Self::Listen { .. } | Self::Http(_) | Self::Tls(_) | Self::SocketTls(_) => {
                sidecar_kit::exit::FAILURE
            }
            Self::Start(error) => error.exit_code(),
        }
    }
}

/// Runs Consul and serves Envoys and tasks without an agent until Consul ends, and returns how Consul ended. TERM does not stop the serving: after TERM, Consul
/// still authorises Envoys' inbound connections until it has left the cluster.
pub async fn run(held: HeldSignals, arguments: Arguments) -> Result<Ended, Error> {
    let Arguments { listen, socket, socket_tls, tls_listen, tls_cert, tls_key, http, dns, mut command } = arguments;
    if command.get(1).is_none_or(|subcommand| subcommand != "agent") {
        return Ok(Supervised::start(held, &command, Target::Child, &[])?.run().await);
    }
    let copies = Copies::new(Local::new(http, dns)?);
    let plain = server::plain(bind(listen).await?);
    let secure = match (tls_listen, tls_cert, tls_key) {
        (Some(listen), Some(certificate), Some(key)) => {
            let acceptor = tls::acceptor(certificate, key)?;
            Some(server::secure(bind(listen).await?, acceptor))
        }
        _ => None,
    };
    // The last option takes precedence over the configuration files. The agent still reports the port of the files.
    command.extend(["-hcl".into(), format!(r#"addresses {{ grpc = "unix://{}" }}"#, socket.display()).into()]);
    let consul = Consul::new(socket.clone(), socket_tls)?;
    let child = Supervised::start(held, &command, Target::Child, &[])?;
    tracing::info!(%listen, socket = %socket.display(), "serving Envoys");

    if let Some(secure) = secure {
        tokio::spawn(serve(secure, consul.clone(), copies.clone()));
    }
    tokio::spawn(serve(plain, consul, copies));
    Ok(child.run().await)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

async fn serve<S>(incoming: Incoming<S>, consul: Consul, copies: Copies)
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    if let Err(error) = server::serve(incoming, consul, copies).await {
        tracing::error!(error = sidecar_kit::exit::one_line(&error), "no longer serving Envoys");
    }
}
