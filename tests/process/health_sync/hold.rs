//! The critical status after TERM that waits for another instance.

use super::*;

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
