//! Failed nodes of gone tasks. Consul keeps the failed node of a killed task for 15 minutes if `mesh-init agent-config` wrote the agent's
//! configuration for Consul 1.10 or later, and for 72 hours with other agents.

use std::collections::HashSet;

use consul_api::HealthService;
use ecs_meta::TaskArn;
use futures_util::stream::{self, StreamExt};
use sidecar_kit::exit::one_line;

use crate::controller::Controller;
use crate::error::Error;
use crate::tasks::Task;
use crate::term::Term;

impl Controller {
    /// Removes each failed node if tasks of this cluster registered all of its services and none of them runs. False if a removal failed;
    /// the other nodes are still removed.
    pub(crate) async fn deregister_nodes(&self, term: &Term, running: &[Task]) -> Result<bool, Error> {
        let failed = self.consul.failed_nodes().await?;
        let running = running.iter().map(|task| &*task.arn).collect::<HashSet<_>>();
        let candidates: Vec<_> = stream::iter(failed)
            .map(|node| async {
                let services = self.consul.node_services(&node).await;
                (node, services.map(|services| self.tasks_of(&services)))
            })
            .buffer_unordered(self.rules.concurrency)
            .collect()
            .await;
        let mut whole = true;
        for (node, tasks) in candidates {
            let removed = match tasks {
                Ok(Some(tasks)) if tasks.iter().all(|arn| !running.contains(arn.as_str())) => {
                    self.deregister(term, &node, tasks).await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            };
            match removed {
                Ok(()) => {}
                Err(error) if error.is_not_leader() => return Err(error),
                Err(error) => {
                    tracing::error!("node {node}: cannot remove it: {}; trying again", one_line(&error));
                    whole = false;
                }
            }
        }
        Ok(whole)
    }

    async fn deregister(&self, term: &Term, node: &str, tasks: Vec<String>) -> Result<(), Error> {
        // The list may be late. DescribeTasks is not.
        let (found, _) = self.aws.describe(tasks).await?;
        if found.complete && found.tasks.is_empty() {
            self.consul.deregister_node(term, node).await?;
            tracing::info!("node {node}: its task is gone; removed from Consul");
            self.metrics.deregistered();
        }
        Ok(())
    }

    /// The tasks that registered a node's services; none if another program or cluster registered one of them.
    fn tasks_of(&self, services: &[HealthService]) -> Option<Vec<String>> {
        let cluster = &self.names.cluster;
        let task = |service: &HealthService| {
            if service.meta.get("source").map(String::as_str) != Some("consul-ecs") {
                return None;
            }
            let arn: TaskArn = service.meta.get("task-arn")?.parse().ok()?;
            let ours = arn.cluster().is_some_and(|name| arn.cluster_arn(name) == *cluster);
            ours.then(|| arn.to_string())
        };
        let tasks = services.iter().map(task).collect::<Option<HashSet<_>>>()?;
        (!tasks.is_empty()).then(|| tasks.into_iter().collect())
    }
}
