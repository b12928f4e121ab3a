//! What the controller counts, in the text format of Prometheus ("Text-based format", version 0.0.4), and the port on which it
//! says so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use sidecar_kit::server::{self, Response};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Upper bounds of the cycles' durations, in seconds.
const BUCKETS: [f64; 8] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How long a step of the controller's loop may take before `/healthz` says that it hangs: every call in it is bounded.
const LONGEST_STEP: Duration = Duration::from_secs(300);

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Made, for a service that had none.
    Created,
    /// It or its secret was put right.
    Repaired,
    /// Replaced after `--rotate-after`.
    Rotated,
    /// Removed.
    Deleted,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Repaired => "repaired",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
        }
    }
}

/// The counters. Names have the prefix `acl_controller_`.
#[derive(Debug)]
pub struct Metrics(Mutex<Numbers>);

#[derive(Debug)]
struct Numbers {
    calls: BTreeMap<(&'static str, &'static str, &'static str), u64>,
    cycles: BTreeMap<&'static str, u64>,
    durations: [u64; BUCKETS.len()],
    seconds: f64,
    tokens: BTreeMap<Change, u64>,
    nodes: u64,
    services: usize,
    failing: usize,
    leader: bool,
    /// When the controller's loop last came by, and until when it need not again.
    alive: (Instant, Duration),
    /// Whether the last thing it tried worked: a cycle as such, whatever single services do, or standing by.
    ready: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Mutex::new(Numbers {
            calls: BTreeMap::new(),
            cycles: BTreeMap::from([("failed", 0), ("ok", 0)]),
            durations: [0; BUCKETS.len()],
            seconds: 0.0,
            tokens: [Change::Created, Change::Repaired, Change::Rotated, Change::Deleted].map(|c| (c, 0)).into(),
            nodes: 0,
            services: 0,
            failing: 0,
            leader: false,
            alive: (Instant::now(), LONGEST_STEP),
            ready: false,
        }))
    }
}

impl Metrics {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call to an API has ended with `ok`, `throttled`, `denied`, `unreachable` or `error`.
    pub fn called(&self, api: &'static str, call: &'static str, result: &'static str) {
        *self.numbers().calls.entry((api, call, result)).or_default() += 1;
    }

    /// A cycle has ended: whether it had its lists, and whether nothing in it failed.
    pub fn cycled(&self, took: Duration, listed: bool, whole: bool) {
        let mut numbers = self.numbers();
        *numbers.cycles.entry(if whole { "ok" } else { "failed" }).or_default() += 1;
        numbers.seconds += took.as_secs_f64();
        for (count, bound) in numbers.durations.iter_mut().zip(BUCKETS) {
            *count += u64::from(took.as_secs_f64() <= bound);
        }
        numbers.ready = listed;
    }

    /// A token was created, repaired, rotated or deleted.
    pub fn changed(&self, change: Change) {
        *self.numbers().tokens.entry(change).or_default() += 1;
    }

    /// A node was removed.
    pub fn deregistered(&self) {
        self.numbers().nodes += 1;
    }

    /// How many services have tasks, and how many of all are failing.
    pub fn services(&self, services: usize, failing: usize) {
        let mut numbers = self.numbers();
        (numbers.services, numbers.failing) = (services, failing);
    }

    /// Whether this controller holds the lock, as far as it is sure of it.
    pub fn leading(&self, leader: bool) {
        let mut numbers = self.numbers();
        numbers.leader = leader;
        if !leader {
            // They are told by the one that looks.
            (numbers.services, numbers.failing) = (0, 0);
        }
    }

    /// Standing by works.
    pub fn standing_by(&self, ready: bool) {
        self.numbers().ready = ready;
    }

    /// The loop goes round; it is here again after this pause and one more step.
    pub fn alive(&self, pause: Duration) {
        self.numbers().alive = (Instant::now(), pause + LONGEST_STEP);
    }

    fn is_alive(&self) -> bool {
        let (last, within) = self.numbers().alive;
        last.elapsed() <= within
    }

    fn is_ready(&self) -> bool {
        self.numbers().ready
    }

    /// All of it as text.
    #[must_use]
    pub fn render(&self) -> String {
        let numbers = self.numbers();
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(text, "# HELP acl_controller_{name} {help}\n# TYPE acl_controller_{name} {kind}");
        };
        head(&mut text, "leader", "gauge", "1 while this controller holds the lock and has lately proved it.");
        let _ = writeln!(text, "acl_controller_leader {}", u8::from(numbers.leader));
        head(&mut text, "services", "gauge", "Services that have tasks.");
        let _ = writeln!(text, "acl_controller_services {}", numbers.services);
        head(&mut text, "services_failing", "gauge", "Services, and the client token, whose last attempt failed.");
        let _ = writeln!(text, "acl_controller_services_failing {}", numbers.failing);
        head(&mut text, "tokens_total", "counter", "Tokens created, repaired, rotated, deleted.");
        for (change, count) in &numbers.tokens {
            let _ = writeln!(text, "acl_controller_tokens_total{{change=\"{}\"}} {count}", change.as_str());
        }
        head(&mut text, "nodes_deregistered_total", "counter", "Nodes of gone tasks removed from Consul.");
        let _ = writeln!(text, "acl_controller_nodes_deregistered_total {}", numbers.nodes);
        head(&mut text, "cycles_total", "counter", "Cycles by result; failed if the lists or any service failed.");
        for (result, count) in &numbers.cycles {
            let _ = writeln!(text, "acl_controller_cycles_total{{result=\"{result}\"}} {count}");
        }
        head(&mut text, "cycle_seconds", "histogram", "How long a cycle took.");
        for (bound, count) in BUCKETS.iter().zip(numbers.durations) {
            let _ = writeln!(text, "acl_controller_cycle_seconds_bucket{{le=\"{bound}\"}} {count}");
        }
        let all: u64 = numbers.cycles.values().sum();
        let _ = writeln!(text, "acl_controller_cycle_seconds_bucket{{le=\"+Inf\"}} {all}");
        let _ = writeln!(text, "acl_controller_cycle_seconds_sum {}", numbers.seconds);
        let _ = writeln!(text, "acl_controller_cycle_seconds_count {all}");
        head(&mut text, "api_calls_total", "counter", "Calls by result: ok, throttled, denied, unreachable, error.");
        for ((api, call, result), count) in &numbers.calls {
            let labels = format!("api=\"{api}\",call=\"{call}\",result=\"{result}\"");
            let _ = writeln!(text, "acl_controller_api_calls_total{{{labels}}} {count}");
        }
        text
    }

    fn answer(&self, request: &Request<Incoming>) -> Response {
        let state = |good: bool| {
            let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, if good { "ok\n" } else { "no\n" }.to_owned())
        };
        let (status, body) = match request.uri().path() {
            "/metrics" => (StatusCode::OK, self.render()),
            "/healthz" => state(self.is_alive()),
            "/readyz" => state(self.is_ready()),
            _ => (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
        };
        server::response(status, "text/plain; version=0.0.4", body)
    }
}

/// Answers `/metrics`, `/healthz` (200 while the controller's loop goes round, else 503) and `/readyz` (200 while it stands by or
/// its last cycle had its lists) without end.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    server::serve(listener, move |request| ready(metrics.answer(&request))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_lead_tells_of_no_services() {
        let metrics = Metrics::default();
        metrics.leading(true);
        metrics.services(3, 2);
        assert!(metrics.render().contains("acl_controller_services 3\n"));
        metrics.leading(false);
        let text = metrics.render();
        assert!(text.contains("acl_controller_services 0\n") && text.contains("services_failing 0\n"), "{text}");
    }

    #[test]
    fn every_line_is_a_comment_or_a_name_with_a_number() {
        let metrics = Metrics::default();
        metrics.called("ecs", "ListTasks", "ok");
        metrics.cycled(Duration::from_millis(300), true, true);
        metrics.changed(Change::Created);
        let text = metrics.render();
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, number) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("acl_controller_") && number.parse::<f64>().is_ok(), "{line}");
        }
        for line in [
            "acl_controller_api_calls_total{api=\"ecs\",call=\"ListTasks\",result=\"ok\"} 1",
            "acl_controller_cycle_seconds_bucket{le=\"0.25\"} 0",
            "acl_controller_cycle_seconds_bucket{le=\"0.5\"} 1",
            "acl_controller_tokens_total{change=\"created\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
