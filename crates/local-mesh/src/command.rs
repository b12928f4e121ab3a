//! Runs other programs to their end.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long a program may run. The longest, a first build on two slow cores, takes some minutes.
const BOUND: Duration = Duration::from_secs(30 * 60);

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not installed.
    #[error("{program} is missing: {install}")]
    Missing {
        /// The program.
        program: String,
        /// How to install it, or which variable to set instead.
        install: &'static str,
    },
    /// The program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The program did not end in time.
    #[error("`{command}` was still running after {} and was killed", humantime::format_duration(BOUND))]
    TimedOut {
        /// The program and its arguments.
        command: String,
    },
    /// The program ended with another exit code than 0.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The last lines that it printed.
        message: String,
    },
}

/// Runs a program to its end and returns its standard output.
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
    let printed = if stderr.trim().is_empty() { stdout.as_str() } else { &stderr };
    let mut lines = printed.lines().rev().filter(|line| !line.trim().is_empty()).take(6).collect::<Vec<_>>();
    lines.reverse();
    Err(CommandError::Failed { command: line, status: output.status, message: lines.join(" / ") })
}

/// The cargo that runs this program, without the variables that cargo sets for it. ring's build script reads those variables, so with
/// them every build from `cargo xtask` would compile ring, and everything that depends on ring, again.
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

/// The command line for messages. Nothing in it is quoted.
#[must_use]
pub fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn install(program: &str) -> &'static str {
    match program {
        "apt-get" | "dpkg" => {
            "Consul and moto's Python come from Debian's packages; elsewhere set CONSUL (a binary) or CONSUL_IMAGE, and MOTO_IMAGE"
        }
        "python3" | "pip" => "apt-get install python3 python3-pip",
        "docker" => "apt-get install docker.io",
        "docker-compose" => "apt-get install docker-compose",
        _ => "install it and have it in PATH",
    }
}
