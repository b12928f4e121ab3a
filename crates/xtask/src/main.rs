//! The project's commands: the local mesh up and down, requests within a task, images, tests.

mod progress;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local_mesh::{images, mesh, timeline};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

use crate::progress::Reporter;
use crate::test::Suite;

/// The commands of ecs-mesh's source tree.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    after_help = "Variables: CONSUL_IMAGE and ENVOY_IMAGE put the vendors' images in the place of the stand-ins; LOG_LEVEL, \
                  LOG_FORMAT.\n\nExit codes: 0 done, 1 failed, 2 wrong command line; of `get` and `test` what they ran."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the local mesh up: fetch, build, start, wait, and send a request through it.
    Up,
    /// Remove all that `up` made: containers, networks, volumes, images, generated files.
    Down,
    /// Build and generate what docker-compose.yml needs, and start nothing.
    Images,
    /// Send a request from within a task's network namespace.
    Get {
        /// The task: web, api-1 or api-2.
        task: String,
        /// The URL, as a container of the task sees it.
        url: String,
    },
    /// Run the tests: format, clippy, and the suites; all of them if none is named.
    Test {
        /// The suites.
        suites: Vec<Suite>,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Mesh(#[from] mesh::MeshError),
    #[error(transparent)]
    Test(#[from] test::TestError),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    exit::finish("xtask", run(command).await)
}

async fn run(command: Command) -> Result<ExitCode, Error> {
    log::init(&Env::of_process(), None)?;
    match command {
        Command::Up => {
            let reporter = Reporter::new(mesh::UP_STEPS);
            let up = mesh::up(&reporter).await?;
            reporter.finish();
            print!("{}", timeline::startup(&up.events));
            println!("mesh ready: GET {} -> {}", mesh::FRONT, up.status);
        }
        Command::Down => {
            mesh::down().await?;
            println!("the mesh is gone: containers, networks, volumes, images and generated files");
        }
        Command::Images => {
            let reporter = Reporter::new(images::STEPS);
            mesh::build_images(&reporter).await?;
            reporter.finish();
            println!("images ready: `docker-compose up` starts them");
        }
        Command::Get { task, url } => {
            let status = mesh::get(&task, &url).await?;
            return Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into());
        }
        Command::Test { suites } => test::run(&suites).await?,
    }
    Ok(ExitCode::SUCCESS)
}
