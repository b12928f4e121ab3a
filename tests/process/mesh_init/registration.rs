//! What mesh-init registers and writes.

use super::*;

#[tokio::test]
async fn token_with_a_service_identity_is_enough() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let task = Task::new(&agent.http, &token);
    let finished = task.starts().await;
    assert!(!finished.stderr.contains(&token) && finished.stdout.is_empty());

    let service = agent.call("GET", "/v1/agent/service/web-f1a2", &Value::Null).await;
    assert_eq!(service["Service"], "web");
    assert_eq!(service["Port"], 9090);
    assert_eq!(service["Tags"], json!(["blue"]));
    assert_eq!(service["Weights"], json!({ "Passing": 3, "Warning": 2 }));
    let meta = json!({ "env": "test", "source": "consul-ecs", "task-arn": ARN, "task-id": "f1a2" });
    assert_eq!(service["Meta"], meta);
    assert_eq!(service["Address"], "");

    let proxy = agent.call("GET", "/v1/agent/service/web-f1a2-sidecar-proxy", &Value::Null).await;
    assert_eq!((&proxy["Service"], &proxy["Kind"]), (&json!("web-sidecar-proxy"), &json!("connect-proxy")));
    assert_eq!(proxy["Port"], 20000);
    assert_eq!(proxy["Meta"], meta);
    assert_eq!(proxy["Proxy"]["DestinationServiceName"], "web");
    assert_eq!(proxy["Proxy"]["DestinationServiceID"], "web-f1a2");
    assert_eq!(proxy["Proxy"]["LocalServicePort"], 9090);
    assert_eq!(proxy["Proxy"]["Upstreams"][0]["DestinationName"], "api");

    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    let synced = &checks["web-f1a2-app-consul-ecs"];
    assert_eq!((&synced["Name"], &synced["Status"]), (&json!("consul ecs synced"), &json!("critical")));
    assert_eq!(synced["ServiceID"], "web-f1a2");
    let of_proxy = checks.as_object().unwrap().values().filter(|check| check["ServiceID"] == proxy["ID"]);
    let names: Vec<_> = of_proxy.map(|check| check["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Proxy Public Listener", "Destination Alias"]);

    let bootstrap = task.bootstrap();
    assert_eq!(bootstrap["node"]["id"], "web-f1a2-sidecar-proxy");
    assert_eq!(bootstrap["node"]["cluster"], "web");
    let grpc = &bootstrap["dynamic_resources"]["ads_config"]["grpc_services"];
    assert_eq!(grpc["initial_metadata"][0]["value"], token.as_str());
    let tags = bootstrap["stats_config"]["stats_tags"].as_array().unwrap();
    assert!(tags.contains(&json!({ "tag_name": "consul.source.datacenter", "fixed_value": "dc1" })));
    let file = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
    task.loads_in_envoy().await;
}

#[tokio::test]
async fn second_run_changes_nothing() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let public_listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut task = Task::new(&agent.http, &token);
    task.document["proxy"]["publicListenerPort"] = json!(public_listener.local_addr().unwrap().port());
    task.starts().await;
    let set = json!({ "Status": "passing", "Output": "HEALTHY" });
    agent.call("PUT", "/v1/agent/check/update/web-f1a2-app-consul-ecs", &set).await;
    // Consul runs the proxy's two checks in its own time, so the test waits for them.
    eventually("all checks pass", BOUND, async || {
        let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
        let passing = checks.as_object().unwrap().values().all(|check| check["Status"] == "passing");
        if passing { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    let before = catalog(&agent, "first").await;
    let file = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();

    let again = task.starts().await;
    assert!(again.stderr.contains("is as it should be"), "{}", again.stderr);
    assert_eq!(status(&agent, "web-f1a2-app-consul-ecs").await, "passing");
    let after = catalog(&agent, "second").await;
    assert_eq!(before.as_array().unwrap().len(), 2);
    assert_eq!(before, after);
    let untouched = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert_eq!((file.ino(), file.mtime_nsec()), (untouched.ino(), untouched.mtime_nsec()));
}

#[tokio::test]
async fn check_removed_from_the_document_leaves_consul() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    let synced = task.document["healthSyncContainers"].take();
    task.document["service"]["checks"] = json!([{ "checkId": "own", "name": "own", "ttl": "10m" }]);
    task.starts().await;
    assert_eq!(status(&agent, "own").await, "critical");
    task.document["service"]["checks"] = json!([]);
    task.document["healthSyncContainers"] = synced;
    task.starts().await;
    assert_eq!(status(&agent, "own").await, Value::Null);
    assert_eq!(status(&agent, "web-f1a2-app-consul-ecs").await, "critical");
}

#[tokio::test]
async fn bootstrap_has_proxy_defaults_and_the_grpc_port() {
    let agent = Agent::start().await;
    let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": {
        "envoy_prometheus_bind_addr": "127.0.0.1:9102", "envoy_dogstatsd_url": "udp://127.0.0.1:8125",
        "envoy_stats_tags": ["canary"],
    } });
    agent.call("PUT", "/v1/config", &defaults).await;
    let task = Task::new(&agent.http, "");
    task.starts().await;
    let bootstrap = task.bootstrap();
    let resources = &bootstrap["static_resources"];
    assert_eq!(resources["listeners"][0]["name"], "envoy_prometheus_metrics_listener");
    assert_eq!(bootstrap["stats_sinks"][0]["name"], "envoy.stat_sinks.dog_statsd");
    assert_eq!(bootstrap["stats_config"]["stats_tags"][0]["tag_name"], "canary");
    let cluster = resources["clusters"][0].to_string();
    assert!(cluster.contains(&format!("\"port_value\":{}", agent.grpc_port)), "{cluster}");
    task.loads_in_envoy().await;

    let elsewhere = Task::new(&agent.http, "").with("CONSUL_GRPC_ADDR", "unix:///run/grpc.sock");
    elsewhere.starts().await;
    assert!(elsewhere.bootstrap()["static_resources"]["clusters"][0].to_string().contains("/run/grpc.sock"));
}

#[tokio::test]
async fn mesh_init_waits_for_the_agent_and_says_so() {
    let port = free_port();
    let task = Task::new(&format!("127.0.0.1:{port}"), "").with("LOG_LEVEL", "info");
    let mut started = Process::spawn(&mut task.command());
    started.says(&format!("waiting for Consul's agent at http://127.0.0.1:{port}, at most 1m 30s: "), BOUND).await;
    let agent = Agent::start().await;
    let relay = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let address = agent.http.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = relay.accept().await {
            let mut to = tokio::net::TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    assert_eq!(started.exit_code(BOUND).await, 0);
    assert_eq!(task.bootstrap()["node"]["id"], "web-f1a2-sidecar-proxy");
}

#[tokio::test]
async fn agent_without_grpc_is_an_error() {
    let agent = Agent::start_with(&json!({ "ports": { "grpc": -1 } })).await;
    let task = Task::new(&agent.http, "");
    task.fails_with(&[], &["the agent serves no gRPC, which Envoy needs: expected ports { grpc = 8502 }"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
    // If `CONSUL_GRPC_ADDR` names another agent for Envoy, this agent needs no gRPC.
    task.with("CONSUL_GRPC_ADDR", "127.0.0.1:8502").starts().await;
}

#[tokio::test]
async fn admin_address_has_the_ip_family_of_the_agent() {
    let server = |bound: &str| {
        answering(
            &json!({
                "ID": "web-f1a2-sidecar-proxy", "Service": "web-sidecar-proxy", "Datacenter": "dc1",
                "Proxy": { "DestinationServiceName": "web" },
                "Config": { "Datacenter": "dc1", "NodeName": "n", "Version": "1.21.4" },
                "DebugConfig": { "BindAddr": bound, "GRPCPort": 8502 },
            })
            .to_string(),
        )
    };
    let (v4, v6) = (server("0.0.0.0"), server("::"));
    for (agent, grpc, admin) in
        [(&v6, "127.0.0.1:8502", "::1"), (&v4, "[::1]:8502", "127.0.0.1"), (&v6, "unix:///grpc.sock", "::1")]
    {
        let task = Task::new(&agent.address, "").with("CONSUL_GRPC_ADDR", grpc);
        task.starts().await;
        assert_eq!(task.bootstrap()["admin"]["address"]["socket_address"]["address"], admin, "{grpc}");
    }
}
