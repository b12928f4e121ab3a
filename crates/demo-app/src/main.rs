//! The arguments of demo-app.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use demo_app::{Error, client, load, serve};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

/// A service, a client and a load generator to test a mesh.
///
/// Exit codes: 0 after TERM or INT, or if every answer was 2xx; 1 if a request failed; 2 for a wrong command line. Logs go to standard
/// error. LOG_LEVEL (trace, debug, info, warn, error) and LOG_FORMAT (text, json) configure them.
#[derive(Debug, Parser)]
#[command(name = "demo-app", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve / with the service's name, the ECS task's ID and the upstreams' answers, and /health with 200 or, after PUT
    /// /health?status=unhealthy, 503
    Serve(serve::Options),
    /// Send one request. The status goes to standard error, the body to standard output
    Get(client::Get),
    /// Check the health of the `serve` in this task: a container's health check
    Health(client::Health),
    /// Send requests on a fixed schedule, never repeat one, and count the answers and failures
    Load(load::Options),
}

fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    let env = Env::of_process();
    exit::run("demo-app", async {
        log::init(&env, None).map_err(Error::Log)?;
        run(command, &env).await
    })
}

async fn run(command: Command, env: &Env) -> Result<ExitCode, Error> {
    match command {
        Command::Serve(options) => serve::serve(options, env).await,
        Command::Get(options) => client::get(options).await,
        Command::Health(options) => client::health(options).await,
        Command::Load(options) => load::run(options).await,
    }
}
