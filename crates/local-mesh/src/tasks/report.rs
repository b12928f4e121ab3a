//! What ECS does with a task definition and the local mesh does not. Every field that the local mesh does not use has a line.

use std::collections::BTreeMap;

use serde_json::Value;
use sidecar_kit::secret::Secret;

use super::container::made_up;
use super::text;

/// The fields of a task definition that the local mesh uses, or that mean nothing without ECS.
const OF_TASK: [&str; 6] =
    ["family", "networkMode", "containerDefinitions", "volumes", "requiresCompatibilities", "tags"];

/// The fields of a container definition that the local mesh uses.
const OF_CONTAINER: [&str; 21] = [
    "name",
    "image",
    "essential",
    "entryPoint",
    "command",
    "environment",
    "secrets",
    "dependsOn",
    "healthCheck",
    "stopTimeout",
    "user",
    "workingDirectory",
    "readonlyRootFilesystem",
    "mountPoints",
    "portMappings",
    "dockerLabels",
    "restartPolicy",
    "interactive",
    "pseudoTerminal",
    "linuxParameters",
    "memory",
];

const OF_LINUX: [&str; 4] = ["capabilities", "initProcessEnabled", "sharedMemorySize", "tmpfs"];

/// Why a field has no effect here.
fn reason(field: &str) -> &'static str {
    match field {
        "cpu" | "memoryReservation" => "nothing is reserved here",
        "memory" | "ephemeralStorage" => "the task as a whole has no limit here",
        "taskRoleArn" => "the app gets no AWS credentials here",
        "executionRoleArn" => "no role is needed here: images are local, and secrets come from `--secret`",
        "runtimePlatform" => "the images must be for this machine",
        "logConfiguration" | "firelensConfiguration" => "the logs are in `docker logs`",
        "environmentFiles" => "files in S3 are not read here: the variables are missing",
        "repositoryCredentials" => "Docker pulls with the credentials of this machine",
        "volumesFrom" => "the volumes are missing here",
        "links" | "hostname" | "dnsServers" | "dnsSearchDomains" | "extraHosts" | "disableNetworking" => {
            "ECS refuses it with awsvpc, and it has no effect here"
        }
        "ulimits" => "not set here: the container has the limits of Docker's engine",
        "startTimeout" => "a container may take as long as it likes to start here",
        "privileged" | "devices" | "dockerSecurityOptions" | "systemControls" => {
            "not given to a container on this machine"
        }
        _ => "it has no effect here",
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        // ECS adds `"cpu": 0` to a container that has none.
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A line for each field that has a value and is not in this list.
fn unused<'a>(value: &'a Value, path: &'a str, used: &'a [&str]) -> impl Iterator<Item = String> + 'a {
    let fields = value.as_object().into_iter().flatten();
    let unused = fields.filter(|(name, value)| !used.contains(&name.as_str()) && !is_empty(value));
    unused.map(move |(name, _)| format!("{path}{name}: {}", reason(name)))
}

/// What is different for the task as a whole.
pub(crate) fn of_task(definition: &Value) -> Vec<String> {
    let mut lines: Vec<_> = unused(definition, "", &OF_TASK).collect();
    for volume in definition["volumes"].as_array().into_iter().flatten() {
        let name = text(&volume["name"]);
        let fields = volume.as_object().into_iter().flatten();
        let kinds: Vec<_> = fields
            .filter(|(field, value)| *field != "name" && !is_empty(value))
            .map(|(field, _)| field.as_str())
            .collect();
        if !kinds.is_empty() {
            let kinds = kinds.join(", ");
            lines.push(format!("volumes[{name}].{kinds}: an empty volume of Docker takes its place"));
        } else if super::sidecars::volume(&name).is_none() {
            lines.push(format!(
                "volumes[{name}]: it keeps its files when the task starts again; on ECS a task begins with an empty one"
            ));
        }
    }
    lines
}

/// What is different for a container of the user.
pub(crate) fn of_container(container: &Value, secrets: &BTreeMap<String, Secret>) -> Vec<String> {
    let path = format!("containerDefinitions[{}].", text(&container["name"]));
    let mut lines: Vec<_> = unused(container, &path, &OF_CONTAINER).collect();
    lines.extend(unused(&container["linuxParameters"], &format!("{path}linuxParameters."), &OF_LINUX));
    if let Some(interval) = container["healthCheck"].get("command").map(|_| &container["healthCheck"]["interval"]) {
        let seconds = interval.as_u64().unwrap_or(30);
        let here = (seconds / 5).max(1);
        lines.push(format!("{path}healthCheck: runs every {here} s here, every {seconds} s on ECS"));
    }
    for name in super::container::secret_names(container).iter().filter(|name| !secrets.contains_key(*name)) {
        let value = made_up(name);
        lines.push(format!(
            "{path}secrets: {name} has the made-up value {value:?}; `--secret {name}=FILE` gives another"
        ));
    }
    for on in container["dependsOn"].as_array().into_iter().flatten().filter(|on| on["condition"] == "COMPLETE") {
        let name = text(&on["containerName"]);
        lines.push(format!("{path}dependsOn: {name} must exit with 0 here; for COMPLETE, ECS accepts every exit code"));
    }
    if container["restartPolicy"]["ignoredExitCodes"].as_array().is_some_and(|codes| !codes.is_empty()) {
        lines.push(format!("{path}restartPolicy.ignoredExitCodes: it has no effect here"));
    }
    let udp = |mapping: &&Value| mapping["protocol"] == "udp" || mapping.get("containerPortRange").is_some();
    if container["portMappings"].as_array().into_iter().flatten().any(|mapping| udp(&mapping)) {
        lines.push(format!("{path}portMappings: UDP ports and ranges do not reach the host here"));
    }
    lines
}
