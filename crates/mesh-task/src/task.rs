//! The user's task definition, without the additions of an earlier rendering.

use serde_json::{Map, Value, json};

use crate::problem::Collected;
use crate::settings::Mode;
use crate::sidecars::{self, APP_ENTRYPOINT, LABEL, VOLUMES, WRAPPER};

/// Fields that `describe-task-definition` returns and `register-task-definition` refuses.
const READ_ONLY: [&str; 8] = [
    "taskDefinitionArn",
    "revision",
    "status",
    "compatibilities",
    "requiresAttributes",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
];

/// A task definition in the form that `register-task-definition` accepts: unwrapped, without read-only fields and nulls.
pub(crate) fn registrable(value: &Value) -> Map<String, Value> {
    let mut value = value.clone();
    drop_nulls(&mut value);
    let Value::Object(mut outer) = value else { return Map::new() };
    let mut definition = match outer.remove("taskDefinition") {
        Some(Value::Object(mut definition)) => {
            if let Some(tags) = outer.remove("tags") {
                definition.insert("tags".to_owned(), tags);
            }
            definition
        }
        Some(other) => {
            outer.insert("taskDefinition".to_owned(), other);
            outer
        }
        None => outer,
    };
    definition.retain(|name, _| !READ_ONLY.contains(&name.as_str()));
    definition
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => {
            values.retain(|value| !value.is_null());
            values.iter_mut().for_each(drop_nulls);
        }
        _ => {}
    }
}

/// A container of the user.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its path in the user's task definition, for messages.
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) fields: Map<String, Value>,
}

/// The user's task definition.
#[derive(Debug, Default)]
pub(crate) struct Task {
    /// All fields except the containers.
    pub(crate) definition: Map<String, Value>,
    pub(crate) family: String,
    /// The user's containers.
    pub(crate) containers: Vec<Container>,
}

impl Task {
    /// Reads the task definition and removes the additions of an earlier rendering, which may have been for the other mode. The result is
    /// valid only if there are no problems.
    pub(crate) fn read(value: &Value, mode: &Mode, found: &mut Collected) -> Self {
        let mut definition = registrable(value);
        if !value.is_object() {
            found.wrong("the document", value, "a task definition, an object", None);
            return Self::default();
        }
        let family = text(&definition, "", "family", found);
        if family.is_none() && !definition.contains_key("family") {
            found.missing("family", "the name of the task's family", None);
        }
        let containers = match definition.remove("containerDefinitions") {
            Some(Value::Array(containers)) => containers,
            Some(other) => {
                found.wrong("containerDefinitions", &other, "an array of objects", None);
                return Self { definition, family: family.unwrap_or_default(), containers: Vec::new() };
            }
            None => {
                found.missing("containerDefinitions", "an array of objects", None);
                return Self { definition, family: family.unwrap_or_default(), containers: Vec::new() };
            }
        };
        let mut read = Vec::new();
        let mut rendered = false;
        for (index, container) in containers.into_iter().enumerate() {
            let path = format!("containerDefinitions[{index}]");
            let Value::Object(fields) = container else {
                found.wrong(path, &container, "an object", None);
                continue;
            };
            let name = text(&fields, &path, "name", found);
            if name.is_none() && !fields.contains_key("name") {
                found.missing(format!("{path}.name"), "the container's name", None);
            }
            let name = name.unwrap_or_default();
            if fields.get("dockerLabels").is_some_and(|labels| labels.get(LABEL).is_some()) {
                rendered = true;
            } else {
                read.push(Container { path, name, fields });
            }
        }
        let mut task = Self { definition, family: family.unwrap_or_default(), containers: read };
        if rendered {
            task.take_out(mode);
        }
        task
    }

    /// Removes the additions of a rendering from the user's fields.
    fn take_out(&mut self, mode: &Mode) {
        retain(&mut self.definition, "volumes", |volume| !VOLUMES.iter().any(|name| volume["name"] == **name));
        for container in &mut self.containers {
            let fields = &mut container.fields;
            retain(fields, "dependsOn", |on| !sidecars::is_proxy_of_other_mode(&on["containerName"], mode));
            let entry_point = fields.get("entryPoint").and_then(Value::as_array);
            let Some([wrapper, rest @ ..]) = entry_point.map(Vec::as_slice) else { continue };
            if wrapper != WRAPPER {
                continue;
            }
            let mut rest = rest;
            while let [flag, _, after @ ..] = rest
                && (flag == "--shutdown-delay" || flag == "--stop-timeout")
            {
                rest = after;
            }
            let own = if rest.is_empty() { json!([""]) } else { json!(rest) };
            fields.insert("entryPoint".to_owned(), own);
            retain(fields, "dependsOn", |on| on["containerName"] != APP_ENTRYPOINT);
            retain(fields, "mountPoints", |mount| mount["sourceVolume"] != APP_ENTRYPOINT);
        }
    }
}

/// Removes the elements for which `keep` is false. If the list becomes empty, removes the list.
pub(crate) fn retain(fields: &mut Map<String, Value>, name: &str, keep: impl Fn(&Value) -> bool) {
    if let Some(Value::Array(values)) = fields.get_mut(name) {
        let before = values.len();
        values.retain(keep);
        if values.is_empty() && before > 0 {
            fields.remove(name);
        }
    }
}

/// Converts a field by `convert`. Reports a problem if the field exists and cannot be converted.
pub(crate) fn read<'a, T>(
    fields: &'a Map<String, Value>,
    path: &str,
    name: &str,
    expected: &str,
    found: &mut Collected,
    convert: impl FnOnce(&'a Value) -> Option<T>,
) -> Option<T> {
    let value = fields.get(name)?;
    let converted = convert(value);
    if converted.is_none() {
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        found.wrong(path, value, expected, None);
    }
    converted
}

fn text(fields: &Map<String, Value>, path: &str, name: &str, found: &mut Collected) -> Option<String> {
    let filled = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    read(fields, path, name, "a string that is not empty", found, filled)
}

/// The objects of a list, each with its index. Reports every element that is not an object.
pub(crate) fn objects<'a>(
    fields: &'a Map<String, Value>,
    path: &str,
    name: &str,
    found: &mut Collected,
) -> Vec<(usize, &'a Map<String, Value>)> {
    let values = read(fields, path, name, "an array of objects", found, Value::as_array).into_iter().flatten();
    let mut objects = Vec::new();
    for (index, value) in values.enumerate() {
        match value.as_object() {
            Some(object) => objects.push((index, object)),
            None => {
                let dot = if path.is_empty() { "" } else { "." };
                found.wrong(format!("{path}{dot}{name}[{index}]"), value, "an object", None);
            }
        }
    }
    objects
}

impl Container {
    /// Whether it is a FireLens log router. It starts before the containers that log through it, and ends after them.
    pub(crate) fn is_log_router(&self) -> bool {
        self.fields.contains_key("firelensConfiguration")
    }

    /// Its stop timeout in seconds.
    pub(crate) fn stop_timeout(&self) -> u64 {
        self.fields.get("stopTimeout").and_then(Value::as_u64).unwrap_or(30)
    }

    /// The words of its entry point. `[""]` means that its image has no entry point.
    pub(crate) fn entry_point(&self) -> Option<Vec<&str>> {
        let words = self.fields.get("entryPoint")?.as_array()?.iter().map(Value::as_str);
        words.collect::<Option<Vec<_>>>().filter(|words| !words.is_empty())
    }

    /// Whether its image or the user already runs it under an app-entrypoint.
    pub(crate) fn has_own_wrapper(&self) -> bool {
        let program = self.entry_point().and_then(|words| words.first().copied());
        program.is_some_and(|program| program.rsplit('/').next() == Some("app-entrypoint"))
    }

    /// Its `dependsOn`: container and condition.
    pub(crate) fn depends_on(&self) -> impl Iterator<Item = (&str, &str)> {
        let list = self.fields.get("dependsOn").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|on| Some((on["containerName"].as_str()?, on["condition"].as_str()?)))
    }

    pub(crate) fn logs_by_firelens(&self) -> bool {
        self.fields.get("logConfiguration").is_some_and(|log| log["logDriver"] == "awsfirelens")
    }
}
