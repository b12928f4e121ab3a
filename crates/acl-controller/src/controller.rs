//! The controller: its clients, its names and its rules. The other modules add its methods.

use std::sync::Arc;
use std::time::Duration;

use crate::aws::Aws;
use crate::consul::Consul;
use crate::metrics::Metrics;
use crate::owner::Names;

/// The flags that decide what a cycle does.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a service without tasks keeps its token.
    pub grace: Duration,
    /// Whether the secret of a service without tasks keeps its value when the token is deleted.
    pub keep_secrets: bool,
    /// How long a task that ECS stops may still run.
    pub stop_timeout: Duration,
    /// The age at which a service's token is replaced.
    pub rotate_after: Option<Duration>,
    /// How many services are processed at the same time.
    pub concurrency: usize,
    /// Whether nodes are removed from Consul when their tasks are gone.
    pub deregister_nodes: bool,
}

/// What every cycle uses.
#[derive(Debug)]
pub struct Controller {
    /// ECS and Secrets Manager.
    pub aws: Aws,
    /// Consul.
    pub consul: Arc<Consul>,
    /// The names of the cluster, its secrets and its policies.
    pub names: Names,
    /// The flags.
    pub rules: Rules,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}
