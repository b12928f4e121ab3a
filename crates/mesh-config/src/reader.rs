//! Reads a JSON document field by field and collects all errors, each with its path. The same code also describes the
//! document: it records every field that it is asked for in a [`Shape`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::document::Mode;
use crate::shape::{Field, Kind, Shape};

/// One problem of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where: `proxy.upstreams[1].localBindPort`.
    pub path: String,
    /// The value; none if the field is missing.
    pub got: Option<String>,
    /// What would be valid.
    pub expected: String,
    /// The broken rule. None if the document does not match the schema.
    pub rule: Option<&'static str>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.got {
            Some(got) => write!(f, "{}: expected {}, got {got}", self.path, self.expected)?,
            None => write!(f, "{}: missing, expected {}", self.path, self.expected)?,
        }
        self.rule.map_or(Ok(()), |rule| write!(f, " [{rule}]"))
    }
}

/// The document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("not JSON")]
    NotJson(#[source] serde_json::Error),
    /// Fields are missing, unknown or have invalid values.
    #[error("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Fields {
        /// All errors.
        errors: Vec<FieldError>,
        /// All warnings.
        warnings: Vec<String>,
    },
}

impl ConfigError {
    /// The warnings.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::NotJson(_) => &[],
            Self::Fields { warnings, .. } => warnings,
        }
    }
}

/// The errors and warnings of reading.
#[derive(Debug, Default)]
pub struct Findings {
    /// All errors.
    pub errors: Vec<FieldError>,
    /// All warnings.
    pub warnings: Vec<String>,
}

/// Collects the findings. To describe the document, the reader reads each object as if it existed and were empty.
struct Reading {
    findings: RefCell<Findings>,
    describing: bool,
    mode: Mode,
}

/// What to do with an unknown field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Report an error.
    Refused,
    /// Ignore it, with a warning.
    Warned,
}

/// An object of the document.
pub struct Object<'a> {
    path: String,
    fields: Option<&'a Map<String, Value>>,
    shape: Shape,
    /// Fields that only documents of the other mode have, and why.
    foreign: Vec<(&'static str, &'static str)>,
    reading: &'a Reading,
}

/// A field of an object. By default it is optional, and `null` is the same as absent.
pub struct FieldReader<'o, 'a> {
    object: &'o mut Object<'a>,
    name: &'static str,
    about: &'static str,
    required: bool,
    nullable: bool,
    private: bool,
}

/// Reads the whole document with `read`. The value is valid only if there are no errors.
pub(crate) fn document<T>(value: &Value, mode: Mode, read: impl FnOnce(&mut Object<'_>) -> T) -> (T, Findings) {
    let reading = Reading { findings: RefCell::default(), describing: false, mode };
    let mut root = Object::new(String::new(), value.as_object(), &reading);
    let read = read(&mut root);
    root.close(Unknown::Refused);
    let mut findings = reading.findings.into_inner();
    if !value.is_object() {
        findings = Findings::default();
        findings.errors.push(wrong("the document".to_owned(), describe_value(value), "an object".to_owned()));
    }
    (read, findings)
}

/// The shape of what `read` asks for.
pub(crate) fn describe<T>(mode: Mode, read: impl FnOnce(&mut Object<'_>) -> T) -> Shape {
    let reading = Reading { findings: RefCell::default(), describing: true, mode };
    let mut root = Object::new(String::new(), None, &reading);
    read(&mut root);
    root.close(Unknown::Refused)
}

fn wrong(path: String, got: String, expected: String) -> FieldError {
    FieldError { path, got: Some(got), expected, rule: None }
}

/// The value if it is short, else its kind.
pub fn describe_value(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::String(text) if text.chars().count() > 80 => "a longer string".to_owned(),
        other => other.to_string(),
    }
}

/// The kind of value, for values that may be credentials.
fn kind(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        other => describe_value(other),
    }
}

impl<'a> Object<'a> {
    fn new(path: String, fields: Option<&'a Map<String, Value>>, reading: &'a Reading) -> Self {
        Self { path, fields, shape: Shape::default(), foreign: Vec::new(), reading }
    }

    /// Whether the document is that of a task without an agent.
    #[must_use]
    pub fn is_agentless(&self) -> bool {
        self.reading.mode == Mode::Agentless
    }

    /// Says why the document must not have this field. Without this call, the error lists the known fields.
    pub fn refuse(&mut self, name: &'static str, because: &'static str) {
        self.foreign.push((name, because));
    }

    /// Asks for a field. `about` is its purpose, in a line.
    pub fn field<'o>(&'o mut self, name: &'static str, about: &'static str) -> FieldReader<'o, 'a> {
        FieldReader { object: self, name, about, required: false, nullable: true, private: false }
    }

    /// The path of a field. The name may come from the user, so control characters are replaced: a message is one line.
    fn at(&self, name: &str) -> String {
        let name = name.replace(char::is_control, "\u{fffd}");
        if self.path.is_empty() { name } else { format!("{}.{name}", self.path) }
    }

    fn error(&self, error: FieldError) {
        self.reading.findings.borrow_mut().errors.push(error);
    }

    /// Reports the unknown fields.
    fn close(mut self, unknown: Unknown) -> Shape {
        let known = |name: &str| self.shape.fields.iter().any(|field| field.name == name);
        for name in self.fields.into_iter().flat_map(Map::keys).filter(|name| !known(name)) {
            let mut names = self.shape.fields.iter().map(|field| field.name).collect::<Vec<_>>();
            names.sort_unstable();
            let (path, names) = (self.at(name), names.join(", "));
            let foreign = self.foreign.iter().find(|(foreign, _)| foreign == name);
            match unknown {
                Unknown::Refused if let Some((_, because)) = foreign => {
                    self.error(wrong(path, "a value".to_owned(), format!("no such field: {because}")));
                }
                Unknown::Refused => {
                    self.error(wrong(path, "an unknown field".to_owned(), format!("one of the fields {names}")));
                }
                Unknown::Warned => {
                    let warning = format!("{path}: an unknown field, ignored; known are {names}");
                    self.reading.findings.borrow_mut().warnings.push(warning);
                }
            }
        }
        self.shape.open = unknown == Unknown::Warned;
        self.shape
    }
}

impl<'a> FieldReader<'_, 'a> {
    /// The field is required.
    pub fn required(self) -> Self {
        Self { required: true, nullable: false, ..self }
    }

    /// The field is optional, but may not be `null`.
    pub(crate) fn not_null(self) -> Self {
        Self { nullable: false, ..self }
    }

    /// Messages must not repeat the value.
    pub(crate) fn private(self) -> Self {
        Self { private: true, ..self }
    }

    fn at(&self) -> String {
        self.object.at(self.name)
    }

    fn at_key(&self, key: &str) -> String {
        self.object.at(&format!("{}.{key}", self.name))
    }

    fn wrong(&self, path: String, value: &Value, expected: impl Into<String>) {
        let got = if self.private { kind(value) } else { describe_value(value) };
        self.object.error(wrong(path, got, expected.into()));
    }

    fn known_as(&mut self, kind: Kind) {
        let Self { name, about, required, nullable, .. } = *self;
        self.object.shape.fields.push(Field { name, about, required, nullable, kind });
    }

    /// The value, unless it is absent or `null`.
    fn value(&self, expected: &str) -> Option<&'a Value> {
        match self.object.fields.and_then(|fields| fields.get(self.name)) {
            Some(Value::Null) if self.nullable => None,
            None if self.required => {
                let (path, expected) = (self.at(), expected.to_owned());
                self.object.error(FieldError { path, got: None, expected, rule: None });
                None
            }
            value => value,
        }
    }

    /// The converted value. If `convert` gives none, it reports an error with what was expected.
    fn converted<T>(&mut self, kind: Kind, convert: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let expected = kind.expected();
        self.known_as(kind);
        let value = self.value(&expected)?;
        let converted = convert(value);
        if converted.is_none() {
            self.wrong(self.at(), value, expected);
        }
        converted
    }

    /// A string. As in consul-ecs, the empty string is the same as absent.
    pub fn text(mut self) -> Option<String> {
        let text = self.converted(Kind::Text, Value::as_str)?;
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A string that may not be empty.
    pub fn filled_text(mut self) -> Option<String> {
        self.converted(Kind::FilledText, |value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
    }

    /// A name that Consul accepts for services and service identities. The empty string is the same as absent.
    pub(crate) fn service_name(mut self) -> Option<String> {
        let is_name = |text: &&str| text.is_empty() || is_service_name(text);
        let text = self.converted(Kind::Name, |value| value.as_str().filter(is_name))?;
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// True or false.
    pub fn boolean(mut self) -> Option<bool> {
        self.converted(Kind::Boolean, Value::as_bool)
    }

    /// An integer. The value is none if it does not fit: a rule for each integer refuses such values.
    pub(crate) fn integer<T: TryFrom<i64>>(mut self) -> Option<T> {
        self.converted(Kind::Integer, whole_number).and_then(|number| T::try_from(number).ok())
    }

    /// An integer within these limits, which are part of the schema.
    pub(crate) fn integer_in<T: TryFrom<i64>>(mut self, minimum: i64, maximum: Option<i64>) -> Option<T> {
        let is_inside = |number: &i64| *number >= minimum && maximum.is_none_or(|maximum| *number <= maximum);
        let number =
            self.converted(Kind::IntegerIn { minimum, maximum }, |value| whole_number(value).filter(is_inside))?;
        T::try_from(number).ok()
    }

    /// A port in a field for which the schema allows any value. A rule refuses what is not a port. 0 is the same as absent.
    pub(crate) fn port_of_any_type(mut self) -> Option<u16> {
        let port = self.converted(Kind::Any, Some)?;
        whole_number(port).and_then(|port| port.try_into().ok()).filter(|port| *port != 0)
    }

    /// Integers, each only once.
    pub(crate) fn unique_integers(mut self) -> Vec<i64> {
        let values = self.converted(Kind::Integers, Value::as_array).into_iter().flatten();
        let mut seen: Vec<&Value> = Vec::new();
        let mut numbers = Vec::new();
        for (index, value) in values.enumerate() {
            let path = format!("{}[{index}]", self.at());
            let same = |other: &&Value| *other == value || other.as_f64() == value.as_f64();
            match whole_number(value) {
                Some(_) if seen.iter().any(same) => {
                    self.object.error(wrong(path, format!("{value} again"), "each value once".to_owned()));
                }
                Some(number) => numbers.push(number),
                None => self.wrong(path, value, "an integer"),
            }
            seen.push(value);
        }
        numbers
    }

    /// TCP ports, each only once.
    pub fn ports(mut self) -> Vec<u16> {
        let values = self.converted(Kind::Ports, Value::as_array).into_iter().flatten();
        let mut ports = Vec::new();
        for (index, value) in values.enumerate() {
            let port = whole_number(value).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            match port.filter(|port| !ports.contains(port)) {
                Some(port) => ports.push(port),
                None => self.wrong(format!("{}[{index}]", self.at()), value, "a port, 1 to 65535, each once"),
            }
        }
        ports
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(mut self, choices: &[(&'static str, T)]) -> Option<T> {
        let words = choices.iter().map(|(word, _)| *word).collect();
        self.converted(Kind::Choice(words), |value| {
            let text = value.as_str()?;
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    /// Strings.
    pub fn texts(self) -> Vec<String> {
        self.all_texts(false)
    }

    /// Strings, each only once.
    pub(crate) fn unique_texts(self) -> Vec<String> {
        self.all_texts(true)
    }

    fn all_texts(mut self, unique: bool) -> Vec<String> {
        let values = self.converted(Kind::Texts { unique }, Value::as_array).into_iter().flatten();
        let mut texts: Vec<String> = Vec::new();
        for (index, value) in values.enumerate() {
            let path = format!("{}[{index}]", self.at());
            match value.as_str() {
                Some(text) if unique && texts.iter().any(|other| other == text) => {
                    self.object.error(wrong(path, format!("{text:?} again"), "each value once".to_owned()));
                }
                Some(text) => texts.push(text.to_owned()),
                None => self.wrong(path, value, "a string"),
            }
        }
        texts
    }

    pub(crate) fn text_map(mut self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (key, value) in self.converted(Kind::TextMap, Value::as_object).into_iter().flatten() {
            match value.as_str() {
                Some(text) => drop(map.insert(key.clone(), text.to_owned())),
                None => self.wrong(self.at_key(key), value, "a string"),
            }
        }
        map
    }

    /// Header fields: an array of strings by name.
    pub(crate) fn headers(mut self) -> BTreeMap<String, Vec<String>> {
        let mut map = BTreeMap::new();
        for (key, value) in self.converted(Kind::Headers, Value::as_object).into_iter().flatten() {
            let texts = value.as_array().and_then(|values| {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
            });
            match texts {
                Some(texts) => drop(map.insert(key.clone(), texts)),
                None => self.wrong(self.at_key(key), value, "an array of strings"),
            }
        }
        map
    }

    /// An object that is passed on unchanged. It may hold credentials.
    pub fn opaque(self) -> Map<String, Value> {
        self.private().converted(Kind::Opaque, Value::as_object).cloned().unwrap_or_default()
    }

    /// An object whose fields `read` reads.
    pub fn object<T>(mut self, unknown: Unknown, read: impl FnOnce(&mut Object<'a>) -> T) -> Option<T> {
        let value = self.value(&Kind::Object(Shape::default()).expected());
        let fields = value.and_then(Value::as_object);
        if let (Some(value), None) = (value, fields) {
            self.wrong(self.at(), value, "an object");
        }
        let (value, shape) = if fields.is_some() || self.object.reading.describing {
            let (value, shape) = self.inner(self.at(), fields, unknown, read);
            (Some(value), shape)
        } else {
            (None, Shape::default())
        };
        self.known_as(Kind::Object(shape));
        value
    }

    pub(crate) fn objects<T>(mut self, unknown: Unknown, mut read: impl FnMut(&mut Object<'a>) -> T) -> Vec<T> {
        let mut objects = Vec::new();
        let shape = match self.object.reading.describing {
            true => self.inner(self.at(), None, unknown, &mut read).1,
            false => Shape::default(),
        };
        let values = self.converted(Kind::Objects(shape), Value::as_array).into_iter().flatten();
        for (index, value) in values.enumerate() {
            let path = format!("{}[{index}]", self.at());
            match value.as_object() {
                Some(fields) => objects.push(self.inner(path, Some(fields), unknown, &mut read).0),
                None => self.wrong(path, value, "an object"),
            }
        }
        objects
    }

    fn inner<T>(
        &self,
        path: String,
        fields: Option<&'a Map<String, Value>>,
        unknown: Unknown,
        read: impl FnOnce(&mut Object<'a>) -> T,
    ) -> (T, Shape) {
        let mut object = Object::new(path, fields, self.object.reading);
        let value = read(&mut object);
        (value, object.close(unknown))
    }
}

/// An integer. In JSON schema, `80.0` is an integer too. A number that does not fit into an `i64` becomes the limit of `i64`, which
/// every rule refuses.
#[expect(clippy::cast_possible_truncation, reason = "a number out of range becomes the limit")]
pub(crate) fn whole_number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64))
}

fn is_service_name(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(|c| ends(c) || c == '-' || c == '_')
}
