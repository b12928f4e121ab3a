//! Runs Envoy under supervision as a task's sidecar proxy.
//!
//! Three verbs: run a command as PID 1 should, install this binary into a volume for a task that keeps a stock Envoy image,
//! and dial an address as a container health check in an image without a shell.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::net::TcpStream;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "envoy-entrypoint",
    version,
    about = "Runs Envoy under supervision as a task's sidecar proxy.",
    after_help = "Without a verb the arguments are the command to run: `envoy-entrypoint envoy --config-path …`.\n\n\
                  Variables: LOG_LEVEL (trace, debug, info, warn, error; default info), LOG_FORMAT (text, json; default \
                  text).\n\n\
                  Exit codes: the command's own, or 128 + n if signal n ended it; 126 if it cannot be run, 127 if there \
                  is no such program; 1 for a failed install or dial; 2 for a wrong command line."
)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command in a process group of its own: signals forwarded, orphans reaped, exit code passed through.
    Run {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Copy this binary into a directory.
    Install {
        /// The directory, on a volume that another container mounts.
        directory: PathBuf,
    },
    /// Succeed if something listens at an address: a container health check.
    Dial {
        /// The address.
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// How long to wait for the connection.
        #[arg(long, env = "DIAL_TIMEOUT", default_value = "1s", value_parser = sidecar_kit::exit::parse_duration)]
        timeout: Duration,
    },
    #[command(external_subcommand)]
    Command(Vec<OsString>),
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logging could not start.
    #[error(transparent)]
    Log(sidecar_kit::log::LogError),
    /// The command could not start.
    #[error(transparent)]
    Start(#[from] supervise::StartError),
    /// The binary could not be installed.
    #[error(transparent)]
    Install(#[from] sidecar_kit::file::WriteError),
    /// Nothing listens there.
    #[error("cannot connect to {address}")]
    Dial {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The connection was not made in time.
    #[error("no connection to {address} within {}", humantime::format_duration(*timeout))]
    DialTimeout {
        /// The address.
        address: String,
        /// The bound.
        timeout: Duration,
    },
}

impl Error {
    /// The exit code for it: a shell's where a command could not start.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) => error.exit_code(),
            _ => sidecar_kit::exit::FAILURE,
        }
    }
}

/// Does what the command line says; the exit code is the command's own.
///
/// # Errors
/// See [`enum@Error`].
pub async fn main(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.verb {
        Verb::Run { command } | Verb::Command(command) => Ok(supervise::run(&command).await?.into()),
        Verb::Install { directory } => {
            sidecar_kit::file::install(&directory, "envoy-entrypoint")?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Dial { address, timeout } => {
            dial(address, timeout).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn dial(address: String, timeout: Duration) -> Result<(), Error> {
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(Error::Dial { address, source }),
        Err(_) => Err(Error::DialTimeout { address, timeout }),
    }
}
