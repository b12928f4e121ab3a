//! health-sync beside a real agent.

use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use http_fixture::{Pass, Relay};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};

mod healthy;
mod hold;
mod metadata;
mod stopping;

const BOUND: Duration = Duration::from_secs(20);
const CHECK: &str = "shop-f1a2-app-consul-ecs";
const SERVICES: [&str; 2] = ["shop-f1a2", "shop-f1a2-sidecar-proxy"];

fn app(health: &str) -> Value {
    json!([{ "Name": "app", "Health": { "status": health } }])
}

fn command(agent: &str, metadata: &str, synced: &[&str]) -> Command {
    // health-sync reads the servers' authority only for a login.
    let document = json!({ "bootstrapDir": "/consul", "consulCACertFile": "/nowhere/ca.pem", "service": { "port": 8080 },
        "healthSyncContainers": synced });
    let mut command = Command::new(binary("health-sync"));
    command.env_clear().env("CONSUL_HTTP_ADDR", agent).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
    command.env("ECS_CONTAINER_METADATA_URI_V4", metadata).env("HEALTH_SYNC_INTERVAL", "50ms");
    command
}

/// A check at the agent: its status, or none.
async fn status(agent: &Agent, check: &str) -> Option<String> {
    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    checks[check]["Status"].as_str().map(str::to_owned)
}

async fn becomes(agent: &Agent, check: &str, wanted: &str) {
    eventually(&format!("{check} is {wanted}"), BOUND, async || match status(agent, check).await {
        Some(status) if status == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Waits for this many more requests for the metadata.
async fn rounds(metadata: &Metadata, more: u64) {
    let answered = metadata.answered();
    eventually(&format!("{more} more rounds"), BOUND, async || {
        if metadata.answered() >= answered + more { Ok(()) } else { Err(metadata.answered().to_string()) }
    })
    .await;
}

/// A relay to the agent on which a request that contains `text` takes this long, and a channel that tells when one came.
fn slow_relay(agent: &str, text: &'static str, delay: Duration) -> (String, Receiver<()>) {
    let (holding, held) = channel();
    let slow = move |_, bytes: &[u8]| {
        if String::from_utf8_lossy(bytes).contains(text) {
            let _ = holding.send(());
            std::thread::sleep(delay);
        }
        Pass::On
    };
    (Relay::start(agent, slow, |_, _| {}).address, held)
}

/// Removes the check of the task's own proxy listener, which is not open here. The proxy then passes.
async fn without_listener_check(agent: &Agent) {
    eventually("the servers list the task's proxy", BOUND, async || {
        let proxies = agent.call("GET", "/v1/health/connect/shop", &Value::Null).await;
        if proxies.as_array().unwrap().iter().any(|proxy| proxy["Service"]["ID"] == SERVICES[1]) {
            Ok(())
        } else {
            Err(proxies.to_string())
        }
    })
    .await;
    agent.call("PUT", "/v1/agent/check/deregister/service:shop-f1a2-sidecar-proxy:1", &Value::Null).await;
}

#[tokio::test]
async fn each_change_of_ecs_health_is_one_write() {
    let agent = Agent::start().await;
    // This is how ECS shows an unknown health.
    let metadata = Metadata::start("shop", json!([{ "Name": "app", "Health": {} }]));
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    // Nothing is registered yet. The registration is critical, and so is the first write.
    sync.says("check critical", BOUND).await;
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
    let writes = || sync.output().matches("check passing").count() + sync.output().matches("check critical").count();
    // health-sync logs this after the write.
    sync.says("check passing", BOUND).await;
    assert_eq!(writes(), 2, "{}", sync.output());
    let answered = metadata.answered();
    eventually("ten more rounds", BOUND, async || {
        if metadata.answered() >= answered + 10 { Ok(()) } else { Err(metadata.answered().to_string()) }
    })
    .await;
    assert_eq!(writes(), 2, "nothing changed, nothing written: {}", sync.output());
    metadata.set_containers(app("UNHEALTHY"));
    becomes(&agent, CHECK, "critical").await;
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
    metadata.set_containers(json!([]));
    becomes(&agent, CHECK, "critical").await;
}

#[tokio::test]
async fn check_that_the_agent_lost_is_restored() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    // Time for a status that is written before the check is registered again.
    let (way, _) = slow_relay(&agent.http, "PUT /v1/agent/service/register", Duration::from_millis(300));
    let sync = Process::spawn(&mut command(&way, &metadata.uri, &["app"]));
    becomes(&agent, CHECK, "passing").await;
    // The first write failed, because nothing was registered yet.
    sync.says("syncing again", BOUND).await;
    agent.call("PUT", &format!("/v1/agent/check/deregister/{CHECK}"), &Value::Null).await;
    assert_eq!(status(&agent, CHECK).await, None);
    becomes(&agent, CHECK, "passing").await;
    for service in SERVICES {
        agent.call("PUT", &format!("/v1/agent/service/deregister/{service}"), &Value::Null).await;
    }
    becomes(&agent, CHECK, "passing").await;
    eventually("the proxy is registered again", BOUND, async || {
        let services = agent.call("GET", "/v1/agent/services", &Value::Null).await;
        if services[SERVICES[1]].is_object() { Ok(()) } else { Err(services.to_string()) }
    })
    .await;
    assert_eq!(
        sync.output().matches("syncing again").count(),
        1,
        "no other write of a status failed: {}",
        sync.output()
    );
}

#[tokio::test]
async fn token_with_a_service_identity_is_enough() {
    let agent = Agent::start_with_acls().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let token = agent.service_token("shop").await;
    let mut sync = Process::spawn(command(&agent.http, &metadata.uri, &["app"]).env("CONSUL_HTTP_TOKEN", &token));
    let read = async |check: &str| {
        let token = [("X-Consul-Token", agent.management.as_str())];
        let (_, checks) = mesh_tests::http::request("GET", &agent.url("/v1/agent/checks"), &token, "").await?;
        let checks: Value = serde_json::from_str(&checks).map_err(|error| error.to_string())?;
        Ok::<_, String>(checks[check]["Status"].as_str().unwrap_or("absent").to_owned())
    };
    eventually("passing", BOUND, async || match read(CHECK).await? {
        status if status == "passing" => Ok(()),
        status => Err(status),
    })
    .await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    assert_eq!(read(CHECK).await.unwrap(), "critical");
    assert_eq!(read("_service_maintenance:shop-f1a2").await.unwrap(), "critical");
    assert!(!sync.output().contains(&token));
}

#[tokio::test]
async fn denied_token_error_names_call_and_expected_token() {
    let agent = Agent::start_with_acls().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let token = agent.service_token("other").await;
    let sync = Process::spawn(command(&agent.http, &metadata.uri, &["app"]).env("CONSUL_HTTP_TOKEN", &token));
    sync.says("PUT /v1/agent/service/register: the ACL token is unknown or lacks the permission", BOUND).await;
    sync.says("; expected a token with the service identity shop; trying again", BOUND).await;
}

#[tokio::test]
async fn unanswered_read_does_not_delay_a_status() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let first = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    becomes(&agent, CHECK, "passing").await;
    drop(first);
    let (way, held) = slow_relay(&agent.http, "GET ", 10 * BOUND);
    let sync = Process::spawn(&mut command(&way, &metadata.uri, &["app"]));
    eventually("a read is under way", BOUND, async || held.try_recv().map_err(|error| error.to_string())).await;
    for (health, status) in [("UNHEALTHY", "critical"), ("HEALTHY", "passing"), ("UNHEALTHY", "critical")] {
        metadata.set_containers(app(health));
        becomes(&agent, CHECK, status).await;
    }
    assert!(!sync.output().contains("WARN"), "all that while the read is under way: {}", sync.output());
}

#[tokio::test]
async fn slow_agent_gets_each_write_once() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let (way, writes) = slow_relay(&agent.http, "PUT ", Duration::from_millis(600));
    let mut sync = Process::spawn(&mut command(&way, &metadata.uri, &["app"]));
    becomes(&agent, CHECK, "passing").await;
    sync.says("check passing", BOUND).await;
    rounds(&metadata, 4).await;
    while writes.try_recv().is_ok() {}
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(writes.try_iter().count(), 3, "a check, and service and proxy: {}", sync.output());
}

#[tokio::test]
async fn idle_health_sync_sends_no_requests() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let (way, requests) = slow_relay(&agent.http, "HTTP/1.1", Duration::ZERO);
    let _sync = Process::spawn(command(&way, &metadata.uri, &["app"]).env("CONSUL_ECS_CHECK_TTL", "100000h"));
    becomes(&agent, CHECK, "passing").await;
    // The start is over: after a failed write, health-sync reads back once more, a second later.
    eventually("three seconds without a request", BOUND, async || {
        while requests.try_recv().is_ok() {}
        requests.recv_timeout(Duration::from_secs(3)).err().map(|_| ()).ok_or_else(|| "there are requests".to_owned())
    })
    .await;
    rounds(&metadata, 40).await;
    assert_eq!(requests.try_iter().count(), 0);
}

#[tokio::test]
async fn checks_turn_critical_when_health_sync_dies() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let mut command = command(&agent.http, &metadata.uri, &["app"]);
    let sync = Process::spawn(command.env("CONSUL_ECS_CHECK_TTL", "3s").env("HEALTH_SYNC_HOLD", "0s"));
    becomes(&agent, CHECK, "passing").await;
    metadata.set_failing(true);
    sync.says("no task metadata: ", BOUND).await;
    let index = async || agent.call("GET", "/v1/health/checks/shop", &Value::Null).await[0]["ModifyIndex"].clone();
    let before = index().await;
    // This takes two times to live.
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(status(&agent, CHECK).await.unwrap(), "passing", "{}", sync.output());
    }
    assert_eq!(index().await, before, "the servers see nothing of a heartbeat");
    drop(sync);
    becomes(&agent, CHECK, "critical").await;
}

#[tokio::test]
async fn bad_input_ends_in_one_line() {
    let mut nothing = Command::new(binary("health-sync"));
    let no_metadata = |document: &str| {
        let mut command = Command::new(binary("health-sync"));
        command.env_clear().env("CONSUL_ECS_CONFIG_JSON", document);
        command
    };
    let whole = r#"{"bootstrapDir":"/c","service":{"port":1}}"#;
    let mut short_ttl = no_metadata(whole);
    let rows = [
        (nothing.env_clear(), "CONSUL_ECS_CONFIG_JSON is not set"),
        (&mut no_metadata("{"), "CONSUL_ECS_CONFIG_JSON: "),
        (&mut no_metadata(whole), "ECS_CONTAINER_METADATA_URI_V4 is not set"),
        (short_ttl.env("CONSUL_ECS_CHECK_TTL", "3s"), "HEALTH_SYNC_HOLD is 2s 500ms: expected at most 2s"),
    ];
    for (command, text) in rows {
        let ended = run(command, BOUND).await;
        assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
}
