//! Renders the mesh task's definition.

use mesh_config::Role;
use serde_json::{Map, Value, json};

use crate::problem::{Collected, Document, Problems};
use crate::settings::{Mode, Settings};
use crate::sidecars::{self, APP_ENTRYPOINT, Around, WRAPPER};
use crate::task::{Container, Task, retain};
use crate::{resources, rules};

/// A mesh task's definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The input for `register-task-definition`.
    pub definition: Value,
    /// Notes for the user, one per line.
    pub notes: Vec<String>,
}

/// Makes the definition of a mesh task. `task` is an input of `register-task-definition` or an output of `describe-task-definition`. If it
/// is already the definition of a mesh task, it is rendered again.
///
/// # Errors
/// All errors in both documents.
pub fn render(settings: &Value, task: &Value) -> Result<Rendered, Problems> {
    let (settings, task) = read(settings, task)?;
    let role = Role::of(&settings.config);
    let Task { mut definition, family, containers } = task;
    let task = Task { definition: Map::new(), family, containers };
    let delayed: Vec<_> = rules::delayed(&settings, &task).into_iter().map(|one| one.name.clone()).collect();
    let around = Around {
        document: document(&settings, role, &task.containers),
        log_routers: task.containers.iter().filter(|one| one.is_log_router()).map(|one| one.name.as_str()).collect(),
        longest_stop: task.containers.iter().map(Container::stop_timeout).max().unwrap_or(0),
        stop_limit: rules::stop_limit(&definition),
        delays: !delayed.is_empty(),
    };
    let (sidecars, volumes) = sidecars::make(&settings, role, &around);
    let mut notes = settings.warnings.clone();
    let family = task.family.clone();
    let mut containers: Vec<Value> = task
        .containers
        .into_iter()
        .map(|container| {
            let delay = settings.shutdown_delay.as_ref().filter(|_| delayed.contains(&container.name));
            app(container, sidecars::proxy(&settings.mode), delay.map(|(text, _)| text.as_str()))
        })
        .collect();
    containers.extend(sidecars);
    let fargate = rules::is_fargate(&definition);
    notes.extend(resources::fit(&mut definition, &containers, fargate));
    if !definition.contains_key("executionRoleArn") && containers.iter().any(|one| one.get("secrets").is_some()) {
        notes.push(
            "executionRoleArn: missing; ECS needs the role that reads the secrets (`mesh-task policy`)".to_owned(),
        );
    }
    if settings.logs_in() && !definition.contains_key("taskRoleArn") {
        notes.push("taskRoleArn: missing; the login needs the task's role (`mesh-task policy`)".to_owned());
    }
    definition.insert("containerDefinitions".to_owned(), containers.into());
    extend(&mut definition, "volumes", volumes);
    tags(&mut definition, role, &family);
    Ok(Rendered { definition: definition.into(), notes })
}

/// Reads both documents and checks the rules.
pub(crate) fn read(settings: &Value, task: &Value) -> Result<(Settings, Task), Problems> {
    let (settings, mut of_settings) = Settings::read(settings);
    let mut found = Collected::new(Document::Task);
    let task = Task::read(task, &settings.mode, &mut found);
    rules::check(&settings, &task, &mut of_settings, &mut found);
    let problems = [of_settings.problems, found.problems].concat();
    if problems.is_empty() { Ok((settings, task)) } else { Err(Problems(problems)) }
}

/// The document. If the service has no checks, all containers with a health check go into `healthSyncContainers`, except log routers.
/// Without an agent, `transparentProxy` is off: consul-ecs 0.8 to 0.10 turns it on if the field is absent.
fn document(settings: &Settings, role: Role<'_>, containers: &[Container]) -> String {
    let mut document = settings.document.clone();
    if let Role::Service(service) = role
        && service.checks.is_empty()
        && !document.contains_key("healthSyncContainers")
    {
        let healthy = containers.iter().filter(|one| one.fields.contains_key("healthCheck") && !one.is_log_router());
        let names: Vec<_> = healthy.map(|one| one.name.as_str()).collect();
        if !names.is_empty() {
            document.insert("healthSyncContainers".to_owned(), json!(names));
        }
    }
    if settings.mode == Mode::Agentless && matches!(role, Role::Service(_)) {
        document.entry("transparentProxy").or_insert_with(|| json!({ "enabled": false }));
    }
    Value::Object(document).to_string()
}

/// A container of the user. It starts after the proxy, and under app-entrypoint if it has a delay. A log router does not change.
fn app(mut container: Container, proxy: &str, delay: Option<&str>) -> Value {
    if container.is_log_router() {
        return container.fields.into();
    }
    wait_for(&mut container.fields, proxy, "HEALTHY");
    if let Some(delay) = delay {
        let timeout = format!("{}s", container.stop_timeout());
        let mut words = vec![WRAPPER, "--shutdown-delay", delay, "--stop-timeout", &timeout];
        words.extend(container.entry_point().filter(|words| *words != [""]).into_iter().flatten());
        let words = json!(words);
        let fields = &mut container.fields;
        fields.insert("entryPoint".to_owned(), words);
        retain(fields, "dependsOn", |on| on["containerName"] != APP_ENTRYPOINT);
        wait_for(fields, APP_ENTRYPOINT, "SUCCESS");
        extend(fields, "mountPoints", vec![sidecars::wrapper_mount()]);
    }
    container.fields.into()
}

fn wait_for(fields: &mut Map<String, Value>, name: &str, condition: &str) {
    let list = fields.entry("dependsOn").or_insert_with(|| json!([]));
    let Value::Array(list) = list else { return };
    let entry = json!({ "containerName": name, "condition": condition });
    match list.iter_mut().find(|on| on["containerName"] == name) {
        Some(on) => *on = entry,
        None => list.push(entry),
    }
}

fn extend(fields: &mut Map<String, Value>, name: &str, more: Vec<Value>) {
    match fields.entry(name).or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(more),
        other => *other = more.into(),
    }
}

/// The tags by which acl-controller recognises the task. The task has them only if the ECS service propagates the tags of the task
/// definition.
fn tags(definition: &mut Map<String, Value>, role: Role<'_>, family: &str) {
    let service = role.identity(family);
    let gateway = match role {
        Role::Service(_) => None,
        Role::Gateway(gateway) => Some(gateway.kind.as_str()),
    };
    let (namespace, partition) = role.namespace_and_partition();
    let tags = [
        ("mesh", Some("true")),
        ("service-name", Some(service.as_str())),
        ("namespace", namespace),
        ("partition", partition),
        ("gateway-kind", gateway),
    ];
    let list = definition.entry("tags").or_insert_with(|| json!([]));
    let Value::Array(list) = list else { return };
    for (name, value) in tags {
        let key = format!("consul.hashicorp.com/{name}");
        let tag = value.map(|value| json!({ "key": key, "value": value }));
        match (list.iter().position(|tag| tag["key"] == *key), tag) {
            (Some(at), Some(tag)) => list[at] = tag,
            (Some(at), None) => drop(list.remove(at)),
            (None, Some(tag)) => list.push(tag),
            (None, None) => {}
        }
    }
}
