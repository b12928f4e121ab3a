//! What a task's Envoy reports on its admin page: the endpoints that it sends to, its requests and its connections.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sidecar_kit::http::{Client, Limits, Request};

/// Selects the statistics. Consul 1.8 names them `http.public_listener_http` and `http.upstream_api_http`; later versions
/// name them `http.public_listener` and `http.upstream.api.default.default.dc1`.
const FILTER: &str = "(^http.(public_listener%7Cupstream).*.downstream_rq_total%7C_20000.downstream_cx_active)$";

/// The bounds of one answer of Envoy's admin page, which is on the same host.
const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 4 << 20 };

/// The state of one Envoy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The endpoints of all upstreams, `address:port`, without those that Consul reports as unhealthy.
    pub endpoints: BTreeSet<String>,
    /// The requests that have come in through the public listener.
    pub inbound: u64,
    /// The requests that the app has sent to upstreams.
    pub outbound: u64,
    /// The open connections of the public listener.
    pub connections: u64,
}

/// The state of one Envoy at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds since 1970.
    pub at: i64,
    /// `None` if Envoy did not answer.
    pub seen: Option<Seen>,
}

/// The current time in nanoseconds since 1970, the unit of Docker's events.
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
    // The clusters of the task's own app and agent begin with `local_`.
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
            name if name.starts_with("http.upstream") => &mut seen.outbound,
            _ => continue,
        };
        *sum += value;
    }
    seen
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn healthy_endpoints_of_upstreams_are_listed() {
        let host = |address: &str, health: &str| {
            json!({ "address": { "socket_address": { "address": address, "port_value": 20000 } },
                    "health_status": { "eds_health_status": health } })
        };
        let clusters = json!({ "cluster_statuses": [
            { "name": "local_agent", "host_statuses": [host("127.0.0.1", "HEALTHY")] },
            { "name": "api.default.dc1", "host_statuses": [host("10.0.0.1", "HEALTHY"), host("10.0.0.2", "UNHEALTHY")] },
            { "name": "empty" },
        ] });
        let seen = read(&clusters, &json!({ "stats": [] }));
        assert_eq!(seen.endpoints, BTreeSet::from(["10.0.0.1:20000".to_owned()]));
    }

    #[test]
    fn statistics_of_old_and_new_consul_are_counted() {
        for (public_listener, api, db) in [
            ("public_listener_http", "upstream_api_http", "upstream_db_http"),
            ("public_listener", "upstream.api.default.default.dc1", "upstream.db.default.default.dc1"),
        ] {
            let stats = json!({ "stats": [
                { "name": format!("http.{public_listener}.downstream_rq_total"), "value": 7 },
                { "name": format!("http.{api}.downstream_rq_total"), "value": 2 },
                { "name": format!("http.{db}.downstream_rq_total"), "value": 3 },
                { "name": "listener.0.0.0.0_20000.downstream_cx_active", "value": 4 },
            ] });
            let seen = read(&json!({}), &stats);
            assert_eq!((seen.inbound, seen.outbound, seen.connections), (7, 5, 4), "{public_listener}");
        }
    }
}
