//! The controller: its clients, its names and its rules. The other modules add its methods.

use std::sync::Arc;
use std::time::Duration;

use sidecar_kit::exit::one_line;

use crate::agentless::Agentless;
use crate::aws::Aws;
use crate::consul::Consul;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::owner::Names;

/// The flags that decide what a cycle does.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether services have their tokens in secrets.
    pub secrets: bool,
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
    /// The settings for tasks without an agent; none if the controller does nothing for them.
    pub agentless: Option<Agentless>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Controller {
    /// Logs the failure of a part of the cycle, and goes on. True if nothing in this part failed. `what` follows the word "cannot".
    ///
    /// # Errors
    /// When the lock is lost.
    pub(crate) fn went_on(&self, what: &str, done: Result<bool, Error>) -> Result<bool, Error> {
        match done {
            Err(error) if !error.is_not_leader() => {
                tracing::error!("cannot {what}: {}; trying again", one_line(&error));
                Ok(false)
            }
            done => done,
        }
    }
}
