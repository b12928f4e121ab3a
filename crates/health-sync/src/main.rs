//! Copies the ECS health of a task's containers to Consul's checks, and takes the task out of the mesh on TERM.

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Parser, Subcommand};
use health_sync::{Options, Question};
use mesh_config::CheckTtl;
use sidecar_kit::env::Env;
use sidecar_kit::exit::{self, parse_delay, parse_duration};

/// Copies the ECS health of a task's containers to Consul's checks. On TERM it takes the task out of the mesh, and exits.
///
/// The containers are named in CONSUL_ECS_CONFIG_JSON (healthSyncContainers). ECS sets ECS_CONTAINER_METADATA_URI_V4.
///
/// With an agent in the task, the checks are TTL checks. On TERM, health-sync sets them critical and puts service and proxy into
/// maintenance. Consul's own variables give the agent: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, and so on.
///
/// With consulServers in the document, the task has no agent, and the checks are in the catalog. On TERM, health-sync sets them critical.
/// When the dataplane has stopped, it deregisters the task and logs out. The document says how to reach the servers and how to log in;
/// CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE takes the place of a login.
///
/// LOG_LEVEL and LOG_FORMAT (text, json) configure logging. An empty variable counts as not set.
#[derive(Debug, Parser)]
#[command(
    name = "health-sync",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 after TERM, when all writes and logouts succeeded; 1 for any failure; 2 for a wrong command line."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The container's health check: asks the health-sync that runs in this container.
    ///
    /// It is not healthy if health-sync does not run or hangs or, with --in-mesh, if the task has not been in the mesh yet. Exit codes: 0
    /// if healthy; 1 if not, with one line that says why; 2 for a wrong command line.
    Healthy(HealthyArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// How often health-sync asks for the task metadata.
    #[arg(long, env = "HEALTH_SYNC_INTERVAL", default_value = "500ms", value_name = "DURATION", value_parser = parse_duration)]
    interval: Duration,
    /// After TERM: how long the critical statuses are held back while other instances of the service are listed but none is passing.
    /// At most two thirds of --check-ttl in a task with an agent. 0s: no hold.
    #[arg(long, env = "HEALTH_SYNC_HOLD", default_value = "2500ms", value_name = "DURATION", value_parser = parse_delay)]
    hold: Duration,
    /// If health-sync doesn't refresh a check for this long, Consul turns it critical. mesh-init needs the same value. With 100000h,
    /// the longest allowed time, that never happens.
    #[arg(long, env = "CONSUL_ECS_CHECK_TTL", default_value_t, value_name = "DURATION")]
    check_ttl: CheckTtl,
    /// Without an agent, after TERM: how long health-sync waits until the dataplane has stopped, before it deregisters the task. The stop
    /// timeout of this container must be at least 10 s longer than this wait.
    #[arg(long, env = "HEALTH_SYNC_DATAPLANE_WAIT", default_value = "20s", value_name = "DURATION", value_parser = parse_delay)]
    dataplane_wait: Duration,
}

#[derive(Debug, Args)]
struct HealthyArguments {
    /// Also fail until Consul's servers have listed this task's proxy (or the gateway) as passing at least one time.
    #[arg(long, env = "HEALTH_SYNC_IN_MESH", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    in_mesh: bool,
}

fn main() -> ExitCode {
    let Arguments { command, run: RunArguments { interval, hold, check_ttl, dataplane_wait } } =
        exit::parse_arguments();
    let env = Env::of_process();
    match command {
        Some(Command::Healthy(HealthyArguments { in_mesh })) => {
            let question = if in_mesh { Question::InMesh } else { Question::Alive };
            exit::run("health-sync", async { health_sync::healthy(&env, question) })
        }
        None => {
            let options = Options { interval, hold, check_ttl, dataplane_wait };
            exit::run("health-sync", health_sync::run(options, &env))
        }
    }
}
