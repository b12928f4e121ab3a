//! Gives each service of an ECS cluster its Consul ACL token, repairs it, and deletes it when the service is gone.
//!
//! Each [`cycle`] lists tasks, secrets and tokens. Then [`plan`] decides what to change, without calling anything, and the cycle applies
//! the changes. Each write needs the [`term`], the proof that this controller is the leader. The [`election`] makes it the leader.

pub mod agentless;
mod apply;
pub mod auth_method;
pub mod aws;
pub mod consul;
pub mod controller;
pub mod cycle;
mod demand;
pub mod election;
pub mod error;
mod gateways;
mod listings;
mod memory;
pub mod metrics;
mod nodes;
mod observe;
pub mod owner;
pub mod plan;
mod policies;
pub mod record;
mod registered;
pub mod rotation;
mod sweep;
mod takeover;
pub mod tasks;
pub mod term;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ecs_meta::{ArnError, ClusterArn, MetadataClient};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::log;
use sidecar_kit::signals::{SignalsError, StopSignals};
use sidecar_kit::wait::WaitError;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::agentless::Agentless;
use crate::auth_method::AuthMethodOptions;
use crate::aws::{Aws, Place};
use crate::consul::Consul;
use crate::controller::{Controller, Rules};
use crate::election::Election;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::owner::Names;
use crate::term::Term;

/// At start, the controller waits this long for the metadata endpoint.
const METADATA: Duration = Duration::from_secs(90);

/// How often a standby controller reports that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// At the end, releasing the lock may take this long.
const FAREWELL: Duration = Duration::from_secs(3);

/// The settings of [`run`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster; otherwise that of the metadata.
    pub cluster: Option<Cluster>,
    /// The start of the names of secrets and policies; empty if the controller uses no secrets.
    pub secret_name_prefix: String,
    /// The address of Consul, or several with commas between them.
    pub consul_http_addr: String,
    /// How often a cycle begins.
    pub poll_interval: Duration,
    /// The rules for each cycle.
    pub rules: Rules,
    /// Whether the controller works for tasks without an agent.
    pub agentless: bool,
    /// The address of the node of the tasks without an agent; otherwise that of this task.
    pub node_address: Option<IpAddr>,
    /// The auth method with which these tasks log in; none if somebody else sets it up.
    pub auth_method: Option<AuthMethodOptions>,
    /// The address that serves metrics and health.
    pub listen: SocketAddr,
}

/// An ECS cluster, by ARN or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// Its ARN.
    Arn(ClusterArn),
    /// Its name. The controller must find out the account.
    Name(String),
}

impl FromStr for Cluster {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // "CreateCluster" in the Amazon ECS API Reference.
        let is_name = |text: &str| {
            (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        match text.parse() {
            Ok(arn) => Ok(Self::Arn(arn)),
            Err(_) if is_name(text) => Ok(Self::Name(text.to_owned())),
            Err(_) => Err("expected a cluster's name (letters, digits, - and _) or its ARN, \
                           arn:aws:ecs:REGION:ACCOUNT:cluster/NAME"
                .to_owned()),
        }
    }
}

/// Why the controller could not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Signals(#[from] SignalsError),
    #[error("cannot find out cluster and region: outside of ECS, set --cluster and AWS_REGION")]
    NoMetadata(#[source] ecs_meta::Error),
    #[error("cannot find out cluster and region")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("cannot make the cluster's ARN from the task metadata, --cluster and AWS_REGION")]
    MetadataCluster(#[from] ArnError),
    #[error("cannot find out the region: set AWS_REGION")]
    NoRegion,
    #[error(
        "no AWS credentials: expected a task role (ECS then sets AWS_CONTAINER_CREDENTIALS_RELATIVE_URI), or AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY"
    )]
    NoCredentials,
    #[error("cannot make a client for AWS")]
    Tls(#[from] sidecar_kit::tls::TlsOptionsError),
    #[error("cannot use the address of Consul")]
    Consul(#[from] consul_api::ConfigError),
    #[error("cannot find out this task's address for the node of the tasks without an agent: set --node-address")]
    NoNodeAddress,
    #[error("cannot listen on {0} (--listen)")]
    Listen(SocketAddr, #[source] std::io::Error),
}

/// Runs until TERM or INT, then releases the lock.
///
/// # Errors
/// When it cannot start. Once it has started, only TERM and INT end it.
pub async fn run(options: Options, env: &Env) -> Result<ExitCode, RunError> {
    let mut signals = StopSignals::catch()?;
    log::init(env, None)?;
    let metrics = Arc::new(Metrics::default());
    let (mut aws, consul, place, agentless) = tokio::select! {
        started = start(&options, env, metrics.clone()) => started?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let listener =
        TcpListener::bind(options.listen).await.map_err(|source| RunError::Listen(options.listen, source))?;
    tokio::spawn(metrics::serve(listener, metrics.clone()));
    let cluster = tokio::select! {
        cluster = find_cluster(&aws, place, options.poll_interval, &metrics) => cluster,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    aws.set_cluster(&cluster);
    let names = Names { cluster, prefix: options.secret_name_prefix.clone() };
    let controller =
        Controller { aws, consul: Arc::new(consul), names, rules: options.rules, agentless, metrics: metrics.clone() };
    let Names { cluster, prefix } = &controller.names;
    if controller.rules.secrets {
        tracing::info!("keeping the tokens of the cluster {cluster} in the secrets {prefix}-…");
    }
    if controller.agentless.is_some() {
        tracing::info!(
            "working for the cluster's tasks without an agent; their services are on the node {cluster} in Consul"
        );
    }
    tracing::info!("metrics on {}", options.listen);
    let key = controller.names.key("leader");
    let election = Election::new(controller.consul.clone(), metrics, key, name(env));
    let (publish, term) = watch::channel(None);
    tokio::select! {
        () = election.run(&publish) => {}
        () = work(&controller, options.poll_interval, term) => {}
        _ = signals.next() => tracing::info!("stopping: releasing the lock"),
    }
    // The work under way is interrupted here. The next leader completes it.
    let _ = timeout(FAREWELL, election.give_up()).await;
    Ok(ExitCode::SUCCESS)
}

/// Finds out cluster and region, and creates the clients.
async fn start(
    options: &Options,
    env: &Env,
    metrics: Arc<Metrics>,
) -> Result<(Aws, Consul, Whereabouts, Option<Agentless>), RunError> {
    let region = env.get("AWS_REGION").or(env.get("AWS_DEFAULT_REGION"));
    let given = options.cluster.as_ref();
    let known = given.is_some_and(|cluster| region.is_some() || matches!(cluster, Cluster::Arn(_)));
    let task = match MetadataClient::from_env(env) {
        Ok(metadata) => Some(metadata.task_within(METADATA).await?),
        Err(_) if known => None,
        Err(error) => return Err(RunError::NoMetadata(error)),
    };
    let agentless = match options.agentless {
        true => {
            let own = || task.as_ref().and_then(|task| task.private_ip()?.parse().ok());
            let node_address = options.node_address.or_else(own).ok_or(RunError::NoNodeAddress)?;
            Some(Agentless { node_address, auth_method: options.auth_method.clone() })
        }
        false => None,
    };
    let credentials =
        ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ACCESS_KEY_ID"];
    if !credentials.iter().any(|variable| env.get(variable).is_some()) {
        return Err(RunError::NoCredentials);
    }
    let config = consul_api::Config::builder(env)
        .address("--consul-http-addr (CONSUL_HTTP_ADDR)", Some(&options.consul_http_addr));
    let consul = Consul::new(consul_api::Client::new(config.build()?)?, metrics.clone());
    let place = match (given, &task) {
        (Some(Cluster::Arn(arn)), _) => Whereabouts::Known(arn.clone()),
        (None, Some(task)) => Whereabouts::Known(task.cluster_arn()?),
        (Some(Cluster::Name(name)), Some(task)) => {
            let region = region.unwrap_or(task.task_arn.region());
            Whereabouts::Known(ClusterArn::beside(&task.task_arn.to_string(), region, name)?)
        }
        (Some(Cluster::Name(name)), None) => {
            let region = region.ok_or(RunError::NoRegion)?.to_owned();
            Whereabouts::Named { name: name.clone(), region }
        }
        (None, None) => return Err(RunError::NoRegion),
    };
    let (here, cluster) = match &place {
        Whereabouts::Known(arn) => (Place::of(arn), arn.to_string()),
        Whereabouts::Named { name, region } => (Place::in_region(region), name.clone()),
    };
    let prefix = options.secret_name_prefix.clone();
    let aws = Aws::new(here, cluster, prefix, options.rules.concurrency, metrics, env).await?;
    Ok((aws, consul, place, agentless))
}

/// What the controller knows of the cluster at start.
enum Whereabouts {
    Known(ClusterArn),
    /// Only the name is known. The account comes from the ARN of a task or secret.
    Named {
        name: String,
        region: String,
    },
}

/// Waits for the cluster's ARN, without a limit.
async fn find_cluster(aws: &Aws, place: Whereabouts, poll_interval: Duration, metrics: &Metrics) -> ClusterArn {
    let (name, region) = match place {
        Whereabouts::Known(cluster) => return cluster,
        Whereabouts::Named { name, region } => (name, region),
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), poll_interval.max(Duration::from_secs(1)));
    let mut told = false;
    loop {
        let failed = match aws.any_arn().await {
            Ok(Some(arn)) => match ClusterArn::beside(&arn, &region, &name) {
                Ok(cluster) => return cluster,
                Err(error) => Some(one_line(&error)),
            },
            Ok(None) => None,
            Err(error) => Some(one_line(&error)),
        };
        let pause = match failed {
            Some(reason) => {
                tracing::error!("cannot find out the account of the cluster {name}: {reason}; trying again");
                backoff.delay()
            }
            None => {
                if !told {
                    tracing::info!(
                        "waiting for the ARN of a task of the cluster {name} or of a secret, to find out the account; or set \
                         --cluster to the cluster's ARN"
                    );
                    told = true;
                }
                poll_interval
            }
        };
        metrics.alive(pause);
        sleep(pause).await;
    }
}

/// The name of this controller in the lock, for people. In a task, the host's name is the container's ID.
fn name(env: &Env) -> String {
    format!("acl-controller {} {}", env.get("HOSTNAME").unwrap_or("on an unnamed host"), std::process::id())
}

/// Runs cycles while there is a term. Never returns.
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

/// Runs cycles until the term is over.
async fn serve(
    controller: &Controller,
    poll_interval: Duration,
    term: &Term,
    terms: &mut watch::Receiver<Option<Term>>,
) {
    let mut memory = Memory::of_new_term(poll_interval);
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
