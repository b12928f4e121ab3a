//! Keeps an app running for a while after its task gets TERM.
//!
//! When a task stops, other tasks' proxies send it requests until they learn of the stop. An app that exits at once on TERM fails
//! those requests. app-entrypoint passes TERM on to the app only after a delay.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::process::Signal;
use supervise::entrypoint::{self, Error};
use supervise::{Ended, Event, HeldSignals, Supervised, Target};
use tokio::time::{Instant, sleep_until};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "app-entrypoint",
    version,
    disable_help_subcommand = true,
    about = "Keeps an app running for a while after its task gets TERM.",
    after_help = "Without a verb the arguments are the command to run: `app-entrypoint --shutdown-delay 10s myapp …`. A \
                  second TERM ends the delay.\n\n\
                  Variables: LOG_LEVEL (trace, debug, info, warn, error; default info), LOG_FORMAT (text, json; default \
                  text).\n\n\
                  Exit codes: the command's own, or 128 + n if signal n ended it; 126 if it cannot be run, 127 if there \
                  is no such program; 1 for a failed install; 2 for a wrong command line."
)]
pub struct Arguments {
    /// How long the app keeps running after ECS sends TERM. Then the app gets TERM.
    #[arg(long, env = "APP_ENTRYPOINT_SHUTDOWN_DELAY", default_value = "0s", value_parser = sidecar_kit::exit::parse_delay)]
    shutdown_delay: Duration,
    /// The container's stop timeout in the task definition. app-entrypoint logs a warning if the delay is not shorter.
    #[arg(long, env = "APP_ENTRYPOINT_STOP_TIMEOUT", value_parser = sidecar_kit::exit::parse_duration)]
    stop_timeout: Option<Duration>,
    /// The signal with which ECS stops this container: the STOPSIGNAL of its image, if that is not TERM.
    #[arg(long, env = "APP_ENTRYPOINT_STOP_SIGNAL", default_value = "TERM", value_name = "SIGNAL", value_parser = signal)]
    stop_signal: StopSignal,
    /// Send signals to the app's whole process group, not only to the app.
    #[arg(long, env = "APP_ENTRYPOINT_SIGNAL_GROUP")]
    signal_group: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// A signal with its name.
#[derive(Debug, Clone, Copy)]
struct StopSignal {
    signal: Signal,
    name: &'static str,
}

/// Parses the name of a signal that images use for STOPSIGNAL, with or without `SIG`.
fn signal(text: &str) -> Result<StopSignal, String> {
    const KNOWN: [StopSignal; 7] = [
        StopSignal { signal: Signal::TERM, name: "TERM" },
        StopSignal { signal: Signal::QUIT, name: "QUIT" },
        StopSignal { signal: Signal::INT, name: "INT" },
        StopSignal { signal: Signal::HUP, name: "HUP" },
        StopSignal { signal: Signal::USR1, name: "USR1" },
        StopSignal { signal: Signal::USR2, name: "USR2" },
        StopSignal { signal: Signal::WINCH, name: "WINCH" },
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let found = KNOWN.into_iter().find(|known| known.name == name);
    found.ok_or_else(|| format!("expected one of {}", KNOWN.map(|known| known.name).join(", ")))
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Entrypoint(entrypoint::Verb),
    #[command(external_subcommand)]
    Command(Vec<OsString>),
}

/// Runs the verb of the command line. If the verb runs a command, the exit code is that command's.
///
/// # Errors
/// If the command cannot start, or the binary cannot be installed.
pub async fn main(held: HeldSignals, arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { shutdown_delay, stop_timeout, stop_signal, signal_group, verb } = arguments;
    match verb {
        Verb::Entrypoint(entrypoint::Verb::Run { command }) | Verb::Command(command) => {
            warn_of_timeout(shutdown_delay, stop_timeout);
            let target = if signal_group { Target::Group } else { Target::Child };
            let app = Supervised::start(held, &command, target, &[stop_signal.signal]).map_err(Error::Start)?;
            Ok(run(app, shutdown_delay, stop_signal).await.into())
        }
        Verb::Entrypoint(entrypoint::Verb::Install { directory }) => {
            sidecar_kit::file::install(&directory, "app-entrypoint")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn warn_of_timeout(delay: Duration, stop_timeout: Option<Duration>) {
    if let Some(timeout) = stop_timeout.filter(|timeout| delay >= *timeout) {
        tracing::warn!(
            "the shutdown delay of {} is not shorter than the stop timeout of {}: ECS kills the app before it gets TERM",
            humantime::format_duration(delay),
            humantime::format_duration(timeout)
        );
    }
}

/// What happens to the next stop signal.
enum Phase {
    /// It starts the delay.
    Running,
    /// The delay runs until this time. The signal ends it earlier.
    Delayed(Instant),
    /// The app gets it at once.
    Stopping,
}

/// Runs the app to its end. The app gets the first stop signal after `delay`, or when a second one comes.
async fn run(mut app: Supervised, delay: Duration, stop: StopSignal) -> Ended {
    let StopSignal { signal, name } = stop;
    let mut phase = if delay.is_zero() { Phase::Stopping } else { Phase::Running };
    loop {
        let due = async {
            match phase {
                Phase::Delayed(due) => sleep_until(due).await,
                Phase::Running | Phase::Stopping => std::future::pending().await,
            }
        };
        let by_signal = tokio::select! {
            event = app.next() => match event {
                Event::Ended(ended) => return ended,
                Event::Signal(_) => true,
            },
            () = due => false,
        };
        if by_signal && matches!(phase, Phase::Running) {
            phase = Phase::Delayed(Instant::now() + delay);
            tracing::info!("{name}: the app runs on for {}", humantime::format_duration(delay));
        } else {
            app.send(signal);
            tracing::info!("sending {name} to the app");
            phase = Phase::Stopping;
        }
    }
}
