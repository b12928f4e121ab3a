//! The arguments of `ecs-local serve`, `ready`, `pause` and `secrets`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ecs_local::{Error, Options, SecretsOptions, StopOrder, TaskSecret};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

/// Plays ECS for the containers of a local Docker engine.
///
/// Exit codes: 0 when told to end (TERM, INT), ready or done, 1 when it failed or is not ready, 2 when the command line is
/// wrong. Logs go to standard error by LOG_LEVEL (trace, debug, info, warn, error) and LOG_FORMAT (text, json).
#[derive(Debug, Parser)]
#[command(name = "ecs-local", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer the task metadata endpoint, version 4, for every container with ECS's labels, and ListTasks, DescribeTasks and
    /// StopTask of the ECS API; stop a task when an essential container of it exits
    Serve {
        #[command(flatten)]
        listener: Listener,
        /// The address the ECS API listens on
        #[arg(long, env = "ECS_LOCAL_API_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:51678")]
        api_listen: SocketAddr,
        /// The order in which the containers of a task get TERM: ECS's agents differ
        #[arg(long, env = "ECS_LOCAL_STOP_ORDER", value_enum, default_value_t)]
        stop_order: StopOrder,
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
    /// Write the secrets of a task to files, as ECS sets variables to them, and wait for those that are not there yet
    ///
    /// Secrets Manager (moto, or another that is no real one) is where AWS_ENDPOINT_URL_SECRETS_MANAGER or AWS_ENDPOINT_URL
    /// say, http://host:port. The region is that of a secret's ARN, else AWS_REGION or AWS_DEFAULT_REGION. Requests are signed
    /// with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (the last two also as NAME_FILE), else with
    /// made-up ones.
    Secrets {
        /// A secret, by its ARN or name: the file NAME gets its text, or what it has under the JSON key. May be repeated; in
        /// the variable separated by commas
        #[arg(
            long = "secret",
            env = "ECS_LOCAL_SECRETS",
            value_name = "NAME=SECRET[:json-key[:version-stage[:version-id]]]",
            value_delimiter = ',',
            required = true
        )]
        secrets: Vec<TaskSecret>,
        /// The directory that the files go to, with mode 0640: on a tmpfs, so that they are never on a disk
        #[arg(long, env = "ECS_LOCAL_SECRETS_DIR", value_name = "DIR")]
        dir: PathBuf,
        /// How long to wait until all secrets are there; then none has been written
        #[arg(
            long,
            env = "ECS_LOCAL_SECRETS_TIMEOUT",
            value_name = "DURATION",
            default_value = "1h",
            value_parser = exit::parse_duration
        )]
        timeout: Duration,
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

fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    let env = Env::of_process();
    exit::run("ecs-local", async {
        log::init(&env, None).map_err(Error::Log)?;
        run(command, &env).await
    })
}

async fn run(command: Command, env: &Env) -> Result<ExitCode, Error> {
    match command {
        Command::Serve { listener: Listener { listen }, api_listen, stop_order, docker_host, cluster } => {
            ecs_local::serve(Options { listen, api_listen, docker_host, cluster, stop_order }).await
        }
        Command::Ready { listener: Listener { listen } } => ecs_local::ready(listen).await,
        Command::Secrets { secrets, dir, timeout } => {
            Ok(ecs_local::secrets(SecretsOptions { secrets, dir, timeout }, env).await?)
        }
        Command::Pause => ecs_local::pause().await,
    }
}
