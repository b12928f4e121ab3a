//! Where Consul has a task: on the node of its agent, or on the node of all tasks without an agent.

use std::time::Duration;

use bollard::Docker;
use consul_api::{Client, HealthCheck, Index, Indexed};

use crate::docker;
use crate::task::{self, TaskError};
use crate::tasks::CLUSTER_ARN;

/// A running task as Consul has it.
#[derive(Debug)]
pub(crate) struct Registered {
    /// The name of its node.
    pub(crate) node: String,
    /// Whether it has a Consul agent.
    pub(crate) has_agent: bool,
    task_id: String,
}

impl Registered {
    pub(crate) async fn of(docker: &Docker, name: &str) -> Result<Self, TaskError> {
        let task = task::running(docker, name).await?;
        let has_agent = docker::task(docker, name).await?.contains_key("consul-client");
        let node = if has_agent { task.node() } else { CLUSTER_ARN.to_owned() };
        Ok(Self { node, has_agent, task_id: task.id })
    }

    /// Its checks. `index` and `wait` are those of a blocking query.
    pub(crate) async fn checks(
        &self,
        consul: &Client,
        index: Option<Index>,
        wait: Duration,
    ) -> Result<Indexed<Vec<HealthCheck>>, consul_api::Error> {
        let mut health = consul.node_health(&self.node, index, wait).await?;
        // A check of the node itself has no service.
        let is_own = |id: &str| id.contains(&self.task_id) || (self.has_agent && id.is_empty());
        health.value.retain(|check| is_own(check.service_id.as_str()));
        Ok(health)
    }
}
