//! Compares two task definitions.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::task::registrable;

/// The differences between the deployed task definition and the rendered one, one per line with its path. The result is empty if ECS
/// treats both as equal. Each definition may be an input of `register-task-definition` or an output of `describe-task-definition`. The
/// values of environment variables are not shown. If one of the definitions has no tags, tags are not compared.
#[must_use]
pub fn differences(deployed: &Value, rendered: &Value) -> Vec<String> {
    let with_tags = |value: &Value| registrable(value).contains_key("tags");
    let tags = with_tags(deployed) && with_tags(rendered);
    let plain = |value: &Value| {
        let mut definition = registrable(value);
        if !tags {
            definition.remove("tags");
        }
        let mut value = Value::Object(definition);
        without_defaults(&mut value);
        value
    };
    let mut lines = Vec::new();
    compare("", &plain(deployed), &plain(rendered), &mut lines);
    lines
}

/// Removes the values that ECS fills in, and empty values.
fn without_defaults(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields.iter_mut() {
        match value {
            Value::Array(values) => values.iter_mut().for_each(without_defaults),
            Value::Object(_) if !is_by_name(name) => without_defaults(value),
            _ => {}
        }
    }
    if let (Some(port), Some(host)) = (fields.get("containerPort"), fields.get("hostPort"))
        && (port == host || host == &json!(0))
    {
        fields.remove("hostPort");
    }
    // In ECS's answers, a task's CPU and memory are strings. Only a task has a family.
    if fields.contains_key("family") {
        for name in ["cpu", "memory"] {
            if let Some(Value::Number(number)) = fields.get(name) {
                let text = number.to_string();
                fields.insert(name.to_owned(), text.into());
            }
        }
    }
    // This object is a health check: remove ECS's defaults.
    if fields.contains_key("command") && (fields.contains_key("interval") || fields.contains_key("retries")) {
        fields.retain(|name, value| {
            !(name == "interval" && *value == 30
                || name == "timeout" && *value == 5
                || name == "retries" && *value == 3)
        });
    }
    fields.retain(|name, value| !is_default(name, value));
}

/// Objects with keys that the user chooses.
fn is_by_name(field: &str) -> bool {
    matches!(field, "dockerLabels" | "options" | "driverOpts" | "labels")
}

fn is_default(name: &str, value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(value) => *value == (name == "essential") && name != "enabled",
        Value::Number(number) => name == "cpu" && number.as_u64() == Some(0),
        Value::String(text) => name == "protocol" && text == "tcp",
        Value::Null => true,
    }
}

/// The field that identifies an object in a list whose order does not matter.
fn key(field: &str, object: &Map<String, Value>) -> Option<String> {
    let by = match field {
        "containerDefinitions" | "environment" | "secrets" | "secretOptions" | "volumes" | "ulimits" => "name",
        "tags" => "key",
        "dependsOn" => "containerName",
        "mountPoints" => "containerPath",
        "portMappings" => {
            let port = object.get("containerPort").or_else(|| object.get("containerPortRange"))?;
            let protocol = object.get("protocol").and_then(Value::as_str).unwrap_or("tcp");
            return Some(format!("{}/{protocol}", port.to_string().trim_matches('"')));
        }
        _ => return None,
    };
    Some(object.get(by)?.as_str()?.to_owned())
}

fn compare(path: &str, deployed: &Value, rendered: &Value, lines: &mut Vec<String>) {
    if deployed == rendered {
        return;
    }
    let dotted = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let field = path.rsplit('.').next().unwrap_or(path);
    match (deployed, rendered) {
        (Value::Object(deployed), Value::Object(rendered)) => {
            let names: BTreeSet<_> = deployed.keys().chain(rendered.keys()).collect();
            for name in names {
                let of = |fields: &Map<String, Value>| fields.get(name).cloned().unwrap_or(Value::Null);
                compare(&dotted(name), &of(deployed), &of(rendered), lines);
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) => {
            let keyed = |list: &Value| -> Option<Vec<(String, Value)>> {
                let values = list.as_array().into_iter().flatten();
                values.map(|value| Some((key(field, value.as_object()?)?, value.clone()))).collect()
            };
            match (keyed(deployed), keyed(rendered)) {
                (Some(deployed), Some(rendered)) => {
                    let keys: BTreeSet<_> = deployed.iter().chain(&rendered).map(|(key, _)| key).collect();
                    for key in keys {
                        let of = |list: &[(String, Value)]| {
                            list.iter().find(|(name, _)| name == key).map_or(Value::Null, |(_, value)| value.clone())
                        };
                        compare(&format!("{path}[{key}]"), &of(&deployed), &of(&rendered), lines);
                    }
                }
                _ => lines.push(line(path, deployed, rendered)),
            }
        }
        _ => lines.push(line(path, deployed, rendered)),
    }
}

fn line(path: &str, deployed: &Value, rendered: &Value) -> String {
    let secret = path.split(['.', '[']).any(|part| part == "environment");
    match (deployed, rendered) {
        (Value::Null, _) => format!("{path}: not deployed"),
        (_, Value::Null) => format!("{path}: deployed, but not rendered"),
        _ if secret => format!("{path}: deployed with another value"),
        _ => format!("{path}: deployed {}, rendered {}", shown(deployed), shown(rendered)),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(values) if values.iter().any(Value::is_object) => "a list of objects".to_owned(),
        other => other.to_string(),
    }
}
