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
async fn term_sets_checks_critical_and_maintenance() {
    for synced in [&["app"][..], &[]] {
        let agent = Agent::start().await;
        let metadata = Metadata::start("shop", app("HEALTHY"));
        let mut sync = Process::spawn(&mut command(&agent.http, &metadata.uri, synced));
        eventually("service and proxy are registered", BOUND, async || {
            let services = agent.call("GET", "/v1/agent/services", &Value::Null).await;
            if services[SERVICES[1]].is_object() { Ok(()) } else { Err(services.to_string()) }
        })
        .await;
        if !synced.is_empty() {
            becomes(&agent, CHECK, "passing").await;
        }
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 0);
        // The process has ended, so no write can follow.
        if !synced.is_empty() {
            assert_eq!(status(&agent, CHECK).await.as_deref(), Some("critical"));
        }
        for service in SERVICES {
            let maintenance = status(&agent, &format!("_service_maintenance:{service}")).await;
            assert_eq!(maintenance.as_deref(), Some("critical"), "{service}");
        }
        // ECS may restart the container in the same task. The new health-sync ends the maintenance.
        let _again = Process::spawn(&mut command(&agent.http, &metadata.uri, synced));
        eventually("no maintenance", BOUND, async || match status(&agent, "_service_maintenance:shop-f1a2").await {
            None => Ok(()),
            Some(status) => Err(status),
        })
        .await;
    }
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

#[tokio::test]
async fn critical_wins_over_a_passing_write_under_way() {
    // The first write ends in time. The second takes long, and health-sync cuts it off.
    for delay in [Duration::from_millis(60), Duration::from_secs(3)] {
        let agent = Agent::start().await;
        let metadata = Metadata::start("shop", app("UNHEALTHY"));
        let (way, held) = slow_relay(&agent.http, "\"passing\"", delay);
        let mut sync = Process::spawn(&mut command(&way, &metadata.uri, &["app"]));
        sync.says("check critical", BOUND).await;
        metadata.set_containers(app("HEALTHY"));
        eventually("a write of passing is under way", BOUND, async || held.try_recv().map_err(|e| e.to_string())).await;
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 0);
        let all = async || {
            let mut all = vec![status(&agent, CHECK).await];
            for service in SERVICES {
                all.push(status(&agent, &format!("_service_maintenance:{service}")).await);
            }
            all
        };
        let critical = vec![Some("critical".to_owned()); 3];
        assert_eq!(all().await, critical, "{}", sync.output());
        // The cancelled write may still reach the agent and set the check. The maintenance remains.
        tokio::time::sleep(delay + Duration::from_millis(200)).await;
        assert_eq!(all().await[1..], critical[1..]);
    }
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
async fn missing_or_frozen_agent_does_not_delay_the_end() {
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let frozen = frozen.local_addr().unwrap().to_string();
    let gone = format!("127.0.0.1:{}", free_port());
    for agent in [gone, frozen] {
        let mut sync = Process::spawn(&mut command(&agent, &metadata.uri, &["app"]));
        sync.says("syncing the health of shop-f1a2", BOUND).await;
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 1);
        sync.says("health-sync: not written to Consul within 1s: check shop-f1a2-app-consul-ecs critical: ", BOUND)
            .await;
        sync.says("maintenance of shop-f1a2-sidecar-proxy: ", BOUND).await;
    }
}

/// Here the servers are down. A test of the mesh suite has servers that hang.
#[tokio::test]
async fn servers_that_are_down_do_not_delay_the_end() {
    let serf = free_port();
    let server = Agent::start_with(&json!({ "ports": { "serf_lan": serf } })).await;
    let client = json!({ "server": false, "bootstrap": false, "node_name": "client", "leave_on_terminate": true,
        "retry_join": [format!("127.0.0.1:{serf}")] });
    let mut client = Agent::start_with(&client).await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let mut sync = Process::spawn(&mut command(&client.http, &metadata.uri, &["app"]));
    becomes(&client, CHECK, "passing").await;

    drop(server);
    sync.signal(Signal::TERM);
    // The agent accepts writes that it cannot send to the servers.
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(status(&client, CHECK).await.unwrap(), "critical");
    assert_eq!(client.stop(BOUND).await, 0, "{}", client.output());
}

#[tokio::test]
async fn term_before_the_first_metadata_ends_it() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let mut sync = Process::spawn(&mut command(&nobody, &format!("http://{nobody}/v4/x"), &["app"]));
    sync.says("no task metadata: ", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before there was any task metadata: nothing was written to Consul", BOUND).await;
}

/// Waits for this many more requests for the metadata.
async fn rounds(metadata: &Metadata, more: u64) {
    let answered = metadata.answered();
    eventually(&format!("{more} more rounds"), BOUND, async || {
        if metadata.answered() >= answered + more { Ok(()) } else { Err(metadata.answered().to_string()) }
    })
    .await;
}

#[tokio::test]
async fn empty_metadata_changes_no_check() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("check passing", BOUND).await;
    rounds(&metadata, 2).await;
    for nothing in [Value::Null, json!([]), app("UNHEALTHY"), json!([{ "Name": "app", "Health": 5 }])] {
        metadata.set_field("Containers", nothing.clone());
        rounds(&metadata, 4).await;
        assert_eq!(status(&agent, CHECK).await.unwrap(), "passing", "{nothing}");
    }
    sync.says("no task metadata: the task metadata lists containers, but not this one; trying again", BOUND).await;
    metadata.set_containers(json!([{ "Name": "app", "KnownStatus": "STOPPED", "Health": { "status": "HEALTHY" } }]));
    becomes(&agent, CHECK, "critical").await;
}

#[tokio::test]
async fn first_metadata_without_own_container_is_ignored() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", json!([]));
    metadata.set_field("Containers", app("HEALTHY"));
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("no task metadata: the task metadata lists containers, but not this one; trying again", BOUND).await;
    rounds(&metadata, 4).await;
    assert_eq!(status(&agent, CHECK).await, None, "nothing is written: {}", sync.output());
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
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
async fn missing_metadata_is_polled_without_end() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    metadata.set_failing(true);
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("no task metadata: the endpoint answered 500", BOUND).await;
    for wrong in [Value::Null, json!("nonsense"), json!([])] {
        metadata.set_field("Containers", wrong);
        metadata.set_failing(false);
        rounds(&metadata, 2).await;
    }
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
}

async fn healthy(metadata: &Metadata, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary("health-sync"));
    command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).arg("healthy").args(arguments);
    let ended = run(&mut command, BOUND).await;
    assert!(ended.code == 0 || ended.stderr.lines().count() == 1, "{}", ended.stderr);
    (ended.code, ended.stderr)
}

#[tokio::test]
async fn healthy_fails_if_health_sync_is_dead_or_hangs() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    metadata.set_failing(true);
    let (code, line) = healthy(&metadata, &[]).await;
    assert!(code == 1 && line.contains("health-sync does not run in this container"), "{code} {line}");
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("no task metadata", BOUND).await;
    assert_eq!(healthy(&metadata, &[]).await, (0, String::new()), "ECS's agent may be away");
    metadata.set_failing(false);
    becomes(&agent, CHECK, "passing").await;
    assert_eq!(healthy(&metadata, &[]).await, (0, String::new()));
    sync.signal(Signal::STOP);
    let (code, line) = healthy(&metadata, &[]).await;
    assert!(code == 1 && line.contains("health-sync hangs: no answer within 4s"), "{code} {line}");
    sync.signal(Signal::CONT);
    assert_eq!(healthy(&metadata, &[]).await, (0, String::new()));
    drop(sync);
    assert_eq!(healthy(&metadata, &[]).await.0, 1);
}

/// With the token of a task, which has only a service identity.
#[tokio::test]
async fn gate_opens_once_the_proxy_passes_and_stays_open() {
    let mut agent = Agent::start_with_acls().await;
    let metadata = Metadata::start("shop", app("UNHEALTHY"));
    metadata.set_failing(true);
    let token = agent.service_token("shop").await;
    let sync = Process::spawn(command(&agent.http, &metadata.uri, &["app"]).env("CONSUL_HTTP_TOKEN", &token));
    sync.says("no task metadata", BOUND).await;
    let gate = async || healthy(&metadata, &["--in-mesh"]).await;
    assert_eq!(gate().await, (1, "health-sync: there is no task metadata yet\n".to_owned()));
    metadata.set_failing(false);
    sync.says("check critical", BOUND).await;
    // The app's check, and the check of the proxy's listener, which is not open yet.
    eventually("the gate names what is critical", BOUND, async || match gate().await {
        (1, line) if line.contains(r#"do not list shop-f1a2-sidecar-proxy as passing yet: "#) => {
            if line.contains(r#""Proxy Public Listener" is critical"#) { Ok(()) } else { Err(line) }
        }
        other => Err(format!("{other:?}")),
    })
    .await;
    metadata.set_containers(app("HEALTHY"));
    sync.says("check passing", BOUND).await;
    assert_eq!(gate().await.0, 1);
    let check = "service:shop-f1a2-sidecar-proxy:1";
    agent.call("PUT", &format!("/v1/agent/check/deregister/{check}"), &Value::Null).await;
    eventually("the gate is open", BOUND, async || match gate().await {
        (0, _) => Ok(()),
        (_, line) => Err(line),
    })
    .await;
    metadata.set_containers(app("UNHEALTHY"));
    sync.says("ECS says UNHEALTHY, check critical", BOUND).await;
    assert_eq!(gate().await, (0, String::new()), "the app's health is the app's");
    agent.stop(BOUND).await;
    assert_eq!(gate().await, (0, String::new()), "an outage ends no task");
}

#[tokio::test]
async fn gate_stays_open_after_a_restart() {
    let serf = free_port();
    let server = Agent::start_with(&json!({ "ports": { "serf_lan": serf } })).await;
    let client = json!({ "server": false, "bootstrap": false, "node_name": "client",
        "retry_join": [format!("127.0.0.1:{serf}")] });
    let client = Agent::start_with(&client).await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let gateway = Metadata::start("gate", json!([]));
    let document = json!({ "bootstrapDir": "/consul", "gateway": { "kind": "mesh-gateway" } }).to_string();
    let start = || {
        let mut gateway_command = command(&client.http, &gateway.uri, &[]);
        [
            Process::spawn(&mut command(&client.http, &metadata.uri, &["app"])),
            Process::spawn(gateway_command.env("CONSUL_ECS_CONFIG_JSON", &document)),
        ]
    };
    let first = start();
    first[0].says("check passing", BOUND).await;
    without_listener_check(&client).await;
    eventually("the gateway is registered", BOUND, async || {
        let checks = client.call("GET", "/v1/agent/checks", &Value::Null).await;
        let mut ids = checks.as_object().unwrap().iter().filter(|(_, check)| check["ServiceID"] == "gate-f1a2");
        ids.next().map(|(id, _)| id.clone()).ok_or_else(|| checks.to_string())
    })
    .await;
    let gate = async |metadata: &Metadata| healthy(metadata, &["--in-mesh"]).await.0;
    assert_eq!(gate(&gateway).await, 1, "nobody serves the gateway's listener");
    eventually("the service's gate is open", BOUND, async || match gate(&metadata).await {
        0 => Ok(()),
        code => Err(code.to_string()),
    })
    .await;

    drop((first, server));
    let again = start();
    for sync in &again {
        sync.says("syncing the health of", BOUND).await;
    }
    again[0].says("has been in the mesh", BOUND).await;
    assert_eq!(gate(&metadata).await, 0);
    assert_eq!(gate(&gateway).await, 1, "it was never in the mesh");
}

/// Registers the proxy of another instance, as passing or as critical.
async fn register_other(agent: &Agent, passing: bool) {
    let other = json!({
        "Kind": "connect-proxy", "ID": "shop-b2-sidecar-proxy", "Name": "shop-sidecar-proxy", "Port": 20000,
        "Proxy": { "DestinationServiceName": "shop" },
        "Checks": [{ "CheckID": "other", "Name": "other", "TTL": "1h" }],
    });
    agent.call("PUT", "/v1/agent/service/register", &other).await;
    let verb = if passing { "pass" } else { "fail" };
    agent.call("PUT", &format!("/v1/agent/check/{verb}/other"), &Value::Null).await;
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
async fn critical_status_waits_for_another_passing_instance() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("shop").await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    register_other(&agent, false).await;
    let mut command = command(&agent.http, &metadata.uri, &["app"]);
    let mut sync =
        Process::spawn(command.env("CONSUL_HTTP_TOKEN", token).env("HEALTH_SYNC_HOLD", format!("{BOUND:?}")));
    sync.says("check passing", BOUND).await;
    without_listener_check(&agent).await;
    sync.signal(Signal::TERM);
    sync.says("no other instance of shop is passing yet: this task stays passing until one is, at most for 20s", BOUND)
        .await;
    let read = async || agent.call("GET", "/v1/agent/checks", &Value::Null).await[CHECK]["Status"].clone();
    assert_eq!(read().await, "passing");
    agent.call("PUT", "/v1/agent/check/pass/other", &Value::Null).await;
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(read().await, "critical");
}

#[tokio::test]
async fn hold_is_bounded_and_does_not_wait_for_instances_that_leave() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let maintenance = |on: bool| format!("/v1/agent/service/maintenance/shop-b2-sidecar-proxy?enable={on}");
    for (other, hold, held) in [
        (None, "20s", false),
        (Some("passing"), "20s", false),
        (Some("maintenance"), "20s", false),
        (Some("critical"), "0s", false),
        (Some("critical"), "300ms", true),
    ] {
        if let Some(other) = other {
            register_other(&agent, other == "passing").await;
            agent.call("PUT", &maintenance(other == "maintenance"), &Value::Null).await;
        }
        let mut sync = Process::spawn(command(&agent.http, &metadata.uri, &["app"]).env("HEALTH_SYNC_HOLD", hold));
        sync.says("check passing", BOUND).await;
        becomes(&agent, CHECK, "passing").await;
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
        assert_eq!(sync.output().contains("this task stays passing until one is"), held, "{other:?} {hold}");
        assert_eq!(status(&agent, CHECK).await.unwrap(), "critical");
    }
}

#[tokio::test]
async fn held_status_is_written_when_the_app_has_stopped() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    register_other(&agent, false).await;
    let mut command = command(&agent.http, &metadata.uri, &["app"]);
    command.env("HEALTH_SYNC_HOLD", format!("{:?}", 10 * BOUND)).env("CONSUL_ECS_CHECK_TTL", "100000h");
    let mut sync = Process::spawn(&mut command);
    sync.says("check passing", BOUND).await;
    without_listener_check(&agent).await;
    sync.signal(Signal::TERM);
    sync.says("this task stays passing until one is", BOUND).await;
    // Metadata that says nothing about containers does not end the hold.
    metadata.set_field("Containers", Value::Null);
    rounds(&metadata, 4).await;
    assert_eq!(status(&agent, CHECK).await.unwrap(), "passing");
    metadata.set_containers(json!([{ "Name": "app", "KnownStatus": "STOPPED", "Health": { "status": "HEALTHY" } }]));
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(status(&agent, CHECK).await.unwrap(), "critical");
}

#[tokio::test]
async fn hold_does_not_wait_for_silent_servers() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    register_other(&agent, false).await;
    let (way, asked) = slow_relay(&agent.http, "consistent", 10 * BOUND);
    let mut command = command(&way, &metadata.uri, &["app"]);
    command.env("HEALTH_SYNC_HOLD", format!("{:?}", 10 * BOUND)).env("CONSUL_ECS_CHECK_TTL", "100000h");
    command.env("LOG_LEVEL", "debug");
    let mut sync = Process::spawn(&mut command);
    sync.says("check passing", BOUND).await;
    without_listener_check(&agent).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    // Without the short bound, the HTTP client's own bound would end the request, and log this.
    assert!(!sync.output().contains("Consul did not answer in time"), "{}", sync.output());
    assert_eq!(asked.try_iter().count(), 1, "the servers are asked once");
    assert_eq!(status(&agent, CHECK).await.unwrap(), "critical");
}

#[tokio::test]
async fn held_status_is_dropped_once_the_node_has_left() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    register_other(&agent, false).await;
    let mut command = command(&agent.http, &metadata.uri, &["app"]);
    let mut sync = Process::spawn(command.env("HEALTH_SYNC_HOLD", format!("{BOUND:?}")));
    sync.says("check passing", BOUND).await;
    without_listener_check(&agent).await;
    sync.signal(Signal::TERM);
    sync.says("this task stays passing until one is", BOUND).await;
    // The servers do the same when the node leaves. The agent does not notice, but its next sync registers the proxy again.
    let gone = json!({ "Datacenter": "dc1", "Node": "test", "ServiceID": SERVICES[1] });
    let deregister = async || {
        loop {
            agent.call("PUT", "/v1/catalog/deregister", &gone).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        code = sync.exit_code(BOUND) => assert_eq!(code, 0),
        () = deregister() => {}
    }
    sync.says("the task's node has left the cluster: nothing is written", BOUND).await;
    assert_eq!(status(&agent, CHECK).await.unwrap(), "passing");
}

#[tokio::test]
async fn held_status_is_dropped_if_the_servers_are_silent() {
    let serf = free_port();
    let server = Agent::start_with(&json!({ "ports": { "serf_lan": serf } })).await;
    let client = json!({ "server": false, "bootstrap": false, "node_name": "client",
        "retry_join": [format!("127.0.0.1:{serf}")] });
    let client = Agent::start_with(&client).await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    register_other(&client, false).await;
    let mut command = command(&client.http, &metadata.uri, &["app"]);
    command.env("HEALTH_SYNC_HOLD", format!("{:?}", 10 * BOUND)).env("CONSUL_ECS_CHECK_TTL", "100000h");
    let mut sync = Process::spawn(&mut command);
    sync.says("check passing", BOUND).await;
    without_listener_check(&client).await;
    sync.signal(Signal::TERM);
    sync.says("this task stays passing until one is", BOUND).await;
    drop(server);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    sync.says("Consul's servers give no answer: the task's node may have left the cluster: nothing is written", BOUND)
        .await;
    assert_eq!(status(&client, CHECK).await.unwrap(), "passing");
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
