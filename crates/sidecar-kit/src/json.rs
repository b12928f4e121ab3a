//! JSON that may hold secrets. Its errors show the position and what was expected, and nothing of the text.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

/// A text that is not the JSON that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} (line {line}, column {column})")]
pub struct JsonError {
    what: String,
    line: usize,
    column: usize,
}

/// Decodes a JSON text.
///
/// # Errors
/// When it is not JSON, or of another form.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(text).map_err(|error| JsonError::from(&error))
}

impl From<&serde_json::Error> for JsonError {
    fn from(error: &serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Data => other_form(&error.to_string()),
            Category::Eof => "JSON that ends too early".to_owned(),
            Category::Syntax | Category::Io => "not JSON".to_owned(),
        };
        Self { what, line: error.line(), column: error.column() }
    }
}

/// serde says what it found, then what it expected.
fn other_form(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    let detail = match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!(": expected {expected}"),
        None if message.starts_with("missing field `") => format!(": {message}"),
        None => String::new(),
    };
    format!("JSON of another form{detail}")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are looked at")]
    struct Token {
        secret: String,
        kind: Kind,
    }

    #[derive(Debug, Deserialize)]
    enum Kind {
        A,
        B,
    }

    #[test]
    fn an_error_shows_position_and_expectation_but_no_text() {
        let cases = [
            (r#""5ec3e7""#, "JSON of another form: expected struct Token (line 1, column 8)"),
            (r#"{"secret":5737,"kind":"A"}"#, "JSON of another form: expected a string (line 1, column 14)"),
            (r#"{"secret":"s","kind":"5ec3e7, expected 5ec3e7"}"#, "JSON of another form: expected `A` or `B` (line 1"),
            (r#"{"kind":"A"}"#, "JSON of another form: missing field `secret` (line 1, column 12)"),
            (r#"{"5ec3e7":1}"#, "JSON of another form: expected `secret` or `kind` (line 1"),
            ("secret 5ec3e7", "not JSON (line 1, column 1)"),
            (r#"{"secret":"5ec3e7"#, "JSON that ends too early (line 1, column 17)"),
        ];
        for (text, expected) in cases {
            let error = decode::<Token>(text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{text}: {error}");
            let all = format!("{error} {error:?}");
            assert!(!all.contains("5ec3e7") && !all.contains("5737"), "{all}");
        }
    }
}
