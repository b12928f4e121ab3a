//! Envoy's life in a task: it runs, it waits for the apps after TERM, it ends.

mod admin;
mod apps;
mod command;
mod dial;

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::time::Duration;

use ecs_meta::MetadataClient;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Ended, Event, HeldSignals, StartError, Supervised, Target, entrypoint};
use admin::{Admin, Lack};
pub use dial::{DialError, dial};

/// How long Envoy may take to end after TERM.
const END_BOUND: Duration = Duration::from_secs(5);

/// How Envoy runs. The flags of the entry points say it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Containers that Envoy need not wait for, beside the sidecars.
    pub ignore_container: Vec<String>,
    /// The longest time that Envoy runs on after TERM.
    pub grace: Duration,
    /// Drain Envoy's inbound listeners when the task stops.
    pub drain: bool,
    /// For a gateway: how long it runs on after TERM. It waits for no app. With `drain`, all of its listeners drain.
    pub gateway_delay: Option<Duration>,
    /// Where Envoy's admin page is; else the address in the bootstrap that the command names, else 127.0.0.1:19000.
    pub admin: Option<SocketAddr>,
    /// Envoy's worker threads. This replaces `--concurrency` in the command.
    pub concurrency: Option<NonZeroU32>,
    /// How long Envoy may run without listeners from Consul, or without an answer from its admin page at the start; zero: no limit.
    pub listener_timeout: Duration,
    /// How many times Envoy is started again if it ends by itself before TERM.
    pub restarts: u32,
    /// How long to wait before the first restart; twice as long before each that follows, at most 30 s.
    pub restart_delay: Duration,
    /// Send signals to Envoy's whole process group.
    pub signal_group: bool,
    /// Variables that Envoy does not get.
    pub hidden: &'static [&'static str],
}

/// Why Envoy did not run, or was ended before TERM.
#[derive(Debug)]
pub enum Failure<E> {
    /// It could not start.
    Start(entrypoint::Error),
    /// It had no listeners from Consul within [`Options::listener_timeout`].
    NoListeners,
    /// Its admin page, at this address, gave no answer within [`Options::listener_timeout`].
    NoAnswer(SocketAddr),
    /// The caller's reason.
    Refused(E),
}

impl<E> From<StartError> for Failure<E> {
    fn from(error: StartError) -> Self {
        Self::Start(error.into())
    }
}

/// The task metadata that Envoy's life depends on. None without `ECS_CONTAINER_METADATA_URI_V4`: then Envoy waits for no app.
///
/// # Errors
/// If the variable is wrong.
pub fn metadata(env: &Env) -> Result<Option<MetadataClient>, entrypoint::Error> {
    match MetadataClient::from_env(env) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(ecs_meta::Error::MissingVariable) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Runs Envoy to its end. Before TERM, Envoy is also ended if `refused` is ready. Without metadata, Envoy waits for no app.
///
/// # Errors
/// See [`Failure`].
pub async fn run<E>(
    held: HeldSignals,
    command: &[OsString],
    options: &Options,
    metadata: Option<MetadataClient>,
    refused: impl Future<Output = E>,
) -> Result<Ended, Failure<E>> {
    raise_file_limit();
    let command = match options.concurrency {
        Some(workers) => Cow::Owned(command::with_concurrency(command, workers.get())),
        None => Cow::Borrowed(command),
    };
    let target = if options.signal_group { Target::Group } else { Target::Child };
    let mut envoy = Supervised::start_without(options.hidden, held, &command, target, &[Signal::TERM])?;
    if metadata.is_none() {
        tracing::warn!("{} is not set: after TERM, Envoy waits for no app", ecs_meta::VARIABLE);
    }
    if options.drain {
        command::warn_of_draining(&command);
    }
    let admin = Admin::at(options.admin.or_else(|| command::admin(&command)));
    let term = Notify::new();
    let life = async {
        if let Some(ended) = run_until_term(&mut envoy, options, &admin, refused).await? {
            return Ok(ended);
        }
        term.notify_one();
        if let Some(ended) = run_for_apps(&mut envoy, options, metadata.as_ref()).await {
            return Ok(ended);
        }
        Ok(end(&mut envoy).await)
    };
    let draining = async {
        if options.drain {
            // If ECS stops containers in the order of `dependsOn`, this container gets TERM only after the app's end. The task's desired
            // status is STOPPED earlier.
            tokio::select! {
                () = term.notified() => {}
                () = stop_is_desired(metadata.as_ref()) => {}
            }
            admin.drain_listeners(options.gateway_delay.is_some()).await;
        }
        pending::<Infallible>().await
    };
    let warnings = async {
        if let Some(metadata) = &metadata {
            let log_router = async {
                // A gateway waits for no container.
                if options.gateway_delay.is_none() {
                    apps::warn_of_log_router(metadata, &options.ignore_container).await;
                }
            };
            tokio::join!(log_router, apps::warn_of_unknown_names(metadata, &options.ignore_container));
        }
        pending::<Infallible>().await
    };
    tokio::select! {
        ended = life => ended,
        never = draining => match never {},
        never = warnings => match never {},
    }
}

/// Envoy has two descriptors for each connection that it forwards. Systems allow 1024 by default, and more to a program that asks.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Raising the limit up to the maximum cannot fail.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Returns if Envoy has no listeners from Consul once `bound` is over, or gives no answer. With a bound of zero there is no limit.
async fn without_listeners(admin: &Admin, bound: Duration) -> Lack {
    if bound.is_zero() {
        return pending().await;
    }
    admin.without_listeners_for(bound).await
}

/// Returns when ECS's desired status for the task is STOPPED; never without metadata.
async fn stop_is_desired(metadata: Option<&MetadataClient>) {
    match metadata {
        Some(metadata) => apps::stop_is_desired(metadata).await,
        None => pending().await,
    }
}

/// Runs Envoy until TERM, or until it has ended for good. Ends an Envoy that gets no listeners from Consul, or that is refused.
async fn run_until_term<E>(
    envoy: &mut Supervised,
    options: &Options,
    admin: &Admin,
    refused: impl Future<Output = E>,
) -> Result<Option<Ended>, Failure<E>> {
    let mut refused = pin!(refused);
    let mut restarts = options.restarts;
    let mut backoff = Backoff::new(options.restart_delay, Duration::from_secs(30));
    loop {
        // The bound begins anew with each start of Envoy.
        let event = tokio::select! {
            event = envoy.next() => event,
            lack = without_listeners(admin, options.listener_timeout) => {
                let _ = end(envoy).await;
                return Err(match lack {
                    Lack::Listeners => Failure::NoListeners,
                    Lack::Answer(page) => Failure::NoAnswer(page),
                });
            }
            reason = &mut refused => {
                let _ = end(envoy).await;
                return Err(Failure::Refused(reason));
            }
        };
        match event {
            Event::Signal(_) => return Ok(None),
            Event::Ended(ended) if restarts == 0 => return Ok(Some(ended)),
            Event::Ended(ended) => {
                restarts -= 1;
                tracing::warn!("Envoy ended with {}: starting it again, {restarts} restarts left", ended.code());
                tokio::select! {
                    () = sleep(backoff.delay()) => envoy.restart()?,
                    // TERM came during the delay: do not restart.
                    _ = envoy.next() => return Ok(Some(ended)),
                }
            }
        }
    }
}

/// After TERM, runs Envoy until no app needs it or the grace is over. Returns how Envoy ended, if it ended before that.
async fn run_for_apps(envoy: &mut Supervised, options: &Options, metadata: Option<&MetadataClient>) -> Option<Ended> {
    let grace = humantime::format_duration(options.grace);
    match options.gateway_delay.map(humantime::format_duration) {
        Some(delay) => tracing::info!("TERM: this gateway runs on for {delay}, at most {grace}"),
        None => tracing::info!("TERM: Envoy runs on until the apps have stopped, at most {grace}"),
    }
    let deadline = Instant::now() + options.grace;
    let not_needed = async {
        match (options.gateway_delay, metadata) {
            (Some(delay), _) => sleep(delay).await,
            (None, Some(metadata)) => apps::all_stopped(metadata, &options.ignore_container).await,
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
        () = not_needed => match options.gateway_delay {
            Some(_) => tracing::info!("the gateway's delay is over: ending Envoy"),
            None => tracing::info!("all apps have stopped: ending Envoy"),
        },
        () = sleep_until(deadline) => match options.gateway_delay {
            Some(_) => tracing::warn!("the grace of {grace} is over before the gateway's delay: ending Envoy"),
            None => tracing::warn!("the grace of {grace} is over: ending Envoy, though an app may need it"),
        },
    }
    None
}

/// Sends TERM to Envoy, and KILL to its whole process group if it still runs at the bound.
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
