//! Whether Consul's servers can be used, and the metrics: `/ready` and `/metrics`.

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consul_grpc::State;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use sidecar_kit::server::{self, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a stream of Envoy has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StreamEnd {
    /// The server or the token has changed.
    Moved,
    /// The connection to the server broke.
    Broken,
    /// The server ended it.
    Server,
    /// Envoy ended it.
    Envoy,
}

/// What became of a DNS query.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Query {
    /// A server answered it.
    Answered,
    /// No server answered it.
    Failed,
    /// Too many waited for an answer. The answer was SERVFAIL.
    Refused,
}

/// The metrics, whose names begin with `mesh_dataplane_`. They are so few that a library for them would be a large part of the program.
pub(crate) struct Metrics {
    streams: [AtomicU64; 4],
    tokens: AtomicU64,
    queries: [AtomicU64; 3],
    /// Since when no server can be used. None while one can.
    lost: Mutex<Option<Instant>>,
}

impl Metrics {
    /// Begins as lost: no server was used yet.
    pub(crate) fn new() -> Self {
        let lost = Mutex::new(Some(Instant::now()));
        Self { streams: Default::default(), tokens: AtomicU64::new(0), queries: Default::default(), lost }
    }

    fn lost(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stream_ended(&self, end: StreamEnd) {
        self.streams[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn queried(&self, result: Query) {
        self.queries[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The metrics as text.
    fn render(&self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
            text.push_str(&format!("# HELP mesh_dataplane_{name} {help}\n# TYPE mesh_dataplane_{name} {kind}\n"));
            for (labels, value) in values {
                text.push_str(&format!("mesh_dataplane_{name}{labels} {value}\n"));
            }
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let connected = self.lost().is_none().into();
        metric("connected", "gauge", "1 while a server of Consul can be used", &[("", connected)]);
        let [moved, broken, server, envoy] = &self.streams;
        let ends = [
            ("{end=\"moved\"}", count(moved)),
            ("{end=\"broken\"}", count(broken)),
            ("{end=\"server\"}", count(server)),
            ("{end=\"envoy\"}", count(envoy)),
        ];
        metric("streams_ended_total", "counter", "Envoy's xDS streams that have ended", &ends);
        let tokens = count(&self.tokens);
        metric("tokens_total", "counter", "Tokens that servers have confirmed", &[("", tokens)]);
        let [answered, failed, refused] = &self.queries;
        let results = [
            ("{result=\"answered\"}", count(answered)),
            ("{result=\"failed\"}", count(failed)),
            ("{result=\"refused\"}", count(refused)),
        ];
        metric("dns_queries_total", "counter", "DNS queries by result", &results);
        text
    }

    /// Notes each change of the connection. Returns when the follower has ended.
    pub(crate) async fn follow(&self, mut state: watch::Receiver<State>) {
        let mut token = None;
        loop {
            let connected = match &*state.borrow_and_update() {
                State::Ready(ready) => {
                    let confirmed = ready.token.clone();
                    if confirmed.is_some() && confirmed != token {
                        self.tokens.fetch_add(1, Ordering::Relaxed);
                        token = confirmed;
                    }
                    true
                }
                State::Searching | State::Refused => false,
            };
            self.note(connected);
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    fn note(&self, connected: bool) {
        let mut lost = self.lost();
        *lost = if connected { None } else { lost.or_else(|| Some(Instant::now())) };
    }

    fn answer(&self, request: &Request<Incoming>, outage: Duration) -> Response {
        let plain = |status, text: String| server::response(status, "text/plain", text);
        match request.uri().path() {
            "/metrics" => server::response(StatusCode::OK, TEXT, self.render()),
            "/ready" => match *self.lost() {
                Some(since) if since.elapsed() > outage => {
                    let text = format!("no server of Consul can be used for {:.0?}\n", since.elapsed());
                    plain(StatusCode::SERVICE_UNAVAILABLE, text)
                }
                _ => plain(StatusCode::OK, "ready\n".to_owned()),
            },
            _ => plain(StatusCode::NOT_FOUND, "there are /ready and /metrics\n".to_owned()),
        }
    }
}

/// Serves `/ready` and `/metrics`. Never returns. `/ready` is 503 once no server could be used for longer than `outage`.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, outage: Duration) {
    server::serve(listener, move |request| ready(metrics.answer(&request, outage))).await;
}
