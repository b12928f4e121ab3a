//! Whether Consul's servers can be used, and the metrics: `/ready` and `/metrics`.

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consul_grpc::State;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use sidecar_kit::server::{self, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

/// The format that `prometheus-client` writes ("OpenMetrics", version 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = (&'static str, &'static str);

/// The metrics, whose names begin with `mesh_dataplane_`.
pub(crate) struct Metrics {
    registry: Registry,
    connected: Gauge,
    streams: Family<[Label; 1], Counter>,
    tokens: Counter,
    queries: Family<[Label; 1], Counter>,
    /// Since when no server can be used. None while one can.
    lost: Mutex<Option<Instant>>,
}

impl Metrics {
    /// Begins as lost: no server was used yet.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("mesh_dataplane");
        let connected =
            register(&mut registry, "connected", "1 while a server of Consul can be used", Gauge::default());
        let streams = register(
            &mut registry,
            "streams_ended",
            "Envoy's xDS streams that have ended: moved, broken, server, envoy",
            Family::<[Label; 1], Counter>::default(),
        );
        let tokens = register(&mut registry, "tokens", "Tokens that servers have confirmed", Counter::default());
        let queries = register(
            &mut registry,
            "dns_queries",
            "DNS queries by result: answered, failed, dropped",
            Family::<[Label; 1], Counter>::default(),
        );
        // A counter that has no value yet is shown as 0.
        for end in ["moved", "broken", "server", "envoy"] {
            drop(streams.get_or_create(&[("end", end)]));
        }
        for result in ["answered", "failed", "dropped"] {
            drop(queries.get_or_create(&[("result", result)]));
        }
        Self { registry, connected, streams, tokens, queries, lost: Mutex::new(Some(Instant::now())) }
    }

    fn lost(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stream_ended(&self, end: &'static str) {
        self.streams.get_or_create(&[("end", end)]).inc();
    }

    pub(crate) fn queried(&self, result: &'static str) {
        self.queries.get_or_create(&[("result", result)]).inc();
    }

    /// Notes each change of the connection. Returns when the follower has ended.
    pub(crate) async fn follow(&self, mut state: watch::Receiver<State>) {
        let mut token = None;
        loop {
            let connected = match &*state.borrow_and_update() {
                State::Ready(ready) => {
                    let confirmed = ready.token.clone();
                    if confirmed.is_some() && confirmed != token {
                        self.tokens.inc();
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
        self.connected.set(connected.into());
        let mut lost = self.lost();
        *lost = if connected { None } else { lost.or_else(|| Some(Instant::now())) };
    }

    fn answer(&self, request: &Request<Incoming>, outage: Duration) -> Response {
        let plain = |status, text: String| server::response(status, "text/plain", text);
        match request.uri().path() {
            "/metrics" => {
                let mut text = String::new();
                encode(&mut text, &self.registry).expect("writing to a String does not fail");
                server::response(StatusCode::OK, OPENMETRICS, text)
            }
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

/// Registers the metric, and returns another handle of it.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Serves `/ready` and `/metrics`. Never returns. `/ready` is 503 once no server could be used for longer than `outage`.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, outage: Duration) {
    server::serve(listener, move |request| ready(metrics.answer(&request, outage))).await;
}
