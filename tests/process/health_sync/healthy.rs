//! `health-sync healthy`, and its gate.

use super::*;

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
    assert_eq!(gate().await, (0, String::new()), "an unhealthy app does not close the gate again");
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
