//! What a command needs of this machine. It is checked and, where possible, installed or started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::command::{CommandError, run};
use crate::docker::{self, DockerError};
use crate::release::Arch;
use crate::workspace;

/// How long Docker's engine may take from its start to its first answer.
const ENGINE_BOUND: Duration = Duration::from_secs(60);

/// How long to wait for another engine after the started one has exited. The package's own script may have
/// started that other engine.
const OTHER_ENGINE_BOUND: Duration = Duration::from_secs(10);

/// How long apt-get waits for another apt-get, which often runs on a machine that has just booted.
const APT_LOCK: &str = "DPkg::Lock::Timeout=300";

/// The needs of a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Docker's client, and its engine running.
    pub docker: bool,
    /// docker-compose, or Compose as Docker's plugin.
    pub compose: bool,
    /// Python with pip.
    pub pip: bool,
    /// Compilers for both architectures of the images of production.
    pub cross: bool,
    /// An emulator of arm64.
    pub qemu: bool,
}

/// Why the machine could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Programs are missing, and this user or this system cannot install them here.
    #[error("this machine lacks {lacks}: {cure}")]
    Lacks {
        /// The missing programs.
        lacks: String,
        /// The command that installs them.
        cure: String,
    },
    /// The engine is not running, and only root may start it.
    #[error("Docker's engine is down: start it with `sudo {start}`")]
    EngineDown {
        /// The command that starts it.
        start: &'static str,
    },
    /// The engine runs, but this user may not use it.
    #[error("you may not use Docker's engine: run `sudo usermod --append --groups docker $USER` and log in again")]
    NotAllowed,
    /// The engine was started but does not answer.
    #[error("Docker's engine does not start: see {log}")]
    NotStarted {
        /// The path of the engine's log, or the command that prints it.
        log: String,
        /// The cause.
        source: WaitError<Unanswered>,
    },
    /// The engine's log could not be written.
    #[error("cannot write {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The engine that `DOCKER_HOST` names does not answer.
    #[error(transparent)]
    Docker(#[from] DockerError),
}

/// Why the engine does not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unanswered {
    /// It may still be starting.
    #[error("it does not answer yet")]
    Yet,
    /// It has exited.
    #[error("dockerd exited with {status}: {line}")]
    Exited {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The last line of its log.
        line: String,
    },
}

/// A program that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Client,
    Engine,
    Compose,
    Python,
    Pip,
    CrossCompiler,
    CrossLibrary,
    Qemu,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "Docker's client",
            Self::Engine => "Docker's engine",
            Self::Compose => "docker-compose",
            Self::Python => "Python",
            Self::Pip => "pip",
            Self::CrossCompiler => "a C compiler for arm64",
            Self::CrossLibrary => "a C library for arm64",
            Self::Qemu => "qemu for arm64",
        }
    }

    /// The Debian package of the program. Debian 13 has a separate package for Docker's client.
    fn package(self, own_client: bool) -> &'static str {
        match self {
            Self::Client if own_client => "docker-cli",
            Self::Client | Self::Engine => "docker.io",
            Self::Compose => "docker-compose",
            Self::Python => "python3",
            Self::Pip => "python3-pip",
            Self::CrossCompiler => "gcc-aarch64-linux-gnu",
            Self::CrossLibrary => "libc6-dev-arm64-cross",
            Self::Qemu => "qemu-user-static",
        }
    }
}

/// Prepares this machine for a command. As root on Debian, this installs missing packages and starts the engine, and logs it. Otherwise
/// the error names the command that does so.
pub async fn prepare(needs: Needs) -> Result<(), MachineError> {
    let mut missing = missing(needs).await;
    if !missing.is_empty() {
        let may_install = is_root() && find("apt-get").is_some();
        if may_install {
            run(Command::new("apt-get").args(["update", "-q", "-o", APT_LOCK])).await?;
        }
        let packages = packages(&missing).await;
        if !may_install {
            return Err(lacks(&missing, &packages));
        }
        let names = packages.join(" ");
        tracing::info!("this machine lacks {}: installing {names} with apt-get", listed(&missing));
        let mut install = Command::new("apt-get");
        install.args(["install", "-q", "--yes", "--no-install-recommends", "-o", APT_LOCK]).args(&packages);
        run(install.env("DEBIAN_FRONTEND", "noninteractive")).await?;
        missing = self::missing(needs).await;
        if !missing.is_empty() {
            return Err(lacks(&missing, &packages));
        }
    }
    if needs.cross {
        rust_target().await?;
    }
    if needs.docker { engine().await } else { Ok(()) }
}

fn lacks(missing: &[Part], packages: &[&str]) -> MachineError {
    let install = format!("apt-get install {}", packages.join(" "));
    let cure = match (find("apt-get").is_some(), is_root()) {
        (true, true) => format!("`{install}` did not bring it"),
        (true, false) => format!("install it with `sudo {install}`"),
        (false, _) => format!("install it; on Debian with `{install}`"),
    };
    MachineError::Lacks { lacks: listed(missing), cure }
}

fn listed(missing: &[Part]) -> String {
    missing.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
}

/// The Debian packages of these programs, each once.
async fn packages(missing: &[Part]) -> Vec<&'static str> {
    let mut show = Command::new("apt-cache");
    let own_client = missing.contains(&Part::Client) && run(show.args(["show", "docker-cli"])).await.is_ok();
    let mut packages = missing.iter().map(|part| part.package(own_client)).collect::<Vec<_>>();
    packages.dedup();
    packages
}

async fn missing(needs: Needs) -> Vec<Part> {
    let mut missing = Vec::new();
    let succeeds = async |program: &str, arguments: &[&str]| run(Command::new(program).args(arguments)).await.is_ok();
    if needs.docker && find("docker").is_none() {
        missing.push(Part::Client);
    }
    if needs.docker && std::env::var_os("DOCKER_HOST").is_none() && !is_up().await && find("dockerd").is_none() {
        missing.push(Part::Engine);
    }
    if needs.compose
        && !succeeds("docker-compose", &["version"]).await
        && !succeeds("docker", &["compose", "version"]).await
    {
        missing.push(Part::Compose);
    }
    if needs.pip && find("python3").is_none() {
        missing.push(Part::Python);
    }
    if needs.pip && !succeeds("python3", &["-m", "pip", "--version"]).await {
        missing.push(Part::Pip);
    }
    if needs.cross && find("aarch64-linux-gnu-gcc").is_none() {
        missing.push(Part::CrossCompiler);
    }
    if needs.cross && !Path::new("/usr/aarch64-linux-gnu/lib/libc.a").exists() {
        missing.push(Part::CrossLibrary);
    }
    if needs.qemu && find("qemu-aarch64-static").is_none() {
        missing.push(Part::Qemu);
    }
    missing
}

/// Adds Rust's standard library for arm64 to the toolchain, unless it is there.
async fn rust_target() -> Result<(), MachineError> {
    let target = Arch::Arm64.target();
    let libdir = run(Command::new("rustc").args(["--print", "target-libdir", "--target", target])).await?;
    if Path::new(libdir.trim()).exists() {
        return Ok(());
    }
    let cure = format!("rustup target add {target}");
    if find("rustup").is_none() {
        return Err(MachineError::Lacks { lacks: format!("Rust's standard library for {target}"), cure });
    }
    tracing::info!("the toolchain lacks {target}: adding it with `{cure}`");
    run(Command::new("rustup").args(["target", "add", target]).current_dir(workspace())).await?;
    Ok(())
}

/// Finds a program in `PATH`, or in the `sbin` beside one of its directories. Only root has `sbin` in `PATH`.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).flat_map(|dir| [dir.with_file_name("sbin"), dir]);
    places.map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

async fn engine_version() -> Result<String, CommandError> {
    run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).await
}

async fn is_up() -> bool {
    engine_version().await.is_ok()
}

/// Starts the engine unless it answers.
async fn engine() -> Result<(), MachineError> {
    let Err(error) = engine_version().await else { return Ok(()) };
    if std::env::var_os("DOCKER_HOST").is_some() {
        // How to start that engine is not known here.
        docker::connect().await?;
        return Ok(());
    }
    if error.to_string().contains("permission denied") {
        return Err(MachineError::NotAllowed);
    }
    let systemd = Path::new("/run/systemd/system").exists();
    let start = if systemd { "systemctl start docker" } else { "dockerd" };
    if !is_root() {
        return Err(MachineError::EngineDown { start });
    }
    tracing::info!("Docker's engine is down: starting it with `{start}`");
    let log = workspace().join("target/dockerd.log");
    let daemon = if systemd {
        run(Command::new("systemctl").args(["start", "docker"])).await?;
        None
    } else {
        Some(dockerd(&log).await?)
    };
    answers(daemon, &log).await.map_err(|source| MachineError::NotStarted { log: log_hint(systemd, &log), source })
}

/// Where to find the engine's log. Under systemd, the journal has it.
fn log_hint(systemd: bool, log: &Path) -> String {
    if systemd { "`journalctl --unit docker`".to_owned() } else { log.display().to_string() }
}

/// Starts an engine that keeps running when this program ends or gets Ctrl-C.
async fn dockerd(log: &Path) -> Result<Child, MachineError> {
    let failed = |source| MachineError::Log { path: log.to_owned(), source };
    std::fs::create_dir_all(log.parent().unwrap_or(log)).map_err(failed)?;
    let file = std::fs::File::create(log).map_err(failed)?;
    let other = file.try_clone().map_err(failed)?;
    let mut command = Command::new("dockerd");
    command.process_group(0).stdin(Stdio::null()).stdout(file).stderr(other);
    let start = |source| CommandError::Start { program: "dockerd".to_owned(), source };
    Ok(command.spawn().map_err(start)?)
}

/// Waits for the engine's first answer.
async fn answers(mut daemon: Option<Child>, log: &Path) -> Result<(), WaitError<Unanswered>> {
    let mut ended = None;
    let backoff = Backoff::new(Duration::from_millis(200), Duration::from_millis(500));
    until("Docker's engine", ENGINE_BOUND, backoff, async || {
        if is_up().await {
            return Attempt::Done(());
        }
        if ended.is_none()
            && let Some(Ok(Some(status))) = daemon.as_mut().map(Child::try_wait)
        {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let line = text.lines().last().unwrap_or_default().to_owned();
            ended = Some((Instant::now(), Unanswered::Exited { status, line }));
        }
        match &ended {
            None => Attempt::Again(Unanswered::Yet),
            Some((at, error)) if at.elapsed() < OTHER_ENGINE_BOUND => Attempt::Again(error.clone()),
            Some((_, error)) => Attempt::Final(error.clone()),
        }
    })
    .await
}
