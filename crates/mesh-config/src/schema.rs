//! The document's JSON schema and its reference page, made from its shape.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::document::Config;
use crate::reader::{self, Object};
use crate::rules::RULES;
use crate::shape::{Field, Kind, Shape};

/// Names that Consul accepts for services and service identities. The empty name is the same as an absent field.
const NAME_PATTERN: &str = "^([a-z0-9]([a-z0-9_-]*[a-z0-9])?)?$";

impl Shape {
    /// The shape of the whole document.
    #[must_use]
    pub fn of_document() -> Self {
        reader::describe(Config::read)
    }

    /// The shape of a document that has all of these fields, except `bootstrapDir`, and the caller's own fields. `own` reads them.
    pub fn of_document_beside<T>(own: impl FnOnce(&mut Object<'_>) -> T) -> Self {
        reader::describe(|root| (own(root), Config::read_rest(root, PathBuf::new())))
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

    /// Writes a table of these fields, then one table for each object among them.
    fn tables(&self, path: &str, page: &mut String) {
        let title = if path.is_empty() { "The document" } else { path };
        let title = if path.is_empty() { title.to_owned() } else { format!("`{title}`") };
        let others = if self.open { "Other fields are ignored, with a warning." } else { "Other fields are errors." };
        let _ = write!(page, "\n## {title}\n\n{others}\n\n| field | type | |\n|---|---|---|\n");
        for field in &self.fields {
            let required = if field.required { ", **required**" } else { "" };
            let null = if field.nullable || field.required { "" } else { ", not null" };
            let kind = field.kind.expected();
            let _ = writeln!(page, "| `{}` | {kind}{required}{null} | {} |", field.name, field.about);
        }
        for field in &self.fields {
            let inner = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
            match &field.kind {
                Kind::Object(shape) => shape.tables(&inner, page),
                Kind::Objects(shape) => shape.tables(&format!("{inner}[]"), page),
                _ => {}
            }
        }
    }
}

impl Field {
    fn schema(&self) -> Value {
        let mut schema = match &self.kind {
            Kind::Text => object(json!({ "type": "string" })),
            Kind::FilledText => object(json!({ "type": "string", "minLength": 1 })),
            Kind::Name => object(json!({ "type": "string", "pattern": NAME_PATTERN })),
            Kind::Boolean => object(json!({ "type": "boolean" })),
            Kind::Integer => object(json!({ "type": "integer" })),
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
        if self.nullable {
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
    let mut schema = Shape::of_document().schema();
    schema.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
    schema.insert("title".to_owned(), json!("ecs-mesh configuration (CONSUL_ECS_CONFIG_JSON)"));
    schema.into()
}

/// The document's reference page, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# The configuration document\n\
         \n\
         This page lists the fields of `CONSUL_ECS_CONFIG_JSON`: every field of consul-ecs 0.6, and ingress and terminating\n\
         gateways. `mesh-init validate` reports all errors of a document and changes nothing\n\
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
    Shape::of_document().tables("", &mut page);
    page
}
