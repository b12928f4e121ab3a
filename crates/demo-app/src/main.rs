//! A service, a client and a load generator to watch a mesh with.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use demo_app::{Error, client, load, serve};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

/// A service, a client and a load generator to watch a mesh with.
///
/// Exit codes: 0 when told to end, or when what was asked for answered well; 1 when it didn't, and for `load` when any
/// request failed; 2 when the command line is wrong. Logs go to standard error by LOG_LEVEL (trace, debug, info, warn,
/// error) and LOG_FORMAT (text, json).
#[derive(Debug, Parser)]
#[command(name = "demo-app", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer at / with the service's name, the ECS task's ID and what the upstreams answered; at /health with 200 or,
    /// after PUT /health?status=unhealthy, 503
    Serve(serve::Options),
    /// Ask once: the status goes to standard error, the body to standard output
    Get(client::Get),
    /// Ask the `serve` beside this for its health: for a container's health check
    Health(client::Health),
    /// Send requests on a schedule that answers don't change, never repeat one, and count what became of them
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
