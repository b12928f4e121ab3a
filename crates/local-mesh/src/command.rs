//! Other programs, run to their end.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// The longest of them, a first build on two slow cores, takes some minutes.
const BOUND: Duration = Duration::from_secs(30 * 60);

/// A program that is missing or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It isn't installed.
    #[error("{program} is missing: {install}")]
    Missing {
        /// The program.
        program: String,
        /// The line that installs it.
        install: &'static str,
    },
    /// It could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// It didn't end.
    #[error("`{command}` still runs after {}: ended it", humantime::format_duration(BOUND))]
    TimedOut {
        /// The program and its arguments.
        command: String,
    },
    /// It ended with another exit code than 0.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines it printed.
        message: String,
    },
}

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// See [`CommandError`].
pub async fn run(command: &mut Command) -> Result<String, CommandError> {
    let line = shown(command);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).output();
    let output = tokio::time::timeout(BOUND, output).await;
    let output = output.map_err(|_| CommandError::TimedOut { command: line.clone() })?;
    let output = output.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CommandError::Missing { install: install(&program), program },
        _ => CommandError::Start { program, source },
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.trim_end().ends_with("No module named pip") {
        return Err(CommandError::Missing { install: install("pip"), program: "pip".to_owned() });
    }
    let said = if stderr.trim().is_empty() { stdout.as_str() } else { &stderr };
    let mut lines = said.lines().rev().filter(|line| !line.trim().is_empty()).take(6).collect::<Vec<_>>();
    lines.reverse();
    Err(CommandError::Failed { command: line, status: output.status, message: lines.join(" / ") })
}

/// The cargo that runs us, without the variables by which it tells a program of its package: ring's build script looks at
/// them, and every build from within `cargo xtask` would build ring, and all above it, anew.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// The command as one types it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn install(program: &str) -> &'static str {
    match program {
        "apt-get" | "dpkg" => {
            "the stand-ins come from Debian's packages; elsewhere set CONSUL_IMAGE and MOTO_IMAGE to images of Consul and moto"
        }
        "python3" | "pip" => "apt-get install python3 python3-pip",
        "docker" => "apt-get install docker.io",
        "docker-compose" => "apt-get install docker-compose",
        _ => "install it and have it in PATH",
    }
}
