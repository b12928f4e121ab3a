//! Errors in the settings or the task definition.

use std::fmt;

use mesh_config::{FieldError, describe_value};
use serde_json::Value;

/// Which of the two documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// The settings.
    Settings,
    /// The task definition.
    Task,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which document.
    pub document: Document,
    /// The path, the value, and what is expected.
    pub error: FieldError,
}

/// All errors in both documents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let document = match self.document {
            Document::Settings => "settings",
            Document::Task => "task definition",
        };
        write!(f, "{document}: {}", self.error)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Collects the problems of one document.
#[derive(Debug)]
pub(crate) struct Collected {
    document: Document,
    pub(crate) problems: Vec<Problem>,
}

impl Collected {
    pub(crate) fn new(document: Document) -> Self {
        Self { document, problems: Vec::new() }
    }

    pub(crate) fn add(&mut self, error: FieldError) {
        self.problems.push(Problem { document: self.document, error });
    }

    /// Adds a problem with a value.
    pub(crate) fn wrong(
        &mut self,
        path: impl Into<String>,
        got: &Value,
        expected: impl Into<String>,
        rule: Option<&'static str>,
    ) {
        self.add(FieldError { path: path.into(), got: Some(describe_value(got)), expected: expected.into(), rule });
    }

    /// Adds a problem with a missing value.
    pub(crate) fn missing(&mut self, path: impl Into<String>, expected: impl Into<String>, rule: Option<&'static str>) {
        self.add(FieldError { path: path.into(), got: None, expected: expected.into(), rule });
    }
}
