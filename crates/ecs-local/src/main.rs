//! ECS's task metadata endpoint for the containers of a local Docker engine.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ecs_local::Error;
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

/// Plays ECS for the containers of a local Docker engine.
///
/// Exit codes: 0 when told to end (TERM, INT) or ready, 1 when it failed or is not ready, 2 when the command line is
/// wrong. Logs go to standard error by LOG_LEVEL (trace, debug, info, warn, error) and LOG_FORMAT (text, json).
#[derive(Debug, Parser)]
#[command(name = "ecs-local", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer the task metadata endpoint, version 4, for every container with ECS's labels, and stop a task when an
    /// essential container of it exits
    Serve {
        #[command(flatten)]
        listener: Listener,
        /// The Docker engine's socket
        #[arg(long, env = "DOCKER_HOST", value_name = "URL", default_value = "unix:///var/run/docker.sock")]
        docker_host: String,
        /// See only the tasks of this cluster, as their label com.amazonaws.ecs.cluster has it; else all
        #[arg(long, env = "ECS_LOCAL_CLUSTER", value_name = "NAME")]
        cluster: Option<String>,
    },
    /// Ask the `serve` on this machine whether it answers and Docker too: for a container's health check
    Ready {
        #[command(flatten)]
        listener: Listener,
    },
    /// Hold a task's network namespace, as ECS's pause container does: wait for TERM or INT, then exit with 0
    Pause,
}

#[derive(Debug, Args)]
struct Listener {
    /// The address `serve` listens on
    #[arg(long, env = "ECS_LOCAL_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:80")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    let result = match log::init(&Env::of_process(), None) {
        Ok(()) => run(command).await,
        Err(error) => Err(Error::Log(error)),
    };
    exit::finish("ecs-local", result)
}

async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Serve { listener: Listener { listen }, docker_host, cluster } => {
            ecs_local::serve(listen, &docker_host, cluster.as_deref()).await
        }
        Command::Ready { listener: Listener { listen } } => ecs_local::ready(listen).await,
        Command::Pause => ecs_local::pause().await,
    }
}
