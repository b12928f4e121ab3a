//! The IAM policies of the task's two roles.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::problem::Problems;
use crate::render;
use crate::settings::{Mode, Settings};
use crate::task::Task;

/// The policies that the task's roles need for the sidecars, by role: `executionRole` and `taskRole`. A role that needs nothing has no
/// policy. Pulling images and writing logs also needs AWS's `AmazonECSTaskExecutionRolePolicy`.
///
/// # Errors
/// All errors in both documents.
pub fn policy(settings: &Value, task: &Value) -> Result<Value, Problems> {
    let (settings, task) = render::read(settings, task)?;
    let roles = BTreeMap::from([
        ("executionRole", execution_role(&settings, &task)),
        ("taskRole", task_role(&settings, &task)),
    ]);
    let policies = roles.into_iter().filter(|(_, statements)| !statements.is_empty());
    let policies: BTreeMap<_, _> = policies
        .map(|(role, statements)| (role, json!({ "Version": "2012-10-17", "Statement": statements })))
        .collect();
    Ok(json!(policies))
}

fn allow(actions: &[&str], resources: impl IntoIterator<Item = String>) -> Value {
    json!({ "Effect": "Allow", "Action": actions, "Resource": resources.into_iter().collect::<Vec<_>>() })
}

/// The execution role reads the secrets.
fn execution_role(settings: &Settings, task: &Task) -> Vec<Value> {
    let partition = partition(settings, task);
    let secrets = &settings.secrets;
    let own = [&secrets.client_token, &secrets.service_token, &secrets.gossip_key, &secrets.ca];
    let log = settings.log_configuration.as_ref();
    let of_log = log.and_then(|log| log["secretOptions"].as_array()).into_iter().flatten();
    let of_log = of_log.filter_map(|option| option["valueFrom"].as_str());
    let all: BTreeSet<String> =
        own.into_iter().flatten().map(String::as_str).chain(of_log).map(|from| resource(from, partition)).collect();
    let (secrets, parameters): (Vec<_>, Vec<_>) = all.into_iter().partition(|arn| arn.contains(":secretsmanager:"));
    let mut statements = Vec::new();
    if !secrets.is_empty() {
        statements.push(allow(&["secretsmanager:GetSecretValue"], secrets));
    }
    if !parameters.is_empty() {
        statements.push(allow(&["ssm:GetParameters"], parameters));
    }
    let options = log.map(|log| &log["options"]);
    if let Some(options) = options.filter(|options| options["awslogs-create-group"] == "true") {
        let group = options["awslogs-group"].as_str().unwrap_or("*");
        let region = options["awslogs-region"].as_str().unwrap_or("*");
        statements
            .push(allow(&["logs:CreateLogGroup"], [format!("arn:{partition}:logs:{region}:*:log-group:{group}:*")]));
    }
    statements
}

/// The AWS partition, from an ARN in the documents.
fn partition<'a>(settings: &'a Settings, task: &'a Task) -> &'a str {
    let roles = ["executionRoleArn", "taskRoleArn"].map(|role| task.definition.get(role).and_then(Value::as_str));
    let secrets = &settings.secrets;
    let secrets = [&secrets.client_token, &secrets.service_token, &secrets.gossip_key, &secrets.ca];
    let arns = roles.into_iter().flatten().chain(secrets.into_iter().flatten().map(String::as_str));
    arns.filter_map(|arn| arn.strip_prefix("arn:")?.split(':').next()).next().unwrap_or("aws")
}

/// The ARN without the text after the name: key, version stage and version ID. A parameter may be given by its name.
fn resource(value_from: &str, partition: &str) -> String {
    let parts: Vec<_> = value_from.split(':').collect();
    match parts.as_slice() {
        [_, _, "secretsmanager", ..] => parts[..parts.len().min(7)].join(":"),
        [_] => format!("arn:{partition}:ssm:*:*:parameter/{}", value_from.trim_start_matches('/')),
        _ => value_from.to_owned(),
    }
}

/// The task role looks up the servers, and proves its identity to Consul's auth method.
fn task_role(settings: &Settings, task: &Task) -> Vec<Value> {
    let mut statements = Vec::new();
    if let Mode::Agent(agent) = &settings.mode
        && agent.retry_join.iter().any(|join| join.contains("provider=aws"))
    {
        statements.push(allow(&["ec2:DescribeInstances"], ["*".to_owned()]));
    }
    let login = settings.config.consul_login.as_ref().filter(|login| login.enabled);
    if login.is_some_and(|login| login.include_entity) {
        let role = task.definition.get("taskRoleArn").and_then(Value::as_str).unwrap_or("*");
        let role = if role.contains(':') {
            role.to_owned()
        } else {
            format!("arn:{}:iam::*:role/{role}", partition(settings, task))
        };
        statements.push(allow(&["iam:GetRole"], [role]));
    }
    statements
}
