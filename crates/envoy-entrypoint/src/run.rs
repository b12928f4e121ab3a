//! Envoy's life: running, then needed by the apps, then told to end.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use ecs_meta::MetadataClient;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::{parse_delay, parse_duration};
use supervise::{Ended, Event, HeldSignals, Supervised, Target, entrypoint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::admin::Admin;
use crate::{Error, apps, command};

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
    /// Drain Envoy's inbound listeners when the task is to stop: each answer closes its connection, and new connections come in until
    /// Envoy ends. Start Envoy with --drain-time-s below the app's delay, and with --drain-strategy immediate.
    #[arg(long, env = "ENVOY_ENTRYPOINT_DRAIN")]
    drain: bool,
    /// This Envoy is a gateway: it has no app to wait for and runs on for that long after TERM, at most the grace, until others
    /// know that it goes. With --drain all of its listeners drain, not the inbound ones alone.
    #[arg(long, env = "ENVOY_ENTRYPOINT_GATEWAY_DELAY", value_name = "DURATION", value_parser = parse_delay)]
    gateway_delay: Option<Duration>,
    /// Where Envoy's admin page is. [default: where the bootstrap of its --config-path says, else 127.0.0.1:19000]
    #[arg(long, env = "ENVOY_ENTRYPOINT_ADMIN", value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// Envoy's worker threads: in the place of the command's own --concurrency.
    #[arg(long, env = "ENVOY_ENTRYPOINT_CONCURRENCY", value_name = "N")]
    concurrency: Option<NonZeroU32>,
    /// How long Envoy may be without a listener after its start; then it is ended. 0s: no limit, for an ingress gateway,
    /// which has none before its config entry. An Envoy that had a listener is never ended for this reason.
    #[arg(long, env = "ENVOY_ENTRYPOINT_LISTENER_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = parse_delay)]
    listener_timeout: Duration,
    /// How often Envoy is started again when it ends by itself before TERM.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTARTS", value_name = "N", default_value = "0")]
    restarts: u32,
    /// How long to wait before the first restart; twice as long before each that follows, at most 30s.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTART_DELAY", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    restart_delay: Duration,
    /// Send signals to Envoy's whole process group, not to Envoy alone.
    #[arg(long, env = "ENVOY_ENTRYPOINT_SIGNAL_GROUP")]
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
) -> Result<Ended, Error> {
    raise_file_limit();
    let command = match options.concurrency {
        Some(workers) => Cow::Owned(command::with_concurrency(command, workers.get())),
        None => Cow::Borrowed(command),
    };
    let target = if options.signal_group { Target::Group } else { Target::Child };
    let mut envoy = Supervised::start(held, &command, target, &[Signal::TERM]).map_err(entrypoint::Error::from)?;
    if metadata.is_none() {
        tracing::warn!("{} is not set: no app is waited for after TERM", ecs_meta::VARIABLE);
    }
    if options.drain {
        command::warn_of_draining(&command);
    }
    let admin = Admin::at(options.admin.unwrap_or_else(|| command::admin(&command)));
    let term = Notify::new();
    let life = async {
        if let Some(ended) = until_term(&mut envoy, options, &admin).await? {
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
            admin.drain_listeners(options.gateway_delay.is_some()).await;
        }
        pending::<Infallible>().await
    };
    let log_router = async {
        if let Some(metadata) = &metadata {
            apps::explain_log_router(metadata, &options.ignore_container).await;
        }
        pending::<Infallible>().await
    };
    tokio::select! {
        ended = life => ended,
        never = draining => match never {},
        never = log_router => match never {},
    }
}

/// Envoy has two descriptors for each connection that passes; systems allow 1024 by default and far more where a program asks.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // It fails for no value up to the maximum.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// When Envoy has got no listener within the bound; never where there is none.
async fn no_listener(admin: &Admin, bound: Duration) {
    if bound.is_zero() {
        return pending().await;
    }
    admin.no_listener_within(bound).await;
}

/// Until ECS has decided that the task stops: never where nobody can be asked.
async fn told_to_stop(metadata: Option<&MetadataClient>) {
    match metadata {
        Some(metadata) => apps::told_to_stop(metadata).await,
        None => pending().await,
    }
}

/// Until TERM, or until Envoy has ended for good. An Envoy without a listener is ended.
async fn until_term(envoy: &mut Supervised, options: &Options, admin: &Admin) -> Result<Option<Ended>, Error> {
    let mut restarts = options.restarts;
    let mut backoff = Backoff::new(options.restart_delay, Duration::from_secs(30));
    loop {
        // Only while Envoy runs, and anew for each that does.
        let event = tokio::select! {
            event = envoy.next() => event,
            () = no_listener(admin, options.listener_timeout) => {
                let _ = end(envoy).await;
                return Err(Error::NoListener { bound: options.listener_timeout });
            }
        };
        match event {
            Event::Signal(_) => return Ok(None),
            Event::Ended(ended) if restarts == 0 => return Ok(Some(ended)),
            Event::Ended(ended) => {
                restarts -= 1;
                tracing::warn!("Envoy ended with {}: starting it again, {restarts} restarts left", ended.code());
                tokio::select! {
                    () = sleep(backoff.delay()) => envoy.restart().map_err(entrypoint::Error::from)?,
                    // TERM: there is nothing to keep alive.
                    _ = envoy.next() => return Ok(Some(ended)),
                }
            }
        }
    }
}

/// From TERM until no app needs Envoy, or the grace is over. Envoy's end, if it came meanwhile.
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
    let ended = async {
        loop {
            match envoy.next().await {
                Event::Ended(ended) => return ended,
                // An ECS agent that restarted sends TERM again.
                Event::Signal(_) => tracing::info!("TERM again: Envoy runs on as before"),
            }
        }
    };
    tokio::select! {
        ended = ended => return Some(ended),
        () = gone => match options.gateway_delay {
            Some(_) => tracing::info!("the gateway's delay is over: ending Envoy"),
            None => tracing::info!("no app is left: ending Envoy"),
        },
        () = sleep_until(deadline) => tracing::warn!("{grace} are over: ending Envoy, whoever needs it still"),
    }
    None
}

/// Ends Envoy, which runs, and at last its whole process group.
async fn end(envoy: &mut Supervised) -> Ended {
    envoy.send(Signal::TERM);
    let deadline = Instant::now() + END_BOUND;
    loop {
        tokio::select! {
            event = envoy.next() => if let Event::Ended(ended) = event {
                return ended;
            },
            () = sleep_until(deadline) => {
                envoy.kill();
                tracing::warn!("Envoy has not ended {} after TERM: it is killed", humantime::format_duration(END_BOUND));
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
