//! A service, a client and a load generator to test a mesh.
//!
//! [`serve`] is the service. [`client`] is for people and health checks. [`load`] is the load generator, which never repeats a request.

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

/// Why a command of demo-app failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(LogError),
    /// The address is in use or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The program cannot catch TERM and INT.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// There was no answer.
    #[error("no answer from {url}")]
    Unanswered {
        /// The URL.
        url: Uri,
        /// Why.
        source: http::Error,
    },
    /// The load has too many requests for one process.
    #[error("{rate} requests a second for {duration} are {count}: expected at most {limit}")]
    TooMany {
        /// Requests a second.
        rate: f64,
        /// The duration of the load.
        duration: humantime::FormattedDuration,
        /// The number of requests.
        count: f64,
        /// The largest allowed number.
        limit: usize,
    },
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

/// Parses a URL that a person typed. Without a scheme it is `http://`.
///
/// # Errors
/// If the text is not a URL, or not an `http://` URL.
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
    fn a_url_needs_no_scheme_or_path_and_https_is_refused() {
        assert_eq!(parse_url("api:9090").unwrap(), "http://api:9090/");
        assert_eq!(parse_url("http://api/x?y=z").unwrap(), "http://api/x?y=z");
        for wrong in ["", "https://api", "http://", "http://a b"] {
            assert!(parse_url(wrong).is_err(), "{wrong}");
        }
    }
}
