//! The controller's metrics and its health, and the port that serves both.

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use sidecar_kit::server::{self, Response};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 8] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// `/healthz` fails when one step of the controller's loop takes longer than this. Every call in it is bounded.
const LONGEST_STEP: Duration = Duration::from_secs(300);

/// The format that `prometheus-client` writes ("OpenMetrics", version 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A change of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Made, for a service without a token.
    Created,
    /// The token or its secret was corrected.
    Repaired,
    /// Replaced after `--rotate-after`.
    Rotated,
    /// Deleted.
    Deleted,
}

impl Change {
    const ALL: [Self; 4] = [Self::Created, Self::Repaired, Self::Rotated, Self::Deleted];

    fn labels(self) -> [Label; 1] {
        let change = match self {
            Self::Created => "created",
            Self::Repaired => "repaired",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
        };
        [("change", change)]
    }
}

/// A label's name and value.
type Label = (&'static str, &'static str);

const SERVICE: [Label; 1] = [("what", "service")];
const LOGIN_TOKEN: [Label; 1] = [("what", "login_token")];
const OK: [Label; 1] = [("result", "ok")];
const FAILED: [Label; 1] = [("result", "failed")];

/// The metrics, whose names begin with `acl_controller_`, and the health.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: Gauge,
    services: Gauge,
    failing: Gauge,
    tokens: Family<[Label; 1], Counter>,
    nodes: Counter,
    leftovers: Family<[Label; 1], Counter>,
    cycles: Family<[Label; 1], Counter>,
    cycle_seconds: Histogram,
    calls: Family<[Label; 3], Counter>,
    health: Mutex<Health>,
}

#[derive(Debug)]
struct Health {
    /// When the controller's loop last reported, and within which time it reports again.
    alive: (Instant, Duration),
    /// Whether the controller works: as leader, its last cycle could list everything; as standby, it could read the lock.
    ready: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("acl_controller");
        let leader = register(
            &mut registry,
            "leader",
            "1 while this controller holds the lock and has proved it lately",
            Gauge::default(),
        );
        let services = register(&mut registry, "services", "Services that have tasks", Gauge::default());
        let failing = register(
            &mut registry,
            "services_failing",
            "Services whose last attempt failed, the token of all consul-clients included",
            Gauge::default(),
        );
        let tokens = register(&mut registry, "tokens", "Tokens created, repaired, rotated, deleted", Family::default());
        let nodes = register(
            &mut registry,
            "nodes_deregistered",
            "Nodes removed from Consul because their tasks are gone",
            Counter::default(),
        );
        let leftovers = register(
            &mut registry,
            "leftovers_removed",
            "Services and tokens of logins that were removed because their task without an agent has stopped",
            Family::default(),
        );
        let cycles = register(
            &mut registry,
            "cycles",
            "Cycles by result; failed if a list or any service failed",
            Family::default(),
        );
        let cycle_seconds = register(&mut registry, "cycle_seconds", "Duration of a cycle", Histogram::new(BUCKETS));
        let calls = register(
            &mut registry,
            "api_calls",
            "API calls by result: ok, throttled, denied, unreachable, error",
            Family::default(),
        );
        // A counter that has no value yet is shown as 0.
        for labels in Change::ALL.map(Change::labels) {
            drop(tokens.get_or_create(&labels));
        }
        for labels in [SERVICE, LOGIN_TOKEN] {
            drop(leftovers.get_or_create(&labels));
        }
        for labels in [OK, FAILED] {
            drop(cycles.get_or_create(&labels));
        }
        let health = Mutex::new(Health { alive: (Instant::now(), LONGEST_STEP), ready: false });
        Self { registry, leader, services, failing, tokens, nodes, leftovers, cycles, cycle_seconds, calls, health }
    }
}

/// Registers the metric, and returns another handle of it.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an API call that ended with `ok`, `throttled`, `denied`, `unreachable` or `error`.
    pub fn called(&self, api: &'static str, call: &'static str, result: &'static str) {
        self.calls.get_or_create(&[("api", api), ("call", call), ("result", result)]).inc();
    }

    /// Counts a cycle that took this long. `listed`: it could list everything. `whole`: nothing in it failed.
    pub fn cycled(&self, took: Duration, listed: bool, whole: bool) {
        self.cycles.get_or_create(if whole { &OK } else { &FAILED }).inc();
        self.cycle_seconds.observe(took.as_secs_f64());
        self.health().ready = listed;
    }

    /// Counts a change of a token.
    pub fn changed(&self, change: Change) {
        self.tokens.get_or_create(&change.labels()).inc();
    }

    /// Counts a node that was removed.
    pub fn deregistered(&self) {
        self.nodes.inc();
    }

    /// Counts something that a stopped task had left and that was removed: a service, or the token of a login.
    pub fn leftover_removed(&self, is_service: bool) {
        self.leftovers.get_or_create(if is_service { &SERVICE } else { &LOGIN_TOKEN }).inc();
    }

    /// Sets how many services have tasks, and for how many owners the last attempt failed.
    pub fn services(&self, services: usize, failing: usize) {
        self.services.set(services.try_into().unwrap_or(i64::MAX));
        self.failing.set(failing.try_into().unwrap_or(i64::MAX));
    }

    /// Sets whether this controller is sure to hold the lock.
    pub fn leading(&self, leader: bool) {
        self.leader.set(leader.into());
        if !leader {
            // Only the leader reports these two.
            self.services(0, 0);
        }
    }

    /// Sets whether this standby controller could read the lock.
    pub fn standing_by(&self, ready: bool) {
        self.health().ready = ready;
    }

    /// Reports that the loop runs. The next report comes within this pause and one more step.
    pub fn alive(&self, pause: Duration) {
        self.health().alive = (Instant::now(), pause + LONGEST_STEP);
    }

    fn is_alive(&self) -> bool {
        let (last, within) = self.health().alive;
        last.elapsed() <= within
    }

    /// The metrics as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }

    fn answer(&self, request: &Request<Incoming>) -> Response {
        let plain = |status, text| server::response(status, "text/plain", text);
        let state = |good| match good {
            true => plain(StatusCode::OK, "ok\n"),
            false => plain(StatusCode::SERVICE_UNAVAILABLE, "no\n"),
        };
        match request.uri().path() {
            "/metrics" => server::response(StatusCode::OK, OPENMETRICS, self.render()),
            "/healthz" => state(self.is_alive()),
            "/readyz" => state(self.health().ready),
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
        }
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz`. Never returns. `/healthz` is 200 while the controller's loop runs, `/readyz` while it stands
/// by or its last cycle could list everything; otherwise they are 503.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    server::serve(listener, move |request| ready(metrics.answer(&request))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_controller_reports_no_services() {
        let metrics = Metrics::default();
        metrics.leading(true);
        metrics.services(3, 2);
        assert!(metrics.render().contains("acl_controller_services 3\n"));
        metrics.leading(false);
        let text = metrics.render();
        assert!(text.contains("acl_controller_services 0\n") && text.contains("services_failing 0\n"), "{text}");
    }

    #[test]
    fn metrics_have_their_names_labels_and_values() {
        let metrics = Metrics::default();
        metrics.called("ecs", "ListTasks", "ok");
        metrics.cycled(Duration::from_millis(300), true, true);
        metrics.changed(Change::Created);
        let text = metrics.render();
        for line in [
            "acl_controller_api_calls_total{api=\"ecs\",call=\"ListTasks\",result=\"ok\"} 1",
            "acl_controller_cycle_seconds_bucket{le=\"0.25\"} 0",
            "acl_controller_cycle_seconds_bucket{le=\"0.5\"} 1",
            "acl_controller_cycle_seconds_count 1",
            "acl_controller_cycles_total{result=\"failed\"} 0",
            "acl_controller_leftovers_removed_total{what=\"service\"} 0",
            "acl_controller_nodes_deregistered_total 0",
            "acl_controller_tokens_total{change=\"created\"} 1",
            "acl_controller_tokens_total{change=\"deleted\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
