//! The project's commands: the local mesh up and down, requests within a task, images, tests, budgets.

mod bench;
mod progress;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ecs_local::secrets_manager::{CallError, SettingsError, Version};
use local_mesh::demo::{self, CASES, Length, Outcome, Row};
use local_mesh::docker::{self, DockerError};
use local_mesh::drawing::DrawError;
use local_mesh::machine::{self, MachineError, Needs};
use local_mesh::mesh::MeshError;
use local_mesh::task::StopOrder;
use local_mesh::timeline::Timeline;
use local_mesh::{drawing, images, mesh, rolling, secrets, timeline, watch};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

use local_mesh::Progress as _;

use crate::progress::Reporter;
use crate::test::Suite;

/// The commands of ecs-mesh's source tree.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    after_help = "Variables: CONSUL_IMAGE, ENVOY_IMAGE and MOTO_IMAGE put the vendors' images in the place of the stand-ins; \
                  LOG_LEVEL, LOG_FORMAT.\n\nExit codes: 0 done, 1 failed, 2 wrong command line; of `get` that of the request."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the local mesh up: fetch, build, start, wait, and send a request through it. As root on Debian this installs what
    /// the machine lacks (Docker, docker-compose, pip) and starts Docker's engine; elsewhere it prints the line that does.
    Up,
    /// Remove all that `up` made: containers, networks, volumes, images, generated files.
    Down,
    /// Build and generate what docker-compose.yml needs, and start nothing.
    Images {
        /// Build what production runs instead: from release binaries, tagged with the version. ENVOY_IMAGE is the Envoy that
        /// sidecar-proxy is built on; without it there is none.
        #[arg(long)]
        release: bool,
    },
    /// Start a task that was stopped, as ECS would: with a new task ID. Prints and draws its start.
    Start {
        /// The task: web, api-1, api-2, ingress-gateway or mesh-gateway.
        task: String,
    },
    /// Stop a task as ECS does, through `StopTask`, with some load through the mesh. Prints and draws its shutdown.
    Stop {
        /// The task: web, api-1, api-2, ingress-gateway or mesh-gateway.
        task: String,
        /// Who gets TERM when.
        #[arg(long, value_enum, default_value_t)]
        order: StopOrder,
    },
    /// Show the mesh at work.
    #[command(subcommand)]
    Demo(Demo),
    /// Send a request from within a task's network namespace.
    Get {
        /// The task: web, api-1, api-2, ingress-gateway or mesh-gateway.
        task: String,
        /// The URL, as a container of the task sees it.
        url: String,
    },
    /// Print a secret of the local mesh: consul-bootstrap-token to log in to Consul's UI, ecs-mesh-web, …
    Secret {
        /// Its name in Secrets Manager.
        name: String,
    },
    /// Run the tests: format, clippy, and the suites; all of them if none is named. Installs what they lack, as `up` does.
    Test {
        /// The suites.
        suites: Vec<Suite>,
    },
    /// Measure the release binaries against their budgets. Exit code 1 when one is over.
    Bench,
}

#[derive(Debug, Subcommand)]
enum Demo {
    /// Stop and start api-1 under load, with and without remedies, and count what fails. Takes some seven minutes.
    Shutdown,
    /// Replace the only task of api under load, ten times a case, with the hold and the gate of health-sync, and count what fails.
    /// Takes some fifteen minutes.
    Rolling,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    SecretsManager(#[from] SettingsError),
    #[error("is there such a secret, and does the mesh run?")]
    Secret(#[from] CallError),
    #[error(transparent)]
    Draw(#[from] DrawError),
    #[error(transparent)]
    Test(#[from] test::TestError),
}

fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    exit::run("xtask", run(command))
}

async fn run(command: Command) -> Result<ExitCode, Error> {
    log::init(&Env::of_process(), None)?;
    match command {
        Command::Up => {
            machine::prepare(images::needs()).await?;
            let reporter = Reporter::new(mesh::UP_STEPS);
            let up = mesh::up(&reporter).await?;
            reporter.finish();
            for startup in timeline::startups(&up.events) {
                show(&startup)?;
            }
            println!("mesh ready: GET {} -> {}", mesh::FRONT, up.status);
        }
        Command::Down => {
            mesh::down().await?;
            println!("the mesh is gone: containers, networks, volumes, images and generated files");
        }
        Command::Images { release: true } => {
            machine::prepare(Needs { docker: true, ..Needs::default() }).await?;
            let reporter = Reporter::new(images::RELEASE_STEPS);
            let built = images::release(&reporter).await.map_err(MeshError::from)?;
            reporter.finish();
            println!("{}", built.join("\n"));
        }
        Command::Images { release: false } => {
            machine::prepare(images::needs()).await?;
            let reporter = Reporter::new(images::STEPS);
            mesh::build_images(&reporter).await?;
            reporter.finish();
            println!("images ready: `docker-compose up` starts them");
        }
        Command::Start { task } => {
            let events = watch::start(&docker::connect().await?, &task).await?;
            for startup in timeline::startups(&events) {
                show(&startup)?;
            }
        }
        Command::Stop { task, order } => {
            let (stopped, report) = watch::stop(&docker::connect().await?, &task, order).await?;
            if let Some(shutdown) = timeline::shutdown(&task, order, &stopped) {
                show(&shutdown)?;
            }
            if let Some(report) = report {
                let row = Row { name: "load from web to api meanwhile", report: &report, retries_refused: 0 };
                println!("{}\n{row}", demo::head());
            }
        }
        Command::Demo(Demo::Shutdown) => demo_shutdown().await?,
        Command::Demo(Demo::Rolling) => demo_rolling().await?,
        Command::Get { task, url } => {
            let status = mesh::get(&task, &url).await?;
            return Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into());
        }
        Command::Secret { name } => {
            println!("{}", secrets::manager()?.get(&Version::current(&name)).await?.expose());
        }
        Command::Test { suites } => test::run(&suites).await?,
        Command::Bench => bench::run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells a timeline and draws it.
fn show(timeline: &Timeline) -> Result<(), Error> {
    print!("{timeline}");
    println!("  drawn in {}", drawing::draw(timeline)?.display());
    Ok(())
}

/// Runs each case and prints what came of all.
async fn demo_shutdown() -> Result<(), Error> {
    let mut demo = demo::Demo::new(docker::connect().await?);
    let reporter = Reporter::new(CASES.len());
    let mut rows = Vec::new();
    for (number, case) in CASES.into_iter().enumerate() {
        reporter.step(number + 1, CASES.len(), case.name);
        match demo.run(case, Length::DEMO, &reporter).await {
            Ok(outcome) => rows.push((case.name, outcome)),
            Err(error) => {
                // The error is what matters, whatever becomes of this.
                let _ = demo.end().await;
                return Err(error.into());
            }
        }
    }
    demo.end().await?;
    reporter.finish();
    println!("{}", demo::head());
    for (name, Outcome { report, retries_refused }) in &rows {
        println!("{}", Row { name, report, retries_refused: *retries_refused });
    }
    Ok(())
}

/// Runs each case and prints what came of all.
async fn demo_rolling() -> Result<(), Error> {
    let docker = docker::connect().await?;
    let reporter = Reporter::new(rolling::CASES.len());
    let mut rows = Vec::new();
    let mut failed = None;
    for (number, case) in rolling::CASES.into_iter().enumerate() {
        reporter.step(number + 1, rolling::CASES.len(), case.name);
        match rolling::run(&docker, case, rolling::REPLACEMENTS, &reporter).await {
            Ok(report) => rows.push((case.name, report)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let ended = rolling::end(&docker).await;
    reporter.finish();
    println!("{}", demo::head());
    for (name, report) in &rows {
        println!("{}", Row { name, report, retries_refused: 0 });
    }
    // The first error is what matters.
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ended?),
    }
}
