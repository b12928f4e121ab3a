//! The result of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome of one request.
pub(crate) enum Outcome {
    /// A 2xx answer, and the tasks that took part in it.
    Succeeded { latency: Duration, tasks: Vec<String> },
    /// A failure, and its reason.
    Failed(String),
}

/// The result of a load. `sent` is the sum of `succeeded` and `failed`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    url: String,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// All requests.
    pub sent: usize,
    /// Requests that were answered with 2xx.
    pub succeeded: usize,
    /// All other requests.
    pub failed: usize,
    /// The failed requests, by reason.
    pub failures: BTreeMap<String, usize>,
    latency_ms: Latency,
    /// The succeeded requests in which a task took part, by task.
    tasks: BTreeMap<String, usize>,
    /// The connections that were opened.
    pub connections: usize,
    #[serde(skip)]
    latencies: Vec<Duration>,
}

/// The latencies of the succeeded requests in milliseconds, each from the time when the request was due.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Report {
    pub(crate) fn of(url: String) -> Self {
        Self { url, ..Self::default() }
    }

    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.sent += 1;
        match outcome {
            Outcome::Succeeded { latency, tasks } => {
                self.succeeded += 1;
                self.latencies.push(latency);
                for task in tasks {
                    *self.tasks.entry(task).or_default() += 1;
                }
            }
            Outcome::Failed(reason) => {
                self.failed += 1;
                *self.failures.entry(reason).or_default() += 1;
            }
        }
    }

    pub(crate) fn finish(&mut self) {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let rank = (self.latencies.len() as f64 * share).ceil() as usize;
            self.latencies.get(rank.saturating_sub(1)).map_or(0.0, |latency| latency.as_micros() as f64 / 1e3)
        };
        self.latency_ms = Latency { p50: at(0.50), p99: at(0.99), max: at(1.0) };
    }

    pub(crate) fn all_succeeded(&self) -> bool {
        self.failed == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} for {:.1} s over {} connections", self.url, self.seconds, self.connections)?;
        writeln!(f, "sent       {:>8}", self.sent)?;
        writeln!(f, "succeeded  {:>8}", self.succeeded)?;
        writeln!(f, "failed     {:>8}", self.failed)?;
        for (reason, count) in &self.failures {
            writeln!(f, "  {count:>8}  {reason}")?;
        }
        let Latency { p50, p99, max } = self.latency_ms;
        writeln!(f, "latency    p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")?;
        writeln!(f, "answered by")?;
        for (task, count) in &self.tasks {
            writeln!(f, "  {count:>8}  {task}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_once() {
        let mut report = Report::default();
        for milliseconds in 1..=200 {
            let tasks = vec![format!("api {}", milliseconds % 2)];
            report.add(Outcome::Succeeded { latency: Duration::from_millis(milliseconds), tasks });
        }
        for reason in ["reset", "reset", "timeout"] {
            report.add(Outcome::Failed(reason.to_owned()));
        }
        report.finish();
        let report = serde_json::to_value(&report).unwrap();
        assert_eq!((&report["sent"], &report["succeeded"], &report["failed"]), (&203.into(), &200.into(), &3.into()));
        assert_eq!(report["failures"], serde_json::json!({"reset": 2, "timeout": 1}));
        assert_eq!(report["latency_ms"], serde_json::json!({"p50": 100.0, "p99": 198.0, "max": 200.0}));
        assert_eq!(report["tasks"], serde_json::json!({"api 0": 100, "api 1": 100}));
    }
}
