//! `ListTasks`: the ARNs of a cluster's tasks, page by page.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ecs_meta::TaskArn;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, cluster};
use crate::monitor::TaskMonitor;
use crate::task::LAUNCH_TYPE;

/// The largest page, and the page size without `maxResults`.
const MAX_RESULTS: i64 = 100;
const LAUNCH_TYPES: [&str; 4] = ["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"];
const DESIRED_STATUSES: [&str; 3] = ["RUNNING", "PENDING", "STOPPED"];

/// "ListTasks" in the Amazon ECS API Reference.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListTasks {
    cluster: Option<String>,
    container_instance: Option<String>,
    daemon_name: Option<String>,
    desired_status: Option<String>,
    family: Option<String>,
    launch_type: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
    service_name: Option<String>,
    started_by: Option<String>,
}

/// Lists tasks in the order of their ARNs. A task that has stopped is listed as long as a container of it exists.
pub(super) async fn list_tasks(monitor: &TaskMonitor, input: ListTasks) -> Result<Value, ApiError> {
    let cluster = cluster(monitor, input.cluster.as_deref()).await?;
    let desired_status =
        one_of("desiredStatus", input.desired_status.as_deref(), &DESIRED_STATUSES)?.unwrap_or("RUNNING");
    let launch_type = one_of("launchType", input.launch_type.as_deref(), &LAUNCH_TYPES)?;
    let size = input.max_results.unwrap_or(MAX_RESULTS);
    let size = usize::try_from(size).ok().filter(|_| (1..=MAX_RESULTS).contains(&size));
    let size = size.ok_or_else(|| ApiError::parameter("maxResults must be between 1 and 100."))?;
    let after = input.next_token.as_deref().map(read_token).transpose()?;
    // No task here belongs to a service or a daemon, runs on a container instance or has a `startedBy`.
    if let Some(service) = &input.service_name {
        return Err(ApiError::client("ServiceNotFoundException", format!("Service not found: {service}")));
    }
    if let Some(daemon) = &input.daemon_name {
        return Err(ApiError::parameter(format!("The referenced daemon was not found: {daemon}")));
    }
    if let Some(instance) = &input.container_instance {
        return Err(ApiError::parameter(format!("The referenced container instance was not found: {instance}")));
    }
    if input.started_by.is_some() || launch_type.is_some_and(|type_| type_ != LAUNCH_TYPE) {
        return Ok(json!({ "taskArns": [] }));
    }

    let of_family = |family: &str| input.family.as_deref().is_none_or(|wanted| wanted == family);
    let wanted = cluster.tasks.iter().filter(|(arn, labels)| of_family(&labels.family) && Some(*arn) > after.as_ref());
    let tasks = monitor.tasks(&cluster, wanted.map(|(arn, _)| arn)).await?;
    let tasks = tasks.iter().filter(|task| task.desired_status(monitor.stopping(&task.arn)).as_str() == desired_status);
    let mut arns = tasks.map(|task| &task.arn).collect::<Vec<_>>();
    let more = arns.len() > size;
    arns.truncate(size);
    let mut answer = json!({ "taskArns": arns });
    if let (true, Some(last)) = (more, arns.last()) {
        answer["nextToken"] = token(last).into();
    }
    Ok(answer)
}

fn one_of<'a>(name: &str, value: Option<&'a str>, words: &[&str]) -> Result<Option<&'a str>, ApiError> {
    match value {
        Some(value) if !words.contains(&value) => {
            Err(ApiError::parameter(format!("{name} is {value:?}: expected {}.", words.join(", "))))
        }
        value => Ok(value),
    }
}

/// The token for the next page. The page begins after this task, even if tasks have come or gone.
fn token(last: &TaskArn) -> String {
    URL_SAFE_NO_PAD.encode(last.to_string())
}

fn read_token(token: &str) -> Result<TaskArn, ApiError> {
    let arn = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    arn.ok_or_else(|| ApiError::parameter("Invalid token."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_names_its_task_other_text_is_refused() {
        let arn: TaskArn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b".parse().unwrap();
        assert_eq!(read_token(&token(&arn)).unwrap(), arn);
        for wrong in ["", "1", "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b", "////", "eyJ9"] {
            assert_eq!(read_token(wrong).unwrap_err().kind, "InvalidParameterException", "{wrong}");
        }
    }
}
