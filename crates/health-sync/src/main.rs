//! Carries the ECS health of a task's containers into Consul's checks, and takes the task out of the mesh on TERM.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use health_sync::Options;
use sidecar_kit::env::Env;
use sidecar_kit::exit;

/// Carries the ECS health of a task's containers into Consul's TTL checks. On TERM it turns them critical, puts service and
/// proxy into maintenance, and exits.
///
/// Which containers is in CONSUL_ECS_CONFIG_JSON (healthSyncContainers), the task in ECS_CONTAINER_METADATA_URI_V4, the agent
/// in Consul's own variables: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE and so on. LOG_LEVEL and
/// LOG_FORMAT (text, json) say how to log. An empty variable counts as not set.
#[derive(Debug, Parser)]
#[command(
    name = "health-sync",
    version,
    after_help = "Exit codes: 0 after TERM, when all was set; 1 failed, or something could not be set; 2 wrong command line."
)]
struct Arguments {
    /// How often the task metadata is asked.
    #[arg(long, env = "HEALTH_SYNC_INTERVAL", default_value = "500ms", value_name = "DURATION",
          value_parser = sidecar_kit::exit::parse_duration)]
    interval: Duration,
    /// How long to wait for the metadata at start.
    #[arg(long, env = "HEALTH_SYNC_TIMEOUT", default_value = "90s", value_name = "DURATION",
          value_parser = sidecar_kit::exit::parse_duration)]
    timeout: Duration,
}

fn main() -> ExitCode {
    let Arguments { interval, timeout } = exit::parse_arguments();
    let options = Options { interval, timeout };
    exit::run("health-sync", health_sync::run(options, &Env::of_process()))
}
