//! Reads the documents field by field, and remembers what was read. Everything else is reported at the end, so nothing is lost in
//! silence.

use std::cell::RefCell;
use std::collections::BTreeSet;

use mesh_config::describe_value;
use serde_json::Value;

use super::advice;

/// The messages of the conversion, one line each. A line begins with the path.
#[derive(Debug, Default)]
pub(super) struct Log {
    errors: RefCell<Vec<String>>,
    reports: RefCell<Vec<String>>,
}

impl Log {
    pub(super) fn error(&self, line: impl Into<String>) {
        let (line, mut errors) = (line.into(), self.errors.borrow_mut());
        if !errors.contains(&line) {
            errors.push(line);
        }
    }

    pub(super) fn report(&self, line: impl Into<String>) {
        let (line, mut reports) = (line.into(), self.reports.borrow_mut());
        if !reports.contains(&line) {
            reports.push(line);
        }
    }

    pub(super) fn into_lines(self) -> (Vec<String>, Vec<String>) {
        (self.errors.into_inner(), self.reports.into_inner())
    }
}

/// A resource of App Mesh.
#[derive(Debug)]
pub(super) struct Resource<'a> {
    /// Its kind and name, such as `virtualNode[web]`. All paths in messages begin with it.
    id: String,
    value: &'a Value,
    read: RefCell<BTreeSet<String>>,
    log: &'a Log,
}

impl<'a> Resource<'a> {
    pub(super) fn new(id: String, value: &'a Value, log: &'a Log) -> Self {
        Self { id, value, read: RefCell::default(), log }
    }

    /// The whole document.
    pub(super) fn root(&self) -> Field<'_> {
        Field { resource: self, path: String::new(), value: self.value }
    }

    /// The field `spec`; empty if it is missing.
    pub(super) fn spec(&self) -> Field<'_> {
        self.root().field("spec")
    }

    /// Reports every field that was not read. If nothing in an object was read, the object gets one line.
    pub(super) fn report_unread(&self) {
        self.report_unread_in("", self.value);
    }

    fn report_unread_in(&self, path: &str, value: &Value) {
        let read = self.read.borrow();
        if value.is_null() || read.contains(path) {
            return;
        }
        let below = |end: char| {
            let begin = format!("{path}{end}");
            read.range(begin.clone()..).next().is_some_and(|found| found.starts_with(&begin))
        };
        // A line about the whole of `spec` would not help, so its fields are reported one by one.
        if !path.is_empty() && path != "spec" && !below('.') && !below('[') {
            let place = format!("{}.{path}", self.id);
            self.log.report(format!("{place}: {}", advice::of(&self.id, path)));
            return;
        }
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| self.report_unread_in(&join(path, name), value));
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(index, value)| self.report_unread_in(&format!("{path}[{index}]"), value)),
            _ => {}
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A field of a resource, with its path. A missing field is null.
#[derive(Debug, Clone)]
pub(super) struct Field<'r> {
    resource: &'r Resource<'r>,
    path: String,
    value: &'r Value,
}

impl<'r> Field<'r> {
    /// A field of this object.
    pub(super) fn field(&self, name: &str) -> Field<'r> {
        let value = self.value.get(name).unwrap_or(&Value::Null);
        Field { resource: self.resource, path: join(&self.path, name), value }
    }

    /// A field of this object, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<Field<'r>> {
        Some(self.field(name)).filter(Field::is_there)
    }

    /// The first of these fields that is there, with its name.
    pub(super) fn one_of<'n>(&self, names: &[&'n str]) -> Option<(&'n str, Field<'r>)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    pub(super) fn is_there(&self) -> bool {
        !self.value.is_null()
    }

    /// The elements of a list.
    pub(super) fn items(&self) -> Vec<Field<'r>> {
        let Some(list) = self.value.as_array() else {
            if self.is_there() {
                self.wrong("a list");
            }
            return Vec::new();
        };
        let item = |(index, value)| Field { resource: self.resource, path: format!("{}[{index}]", self.path), value };
        list.iter().enumerate().map(item).collect()
    }

    /// An element of this list; null if there is none.
    pub(super) fn field_at(&self, index: usize) -> Field<'r> {
        let value = self.value.get(index).unwrap_or(&Value::Null);
        Field { resource: self.resource, path: format!("{}[{index}]", self.path), value }
    }

    /// The text of an optional field.
    pub(super) fn text(&self) -> Option<&'r str> {
        self.read("a string", Value::as_str)
    }

    /// The text of a required field.
    pub(super) fn required_text(&self) -> &'r str {
        if !self.is_there() {
            self.wrong("a string");
        }
        self.text().unwrap_or_default()
    }

    /// The number of an optional field.
    pub(super) fn number(&self) -> Option<u64> {
        self.read("a number, 0 or more", Value::as_u64)
    }

    /// Whether an optional field is true.
    pub(super) fn is_true(&self) -> bool {
        self.read("true or false", Value::as_bool).unwrap_or_default()
    }

    fn read<T>(&self, expected: &str, read: impl FnOnce(&'r Value) -> Option<T>) -> Option<T> {
        self.mark_read();
        let value = read(self.value);
        if value.is_none() && self.is_there() {
            self.wrong(expected);
        }
        value
    }

    /// Takes this field and everything in it as read.
    pub(super) fn mark_read(&self) {
        self.resource.read.borrow_mut().insert(self.path.clone());
    }

    /// Reports that this field has no counterpart, and takes it as read.
    pub(super) fn lost(&self, why: &str) {
        self.mark_read();
        self.report(why);
    }

    /// Reports something about this field.
    pub(super) fn report(&self, line: &str) {
        self.resource.log.report(format!("{}: {line}", self.place()));
    }

    /// Reports an error of the input.
    pub(super) fn error(&self, line: &str) {
        self.resource.log.error(format!("{}: {line}", self.place()));
    }

    fn wrong(&self, expected: &str) {
        if self.is_there() {
            self.error(&format!("expected {expected}, got {}", describe_value(self.value)));
        } else {
            self.error(&format!("missing, expected {expected}"));
        }
    }

    /// The full path.
    pub(super) fn place(&self) -> String {
        if self.path.is_empty() { self.resource.id.clone() } else { format!("{}.{}", self.resource.id, self.path) }
    }
}
