//! The document's JSON schema and its reference page, made from its shape.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::document::{Config, Mode};
use crate::reader::{self, Object};
use crate::rules::RULES;
use crate::shape::{Field, Kind, Shape};

/// Names that Consul accepts for services and service identities. The empty name is the same as an absent field.
const NAME_PATTERN: &str = "^([a-z0-9]([a-z0-9_-]*[a-z0-9])?)?$";

impl Shape {
    /// The shape of the whole document of a task in this mode.
    #[must_use]
    pub fn of_document(mode: Mode) -> Self {
        reader::describe(mode, Config::read)
    }

    /// The shape of a document with these fields, except `bootstrapDir`, and with fields of the caller. `own` reads the caller's fields.
    pub fn of_document_beside<T>(mode: Mode, own: impl FnOnce(&mut Object<'_>) -> T) -> Self {
        reader::describe(mode, |root| (own(root), Config::read_rest(root, PathBuf::new())))
    }

    /// Its JSON schema.
    #[must_use]
    pub fn schema(&self) -> Map<String, Value> {
        let properties: Map<_, _> = self.fields.iter().map(|field| (field.name.to_owned(), field.schema())).collect();
        let required: Vec<_> = self.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
        let mut schema =
            Map::from_iter([("type".to_owned(), json!("object")), ("properties".to_owned(), properties.into())]);
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        schema.insert("additionalProperties".to_owned(), json!(self.open));
        schema
    }
}

/// Writes a table of the fields of an object, then one table for each object among them. The shapes are those of a task with an agent and
/// of one without.
fn tables(shapes: [Option<&Shape>; 2], path: &str, page: &mut String) {
    let title = if path.is_empty() { "The document".to_owned() } else { format!("`{path}`") };
    let other = "a field that is not in this table is";
    let judged = |open| if open { "ignored, with a warning" } else { "an error" };
    let others = match shapes.map(|shape| shape.map(|shape| judged(shape.open))) {
        [Some(with), Some(without)] if with != without => {
            format!("With an agent, {other} {with}. Without an agent, it is {without}.")
        }
        [Some(same), _] | [None, Some(same)] => format!("A{} {same}.", &other[1..]),
        [None, None] => return,
    };
    let _ = write!(page, "\n## {title}\n\n{others}\n\n| field | task | type | |\n|---|---|---|---|\n");
    let fields = union(shapes);
    for both in &fields {
        let [with, without] = both.map(|field| field.map(Field::described));
        let (task, kind) = match (with, without) {
            (Some(with), Some(without)) if with != without => {
                ("", format!("with an agent: {with}; without: {without}"))
            }
            (Some(same), Some(_)) => ("", same),
            (Some(with), None) => ("with an agent", with),
            (None, Some(without)) => ("without an agent", without),
            (None, None) => continue,
        };
        let field = either(both);
        let _ = writeln!(page, "| `{}` | {task} | {kind} | {} |", field.name, field.about);
    }
    for both in &fields {
        let name = either(both).name;
        let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let suffix = if matches!(either(both).kind, Kind::Objects(_)) { "[]" } else { "" };
        tables(both.map(|field| field.and_then(|field| field.kind.shape())), &format!("{inner}{suffix}"), page);
    }
}

/// The fields of both shapes by name, first those of the first.
fn union<'a>([with, without]: [Option<&'a Shape>; 2]) -> Vec<[Option<&'a Field>; 2]> {
    let fields = |shape: Option<&'a Shape>| shape.map(|shape| &shape.fields[..]).unwrap_or_default();
    let named = |fields: &'a [Field], name: &str| fields.iter().find(|field| field.name == name);
    let (with, without) = (fields(with), fields(without));
    let first = with.iter().map(|field| [Some(field), named(without, field.name)]);
    let more = without.iter().filter(|field| named(with, field.name).is_none()).map(|field| [None, Some(field)]);
    first.chain(more).collect()
}

fn either<'a>(both: &[Option<&'a Field>; 2]) -> &'a Field {
    both[0].or(both[1]).expect("one shape has the field")
}

impl Field {
    /// Its type, for the reference page.
    fn described(&self) -> String {
        let required = if self.required { ", **required**" } else { "" };
        let null = if self.nullable || self.required { "" } else { ", not null" };
        format!("{}{required}{null}", self.kind.expected())
    }

    fn schema(&self) -> Value {
        let mut schema = match &self.kind {
            Kind::Text => object(json!({ "type": "string" })),
            Kind::FilledText => object(json!({ "type": "string", "minLength": 1 })),
            Kind::Name => object(json!({ "type": "string", "pattern": NAME_PATTERN })),
            Kind::Boolean => object(json!({ "type": "boolean" })),
            Kind::Integer => object(json!({ "type": "integer" })),
            Kind::IntegerIn { minimum, maximum: Some(maximum) } => {
                object(json!({ "type": "integer", "minimum": minimum, "maximum": maximum }))
            }
            Kind::IntegerIn { minimum, maximum: None } => object(json!({ "type": "integer", "minimum": minimum })),
            Kind::Integers => object(json!({ "type": "array", "items": { "type": "integer" }, "uniqueItems": true })),
            Kind::Any => Map::new(),
            Kind::Ports => {
                let port = json!({ "type": "integer", "minimum": 1, "maximum": 65535 });
                object(json!({ "type": "array", "items": port, "uniqueItems": true }))
            }
            Kind::Choice(words) => object(json!({ "type": "string", "enum": words })),
            Kind::Texts { unique: false } => object(json!({ "type": "array", "items": { "type": "string" } })),
            Kind::Texts { unique: true } => {
                object(json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }))
            }
            Kind::TextMap => object(json!({ "type": "object", "additionalProperties": { "type": "string" } })),
            Kind::Headers => {
                let values = json!({ "type": "array", "items": { "type": "string" } });
                object(json!({ "type": "object", "additionalProperties": values }))
            }
            Kind::Opaque => object(json!({ "type": "object" })),
            Kind::Object(shape) => shape.schema(),
            Kind::Objects(shape) => object(json!({ "type": "array", "items": shape.schema() })),
        };
        if self.nullable && self.kind != Kind::Any {
            schema.insert("type".to_owned(), json!([schema["type"], "null"]));
            if let Some(Value::Array(words)) = schema.get_mut("enum") {
                words.push(Value::Null);
            }
        }
        schema.insert("description".to_owned(), self.about.into());
        schema.into()
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The document's JSON schema, which describes what parsing accepts. The rules are not part of it.
#[must_use]
pub fn schema() -> Value {
    schema_of_modes("ecs-mesh configuration (CONSUL_ECS_CONFIG_JSON)", Shape::of_document)
}

/// The JSON schema of a document whose shape depends on the mode.
pub fn schema_of_modes(title: &str, shape: impl Fn(Mode) -> Shape) -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "if": { "required": ["consulServers"] },
        "then": shape(Mode::Agentless).schema(),
        "else": shape(Mode::Agent).schema(),
    })
}

/// The document's reference page, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# The configuration document\n\
         \n\
         This page lists the fields of `CONSUL_ECS_CONFIG_JSON`: every field of consul-ecs 0.6 and of 0.7 to 0.10. Beyond\n\
         consul-ecs 0.6, `gateway.kind` may also be `ingress-gateway` or `terminating-gateway`. If a document has\n\
         `consulServers`, it describes a task without a Consul agent, as in consul-ecs 0.7 to 0.10. If not, the task has an\n\
         agent. mesh-init and health-sync serve both kinds of task. In the tables, the column \"task\" says which of the two\n\
         has the field; it is empty if both have it.\n\
         \n\
         `mesh-init validate` reports all errors of a document and changes nothing\n\
         ([build mesh-init](task-definition.md#4-build-the-images) on your machine). `UPDATE_DOCS=1 cargo test -p mesh-config`\n\
         makes this page and the JSON schema, [config.schema.json](config.schema.json), from the code.\n\
         \n\
         mesh-init reads a document in two steps. *Parsing* accepts what the schema accepts. `null` is the same as an absent\n\
         field, except for fields that are required or marked \"not null\". A number such as `80.0` is an integer. *Checking*\n\
         applies the rules below. In an optional field, the empty string is the same as an absent field. No message repeats a\n\
         value that may be a credential: a check's `header` and `body`, and everything in a `config`.\n\
         \n\
         ## Rules\n\
         \n\
         If a message comes from a rule, it ends with the rule's name.\n\
         \n\
         | rule | |\n|---|---|\n",
    );
    for rule in RULES {
        let warns = if rule.warns { " (a warning)" } else { "" };
        let _ = writeln!(page, "| `{}`{warns} | {} |", rule.name, rule.about);
    }
    let (with, without) = (Shape::of_document(Mode::Agent), Shape::of_document(Mode::Agentless));
    tables([Some(&with), Some(&without)], "", &mut page);
    page
}
