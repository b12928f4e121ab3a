//! `StopTask`.

use std::sync::Arc;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::task::shown;
use super::{ApiError, cluster};
use crate::monitor::{StopRequest, TaskMonitor};
use crate::task::StopOrder;

/// The header with the stop order of one request. ECS has no such header: there, the agent decides the order.
pub(super) const ORDER: &str = "x-ecs-local-stop-order";

/// "StopTask" in the Amazon ECS API Reference.
#[derive(Debug, Deserialize)]
pub(super) struct StopTask {
    cluster: Option<String>,
    task: String,
    reason: Option<String>,
}

/// Stops a task. Does nothing if the task has stopped or is stopping.
pub(super) async fn stop_task(monitor: &Arc<TaskMonitor>, input: StopTask, order: &str) -> Result<Value, ApiError> {
    let order =
        match order {
            "" => None,
            order => Some(StopOrder::from_str(order, false).map_err(|_| {
                ApiError::parameter(format!("{ORDER} is {order:?}: expected all-at-once or depends-on"))
            })?),
        };
    let cluster = cluster(monitor, input.cluster.as_deref()).await?;
    let tasks = monitor.tasks(&cluster, cluster.find(&input.task)).await?;
    let task = tasks.first().ok_or_else(|| ApiError::parameter("The referenced task was not found."))?;
    let request = StopRequest { at: OffsetDateTime::now_utc(), reason: input.reason.unwrap_or_default() };
    let reason = request.reason.clone();
    if monitor.begin_requested_stop(task, request, order) {
        tracing::info!("stopping {} because of a StopTask request: {reason}", task.arn);
    }
    Ok(json!({ "task": shown(monitor, task, false) }))
}
