//! Logging to [standard error](crate::stderr), as text or JSON.

use tracing::{Level, Metadata};

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::env::Env;
use crate::secret::shown;
use crate::stderr::Lines;

/// Libraries that log through `tracing`. Their lines below `info` are left out.
const LIBRARIES: [&str; 7] = ["bollard", "h2", "hyper", "hyper_util", "rustls", "tonic", "tower"];

/// `LOG_LEVEL` or `LOG_FORMAT` has a wrong value.
#[derive(Debug, thiserror::Error)]
#[error("{variable} is {value}: expected {expected}")]
pub struct LogError {
    /// The variable.
    pub variable: &'static str,
    value: String,
    expected: &'static str,
}

/// Starts logging by `LOG_LEVEL` (`trace`, `debug`, `info`, `warn`, `error`; upper or lower case; otherwise `default_level`, otherwise
/// `info`) and `LOG_FORMAT` (`text` or `json`; default `text`). A second call changes nothing.
///
/// # Errors
/// When one of the two variables has another value.
pub fn init(env: &Env, default_level: Option<Level>) -> Result<(), LogError> {
    let level = match env.get("LOG_LEVEL") {
        None => default_level.unwrap_or(Level::INFO),
        Some(value) => value.parse().map_err(|_| LogError {
            variable: "LOG_LEVEL",
            value: shown(value),
            expected: "trace, debug, info, warn or error",
        })?,
    };
    // The debug lines of libraries are too many, and they show header fields, which may hold tokens.
    let ours = move |metadata: &Metadata<'_>| {
        *metadata.level() <= Level::INFO
            || !(LIBRARIES.iter().any(|library| metadata.target().split("::").next() == Some(library))
                // All crates of the AWS SDK. They trace requests and answers, which hold secrets.
                || metadata.target().starts_with("aws_"))
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(|| Lines).with_ansi(false);
    let started = match env.get("LOG_FORMAT") {
        None | Some("text") => subscriber.with_target(false).finish().with(filter_fn(ours)).try_init(),
        Some("json") => {
            subscriber.json().flatten_event(true).with_target(false).finish().with(filter_fn(ours)).try_init()
        }
        Some(value) => {
            return Err(LogError { variable: "LOG_FORMAT", value: shown(value), expected: "text or json" });
        }
    };
    // It fails only if logging has already started.
    let _ = started;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_level_or_format_is_named_with_the_valid_ones() {
        let error = init(&Env::from_iter([("LOG_LEVEL", "loud")]), None).unwrap_err();
        assert_eq!(error.to_string(), r#"LOG_LEVEL is "loud": expected trace, debug, info, warn or error"#);
        let error = init(&Env::from_iter([("LOG_FORMAT", "xml")]), None).unwrap_err();
        assert_eq!(error.to_string(), r#"LOG_FORMAT is "xml": expected text or json"#);
    }
}
