//! Lets an Envoy that speaks xDS v3 be served by a Consul that speaks xDS v2.
//!
//! Consul runs as the bridge's child, with its gRPC on a unix socket; the bridge listens where Consul would.
//! [`convert`] is the conversion, a pure function; [`delta`] decides what to send an Envoy, [`relay`] joins it to the two
//! streams.

pub mod convert;
pub mod delta;
pub mod extension;
pub mod grpc;
pub mod messages;
pub mod relay;
pub mod resource;
pub mod structs;
pub mod wire;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use supervise::{Ended, HeldSignals, StartError, Supervised, Target};
use tokio::net::TcpListener;

/// What the program is told.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "xds-bridge",
    version,
    about = "Runs a Consul that speaks xDS v2 and serves Envoys that speak xDS v3 from it.",
    after_help = "The agent's gRPC is moved to the socket by an option added to its command line; the bridge listens in \
        its place. A command that is not `consul agent` is run as it is. LOG_LEVEL (trace, debug, info, warn, error) and \
        LOG_FORMAT (text, json) set the bridge's own log.\n\n\
        Exit codes: Consul's own, 128 + n if signal n ended it; 1 when the address can't be listened on; 2 for a wrong \
        command line; 126 or 127 when Consul can't be run."
)]
pub struct Arguments {
    /// Where Envoys connect: the address and port that the agent's configuration gives its gRPC
    #[arg(long, env = "XDS_BRIDGE_LISTEN", default_value = "127.0.0.1:8502", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// The unix socket Consul's gRPC is moved to; its directory must exist and be writable
    #[arg(long, env = "XDS_BRIDGE_SOCKET", default_value = "/consul/data/xds-bridge.sock", value_name = "PATH", value_parser = socket)]
    pub socket: PathBuf,

    /// Consul and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CONSUL")]
    pub command: Vec<OsString>,
}

/// A unix socket's path is at most 107 bytes long (unix(7)), and this one stands in quotes in HCL.
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
    /// Something else holds the address, or it is not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Consul can't be run.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Error {
    /// The program's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Log(_) | Self::Listen { .. } => sidecar_kit::exit::FAILURE,
            Self::Start(error) => error.exit_code(),
        }
    }
}

/// Runs Consul and serves Envoys until Consul ends: on TERM too, for this Consul authorises its Envoys' inbound
/// connections, and they last until it has left. Returns how Consul ended.
///
/// # Errors
/// See [`Error`].
pub async fn run(held: HeldSignals, arguments: Arguments) -> Result<Ended, Error> {
    let Arguments { listen, socket, mut command } = arguments;
    if command.get(1).is_none_or(|subcommand| subcommand != "agent") {
        return Ok(Supervised::start(held, &command, Target::Child, &[])?.run().await);
    }
    let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen, source })?;
    // After the configuration files, so that it wins. The agent still says of itself the port they name.
    command.extend(["-hcl".into(), format!(r#"addresses {{ grpc = "unix://{}" }}"#, socket.display()).into()]);
    let consul = Supervised::start(held, &command, Target::Child, &[])?;
    tracing::info!(%listen, socket = %socket.display(), "serving Envoys");
    tokio::spawn(async move {
        if let Err(error) = grpc::serve(listener, grpc::Consul::new(socket)).await {
            tracing::error!(error = sidecar_kit::exit::one_line(&error), "no longer serving Envoys");
        }
    });
    Ok(consul.run().await)
}
