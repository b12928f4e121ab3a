//! Runs Envoy in a task without a Consul agent, and connects it to Consul's servers.
//!
//! `settings` reads the file that mesh-init wrote, and `keys` refuses what has no effect in it. `tokens` gets the token, and keeps it good. `start` asks Consul about the proxy and
//! writes Envoy's bootstrap. `run` runs Envoy, and beside it `relay` (Envoy's configuration), `dns` and `status`.

mod dns;
mod keys;
mod message;
mod options;
mod relay;
mod run;
mod settings;
mod start;
mod status;
mod tokens;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sidecar_kit::env::Env;
use sidecar_kit::exit::parse_duration;
use supervise::HeldSignals;
use supervise::envoy::dial;

pub use run::Error;

use crate::settings::Settings;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-dataplane",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    about = "Runs Envoy in a task without a Consul agent, and connects it to Consul's servers.",
    long_about = "Runs Envoy in a task without a Consul agent, and connects it to Consul's servers.\n\nIt reads the file that mesh-init \
                  has written, gets a token, writes Envoy's bootstrap, and starts Envoy with --config-path. Then it passes Envoy's \
                  configuration on from one of the servers, and goes to another server if that one fails. After TERM, Envoy runs on \
                  until every app container has stopped, at most for --grace. No failure of Consul ends an Envoy that has its \
                  configuration.",
    after_help = "The arguments after the flags are Envoy's command, without --config-path: `mesh-dataplane envoy --disable-hot-restart`.\n\n\
                  Variables: those of the flags; CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, a token (without it: the static token \
                  in the file, or else the login that the file describes); CONSUL_LOGIN_BEARER_TOKEN or \
                  CONSUL_LOGIN_BEARER_TOKEN_FILE, the proof for a login that is not AWS IAM; \
                  ECS_CONTAINER_METADATA_URI_V4, which ECS sets (without it, Envoy waits for no app); LOG_LEVEL (trace, debug, info, \
                  warn, error; default: the file's, else info), LOG_FORMAT (text, json; default text).\n\n\
                  Exit codes: Envoy's own, or 128 + n if signal n ended it; 126 if Envoy cannot be run, 127 if there is no such program; \
                  1 if Envoy could not get its first configuration, or if `healthy` fails; 2 for a wrong command line; 143 after TERM \
                  before Envoy's start."
)]
pub struct Arguments {
    #[command(flatten)]
    flags: options::Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Succeed if Envoy has its configuration: a container health check. Connects to Envoy's readiness port. An outage of Consul does not
    /// make it fail.
    Healthy {
        /// How long to wait for the connection.
        #[arg(long, env = "MESH_DATAPLANE_DIAL_TIMEOUT", default_value = "1s", value_parser = parse_duration)]
        wait: Duration,
    },
    #[command(external_subcommand)]
    Envoy(Vec<OsString>),
}

/// Runs the verb of the command line. For Envoy's command, the exit code is Envoy's.
///
/// # Errors
/// If Envoy cannot start or gets no first configuration, or if it is not healthy.
pub async fn main(held: HeldSignals, arguments: Arguments, env: &Env) -> Result<ExitCode, Error> {
    let Arguments { flags, verb } = arguments;
    match verb {
        Verb::Envoy(command) => run::run(held, command, &flags, env).await,
        Verb::Healthy { wait } => {
            held.release();
            let envoy = Settings::read(&flags.config)?.envoy;
            let address = std::net::SocketAddr::new(envoy.ready_bind_address, envoy.ready_bind_port);
            dial(address.to_string(), wait).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
