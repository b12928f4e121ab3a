//! Gives every service of an ECS cluster its Consul ACL token, keeps it right, and takes it back.
//!
//! A [`cycle`] observes what is, [`plan`] says what is to be done (it calls nothing), and the cycle applies that, each write with
//! the [`term`]'s proof that this is the one controller that writes. The [`election`] says whose term it is.

mod apply;
pub mod aws;
mod client_policy;
pub mod consul;
pub mod cycle;
mod demand;
pub mod election;
pub mod error;
mod gateways;
pub mod metrics;
mod nodes;
mod observe;
pub mod owner;
pub mod plan;
pub mod tasks;
pub mod term;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ecs_meta::MetadataClient;
use futures_util::StreamExt;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::log;
use sidecar_kit::wait::WaitError;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::aws::{Aws, Place};
use crate::consul::Consul;
use crate::cycle::{Controller, Memory, Rules};
use crate::election::Election;
use crate::metrics::Metrics;
use crate::owner::Names;
use crate::term::Term;

/// How long the metadata endpoint is waited for at start.
const METADATA: Duration = Duration::from_secs(90);

/// How often one that stands by says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// How long giving back the lock may hold up the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the flags say.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster's name or ARN; from the metadata if not given.
    pub cluster: Option<String>,
    /// What the names of secrets and policy begin with.
    pub secret_name_prefix: String,
    /// How often a cycle begins.
    pub poll_interval: Duration,
    /// What each cycle does.
    pub rules: Rules,
    /// Where metrics and health are served.
    pub listen: SocketAddr,
}

/// Why it ended otherwise than by TERM.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot tell cluster and region: outside of ECS, give --cluster and AWS_REGION")]
    NoMetadata(#[source] ecs_meta::Error),
    #[error("cannot tell cluster and region: no task metadata")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("cannot tell the region: set AWS_REGION")]
    NoRegion,
    #[error(
        "no AWS credentials: expected a task role (ECS then sets AWS_CONTAINER_CREDENTIALS_RELATIVE_URI), or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY"
    )]
    NoCredentials,
    #[error("cannot make a client of AWS")]
    Tls(#[from] sidecar_kit::tls::TlsOptionsError),
    #[error("cannot use the address of Consul")]
    Consul(#[from] consul_api::ConfigError),
    #[error("cannot listen on {0} (--listen)")]
    Listen(SocketAddr, #[source] std::io::Error),
}

/// Runs until TERM (or INT), then gives the lock back.
///
/// # Errors
/// See [`RunError`]; once it has started, nothing but TERM ends it.
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(RunError::Signals)?;
    log::init(env, None)?;
    let metrics = Arc::new(Metrics::default());
    let controller = tokio::select! {
        controller = start(&options, env, metrics.clone()) => controller?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let listener =
        TcpListener::bind(options.listen).await.map_err(|source| RunError::Listen(options.listen, source))?;
    tokio::spawn(metrics::serve(listener, metrics.clone()));
    let Names { cluster, prefix } = &controller.names;
    tracing::info!(
        "keeping the tokens of the cluster {cluster} in the secrets {prefix}-…; metrics on {}",
        options.listen
    );
    let key = format!("ecs-mesh/acl-controller/{cluster}/leader");
    let election = Election::new(controller.consul.clone(), metrics, key, name(env));
    let (publish, term) = watch::channel(None);
    tokio::select! {
        () = election.run(&publish) => {}
        () = work(&controller, options.poll_interval, term) => {}
        _ = signals.next() => tracing::info!("TERM: giving the lock back"),
    }
    // Whatever was under way is cut off: the next controller finds it half done and goes on.
    let _ = timeout(FAREWELL, election.give_up()).await;
    Ok(ExitCode::SUCCESS)
}

/// Finds out where this is and makes the clients.
async fn start(options: &Options, env: &Env, metrics: Arc<Metrics>) -> Result<Controller, RunError> {
    let region = env.get("AWS_REGION").or(env.get("AWS_DEFAULT_REGION"));
    let cluster_arn = options.cluster.as_ref().and_then(|cluster| cluster.parse().ok());
    let known = options.cluster.is_some() && (region.is_some() || cluster_arn.is_some());
    let task = match MetadataClient::from_env(env) {
        Ok(metadata) => Some(metadata.task_within(METADATA).await?),
        Err(_) if known => None,
        Err(error) => return Err(RunError::NoMetadata(error)),
    };
    let credentials =
        ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ACCESS_KEY_ID"];
    if !credentials.iter().any(|variable| env.get(variable).is_some()) {
        return Err(RunError::NoCredentials);
    }
    let cluster = options.cluster.clone().or(task.as_ref().map(|task| task.cluster.clone())).unwrap_or_default();
    let place = Place::new(task.as_ref().map(|task| &task.task_arn), cluster_arn.as_ref(), region);
    let consul = consul_api::Client::new(consul_api::Config::from_env(env)?)?;
    let prefix = options.secret_name_prefix.clone();
    let names = Names { cluster: cluster.clone(), prefix: prefix.clone() };
    let concurrency = options.rules.concurrency;
    Ok(Controller {
        aws: Aws::new(place.ok_or(RunError::NoRegion)?, cluster, prefix, concurrency, metrics.clone()).await?,
        consul: Arc::new(Consul::new(consul, metrics.clone())),
        names,
        rules: options.rules,
        metrics,
    })
}

/// Who holds the lock, for people: the host's name is in a task its ID.
fn name(env: &Env) -> String {
    format!("acl-controller {} {}", env.get("HOSTNAME").unwrap_or("on an unnamed host"), std::process::id())
}

/// Without end: cycle after cycle while there is a term.
async fn work(controller: &Controller, poll_interval: Duration, mut terms: watch::Receiver<Option<Term>>) {
    loop {
        let term = terms.borrow_and_update().clone();
        match term {
            None => {
                controller.metrics.alive(SIGN_OF_LIFE);
                let _ = timeout(SIGN_OF_LIFE, terms.changed()).await;
            }
            Some(term) => serve(controller, poll_interval, &term, &mut terms).await,
        }
    }
}

/// Cycles until the term is over.
async fn serve(
    controller: &Controller,
    poll_interval: Duration,
    term: &Term,
    terms: &mut watch::Receiver<Option<Term>>,
) {
    let mut memory = Memory::default();
    let mut backoff = Backoff::new(Duration::from_millis(500), poll_interval.max(Duration::from_secs(1)));
    while !term.is_over() {
        controller.metrics.alive(Duration::ZERO);
        let began = Instant::now();
        let cycle = controller.cycle(term, &mut memory).await;
        controller.metrics.cycled(began.elapsed(), cycle.is_ok(), matches!(cycle, Ok(true)));
        let pause = match cycle {
            Ok(_) => {
                backoff.reset();
                poll_interval.saturating_sub(began.elapsed())
            }
            Err(error) => {
                tracing::error!("the cycle failed: {}; trying again", one_line(&error));
                backoff.delay()
            }
        };
        controller.metrics.alive(pause);
        tokio::select! {
            () = sleep(pause) => {}
            _ = terms.changed() => {}
        }
    }
}
