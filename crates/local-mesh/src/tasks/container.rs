//! A container definition as a service of docker-compose.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sidecar_kit::secret::Secret;

use super::{TASK_ARN, text};
use crate::oci::sha256;

/// The task that a container belongs to.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name in docker-compose.
    pub(crate) task: String,
    pub(crate) family: String,
    /// The profile of docker-compose without which the task does not start.
    pub(crate) profile: Option<&'static str>,
    /// Its tags, as labels.
    pub(crate) tags: Map<String, Value>,
}

impl Place {
    /// The service of one of its containers.
    pub(crate) fn service(&self, container: &str) -> String {
        format!("{}-{container}", self.task)
    }

    pub(crate) fn volume(&self, name: &str) -> String {
        format!("{}-{name}", self.task)
    }

    /// The task's ID, as docker-compose reads it: a variable, which `cargo xtask` sets for each start, with a default.
    pub(crate) fn task_id(&self) -> String {
        format!("${{{}:-{}}}", task_id_variable(&self.task), &sha256(self.task.as_bytes())[..32])
    }

    /// The labels of one of its containers.
    pub(crate) fn labels(&self, container: &str) -> Map<String, Value> {
        let mut labels = self.tags.clone();
        for (name, value) in [
            ("com.amazonaws.ecs.cluster", "ecs-mesh"),
            ("com.amazonaws.ecs.task-arn", &format!("{TASK_ARN}/{}", self.task_id())),
            ("com.amazonaws.ecs.task-definition-family", &self.family),
            ("com.amazonaws.ecs.task-definition-version", "1"),
            ("com.amazonaws.ecs.container-name", container),
            ("ecs-mesh.task", &self.task),
        ] {
            labels.insert(name.to_owned(), json!(value));
        }
        labels
    }
}

/// The variable with a task's ID.
pub(crate) fn task_id_variable(task: &str) -> String {
    let name: String =
        task.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    let digit = if name.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    format!("{digit}{name}_TASK_ID")
}

/// The text with each `$` doubled. Otherwise docker-compose would replace variables in it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

fn escaped_value(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(escaped(text)),
        Value::Array(values) => values.iter().map(escaped_value).collect(),
        other => other.clone(),
    }
}

fn list<'a>(fields: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    fields[name].as_array().into_iter().flatten()
}

/// The TCP ports that a container maps.
pub(crate) fn mapped_ports(container: &Value) -> Vec<u16> {
    let tcp = |mapping: &&Value| mapping["protocol"].as_str().is_none_or(|protocol| protocol == "tcp");
    let port = |mapping: &Value| mapping["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok());
    list(container, "portMappings").filter(tcp).filter_map(port).collect()
}

/// The variables that a container gets from secrets.
pub(crate) fn secret_names(container: &Value) -> Vec<String> {
    list(container, "secrets").map(|secret| text(&secret["name"])).collect()
}

/// The value that a secret has if none is given.
pub(crate) fn made_up(name: &str) -> String {
    format!("made-up-{}", name.to_lowercase())
}

/// The service of a container. The sidecars get some changes later.
pub(crate) fn service(place: &Place, container: &Value, image: String, secrets: &BTreeMap<String, Secret>) -> Value {
    let name = text(&container["name"]);
    let mut service = Map::new();
    let mut set = |field: &str, value: Value| {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            service.insert(field.to_owned(), value);
        }
    };
    set("image", json!(image));
    set("network_mode", json!(format!("service:{}", place.task)));
    set("labels", labels(place, container, &name).into());
    set("environment", environment(place, container, &name, secrets).into());
    for (field, from) in
        [("entrypoint", "entryPoint"), ("command", "command"), ("user", "user"), ("working_dir", "workingDirectory")]
    {
        set(field, escaped_value(&container[from]));
    }
    for (field, from) in
        [("read_only", "readonlyRootFilesystem"), ("stdin_open", "interactive"), ("tty", "pseudoTerminal")]
    {
        set(field, json!(container[from].as_bool().filter(|is_set| *is_set)));
    }
    set("mem_limit", json!(container["memory"].as_u64().map(|mib| format!("{mib}m"))));
    set("stop_grace_period", json!(format!("{}s", container["stopTimeout"].as_u64().unwrap_or(30))));
    set("healthcheck", health_check(&container["healthCheck"]));
    set("depends_on", depends_on(place, container));
    set("volumes", volumes(place, container));
    let linux = &container["linuxParameters"];
    set("cap_add", linux["capabilities"]["add"].clone());
    set("cap_drop", linux["capabilities"]["drop"].clone());
    set("init", json!(linux["initProcessEnabled"].as_bool().filter(|is_set| *is_set)));
    set("shm_size", json!(linux["sharedMemorySize"].as_u64().map(|mib| format!("{mib}m"))));
    set("tmpfs", list(linux, "tmpfs").map(tmpfs).collect());
    service.into()
}

fn labels(place: &Place, container: &Value, name: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    for (label, value) in container["dockerLabels"].as_object().into_iter().flatten() {
        labels.insert(label.clone(), escaped_value(value));
    }
    labels.extend(place.labels(name));
    let mut set = |label: &str, value: String| labels.insert(format!("ecs-mesh.{label}"), json!(value));
    if container["essential"] == false {
        set("essential", "false".to_owned());
    }
    if let Some(seconds) = container["stopTimeout"].as_u64() {
        set("stop-timeout", seconds.to_string());
    }
    let on: Vec<_> = list(container, "dependsOn")
        .map(|on| format!("{}:{}", text(&on["containerName"]), text(&on["condition"])))
        .collect();
    if !on.is_empty() {
        set("depends-on", on.join(","));
    }
    if container["restartPolicy"]["enabled"] == true {
        // ECS's default.
        set(
            "restart-attempt-period",
            container["restartPolicy"]["restartAttemptPeriod"].as_u64().unwrap_or(300).to_string(),
        );
    }
    labels
}

fn environment(place: &Place, container: &Value, name: &str, secrets: &BTreeMap<String, Secret>) -> Map<String, Value> {
    let mut all = Map::new();
    for variable in list(container, "environment") {
        all.insert(text(&variable["name"]), escaped_value(&variable["value"]));
    }
    for secret in secret_names(container) {
        let value = secrets.get(&secret).map_or_else(|| made_up(&secret), |value| value.expose().to_owned());
        all.insert(secret, json!(escaped(&value)));
    }
    let metadata = format!("http://169.254.170.2/v4/{}-{name}", place.task_id());
    all.insert("ECS_CONTAINER_METADATA_URI_V4".to_owned(), json!(metadata));
    all
}

/// A health check, five times as often as on ECS, so that a task starts faster.
fn health_check(check: &Value) -> Value {
    let Some(command) = check.get("command") else { return Value::Null };
    let seconds = |field: &str, default: u64| check[field].as_u64().unwrap_or(default);
    json!({
        "test": escaped_value(command),
        "interval": format!("{}s", (seconds("interval", 30) / 5).max(1)),
        "timeout": format!("{}s", seconds("timeout", 5)),
        "retries": seconds("retries", 3),
        "start_period": format!("{}s", seconds("startPeriod", 0)),
    })
}

/// The containers for which this container waits. The container that writes the secrets is not one of them: it does not belong to the
/// task.
fn depends_on(place: &Place, container: &Value) -> Value {
    let on: Map<String, Value> = list(container, "dependsOn")
        .map(|on| {
            let condition = match on["condition"].as_str() {
                Some("HEALTHY") => "service_healthy",
                Some("SUCCESS" | "COMPLETE") => "service_completed_successfully",
                _ => "service_started",
            };
            (place.service(&text(&on["containerName"])), json!({ "condition": condition }))
        })
        .collect();
    if on.is_empty() { Value::Null } else { on.into() }
}

fn volumes(place: &Place, container: &Value) -> Value {
    let mount = |mount: &Value| {
        let read_only = if mount["readOnly"] == true { ":ro" } else { "" };
        let path = escaped(&text(&mount["containerPath"]));
        format!("{}:{path}{read_only}", place.volume(&text(&mount["sourceVolume"])))
    };
    list(container, "mountPoints").map(mount).collect()
}

fn tmpfs(mount: &Value) -> String {
    let size = mount["size"].as_u64().map(|mib| format!("size={mib}m"));
    let options = list(mount, "mountOptions").map(text);
    let options: Vec<_> = size.into_iter().chain(options).collect();
    let colon = if options.is_empty() { "" } else { ":" };
    escaped(&format!("{}{colon}{}", text(&mount["containerPath"]), options.join(",")))
}
