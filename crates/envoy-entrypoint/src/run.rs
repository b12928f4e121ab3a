//! Envoy's life: running, then needed by the apps, then told to end.

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use ecs_meta::MetadataClient;
use rustix::process::Signal;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::{parse_delay, parse_duration};
use supervise::{Ended, Event, HeldSignals, StartError, Supervised, Target};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{apps, drain};

/// How long Envoy may take to end after TERM.
const END_BOUND: Duration = Duration::from_secs(5);

/// What the flags say.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A container that Envoy need not wait for, beside the sidecars; may be repeated, or separated by commas.
    #[arg(long, env = "ENVOY_ENTRYPOINT_IGNORE_CONTAINERS", value_name = "NAME", value_delimiter = ',', value_parser = trimmed)]
    ignore_container: Vec<String>,
    /// How long Envoy runs on after TERM at most.
    #[arg(long, env = "ENVOY_ENTRYPOINT_GRACE", value_name = "DURATION", default_value = "120s", value_parser = parse_delay)]
    grace: Duration,
    /// Drain Envoy's inbound listeners when the task is to stop: start Envoy with --drain-time-s below the app's delay, and
    /// with --drain-strategy immediate.
    #[arg(long, env = "ENVOY_ENTRYPOINT_DRAIN", value_parser = BoolishValueParser::new())]
    drain: bool,
    /// This Envoy is a gateway: it has no app to wait for and runs on for that long after TERM, at most the grace, until others
    /// know that it goes. With --drain all of its listeners drain, not the inbound ones alone.
    #[arg(long, env = "ENVOY_ENTRYPOINT_GATEWAY_DELAY", value_name = "DURATION", value_parser = parse_delay)]
    gateway_delay: Option<Duration>,
    /// Where Envoy's admin page is.
    #[arg(long, env = "ENVOY_ENTRYPOINT_ADMIN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:19000")]
    admin: SocketAddr,
    /// How often Envoy is started again when it ends by itself before TERM.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTARTS", value_name = "N", default_value = "0")]
    restarts: u32,
    /// How long to wait before the first restart; twice as long before each that follows, at most 30s.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTART_DELAY", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    restart_delay: Duration,
    /// Send signals to Envoy's whole process group, not to Envoy alone.
    #[arg(long, env = "ENVOY_ENTRYPOINT_SIGNAL_GROUP", value_parser = BoolishValueParser::new())]
    signal_group: bool,
}

#[allow(clippy::unnecessary_wraps, reason = "clap wants a parser that may fail")]
fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
}

/// Runs Envoy to its end.
pub(crate) async fn run(
    held: HeldSignals,
    command: &[OsString],
    options: &Options,
    metadata: Option<MetadataClient>,
) -> Result<Ended, StartError> {
    let target = if options.signal_group { Target::Group } else { Target::Child };
    let mut envoy = Supervised::start(held, command, target, &[Signal::TERM])?;
    if metadata.is_none() {
        tracing::warn!("{} is not set: no app is waited for after TERM", ecs_meta::VARIABLE);
    }
    if options.drain {
        drain::warn_of(command);
    }
    let term = Notify::new();
    let life = async {
        if let Some(ended) = until_term(&mut envoy, options).await? {
            return Ok(ended);
        }
        term.notify_one();
        if let Some(ended) = while_needed(&mut envoy, options, metadata.as_ref()).await {
            return Ok(ended);
        }
        Ok(end(&mut envoy).await)
    };
    // Draining begins when ECS has decided that the task stops: in the order of `dependsOn` TERM comes only after the app's
    // end.
    let draining = async {
        if options.drain {
            tokio::select! {
                () = term.notified() => {}
                () = told_to_stop(metadata.as_ref()) => {}
            }
            drain::listeners(options.admin, options.gateway_delay.is_some()).await;
        }
        pending::<Infallible>().await
    };
    tokio::select! {
        ended = life => ended,
        never = draining => match never {},
    }
}

/// Until ECS has decided that the task stops: never where nobody can be asked.
async fn told_to_stop(metadata: Option<&MetadataClient>) {
    match metadata {
        Some(metadata) => apps::told_to_stop(metadata).await,
        None => pending().await,
    }
}

/// Until TERM, or until Envoy has ended for good.
async fn until_term(envoy: &mut Supervised, options: &Options) -> Result<Option<Ended>, StartError> {
    let mut restarts = options.restarts;
    let mut backoff = Backoff::new(options.restart_delay, Duration::from_secs(30));
    loop {
        match envoy.next().await {
            Event::Signal(_) => return Ok(None),
            Event::Ended(ended) if restarts == 0 => return Ok(Some(ended)),
            Event::Ended(ended) => {
                restarts -= 1;
                tracing::warn!("Envoy ended with {}: starting it again, {restarts} restarts left", ended.code());
                tokio::select! {
                    () = sleep(backoff.delay()) => envoy.restart()?,
                    // TERM: there is nothing to keep alive.
                    _ = envoy.next() => return Ok(Some(ended)),
                }
            }
        }
    }
}

/// From TERM until no app needs Envoy, or somebody has lost patience. Envoy's end, if it came meanwhile.
async fn while_needed(envoy: &mut Supervised, options: &Options, metadata: Option<&MetadataClient>) -> Option<Ended> {
    let grace = humantime::format_duration(options.grace);
    match options.gateway_delay.map(humantime::format_duration) {
        Some(delay) => tracing::info!("TERM: this gateway runs on for {delay}, at most {grace}"),
        None => tracing::info!("TERM: Envoy runs on until the apps have stopped, at most {grace}"),
    }
    let deadline = Instant::now() + options.grace;
    let gone = async {
        match (options.gateway_delay, metadata) {
            (Some(delay), _) => sleep(delay).await,
            (None, Some(metadata)) => apps::gone(metadata, &options.ignore_container).await,
            (None, None) => {}
        }
    };
    tokio::select! {
        event = envoy.next() => match event {
            Event::Ended(ended) => return Some(ended),
            Event::Signal(_) => tracing::warn!("a second TERM: ending Envoy, whoever needs it still"),
        },
        () = gone => match options.gateway_delay {
            Some(_) => tracing::info!("the gateway's delay is over: ending Envoy"),
            None => tracing::info!("no app is left: ending Envoy"),
        },
        () = sleep_until(deadline) => tracing::warn!("{grace} are over: ending Envoy, whoever needs it still"),
    }
    None
}

/// Ends Envoy's process group.
async fn end(envoy: &mut Supervised) -> Ended {
    envoy.send(Signal::TERM);
    let deadline = Instant::now() + END_BOUND;
    loop {
        tokio::select! {
            event = envoy.next() => if let Event::Ended(ended) = event {
                return ended;
            },
            () = sleep_until(deadline) => {
                tracing::warn!("Envoy has not ended {} after TERM: killing it", humantime::format_duration(END_BOUND));
                envoy.kill();
                break;
            }
        }
    }
    loop {
        if let Event::Ended(ended) = envoy.next().await {
            return ended;
        }
    }
}
