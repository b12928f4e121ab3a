//! Writes YAML in block style: one value a line, no anchors.

use std::fmt::Write;

use serde_json::Value;

/// Writes a field at this depth: `name: value`, or `name:` and the value below it.
pub(crate) fn field(out: &mut String, depth: usize, name: &str, value: &Value) {
    let _ = write!(out, "{:1$}{2}:", "", depth * 2, scalar(name));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            for (name, value) in fields {
                field(out, depth + 1, name, value);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            out.push('\n');
            for value in values {
                let _ = writeln!(out, "{:1$}- {2}", "", (depth + 1) * 2, in_line(value));
            }
        }
        value => {
            let _ = writeln!(out, " {}", in_line(value));
        }
    }
}

/// A value within a line. JSON is YAML too.
fn in_line(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), scalar)
}

/// A string: plain if YAML reads it as this string, else in quotes.
fn scalar(text: &str) -> String {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let simple = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./:=@-".contains(c)) && !text.ends_with(':');
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    if begins && simple && !word {
        return text.to_owned();
    }
    let printable = text.chars().all(|c| (' '..='~').contains(&c));
    if printable && text.contains(['"', '\\']) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_in_block_style() {
        let mut out = String::new();
        field(&mut out, 1, "web", &json!({ "a": ["x", "y: z"], "b": { "c": true, "d": 1 }, "e": [], "f": {} }));
        assert_eq!(
            out,
            "  web:\n    a:\n      - x\n      - \"y: z\"\n    b:\n      c: true\n      d: 1\n    e: []\n    f: {}\n"
        );
    }

    #[test]
    fn strings_stay_strings() {
        for (text, written) in [
            ("ecs-mesh/consul:dev", "ecs-mesh/consul:dev"),
            ("/consul:ro", "/consul:ro"),
            ("true", "\"true\""),
            ("No", "\"No\""),
            ("1", "\"1\""),
            ("", "\"\""),
            ("-l", "\"-l\""),
            ("a b", "\"a b\""),
            ("ends:", "\"ends:\""),
            ("~x", "\"~x\""),
            ("${A:-1}", "\"${A:-1}\""),
            (r#"{"a":"it's"}"#, r#"'{"a":"it''s"}'"#),
            ("two\nlines", r#""two\nlines""#),
        ] {
            assert_eq!(scalar(text), written);
        }
    }
}
