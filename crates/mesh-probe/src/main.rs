//! Watches or disturbs a task of the local mesh from within its namespaces.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::process::{Pid, Signal, kill_process_group};
use sidecar_kit::exit;
use sidecar_kit::http::Client;
use tokio::time::{MissedTickBehavior, interval};

/// Watches or disturbs a task from within its namespaces, for local-mesh and the tests.
///
/// Exit codes: 0 done, 1 failed, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "mesh-probe", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the state of an Envoy as a line of JSON each time it changes. The state is the endpoints of upstreams, the numbers of inbound
    /// and outbound requests, and the number of connections of the public listener. Ends when standard input ends
    Watch {
        /// The address of Envoy's admin page.
        #[arg(long, env = "ENVOY_ADMIN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:19000")]
        admin: String,
        /// The time between two requests to the admin page.
        #[arg(long, env = "INTERVAL", default_value = "50ms", value_parser = exit::parse_duration)]
        interval: Duration,
    },
    /// Send STOP to every process of this PID namespace except PID 1 and this one
    Freeze,
    /// Send KILL to every process of this PID namespace except PID 1 and this one
    Kill,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    #[error("cannot send the signal: run this with `docker run --pid container:NAME` and as that container's user")]
    Signal(#[source] std::io::Error),
}

fn main() -> ExitCode {
    let Arguments { command } = exit::parse_arguments();
    exit::run("mesh-probe", async {
        match command {
            Command::Watch { admin, interval } => watch_until_input_ends(&admin, interval).await,
            Command::Freeze => signal(Signal::STOP),
            Command::Kill => signal(Signal::KILL),
        }
    })
}

fn signal(signal: Signal) -> Result<ExitCode, Error> {
    // kill(2) with PID -1 signals all processes except PID 1 and this one. For rustix, that is the process group of PID 1.
    let sent = kill_process_group(Pid::INIT, signal);
    sent.map(|()| ExitCode::SUCCESS).map_err(|error| Error::Signal(error.into()))
}

async fn watch_until_input_ends(admin: &str, interval: Duration) -> Result<ExitCode, Error> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The caller sends nothing; it only closes the stream.
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
        let sample = mesh_probe::sample(&client, admin).await;
        if last.as_ref() != Some(&sample.seen) {
            let line = serde_json::to_string(&sample).unwrap_or_default();
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::Output)?;
            last = Some(sample.seen);
        }
    }
}
