//! `DescribeTasks`: describes up to 100 tasks, and names those that do not exist.

use serde::Deserialize;
use serde_json::{Value, json};

use super::task::shown;
use super::{ApiError, cluster};
use crate::monitor::{Cluster, TaskMonitor};

const MAX_TASKS: usize = 100;
const TAGS: &str = "TAGS";

/// "DescribeTasks" in the Amazon ECS API Reference.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DescribeTasks {
    cluster: Option<String>,
    include: Vec<String>,
    tasks: Vec<String>,
}

/// Describes tasks, given by their IDs or ARNs, each once.
pub(super) async fn describe_tasks(monitor: &TaskMonitor, input: DescribeTasks) -> Result<Value, ApiError> {
    let cluster = cluster(monitor, input.cluster.as_deref()).await?;
    if input.tasks.is_empty() {
        return Err(ApiError::parameter("Tasks cannot be empty."));
    }
    if input.tasks.len() > MAX_TASKS {
        return Err(ApiError::parameter(format!("Tasks cannot have more than {MAX_TASKS} entries.")));
    }
    if let Some(unknown) = input.include.iter().find(|included| *included != TAGS) {
        return Err(ApiError::parameter(format!("include has {unknown:?}: expected {TAGS}.")));
    }
    let with_tags = !input.include.is_empty();

    let mut found = Vec::new();
    let mut missing = Vec::new();
    for task in &input.tasks {
        match cluster.find(task) {
            Some(arn) if !found.contains(&arn) => found.push(arn),
            Some(_) => {}
            None => missing.push(missing_arn(&cluster, task)),
        }
    }
    let tasks = monitor.tasks(&cluster, found.iter().copied()).await?;
    let gone = found.iter().filter(|arn| !tasks.iter().any(|task| task.arn == ***arn));
    missing.extend(gone.map(ToString::to_string));
    let tasks = tasks.iter().map(|task| shown(monitor, task, with_tags)).collect::<Vec<_>>();
    let failures = missing.iter().map(|arn| json!({ "arn": arn, "reason": "MISSING" })).collect::<Vec<_>>();
    Ok(json!({ "tasks": tasks, "failures": failures }))
}

/// The ARN that a task with this ID would have in the cluster.
fn missing_arn(cluster: &Cluster, task: &str) -> String {
    match cluster.tasks.keys().next() {
        Some(other) if !task.starts_with("arn:") => other.sibling(task).to_string(),
        _ => task.to_owned(),
    }
}
