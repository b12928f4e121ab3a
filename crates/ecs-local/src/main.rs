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
/// Exit codes: 0 after TERM or INT, when ready or when done; 1 after a failure or if not ready; 2 for a wrong command line. Logs go to
/// standard error. LOG_LEVEL (trace, debug, info, warn, error) and LOG_FORMAT (text, json) configure them.
#[derive(Debug, Parser)]
#[command(name = "ecs-local", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the task metadata endpoint (version 4) and ListTasks, DescribeTasks and StopTask of the ECS API, and stop a task when
    /// an essential container exits
    Serve {
        #[command(flatten)]
        listener: Listener,
        /// The address of the ECS API
        #[arg(long, env = "ECS_LOCAL_API_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:51678")]
        api_listen: SocketAddr,
        /// The order in which the containers of a task get TERM
        #[arg(long, env = "ECS_LOCAL_STOP_ORDER", value_enum, default_value_t)]
        stop_order: StopOrder,
        /// The Docker engine's socket
        #[arg(long, env = "DOCKER_HOST", value_name = "URL", default_value = "unix:///var/run/docker.sock")]
        docker_host: String,
        /// Show only the tasks with this value of the label com.amazonaws.ecs.cluster; by default all tasks
        #[arg(long, env = "ECS_LOCAL_CLUSTER", value_name = "NAME")]
        cluster: Option<String>,
    },
    /// Check whether `serve` on this machine answers, and whether Docker answers: a container's health check
    Ready {
        #[command(flatten)]
        listener: Listener,
    },
    /// Wait until all secrets of a task are there, and write them to files
    ///
    /// AWS_ENDPOINT_URL_SECRETS_MANAGER, otherwise AWS_ENDPOINT_URL, is the address of a simulated Secrets Manager such as moto:
    /// http://host:port. The region comes from a secret's ARN, otherwise from AWS_REGION or AWS_DEFAULT_REGION. Requests are signed with
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (the last two also as NAME_FILE), otherwise with invented
    /// credentials.
    Secrets {
        /// A secret, by its ARN or name. The file NAME gets the secret's text, or the value of the JSON key. May be repeated; in the
        /// variable, separate secrets by commas
        #[arg(
            long = "secret",
            env = "ECS_LOCAL_SECRETS",
            value_name = "NAME=SECRET[:json-key[:version-stage[:version-id]]]",
            value_delimiter = ',',
            required = true
        )]
        secrets: Vec<TaskSecret>,
        /// The directory for the files, which get mode 0640. It should be on a tmpfs, so that no secret is on a disk
        #[arg(long, env = "ECS_LOCAL_SECRETS_DIR", value_name = "DIR")]
        dir: PathBuf,
        /// How long to wait until all secrets are there. If some are still missing, no file is written
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
    /// The address of the metadata endpoint
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
