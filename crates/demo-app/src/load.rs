//! The load generator. It never repeats a request.
//!
//! Requests start on a fixed schedule, even if earlier ones have not been answered. The latency of a request counts from the time
//! when it was due. This module uses hyper's connections directly: hyper's pooled client silently repeats a request if a reused
//! connection turns out to be closed, and these failures must be counted.

use std::cell::RefCell;
use std::error::Error as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use sidecar_kit::exit::FAILURE;
use sidecar_kit::signals::StopSignals;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::Error;
use crate::answer::Answer;
use crate::report::{Outcome, Report};

/// The most requests of one load, because each latency (16 bytes) is stored until the end.
const MAX_REQUESTS: usize = 5_000_000;
/// The largest body that the load generator reads, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The options of `load`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The URL; without a scheme it is http://
    #[arg(env = "URL", value_parser = crate::parse_url)]
    pub url: Uri,
    /// Requests a second
    #[arg(long, env = "RATE", value_name = "N", default_value = "200", value_parser = parse_rate)]
    pub rate: f64,
    /// For how long to start requests. TERM and INT end it early
    #[arg(long, env = "DURATION", value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// How many connections are reused. If all of them are busy, a request gets a new connection
    #[arg(long, env = "CONNECTIONS", value_name = "N", default_value = "8")]
    pub connections: usize,
    /// The share of requests that get a new connection, such as 0.2 or 20%
    #[arg(long, env = "FRESH", value_name = "SHARE", default_value = "0", value_parser = parse_share)]
    pub fresh: f64,
    /// How long a request may take from the time when it is due, including the connection
    #[arg(long, env = "TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Report as JSON
    #[arg(long, env = "JSON")]
    pub json: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| *rate > 0.0 && *rate <= 100_000.0)
        .ok_or_else(|| "expected more than 0, at most 100000".to_owned())
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    let share = share.ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected 0 to 1 or 0% to 100%".to_owned())
}

type Connection = SendRequest<Empty<Bytes>>;

/// The state that all requests share.
struct Target {
    url: Uri,
    address: String,
    idle: RefCell<Vec<Connection>>,
    /// The number of reused connections, idle or busy.
    kept: RefCell<usize>,
    opened: RefCell<usize>,
    connections: usize,
}

/// Sends the load and prints the report. The exit code is 0 if every request was answered with 2xx.
///
/// # Errors
/// If the load is too much for one process.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let Options { url, rate, duration, connections, fresh, timeout, json } = options;
    let count = (rate * duration.as_secs_f64()).ceil();
    if count > MAX_REQUESTS as f64 {
        let duration = humantime::format_duration(duration);
        return Err(Error::TooMany { rate, duration, count, limit: MAX_REQUESTS });
    }
    let mut signals = StopSignals::catch()?;
    let host = url.host().unwrap_or_default();
    let target = Rc::new(Target {
        address: format!("{host}:{}", url.port_u16().unwrap_or(80)),
        url: url.clone(),
        idle: RefCell::default(),
        kept: RefCell::default(),
        opened: RefCell::default(),
        connections,
    });

    let mut report = Report::of(url.to_string());
    let began = Instant::now();
    let sending = async {
        let mut requests = JoinSet::new();
        'schedule: for index in 0..count as usize {
            let due = began + Duration::from_secs_f64(index as f64 / rate);
            loop {
                tokio::select! {
                    biased;
                    _ = signals.next() => break 'schedule,
                    () = sleep_until(due) => break,
                    Some(outcome) = requests.join_next() => report.add(outcome.expect("a request does not panic")),
                }
            }
            let own = (index as f64 + 1.0) * fresh;
            let own = own.floor() > (index as f64 * fresh).floor();
            requests.spawn_local(request(target.clone(), due, timeout, own));
        }
        while let Some(outcome) = requests.join_next().await {
            report.add(outcome.expect("a request does not panic"));
        }
    };
    LocalSet::new().run_until(sending).await;

    report.seconds = began.elapsed().as_secs_f64();
    report.connections = *target.opened.borrow();
    report.finish();
    let text = if json { serde_json::to_string(&report).unwrap_or_default() + "\n" } else { report.to_string() };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)?;
    Ok(if report.all_succeeded() { ExitCode::SUCCESS } else { FAILURE.into() })
}

async fn request(target: Rc<Target>, due: Instant, timeout: Duration, own: bool) -> Outcome {
    match timeout_at(due + timeout, exchange(&target, own)).await {
        Ok(Ok(tasks)) => Outcome::Succeeded { latency: due.elapsed(), tasks },
        Ok(Err(reason)) => Outcome::Failed(reason),
        Err(_) => Outcome::Failed("timeout".to_owned()),
    }
}

/// Sends one request. Returns the tasks that took part in the answer, or the reason of the failure.
async fn exchange(target: &Rc<Target>, own: bool) -> Result<Vec<String>, String> {
    let mut lease = Lease { target: target.clone(), kept: false };
    let mut connection = match if own { None } else { lease.idle() } {
        Some(connection) => connection,
        None => {
            lease.kept = !own && target.keep();
            target.connect().await?
        }
    };
    let mut request = Request::get(target.url.path_and_query().map_or("/", |path| path.as_str()));
    request = request.header(HOST, target.url.authority().map_or("", |authority| authority.as_str()));
    if !lease.kept {
        request = request.header(hyper::header::CONNECTION, "close");
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| broken(&error))?;
    let (head, body) = answer.into_parts();
    let body =
        Limited::new(body, MAX_BODY).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broken(&error),
            Err(_) => format!("answer larger than {MAX_BODY} bytes"),
        })?;
    lease.give_back(connection);
    let body = body.to_bytes();
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    if head.status.is_success() {
        return Ok(answer.map(|answer| answer.tasks()).unwrap_or_default());
    }
    Err(describe(head.status, &head.headers, answer.as_ref(), &body))
}

/// A connection in use: a reused one, or one for a single request.
struct Lease {
    target: Rc<Target>,
    kept: bool,
}

impl Lease {
    /// An idle connection that is still open. A closed connection has not sent this request, so skipping it is not a second attempt.
    fn idle(&mut self) -> Option<Connection> {
        while let Some(connection) = self.target.idle.borrow_mut().pop() {
            if connection.is_ready() {
                self.kept = true;
                return Some(connection);
            }
            *self.target.kept.borrow_mut() -= 1;
        }
        None
    }

    fn give_back(mut self, connection: Connection) {
        if self.kept && !connection.is_closed() {
            self.kept = false;
            let target = self.target.clone();
            tokio::task::spawn_local(async move {
                let mut connection = connection;
                match connection.ready().await {
                    Ok(()) => target.idle.borrow_mut().push(connection),
                    Err(_) => *target.kept.borrow_mut() -= 1,
                }
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.kept {
            *self.target.kept.borrow_mut() -= 1;
        }
    }
}

impl Target {
    /// Whether one more connection may be reused. If so, it is counted.
    fn keep(&self) -> bool {
        let mut kept = self.kept.borrow_mut();
        let room = *kept < self.connections;
        *kept += usize::from(room);
        room
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| format!("connect: {}", reason(&error)))?;
        let _ = stream.set_nodelay(true);
        *self.opened.borrow_mut() += 1;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // The request returns the same error.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        _ => error.to_string(),
    }
}

fn broken(error: &hyper::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return reason(io);
        }
        cause = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "closed before an answer".to_owned();
    }
    error.to_string()
}

/// Why an answer counts as failed: its status, the text that Envoy adds to its own answers, and the failure of an upstream,
/// otherwise the start of the body.
fn describe(status: StatusCode, headers: &HeaderMap, answer: Option<&Answer>, body: &[u8]) -> String {
    let mut parts = vec![format!("status {}", status.as_u16())];
    for (name, value) in headers {
        let name = name.as_str();
        if name.starts_with("x-envoy-") && name != "x-envoy-upstream-service-time" {
            parts.push(format!("{name}={}", String::from_utf8_lossy(value.as_bytes())));
        }
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(1000)]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(120).collect();
    parts.push(answer.and_then(Answer::failure).unwrap_or(text));
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}
