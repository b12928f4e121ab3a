//! Runs Envoy under supervision as a task's sidecar proxy, for as long as the task's apps need it.
//!
//! There are three verbs. `run` runs Envoy as a container's first process. `install` copies this binary into a volume, for a task that
//! keeps a stock Envoy image. `dial` connects to an address: a health check for an image without a shell.

mod options;

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sidecar_kit::env::Env;
use supervise::envoy::{self, Failure, dial};
use supervise::{HeldSignals, entrypoint};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "envoy-entrypoint",
    version,
    disable_help_subcommand = true,
    about = "Runs Envoy under supervision as a task's sidecar proxy, for as long as the task's apps need it.",
    long_about = "Runs Envoy under supervision as a task's sidecar proxy.\n\nAfter TERM, Envoy runs on until the task metadata \
                  shows that every app container has stopped; then Envoy gets TERM. Every container counts as an app, except \
                  the container of this Envoy, those that ecs-mesh, consul-ecs or AWS adds, and those of --ignore-container. A \
                  second TERM changes nothing. When --grace is over, Envoy gets TERM even if an app still runs. All other signals \
                  are forwarded.",
    after_help = "Without a verb the arguments are the command to run: `envoy-entrypoint envoy --config-path …`.\n\n\
                  Variables: those of the flags; ECS_CONTAINER_METADATA_URI_V4, which ECS sets (without it, Envoy waits for no \
                  app); LOG_LEVEL (trace, debug, info, warn, error; default info), LOG_FORMAT (text, json; default text).\n\n\
                  Exit codes: the command's own, or 128 + n if signal n ended it; 126 if the command cannot be run, 127 if there \
                  is no such program; 1 for a failed install or dial, an Envoy that got no listeners from Consul, or a wrong \
                  ECS_CONTAINER_METADATA_URI_V4; 2 for a wrong command line."
)]
pub struct Arguments {
    #[command(flatten)]
    options: options::Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Succeed if an address accepts a connection: a container health check.
    Dial {
        /// The address. With `localhost`, it tries 127.0.0.1 and then ::1.
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// How long to wait for the connection.
        #[arg(long, env = "ENVOY_ENTRYPOINT_DIAL_TIMEOUT", default_value = "1s", value_parser = sidecar_kit::exit::parse_duration)]
        timeout: Duration,
    },
    #[command(flatten)]
    Entrypoint(entrypoint::Verb),
    #[command(external_subcommand)]
    Command(Vec<OsString>),
}

/// Why envoy-entrypoint failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What can fail in every entry point.
    #[error(transparent)]
    Entrypoint(#[from] entrypoint::Error),
    /// Envoy got no listeners from Consul, and was ended.
    #[error(
        "Envoy got no listeners from Consul within {}, so it was ended: is this proxy registered at the agent, may its token read its \
         service, and does the agent answer Envoy? (An ingress gateway has no listeners before its config entry exists: set \
         --listener-timeout 0s.)",
        humantime::format_duration(*bound)
    )]
    NoListeners {
        /// The bound.
        bound: Duration,
    },
    /// Envoy's admin page gave no answer, and Envoy was ended.
    #[error(
        "Envoy gave no answer at its admin page {page} within {}, so it was ended: does --admin name its page, and has the container enough \
         CPU and memory?",
        humantime::format_duration(*bound)
    )]
    NoAnswer {
        /// The address.
        page: SocketAddr,
        /// The bound.
        bound: Duration,
    },
}

impl Error {
    /// The exit code. If a command could not start, this is a shell's exit code for that: 126 or 127.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Entrypoint(error) => error.exit_code(),
            _ => sidecar_kit::exit::FAILURE,
        }
    }
}

/// Runs the verb of the command line. If the verb runs a command, the exit code is that command's.
///
/// # Errors
/// If Envoy cannot start or gets no listeners, or if the verb fails.
pub async fn main(held: HeldSignals, arguments: Arguments, env: &Env) -> Result<ExitCode, Error> {
    let Arguments { options, verb } = arguments;
    match verb {
        Verb::Entrypoint(entrypoint::Verb::Run { command }) | Verb::Command(command) => {
            let metadata = envoy::metadata(env)?;
            let options = options.into();
            let ended = envoy::run(held, &command, &options, metadata, pending::<Infallible>()).await;
            ended.map(Into::into).map_err(|failure| match failure {
                Failure::Start(error) => error.into(),
                Failure::NoListeners => Error::NoListeners { bound: options.listener_timeout },
                Failure::NoAnswer(page) => Error::NoAnswer { page, bound: options.listener_timeout },
                Failure::Refused(never) => match never {},
            })
        }
        Verb::Entrypoint(entrypoint::Verb::Install { directory }) => {
            sidecar_kit::file::install(&directory, "envoy-entrypoint").map_err(entrypoint::Error::from)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Dial { address, timeout } => {
            held.release();
            dial(address, timeout).await.map_err(entrypoint::Error::from)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
