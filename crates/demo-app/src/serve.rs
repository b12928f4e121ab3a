//! The service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use ecs_meta::MetadataClient;
use futures_util::future::join_all;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, Uri};
use serde::Serialize;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::http::{Client, Limits};
use sidecar_kit::server::{self, Response};
use sidecar_kit::signals::{Stop, StopSignals};
use sidecar_kit::wait::{Attempt, until};
use tokio::net::TcpListener;

use crate::Error;
use crate::answer::{Answer, Upstream};

/// The limits for the answer of one upstream.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 1 << 20 };
/// How long to wait for the task ID. The service answers without it too.
const METADATA_BOUND: Duration = Duration::from_secs(60);
/// The longest delay that a request may ask for.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// An upstream's name and URL.
#[derive(Debug, Clone)]
pub struct NamedUrl {
    name: String,
    url: Uri,
}

impl FromStr for NamedUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=URL")?;
        Ok(Self { name: name.to_owned(), url: crate::parse_url(url)? })
    }
}

/// The options of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The address to listen on
    #[arg(long, env = "LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The service's name in its answers
    #[arg(long, env = "SERVICE_NAME", value_name = "NAME", default_value = "demo")]
    pub service: String,
    /// An upstream that the service calls for each request. May be repeated, or separated by commas
    #[arg(long, env = "UPSTREAMS", value_name = "NAME=URL", value_delimiter = ',')]
    pub upstream: Vec<NamedUrl>,
    /// The least time for each request to /. A request may ask for another delay with ?delay=50ms, at most 60s
    #[arg(long, env = "DELAY", value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub delay: Duration,
    /// How long to serve after TERM. With 0s the program exits at once
    #[arg(long, env = "TERM_DELAY", value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub term_delay: Duration,
}

struct Service {
    options: Options,
    client: Client,
    task: OnceLock<String>,
    unhealthy: AtomicBool,
}

/// Serves until TERM and, with a term delay, for that long after it. INT ends it at once. Both are a success.
///
/// # Errors
/// If it cannot listen on the address.
pub async fn serve(options: Options, env: &Env) -> Result<ExitCode, Error> {
    let mut signals = StopSignals::catch()?;
    let address = options.listen;
    let term_delay = options.term_delay;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    tracing::info!("{} listens on {address}", options.service);
    let service = Arc::new(Service {
        options,
        client: Client::plain(),
        task: OnceLock::new(),
        unhealthy: AtomicBool::new(false),
    });
    let served = service.clone();
    tokio::spawn(server::serve(listener, move |request| {
        let service = served.clone();
        async move { service.respond(&request).await }
    }));
    let signal = tokio::select! {
        signal = signals.next() => signal,
        never = learn_task_id(&service, env) => match never {},
    };
    if signal == Stop::Term && !term_delay.is_zero() {
        tracing::info!("TERM: exiting in {}", humantime::format_duration(term_delay));
        let interrupted = async { while signals.next().await != Stop::Interrupt {} };
        let _ = tokio::time::timeout(term_delay, interrupted).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the task ID if this is a container of a task. Never returns.
async fn learn_task_id(service: &Service, env: &Env) -> Infallible {
    if env.get(ecs_meta::VARIABLE).is_none() {
        return std::future::pending().await;
    }
    let learned = until("the task metadata", METADATA_BOUND, Backoff::default(), async || {
        let task = match MetadataClient::from_env(env) {
            Ok(client) => client.task().await,
            Err(error) => Err(error),
        };
        match task {
            Ok(task) => Attempt::Done(task),
            Err(error) if error.may_pass() => Attempt::Again(error),
            Err(error) => Attempt::Final(error),
        }
    });
    match learned.await {
        Ok(task) => {
            let _ = service.task.set(task.task_id().to_string());
        }
        Err(error) => tracing::warn!("answering without a task ID: {}", one_line(&error)),
    }
    std::future::pending().await
}

impl Service {
    async fn respond(&self, request: &Request<Incoming>) -> Response {
        let query = |name: &str| {
            let pairs = request.uri().query().unwrap_or_default().split('&');
            pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => match query("delay").map(humantime::parse_duration) {
                None => self.answer(self.options.delay).await,
                Some(Ok(delay)) if delay <= MAX_DELAY => self.answer(delay).await,
                Some(_) => json(StatusCode::BAD_REQUEST, &"delay: expected a time such as 50ms, at most 60s"),
            },
            (&Method::GET, "/health") => self.health(),
            (&Method::PUT, "/health") => {
                match query("status") {
                    Some("healthy") => self.unhealthy.store(false, Ordering::Relaxed),
                    Some("unhealthy") => self.unhealthy.store(true, Ordering::Relaxed),
                    _ => return json(StatusCode::BAD_REQUEST, &"status: expected healthy or unhealthy"),
                }
                let mut response = self.health();
                *response.status_mut() = StatusCode::OK;
                response
            }
            (_, "/" | "/health") => json(StatusCode::METHOD_NOT_ALLOWED, &"expected GET, or PUT for /health"),
            (_, path) => json(StatusCode::NOT_FOUND, &format!("no such path: {path}")),
        }
    }

    fn health(&self) -> Response {
        if self.unhealthy.load(Ordering::Relaxed) {
            json(StatusCode::SERVICE_UNAVAILABLE, &"unhealthy")
        } else {
            json(StatusCode::OK, &"healthy")
        }
    }

    async fn answer(&self, delay: Duration) -> Response {
        let asked = self
            .options
            .upstream
            .iter()
            .map(|upstream| async { (upstream.name.clone(), self.ask(&upstream.url).await) });
        let (upstreams, ()) = tokio::join!(join_all(asked), tokio::time::sleep(delay));
        let answer = Answer {
            service: self.options.service.clone(),
            task: self.task.get().cloned(),
            upstreams: upstreams.into_iter().collect(),
        };
        let status = if answer.is_good() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
        json(status, &answer)
    }

    async fn ask(&self, url: &Uri) -> Upstream {
        let mut request = sidecar_kit::http::Request::default();
        *request.uri_mut() = url.clone();
        match self.client.send(request, LIMITS).await {
            Ok(response) => {
                let status = Some(response.status.as_u16());
                match serde_json::from_slice(&response.body) {
                    Ok(answer) => Upstream { status, answer: Some(answer), error: None },
                    Err(_) => Upstream { status, answer: None, error: Some(response.excerpt()) },
                }
            }
            Err(error) => Upstream { error: Some(one_line(&error)), ..Upstream::default() },
        }
    }
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    server::response(status, "application/json", body)
}
