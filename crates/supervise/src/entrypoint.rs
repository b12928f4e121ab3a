//! The command line that all entry points share.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;
use sidecar_kit::env::Env;
use sidecar_kit::log;
use tracing::Level;

use crate::StartError;

/// The verbs. Without a verb, the arguments are the command to run.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command in its own process group. Forwards signals, reaps orphans and passes on the exit code.
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
}

/// Starts logging. The command may read `LOG_LEVEL` and `LOG_FORMAT` too, and may accept values that are unknown here. Such a value gives a
/// warning, and the entry point uses its default.
pub fn start_logging(env: &Env, default_level: Option<Level>) {
    let mut env = env.clone();
    let mut refused = Vec::new();
    while let Err(error) = log::init(&env, default_level) {
        // An empty value counts as not set, so this loop ends.
        env = env.with(error.variable, "");
        refused.push(error);
    }
    for error in refused {
        tracing::warn!("{error}; the default is used");
    }
}

/// Why an entry point failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The binary could not be installed.
    #[error(transparent)]
    Install(#[from] sidecar_kit::file::WriteError),
    /// `ECS_CONTAINER_METADATA_URI_V4` is wrong.
    #[cfg(feature = "envoy")]
    #[error(transparent)]
    Metadata(#[from] ecs_meta::Error),
    /// The address of a health check accepts no connection.
    #[cfg(feature = "envoy")]
    #[error(transparent)]
    Dial(#[from] crate::envoy::DialError),
}

impl Error {
    /// The exit code. If a command could not start, this is a shell's exit code for that: 126 or 127.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if let Self::Start(error) = self { error.exit_code() } else { sidecar_kit::exit::FAILURE }
    }
}
