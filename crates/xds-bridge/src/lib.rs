//! Serves Envoys, which need xDS v3, with the configuration from Consul 1.8, which serves xDS v2.
//!
//! Consul runs as the bridge's child with its gRPC on a unix socket, and the bridge listens on Consul's address. [`server`] is
//! Envoy's side, [`consul`] is Consul's side, and `relay` joins the two streams. [`convert`] turns a v2 resource into a v3
//! resource. `delta` decides what an Envoy gets next. [`wire`], [`messages`] and [`codec`] read and write the messages.

pub mod codec;
pub mod consul;
pub mod convert;
mod delta;
pub mod messages;
mod relay;
pub mod resource;
pub mod server;
pub mod wire;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use supervise::{Ended, HeldSignals, StartError, Supervised, Target};
use tokio::net::TcpListener;

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
    /// Consul could not be run.
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

/// Runs Consul and serves Envoys until Consul ends, and returns how Consul ended. TERM does not stop the serving: after TERM, Consul
/// still authorises Envoys' inbound connections until it has left the cluster.
pub async fn run(held: HeldSignals, arguments: Arguments) -> Result<Ended, Error> {
    let Arguments { listen, socket, mut command } = arguments;
    if command.get(1).is_none_or(|subcommand| subcommand != "agent") {
        return Ok(Supervised::start(held, &command, Target::Child, &[])?.run().await);
    }
    let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen, source })?;
    // The last option takes precedence over the configuration files. The agent still reports the port of the files.
    command.extend(["-hcl".into(), format!(r#"addresses {{ grpc = "unix://{}" }}"#, socket.display()).into()]);
    let child = Supervised::start(held, &command, Target::Child, &[])?;
    tracing::info!(%listen, socket = %socket.display(), "serving Envoys");
    tokio::spawn(async move {
        if let Err(error) = server::serve(listener, consul::Consul::new(socket)).await {
            tracing::error!(error = sidecar_kit::exit::one_line(&error), "no longer serving Envoys");
        }
    });
    Ok(child.run().await)
}
