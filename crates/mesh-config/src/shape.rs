//! The shape of a document: its fields, as its reader asks for them.

/// An object's fields, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// Its fields.
    pub fields: Vec<Field>,
    /// Whether unknown fields are accepted, with a warning.
    pub open: bool,
}

/// A field of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its purpose, in a line.
    pub about: &'static str,
    /// Whether it is required.
    pub required: bool,
    /// Whether it may be `null`, which is the same as absent.
    pub nullable: bool,
    /// What it holds.
    pub kind: Kind,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string that is not empty.
    FilledText,
    /// A string that is a service's name, or empty.
    Name,
    /// True or false.
    Boolean,
    /// An integer.
    Integer,
    /// An integer within limits.
    IntegerIn {
        /// The smallest.
        minimum: i64,
        /// The largest, if there is one.
        maximum: Option<i64>,
    },
    /// Integers, each value once.
    Integers,
    /// Anything.
    Any,
    /// TCP ports, each only once.
    Ports,
    /// One of these words.
    Choice(Vec<&'static str>),
    /// Strings.
    Texts {
        /// Whether each value may occur only once.
        unique: bool,
    },
    /// Strings by name.
    TextMap,
    /// Lists of strings by name.
    Headers,
    /// An object that is passed on unchanged.
    Opaque,
    /// An object of this shape.
    Object(Shape),
    /// Objects of this shape.
    Objects(Shape),
}

impl Kind {
    /// The shape of the object, or of the objects.
    #[must_use]
    pub fn shape(&self) -> Option<&Shape> {
        match self {
            Self::Object(shape) | Self::Objects(shape) => Some(shape),
            _ => None,
        }
    }

    /// What is valid, in words for error messages and the reference page.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Text => "a string".to_owned(),
            Self::FilledText => "a string that is not empty".to_owned(),
            Self::Name => "lower-case letters, digits, - and _, with a letter or digit at both ends".to_owned(),
            Self::Boolean => "true or false".to_owned(),
            Self::Integer => "an integer".to_owned(),
            Self::IntegerIn { minimum, maximum: Some(maximum) } => format!("an integer from {minimum} to {maximum}"),
            Self::IntegerIn { minimum, maximum: None } => format!("an integer from {minimum}"),
            Self::Integers => "an array of integers, each value once".to_owned(),
            Self::Any => "a port".to_owned(),
            Self::Ports => "an array of ports, 1 to 65535, each once".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Texts { unique: false } => "an array of strings".to_owned(),
            Self::Texts { unique: true } => "an array of strings, each value once".to_owned(),
            Self::TextMap => "an object of strings".to_owned(),
            Self::Headers => "an object of arrays of strings".to_owned(),
            Self::Opaque | Self::Object(_) => "an object".to_owned(),
            Self::Objects(_) => "an array of objects".to_owned(),
        }
    }
}
