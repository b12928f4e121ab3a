//! `service.networkResilienceConfig`: the passive health check in the service's `service-defaults`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_fixture::{Pass, Relay};
use mesh_tests::catalog::{on_node, register_node};
use mesh_tests::consul::version;

use super::agentless::agentless;
use super::*;

/// A task without an agent that asks for passive health checks.
async fn resilient(agent: &Agent) -> Task {
    let token = agent.service_token("web").await;
    let mut task = agentless(agent, &token);
    task.document["service"]["networkResilienceConfig"] = json!({ "enabled": true });
    task
}

async fn entry(agent: &Agent) -> Value {
    agent.call("GET", "/v1/config/service-defaults/web", &Value::Null).await
}

async fn put(agent: &Agent, entry: &Value) {
    agent.call("PUT", "/v1/config", entry).await;
}

/// The lines of a level in a log.
fn lines<'a>(finished: &'a Finished, level: &str) -> Vec<&'a str> {
    finished.stderr.lines().filter(|line| line.contains(level)).collect()
}

#[tokio::test]
async fn passive_health_check_has_only_keys_that_consul_knows() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let mut task = resilient(&agent).await;
    task.document["service"]["networkResilienceConfig"]["outlierDetection"] =
        json!({ "maxFailures": 3, "enforcingConsecutive5xx": 0, "consecutiveGatewayFailure": 2 });
    let first = task.starts().await;
    let written = entry(&agent).await;
    let check = &written["UpstreamConfig"]["Defaults"]["PassiveHealthCheck"];
    let expected = json!({ "Interval": 10_000_000_000_i64, "MaxFailures": 3, "EnforcingConsecutive5xx": 0, "MaxEjectionPercent": 50 });
    assert_eq!(check, &expected, "{written}");
    assert_eq!(lines(&first, "WARN").len(), 1, "{}", first.stderr);
    let place = "UpstreamConfig.Defaults.PassiveHealthCheck";
    for key in ["EnforcingConsecutiveGatewayFailure", "ConsecutiveGatewayFailure"] {
        assert!(lines(&first, "WARN")[0].contains(&format!("{place}.{key}")), "{}", first.stderr);
    }
    // The entry contains its ModifyIndex, so an unnecessary write would show. Another document does not change the entry either.
    task.document["service"]["networkResilienceConfig"]["outlierDetection"]["maxFailures"] = json!(4);
    let second = task.starts().await;
    assert_eq!(entry(&agent).await, written);
    assert_eq!(lines(&second, "WARN"), [""; 0]);
}

#[tokio::test]
async fn consul_without_passive_health_checks_is_one_warning() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let task = resilient(&agent).await;
    let finished = task.starts().await;
    let warnings = lines(&finished, "WARN");
    assert_eq!(warnings.len(), 1, "{}", finished.stderr);
    assert!(
        warnings[0].contains("this version of Consul does not know UpstreamConfig: nothing is written"),
        "{}",
        warnings[0]
    );
    let entries = agent.call("GET", "/v1/config/service-defaults", &Value::Null).await;
    assert_eq!(entries, json!([]));
    assert!(on_node(&agent).await.0["web-f1a2-sidecar-proxy"].is_object());
}

#[tokio::test]
async fn what_a_team_has_written_stays() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let task = resilient(&agent).await;
    let overrides = json!([{ "Name": "api", "PassiveHealthCheck": { "MaxFailures": 9 }, "ConnectTimeoutMs": 700 }]);
    let mut team = json!({
        "Kind": "service-defaults", "Name": "web", "Protocol": "http", "Meta": { "team": "checkout" },
        "Expose": { "Paths": [{ "Path": "/live", "LocalPathPort": 9090, "ListenerPort": 20500 }] },
        "UpstreamConfig": { "Defaults": { "ConnectTimeoutMs": 800, "Limits": { "MaxConnections": 7 } }, "Overrides": overrides },
    });
    put(&agent, &team).await;
    let mut expected = entry(&agent).await;
    task.starts().await;
    let mut written = entry(&agent).await;
    let check = written["UpstreamConfig"]["Defaults"].as_object_mut().unwrap().remove("PassiveHealthCheck");
    assert_eq!(check.unwrap()["MaxFailures"], 5);
    for entry in [&mut expected, &mut written] {
        for made_by_consul in ["ModifyIndex", "Hash"] {
            entry.as_object_mut().unwrap().remove(made_by_consul);
        }
    }
    assert_eq!(written, expected);
    // A check of the team is not touched, not even the keys that it leaves out.
    team["UpstreamConfig"]["Defaults"]["PassiveHealthCheck"] = json!({ "MaxFailures": 2 });
    put(&agent, &team).await;
    let expected = entry(&agent).await;
    task.starts().await;
    assert_eq!(entry(&agent).await, expected);
}

#[tokio::test]
async fn change_of_a_team_in_between_is_not_lost() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let task = resilient(&agent).await;
    // Before the first write arrives, a team writes its own entry. Consul has none yet.
    let runtime = tokio::runtime::Handle::current();
    let writes = Arc::new(AtomicUsize::new(0));
    let (counted, consul, token) = (writes.clone(), agent.http.clone(), agent.management.clone());
    let look = move |_, bytes: &[u8]| {
        if bytes.starts_with(b"PUT /v1/config?") && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            let team = json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "http" }).to_string();
            let url = format!("http://{consul}/v1/config");
            let headers = [("X-Consul-Token", &*token)];
            assert_eq!(runtime.block_on(http::request("PUT", &url, &headers, &team)).unwrap().0, 200);
        }
        Pass::On
    };
    let relay = Relay::start(&agent.http, look, |_, _| {});
    let task = through(task, &relay);
    task.starts().await;
    let written = entry(&agent).await;
    assert_eq!(written["Protocol"], "http");
    assert_eq!(written["UpstreamConfig"]["Defaults"]["PassiveHealthCheck"]["MaxFailures"], 5);
    assert!(writes.load(Ordering::Relaxed) > 1);
}

/// The same task, with its server behind this relay.
fn through(mut task: Task, relay: &Relay) -> Task {
    let port = relay.address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    task.document["consulServers"]["http"]["port"] = json!(port);
    task
}

#[tokio::test]
async fn registration_is_taken_back_if_the_entry_cannot_be_written() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let refuse = |_, bytes: &[u8]| {
        if bytes.starts_with(b"PUT /v1/config?") {
            let answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nrefused";
            return Pass::Answer(answer.into());
        }
        Pass::On
    };
    let relay = Relay::start(&agent.http, refuse, |_, _| {});
    let task = through(resilient(&agent).await, &relay);
    let finished = run(task.command().env("LOG_LEVEL", "error"), BOUND).await;
    let line =
        "mesh-init: cannot write the service-defaults of web: PUT /v1/config: Consul answered 400 Bad Request: refused";
    assert_eq!((finished.code, finished.stderr.trim_end()), (1, line));
    assert_eq!(on_node(&agent).await.0, json!({}));
}

/// Config entries are written in the primary datacenter. The copy in the secondary one has another index.
#[tokio::test]
async fn task_in_a_secondary_datacenter_writes_in_the_primary() {
    let (primary, secondary) = Agent::start_two_datacenters().await;
    let mut task = agentless(&secondary, &secondary.management);
    task.document["service"]["networkResilienceConfig"] = json!({ "enabled": true });
    register_node(&secondary).await;
    put(&primary, &json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "http" })).await;
    let finished = task.starts().await;
    let written = entry(&primary).await;
    assert_eq!(written["Protocol"], "http");
    if version().at_least(1, 10) {
        assert_eq!(
            written["UpstreamConfig"]["Defaults"]["PassiveHealthCheck"]["MaxFailures"], 5,
            "{}",
            finished.stderr
        );
    }
}
