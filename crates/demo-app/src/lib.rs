//! A service, a client and a load generator to watch a mesh with.
//!
//! [`serve`] is the service, [`client`] a client for people and health checks, [`load`] the load generator that never
//! repeats a request.

pub mod answer;
pub mod client;
pub mod load;
mod report;
pub mod serve;

pub use report::Report;

use std::net::SocketAddr;

use hyper::Uri;
use sidecar_kit::http;
use sidecar_kit::log::LogError;
use sidecar_kit::signals::SignalsError;

/// Why a program of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(LogError),
    /// The address is taken or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TERM and INT can't be caught.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// There was no answer.
    #[error("no answer from {url}")]
    Unanswered {
        /// What was asked.
        url: Uri,
        /// Why.
        source: http::Error,
    },
    /// What is asked for is too much for one process.
    #[error("{rate} requests a second for {duration} are {count}: expected at most {limit}")]
    TooMany {
        /// Requests a second.
        rate: f64,
        /// For how long.
        duration: humantime::FormattedDuration,
        /// How many that makes.
        count: f64,
        /// How many may be.
        limit: usize,
    },
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

/// A URL as people type it: without a scheme it is `http://`.
///
/// # Errors
/// When it is none, or is none this program can ask.
pub fn parse_url(text: &str) -> Result<Uri, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match full.parse::<Uri>() {
        Ok(url) if url.scheme_str() == Some("http") && url.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(_) => Err("expected http://host:port/path".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_no_scheme_and_no_path_and_is_never_https() {
        assert_eq!(parse_url("api:9090").unwrap(), "http://api:9090/");
        assert_eq!(parse_url("http://api/x?y=z").unwrap(), "http://api/x?y=z");
        for wrong in ["", "https://api", "http://", "http://a b"] {
            assert!(parse_url(wrong).is_err(), "{wrong}");
        }
    }
}
