//! mesh-init in a task without an agent: its registration in the catalog, and its files on the volume.

use mesh_tests::catalog::{NODE, host_and_port, on_node, register_node, servers};

use super::*;

/// A task without an agent, whose server is `agent`.
pub(super) fn agentless(agent: &Agent, token: &str) -> Task {
    let mut task = Task::new("", token);
    let (host, port) = host_and_port(&agent.http);
    task.document["consulServers"] = servers(host, port);
    task.document["transparentProxy"] = json!({ "enabled": false });
    task
}

#[tokio::test]
async fn task_is_registered_in_the_catalog_once_its_node_is_there() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let mut task = agentless(&agent, &token);
    task.document["logLevel"] = "DEBUG".into();
    let mut starting = Process::spawn(task.command().env("LOG_LEVEL", "info"));
    starting.says("waiting for the node arn:aws:ecs:eu-north-1:210987654321:cluster/blue", BOUND).await;
    register_node(&agent).await;
    assert_eq!(starting.exit_code(BOUND).await, 0, "{}", starting.output());
    assert!(!starting.output().contains(&token));

    let (services, checks) = on_node(&agent).await;
    let version = env!("CARGO_PKG_VERSION");
    let meta = json!({
        "env": "test", "source": "consul-ecs", "task-arn": ARN, "task-id": "f1a2", "ecs-mesh-version": version,
    });
    let service = &services["web-f1a2"];
    assert_eq!((&service["Service"], &service["Port"]), (&json!("web"), &json!(9090)));
    assert_eq!((&service["Address"], &service["Meta"]), (&json!("127.0.0.1"), &meta));
    assert_eq!((&service["Tags"], &service["Weights"]), (&json!(["blue"]), &json!({ "Passing": 3, "Warning": 2 })));
    let proxy = &services["web-f1a2-sidecar-proxy"];
    assert_eq!((&proxy["Service"], &proxy["Kind"]), (&json!("web-sidecar-proxy"), &json!("connect-proxy")));
    assert_eq!((&proxy["Address"], &proxy["Port"], &proxy["Meta"]), (&json!("127.0.0.1"), &json!(20000), &meta));
    assert_eq!(proxy["Proxy"]["DestinationServiceID"], "web-f1a2");
    assert_eq!(proxy["Proxy"]["LocalServicePort"], 9090);
    assert_eq!(proxy["Proxy"]["Upstreams"][0]["DestinationName"], "api");
    for (id, name, service, output) in [
        ("web-f1a2-app", "Consul ECS health check synced", "web-f1a2", "Service web is not ready"),
        ("web-f1a2-consul-dataplane", "Consul dataplane readiness", "web-f1a2", "Service web is not ready"),
        (
            "web-f1a2-sidecar-proxy-consul-dataplane",
            "Consul dataplane readiness",
            "web-f1a2-sidecar-proxy",
            "Service web-sidecar-proxy is not ready",
        ),
    ] {
        let check = &checks[id];
        assert_eq!((&check["Name"], &check["ServiceID"]), (&json!(name), &json!(service)), "{checks}");
        assert_eq!((&check["Status"], &check["Output"]), (&json!("critical"), &json!(output)), "{id}");
    }
    assert_eq!(checks.as_object().unwrap().len(), 3, "{checks}");

    let path = task.volume.path().join("dataplane.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains(&token), "{text}");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        written,
        json!({
            "consul": { "addresses": "127.0.0.1", "grpcPort": 8502, "serverWatchDisabled": false, "tls": { "disabled": true } },
            "proxy": { "nodeName": NODE, "id": "web-f1a2-sidecar-proxy", "namespace": "", "partition": "" },
            "envoy": { "readyBindAddress": "127.0.0.1", "readyBindPort": 22000 },
            "logging": { "logLevel": "DEBUG" },
        })
    );
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn second_run_without_an_agent_changes_nothing() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let token = agent.service_token("web").await;
    let task = agentless(&agent, &token);
    task.starts().await;
    // As health-sync writes it.
    let passing = json!({
        "Node": NODE, "SkipNodeUpdate": true,
        "Checks": [{ "CheckID": "web-f1a2-sidecar-proxy-consul-dataplane", "ServiceID": "web-f1a2-sidecar-proxy",
            "Name": "Consul dataplane readiness", "Status": "passing", "Output": "HEALTHY" }],
    });
    agent.call("PUT", "/v1/catalog/register", &passing).await;
    let before = on_node(&agent).await;
    assert_eq!(before.1["web-f1a2-sidecar-proxy-consul-dataplane"]["Status"], "passing");
    let again = task.starts().await;
    assert!(again.stderr.contains("dataplane.json is as it should be"), "{}", again.stderr);
    // The answers contain each ModifyIndex, so an unnecessary write would show.
    assert_eq!(on_node(&agent).await, before);
}

#[tokio::test]
async fn failure_takes_back_what_this_run_has_registered() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let token = agent.service_token("web").await;
    // The file for the dataplane cannot be written.
    let task = agentless(&agent, &token);
    let path = task.volume.path().join("dataplane.json");
    std::fs::create_dir(&path).unwrap();
    let fails = async |task: &Task, text: &str| {
        let finished = run(task.command().env("MESH_INIT_TIMEOUT", "10s").env("LOG_LEVEL", "error"), BOUND).await;
        let line = finished.stderr.trim_end();
        assert_eq!((finished.code, line.lines().count()), (1, 1), "{line}");
        assert!(line.contains(text) && !line.contains(&token), "{text:?} is not in {line}");
    };
    fails(&task, "cannot write a file for the dataplane").await;
    assert_eq!(on_node(&agent).await.0, json!({}));
    // The token is for `web`, so Consul refuses the service `api`.
    let mut second = agentless(&agent, &token);
    second.document["service"]["name"] = "api".into();
    fails(&second, "cannot register api-f1a2 (expected a token with the service identity api)").await;
    assert_eq!(on_node(&agent).await.0, json!({}));
    // What an earlier run has registered stays: the task may still run.
    std::fs::remove_dir(&path).unwrap();
    task.starts().await;
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    fails(&task, "cannot write a file for the dataplane").await;
    assert!(on_node(&agent).await.0["web-f1a2-sidecar-proxy"].is_object());
}

#[tokio::test]
async fn task_without_a_node_or_a_server_fails_with_one_line() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let task = agentless(&agent, &token).with("MESH_INIT_TIMEOUT", "10s");
    task.fails_with(&[], &["no node for the task's cluster in Consul's catalog: run acl-controller", NODE]).await;
    let mut unreachable = agentless(&agent, &token).with("MESH_INIT_TIMEOUT", "10s");
    unreachable.document["consulServers"]["http"]["port"] = json!(1);
    unreachable
        .fails_with(&[], &["cannot read the node of the task's cluster from Consul's servers at http://127.0.0.1:1: "])
        .await;
    let mut tls = agentless(&agent, &token);
    tls.document["consulServers"]["http"] = json!({ "caCertFile": "/nowhere" });
    tls.fails_with(
        &[],
        &["cannot use the HTTP API of Consul's servers: consulServers (", "caCertFile: cannot read /nowhere"],
    )
    .await;
}

#[tokio::test]
async fn gateway_without_an_agent_is_one_registration() {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    let token = agent.service_token("door").await;
    let mut task = agentless(&agent, &token);
    for unused in ["service", "proxy", "healthSyncContainers"] {
        task.document.as_object_mut().unwrap().remove(unused);
    }
    task.document["gateway"] = json!({
        "kind": "terminating-gateway", "name": "door", "healthCheckPort": 22001,
    });
    task.starts().await;
    let (services, checks) = on_node(&agent).await;
    let gateway = &services["door-f1a2"];
    assert_eq!((&gateway["Kind"], &gateway["Port"]), (&json!("terminating-gateway"), &json!(8443)));
    assert_eq!(gateway["Address"], "127.0.0.1");
    assert_eq!(services.as_object().unwrap().len(), 1);
    assert_eq!(checks.as_object().unwrap().keys().collect::<Vec<_>>(), ["door-f1a2-consul-dataplane"]);
    let written = std::fs::read(task.volume.path().join("dataplane.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!((&written["proxy"]["id"], &written["envoy"]["readyBindPort"]), (&json!("door-f1a2"), &json!(22001)));
}
