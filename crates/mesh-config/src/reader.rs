//! Reads a JSON document field by field and collects what is wrong with it, each finding with its path.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// One thing that is wrong with the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where: `proxy.upstreams[1].localBindPort`.
    pub path: String,
    /// What stands there; none if nothing does.
    pub got: Option<String>,
    /// What would do.
    pub expected: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.got {
            Some(got) => write!(f, "{}: expected {}, got {got}", self.path, self.expected),
            None => write!(f, "{}: missing, expected {}", self.path, self.expected),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("not JSON")]
    NotJson(#[source] serde_json::Error),
    /// The document has fields that are missing, unknown or hold what they may not: all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Fields(Vec<FieldError>),
}

/// What came to light while reading.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    errors: RefCell<Vec<FieldError>>,
    warnings: RefCell<Vec<String>>,
}

/// What to do with a field that nothing asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Refused,
    Warned,
}

/// An object of the document. A field that is asked for is known; `null` is the same as absent.
pub(crate) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
    known: BTreeSet<&'static str>,
    findings: &'a Findings,
}

/// Reads the whole document with `read`; gives its value and the warnings.
pub(crate) fn document<T>(
    text: &str,
    read: impl FnOnce(&mut Object<'_>) -> T,
) -> Result<(T, Vec<String>), ConfigError> {
    let value: Value = serde_json::from_str(text).map_err(ConfigError::NotJson)?;
    let findings = Findings::default();
    let value = match &value {
        Value::Object(fields) => {
            let mut root = Object { path: String::new(), fields, known: BTreeSet::new(), findings: &findings };
            let value = read(&mut root);
            root.close(Unknown::Refused);
            Some(value)
        }
        other => {
            findings.wrong("the document".to_owned(), other, "an object");
            None
        }
    };
    match value {
        Some(value) if findings.errors.borrow().is_empty() => Ok((value, findings.warnings.into_inner())),
        _ => Err(ConfigError::Fields(findings.errors.into_inner())),
    }
}

impl Findings {
    fn wrong(&self, path: String, got: &Value, expected: impl Into<String>) {
        self.wrong_as(path, describe(got), expected);
    }

    fn wrong_as(&self, path: String, got: String, expected: impl Into<String>) {
        self.errors.borrow_mut().push(FieldError { path, got: Some(got), expected: expected.into() });
    }
}

/// The value, if it is short; else what kind of value it is.
fn describe(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::String(text) if text.chars().count() > 80 => "a longer string".to_owned(),
        other => other.to_string(),
    }
}

/// The kind of value, for places that may hold a credential.
fn kind(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        other => describe(other),
    }
}

impl<'a> Object<'a> {
    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn field(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A field of which `convert` makes the value, or an error that says what was expected.
    fn converted<T>(
        &mut self,
        name: &'static str,
        expected: impl FnOnce() -> String,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.field(name)?;
        let converted = convert(value);
        if converted.is_none() {
            self.findings.wrong(self.at(name), value, expected());
        }
        converted
    }

    /// Reports that a field is missing, unless something wrong stands there, which is reported already.
    fn must<T: Default>(&mut self, name: &'static str, expected: &str, value: Option<T>) -> T {
        if value.is_none() && self.field(name).is_none() {
            let path = self.at(name);
            self.findings.errors.borrow_mut().push(FieldError { path, got: None, expected: expected.to_owned() });
        }
        value.unwrap_or_default()
    }

    /// Reports an error about a field that could be read.
    pub(crate) fn refuse(&self, name: &str, got: impl fmt::Display, expected: &str) {
        self.findings.wrong_as(self.at(name), got.to_string(), expected);
    }

    /// A string. The empty one is the same as absent, as it was to consul-ecs.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        let text = self.converted(name, || "a string".to_owned(), Value::as_str)?;
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A string that must be there and hold something.
    pub(crate) fn required_text(&mut self, name: &'static str) -> String {
        let expected = "a string that is not empty";
        let convert = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let value = self.converted(name, || expected.to_owned(), convert);
        self.must(name, expected, value)
    }

    /// A name that Consul and its service identities take. The empty string is the same as absent.
    pub(crate) fn service_name(&mut self, name: &'static str) -> Option<String> {
        let expected = || "lower-case letters, digits, - and _, with a letter or digit at both ends".to_owned();
        let text = self.converted(name, expected, |value| {
            value.as_str().filter(|text| text.is_empty() || is_service_name(text)).map(str::to_owned)
        })?;
        (!text.is_empty()).then_some(text)
    }

    /// A string whose content must not be printed.
    pub(crate) fn private_text(&mut self, name: &'static str) -> Option<String> {
        let value = self.field(name)?;
        if !value.is_string() {
            self.findings.wrong_as(self.at(name), kind(value), "a string");
        }
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    pub(crate) fn boolean(&mut self, name: &'static str) -> Option<bool> {
        self.converted(name, || "true or false".to_owned(), Value::as_bool)
    }

    pub(crate) fn integer<T>(&mut self, name: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        let value = self.field(name)?;
        let Some(number) = whole_number(value) else {
            self.findings.wrong(self.at(name), value, "an integer");
            return None;
        };
        let number = T::try_from(number).ok().filter(|number| range.contains(number));
        if number.is_none() {
            let expected = format!("an integer from {} to {}", range.start(), range.end());
            self.findings.wrong(self.at(name), value, expected);
        }
        number
    }

    pub(crate) fn required_integer<T>(&mut self, name: &'static str, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display + Default,
    {
        let value = self.integer(name, range);
        self.must(name, "an integer", value)
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let expected = || format!("one of {}", choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "));
        self.converted(name, expected, |value| {
            let text = value.as_str()?;
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    pub(crate) fn required_choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.choice(name, choices);
        let words = choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.must(name, &format!("one of {words}"), value.map(Some))
    }

    pub(crate) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let values: &[Value] = self.array(name);
        let texts = values.iter().enumerate().map(|(index, value)| {
            value.as_str().map(str::to_owned).unwrap_or_else(|| {
                self.findings.wrong(format!("{}[{index}]", self.at(name)), value, "a string");
                String::new()
            })
        });
        texts.collect()
    }

    /// Strings none of which stands twice.
    pub(crate) fn unique_texts(&mut self, name: &'static str) -> Vec<String> {
        let texts = self.texts(name);
        for (index, text) in texts.iter().enumerate() {
            if texts[..index].contains(text) {
                self.refuse(&format!("{name}[{index}]"), format!("{text:?} again"), "each value once");
            }
        }
        texts
    }

    pub(crate) fn text_map(&mut self, name: &'static str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (key, value) in self.entries(name) {
            match value.as_str() {
                Some(text) => drop(map.insert(key.clone(), text.to_owned())),
                None => self.findings.wrong(format!("{}.{key}", self.at(name)), value, "a string"),
            }
        }
        map
    }

    /// Header fields: an array of strings by name. Their values may be credentials and are never printed.
    pub(crate) fn headers(&mut self, name: &'static str) -> BTreeMap<String, Vec<String>> {
        let mut map = BTreeMap::new();
        for (key, value) in self.entries(name) {
            let texts = value.as_array().and_then(|values| {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
            });
            match texts {
                Some(texts) => drop(map.insert(key.clone(), texts)),
                None => {
                    self.findings.wrong_as(format!("{}.{key}", self.at(name)), kind(value), "an array of strings");
                }
            }
        }
        map
    }

    /// An object that is passed on as it is.
    pub(crate) fn opaque(&mut self, name: &'static str) -> Map<String, Value> {
        self.converted(name, || "an object".to_owned(), Value::as_object).cloned().unwrap_or_default()
    }

    pub(crate) fn object<T>(
        &mut self,
        name: &'static str,
        unknown: Unknown,
        read: impl FnOnce(&mut Object<'a>) -> T,
    ) -> Option<T> {
        let fields = self.converted(name, || "an object".to_owned(), Value::as_object)?;
        Some(self.inner(self.at(name), fields, unknown, read))
    }

    pub(crate) fn objects<T>(
        &mut self,
        name: &'static str,
        unknown: Unknown,
        mut read: impl FnMut(&mut Object<'a>) -> T,
    ) -> Vec<T> {
        let mut objects = Vec::new();
        for (index, value) in self.array(name).iter().enumerate() {
            let path = format!("{}[{index}]", self.at(name));
            match value.as_object() {
                Some(fields) => objects.push(self.inner(path, fields, unknown, &mut read)),
                None => self.findings.wrong(path, value, "an object"),
            }
        }
        objects
    }

    fn inner<T>(
        &self,
        path: String,
        fields: &'a Map<String, Value>,
        unknown: Unknown,
        read: impl FnOnce(&mut Object<'a>) -> T,
    ) -> T {
        let mut object = Object { path, fields, known: BTreeSet::new(), findings: self.findings };
        let value = read(&mut object);
        object.close(unknown);
        value
    }

    fn array(&mut self, name: &'static str) -> &'a [Value] {
        self.converted(name, || "an array".to_owned(), Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn entries(&mut self, name: &'static str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.converted(name, || "an object".to_owned(), Value::as_object).into_iter().flatten()
    }

    /// Finds the fields that nothing asked for.
    fn close(self, unknown: Unknown) {
        for name in self.fields.keys().filter(|name| !self.known.contains(name.as_str())) {
            let known = self.known.iter().copied().collect::<Vec<_>>().join(", ");
            match unknown {
                Unknown::Refused => {
                    let expected = format!("one of the fields {known}");
                    self.findings.wrong_as(self.at(name), "an unknown field".to_owned(), expected);
                }
                Unknown::Warned => {
                    let warning = format!("{}: an unknown field, ignored; known are {known}", self.at(name));
                    self.findings.warnings.borrow_mut().push(warning);
                }
            }
        }
    }
}

/// JSON schema counts `80.0` as an integer.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and far inside the range")]
fn whole_number(value: &Value) -> Option<i64> {
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() < 1e15;
    value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64))
}

fn is_service_name(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(|c| ends(c) || c == '-' || c == '_')
}
