//! What a task's Envoy knows and does, seen from within the task's network namespace by the program `probe`.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sidecar_kit::http::{Client, Limits, Request};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::command::CommandError;

/// The statistics that are read, as Envoy's filter wants them in a URL.
const FILTER: &str = "(http.(public_listener%7Cupstream_.*)_http.downstream_rq_total%7C_20000.downstream_cx_active)$";

/// For one answer of Envoy's admin page, which is on the same host.
const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 4 << 20 };

/// How long a probe may take to give its first sample: Docker starts a container.
const START_BOUND: Duration = Duration::from_secs(30);

/// What an Envoy says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Where it sends requests: the endpoints of all upstreams, `address:port`, but for those it was told are unhealthy.
    pub endpoints: BTreeSet<String>,
    /// How many requests have come in through the public listener.
    pub inbound: u64,
    /// How many requests the app has sent to upstreams.
    pub outbound: u64,
    /// How many connections the public listener has.
    pub connections: u64,
}

/// What was seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds since 1970.
    pub at: i64,
    /// None when Envoy gave no answer.
    pub seen: Option<Seen>,
}

/// Nanoseconds since 1970, as Docker's events and samples have them.
#[must_use]
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Asks the Envoy whose admin page is at `admin` (`address:port`).
pub async fn sample(client: &Client, admin: &str) -> Sample {
    let seen = async {
        let clusters = fetch(client, &format!("http://{admin}/clusters?format=json")).await?;
        let stats = fetch(client, &format!("http://{admin}/stats?format=json&filter={FILTER}")).await?;
        Some(read(&clusters, &stats))
    };
    let seen = seen.await;
    Sample { at: now(), seen }
}

async fn fetch(client: &Client, url: &str) -> Option<Value> {
    let mut request = Request::default();
    *request.uri_mut() = url.parse().ok()?;
    let answer = client.send(request, LIMITS).await.ok()?;
    serde_json::from_slice(&answer.body).ok()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn read(clusters: &Value, stats: &Value) -> Seen {
    let mut seen = Seen::default();
    // What Consul told it of; its own app and agent are static or come with the public listener.
    let upstreams = list(clusters, "cluster_statuses")
        .filter(|cluster| !cluster["name"].as_str().is_some_and(|name| name.starts_with("local_")));
    for host in upstreams.flat_map(|cluster| list(cluster, "host_statuses")) {
        let address = &host["address"]["socket_address"];
        if host["health_status"]["eds_health_status"] == "HEALTHY" {
            seen.endpoints.insert(format!(
                "{}:{}",
                address["address"].as_str().unwrap_or_default(),
                address["port_value"]
            ));
        }
    }
    for stat in list(stats, "stats") {
        let (name, value) = (stat["name"].as_str().unwrap_or_default(), stat["value"].as_u64().unwrap_or_default());
        let sum = match name {
            name if name.starts_with("listener.") => &mut seen.connections,
            name if name.starts_with("http.public_listener") => &mut seen.inbound,
            name if name.starts_with("http.upstream_") => &mut seen.outbound,
            _ => continue,
        };
        *sum += value;
    }
    seen
}

/// A probe at work in a task's network namespace. It ends when this is dropped.
#[derive(Debug)]
pub struct Probe {
    /// The program ends when its standard input does.
    child: Child,
    samples: Arc<Mutex<Vec<Sample>>>,
    reading: JoinHandle<()>,
}

impl Probe {
    /// Starts one in the namespace that the container `holder` holds, and waits for its first sample.
    ///
    /// # Errors
    /// When Docker doesn't start it.
    pub async fn start(holder: &str) -> Result<Self, CommandError> {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--interactive", "--read-only", "--cap-drop", "ALL", "--pull", "never"]);
        command.args(["--network", &format!("container:{holder}"), "ecs-mesh/probe:dev", "watch"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = |source| CommandError::Start { program: "docker".to_owned(), source };
        let mut child = command.spawn().map_err(start)?;
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let (first, begun) = tokio::sync::oneshot::channel();
        let (kept, mut first) = (samples.clone(), Some(first));
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(sample) = serde_json::from_str(&line) {
                    kept.lock().expect("no writer panics").push(sample);
                    first.take().map(|first| first.send(()));
                }
            }
        });
        if !matches!(timeout(START_BOUND, begun).await, Ok(Ok(()))) {
            let source = std::io::Error::other("the probe in the task's network namespace says nothing");
            return Err(start(source));
        }
        Ok(Self { child, samples, reading })
    }

    /// All changes so far, oldest first.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no writer panics").clone()
    }

    /// What was seen last.
    #[must_use]
    pub fn last(&self) -> Option<Seen> {
        self.samples.lock().expect("no writer panics").last().and_then(|sample| sample.seen.clone())
    }

    /// Ends it.
    pub async fn end(mut self) {
        drop(self.child.stdin.take());
        // It ends within one of its intervals; that it did is no concern of its samples.
        let _ = timeout(Duration::from_secs(10), self.child.wait()).await;
        self.reading.abort();
    }
}

/// When an endpoint was last taken away after `since`; none if it was never there or is there still.
#[must_use]
pub fn removed(samples: &[Sample], endpoint: &str, since: i64) -> Option<i64> {
    let has = |sample: &Sample| sample.seen.as_ref().is_some_and(|seen| seen.endpoints.contains(endpoint));
    let pairs = samples.iter().zip(samples.iter().skip(1));
    pairs
        .filter(|(before, after)| after.at > since && has(before) && !has(after) && after.seen.is_some())
        .map(|(_, after)| after.at)
        .next_back()
}

/// When a count last rose after `since`.
#[must_use]
pub fn last_rise(samples: &[Sample], since: i64, count: impl Fn(&Seen) -> u64) -> Option<i64> {
    let counts = samples.iter().filter_map(|sample| Some((sample.at, count(sample.seen.as_ref()?))));
    let counts = counts.collect::<Vec<_>>();
    let pairs = counts.iter().zip(counts.iter().skip(1));
    pairs.filter(|((_, before), (at, after))| *at > since && after > before).map(|(_, (at, _))| *at).next_back()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_those_of_upstreams_that_are_not_unhealthy() {
        let host = |address: &str, health: &str| {
            json!({ "address": { "socket_address": { "address": address, "port_value": 20000 } },
                    "health_status": { "eds_health_status": health } })
        };
        let clusters = json!({ "cluster_statuses": [
            { "name": "local_agent", "host_statuses": [host("127.0.0.1", "HEALTHY")] },
            { "name": "api.default.dc1", "host_statuses": [host("10.0.0.1", "HEALTHY"), host("10.0.0.2", "UNHEALTHY")] },
            { "name": "empty" },
        ] });
        let stats = json!({ "stats": [
            { "name": "http.public_listener_http.downstream_rq_total", "value": 7 },
            { "name": "http.upstream_api_http.downstream_rq_total", "value": 2 },
            { "name": "http.upstream_db_http.downstream_rq_total", "value": 3 },
            { "name": "listener.0.0.0.0_20000.downstream_cx_active", "value": 4 },
        ] });
        let seen = read(&clusters, &stats);
        assert_eq!(seen.endpoints, BTreeSet::from(["10.0.0.1:20000".to_owned()]));
        assert_eq!((seen.inbound, seen.outbound, seen.connections), (7, 5, 4));
    }

    fn at(at: i64, endpoint: bool, inbound: u64) -> Sample {
        let endpoints = endpoint.then(|| "10.0.0.1:20000".to_owned()).into_iter().collect();
        Sample { at, seen: Some(Seen { endpoints, inbound, ..Seen::default() }) }
    }

    #[test]
    fn removals_and_rises_are_told_from_changes() {
        let gone = Sample { at: 9, seen: None };
        let samples = [at(1, true, 5), at(2, true, 6), at(3, false, 7), at(4, false, 7), gone];
        assert_eq!(removed(&samples, "10.0.0.1:20000", 0), Some(3));
        assert_eq!(removed(&samples, "10.0.0.1:20000", 3), None);
        assert_eq!(removed(&samples[..2], "10.0.0.1:20000", 0), None);
        assert_eq!(last_rise(&samples, 0, |seen| seen.inbound), Some(3));
        assert_eq!(last_rise(&samples, 3, |seen| seen.inbound), None);
        let no_answer = [at(1, true, 5), Sample { at: 2, seen: None }];
        assert_eq!(removed(&no_answer, "10.0.0.1:20000", 0), None, "an Envoy that is gone took nothing away");
    }
}
