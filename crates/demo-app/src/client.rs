//! One request, for people and for health checks.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use sidecar_kit::exit::FAILURE;
use sidecar_kit::http::{Client, Limits, Request};
use sidecar_kit::stderr;

use crate::Error;

/// The largest body that is printed, in bytes.
const MAX_BODY: usize = 16 << 20;

/// The options of `get`.
#[derive(Debug, Clone, Args)]
pub struct Get {
    /// The URL; without a scheme it is http://
    #[arg(env = "URL", value_parser = crate::parse_url)]
    pub url: Uri,
    /// How long the whole answer may take
    #[arg(long, env = "TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// A header field to send; may be repeated
    #[arg(long, env = "HEADER", value_name = "NAME: VALUE", value_parser = parse_header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is not the name of a header field"))?;
    Ok((name, value.trim().parse().map_err(|_| "not the value of a header field")?))
}

/// Prints the status on standard error and the body on standard output. The exit code is 0 if the status is 2xx.
///
/// # Errors
/// If there is no answer.
pub async fn get(options: Get) -> Result<ExitCode, Error> {
    let Get { url, timeout, header } = options;
    let mut request = Request::default();
    *request.uri_mut() = url.clone();
    for (name, value) in header {
        request.headers_mut().append(name, value);
    }
    let began = Instant::now();
    let answer = Client::plain().send(request, Limits { time: timeout, bytes: MAX_BODY }).await;
    let answer = answer.map_err(|source| Error::Unanswered { url, source })?;
    stderr::line(format!("{} in {:.1} ms\n", answer.status, began.elapsed().as_secs_f64() * 1e3));
    let mut out = std::io::stdout().lock();
    let newline: &[u8] = if answer.body.is_empty() || answer.body.ends_with(b"\n") { b"" } else { b"\n" };
    out.write_all(&answer.body).and_then(|()| out.write_all(newline)).map_err(Error::Output)?;
    Ok(if answer.status.is_success() { ExitCode::SUCCESS } else { FAILURE.into() })
}

/// The options of the health check.
#[derive(Debug, Clone, Args)]
pub struct Health {
    /// The URL to check; by default /health of the `serve` on this machine
    #[arg(env = "HEALTH_URL", value_parser = crate::parse_url)]
    pub url: Option<Uri>,
    /// The address on which `serve` listens
    #[arg(long, env = "LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// How long the answer may take
    #[arg(long, env = "TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Prints the service's answer about its health. The exit code is 0 if the status is 2xx.
///
/// # Errors
/// If there is no answer.
pub async fn health(options: Health) -> Result<ExitCode, Error> {
    let Health { url, mut listen, timeout } = options;
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    let url = url.unwrap_or_else(|| format!("http://{listen}/health").parse().expect("an address makes a URL"));
    let mut request = Request::default();
    *request.uri_mut() = url.clone();
    let answer = Client::plain().send(request, Limits { time: timeout, bytes: MAX_BODY }).await;
    let answer = answer.map_err(|source| Error::Unanswered { url, source })?;
    // Docker and ECS store the output of a health check.
    println!("{} {}", answer.status.as_u16(), answer.excerpt());
    Ok(if answer.status.is_success() { ExitCode::SUCCESS } else { FAILURE.into() })
}
