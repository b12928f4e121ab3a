//! `StopTask`.

use std::sync::Arc;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::task::shown;
use super::{ApiError, cluster};
use crate::live::{Live, StopRequest};
use crate::task::StopOrder;

/// Ours: the order of one stop, which with ECS is the agent's matter.
pub(super) const ORDER: &str = "x-ecs-local-stop-order";

/// "StopTask" in the Amazon ECS API Reference.
#[derive(Debug, Deserialize)]
pub(super) struct StopTask {
    cluster: Option<String>,
    task: String,
    reason: Option<String>,
}

/// Stops a task, unless it has stopped or is being stopped: then its containers have had their TERM.
pub(super) async fn stop_task(live: &Arc<Live>, input: StopTask, order: &str) -> Result<Value, ApiError> {
    let order =
        match order {
            "" => None,
            order => Some(StopOrder::from_str(order, false).map_err(|_| {
                ApiError::parameter(format!("{ORDER} is {order:?}: expected all-at-once or depends-on"))
            })?),
        };
    let cluster = cluster(live, input.cluster.as_deref()).await?;
    let tasks = live.tasks(&cluster, cluster.find(&input.task)).await?;
    let task = tasks.first().ok_or_else(|| ApiError::parameter("The referenced task was not found."))?;
    let request = StopRequest { at: OffsetDateTime::now_utc(), reason: input.reason.unwrap_or_default() };
    let reason = request.reason.clone();
    if live.begin_requested_stop(task, request, order) {
        tracing::info!("stopping {}: asked to: {reason}", task.arn);
    }
    Ok(json!({ "task": shown(live, task, false) }))
}
