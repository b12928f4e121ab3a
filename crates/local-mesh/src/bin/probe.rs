//! What the local mesh's drivers do from within a task's namespaces: watch its Envoy, freeze its agent, kill either.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use local_mesh::probe;
use rustix::process::{Pid, Signal, kill_process_group};
use sidecar_kit::exit;
use sidecar_kit::http::Client;
use tokio::time::{MissedTickBehavior, interval};

/// What the local mesh's drivers do from within a task's namespaces.
///
/// Exit codes: 0 done, 1 failed, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "probe", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask an Envoy's admin page again and again and print what changed, a JSON object a line: where it sends requests, how
    /// many came in and went out, how many connections its public listener has. Ends when standard input does
    Watch {
        /// Where the admin page is.
        #[arg(long, env = "ENVOY_ADMIN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:19000")]
        admin: String,
        /// How often it is asked.
        #[arg(long, env = "INTERVAL", default_value = "50ms", value_parser = exit::parse_duration)]
        interval: Duration,
    },
    /// Send STOP to every process of this PID namespace but PID 1 and this one
    Freeze,
    /// Send KILL to every process of this PID namespace but PID 1 and this one
    Kill,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    #[error("cannot signal: is this another container's PID namespace (docker run --pid), and its user?")]
    Signal(#[source] std::io::Error),
}

fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    exit::run("probe", async {
        match command {
            Command::Watch { admin, interval } => watch_until_told(&admin, interval).await,
            Command::Freeze => signal(Signal::STOP),
            Command::Kill => signal(Signal::KILL),
        }
    })
}

fn signal(signal: Signal) -> Result<ExitCode, Error> {
    // Process group 1 stands for all processes that may be signalled, but for PID 1 and this one: kill(2), pid -1.
    let sent = kill_process_group(Pid::INIT, signal);
    sent.map(|()| ExitCode::SUCCESS).map_err(|error| Error::Signal(error.into()))
}

async fn watch_until_told(admin: &str, interval: Duration) -> Result<ExitCode, Error> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nothing is expected there but its end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    tokio::select! {
        result = watch(admin, interval) => result,
        _ = end => Ok(ExitCode::SUCCESS),
    }
}

async fn watch(admin: &str, every: Duration) -> Result<ExitCode, Error> {
    let client = Client::plain();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        ticks.tick().await;
        let sample = probe::sample(&client, admin).await;
        if last.as_ref() != Some(&sample.seen) {
            let line = serde_json::to_string(&sample).unwrap_or_default();
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::Output)?;
            last = Some(sample.seen);
        }
    }
}
