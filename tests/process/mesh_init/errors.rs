//! Input, metadata, agents and tokens that cannot be used.

use super::*;

#[tokio::test]
async fn wrong_input_gives_one_line_and_registers_nothing() {
    let agent = Agent::start().await;
    let task = || Task::new(&agent.http, "");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut task = task();
        change(&mut task.document);
        task
    };
    let cases = [
        (task().with("CONSUL_ECS_CONFIG_JSON", ""), "CONSUL_ECS_CONFIG_JSON is not set"),
        (task().with("CONSUL_ECS_CONFIG_JSON", "{"), "CONSUL_ECS_CONFIG_JSON: not JSON: "),
        (with(&|d| d["service"]["port"] = json!("80")), r#"service.port: expected an integer, got "80""#),
        (with(&|d| d["services"] = json!({})), "services: expected one of the fields bootstrapDir, "),
        (
            with(&|d| d["proxy"]["upstreams"][0]["localBindPort"] = json!(20000)),
            "proxy.upstreams[0].localBindPort: expected an address and port that no other listener",
        ),
        (
            with(&|d| drop(d.as_object_mut().unwrap().remove("service"))),
            "service: missing, expected an object with at least port, or gateway",
        ),
        (with(&|d| d["consulLogin"] = json!({ "enabled": true })), "consulLogin: no AWS credentials"),
        (with(&|d| d["bootstrapDir"] = json!("/nowhere")), "bootstrapDir: cannot write to /nowhere: mount the task's"),
        (with(&|d| d["bootstrapDir"] = json!("/dev/null")), "bootstrapDir: cannot write to /dev/null: "),
        (
            with(&|d| d["proxy"]["config"] = json!({ "envoy_stats_bind_addr": "9102" })),
            r#"envoy_stats_bind_addr: expected <ip>:<port>, got "9102""#,
        ),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", ""), "ECS_CONTAINER_METADATA_URI_V4 is not set"),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", "169.254.170.2"), "expected a URL such as "),
        (task().with("CONSUL_HTTP_ADDR", "ftp://consul"), r#"CONSUL_HTTP_ADDR is "ftp://consul": expected host:port"#),
        (
            task().with("CONSUL_HTTP_TOKEN_FILE", "/nowhere"),
            "CONSUL_HTTP_TOKEN_FILE: cannot read the secret in /nowhere",
        ),
        (task().with("CONSUL_GRPC_ADDR", "8502"), r#"CONSUL_GRPC_ADDR is "8502": expected <host>:<port>"#),
        (
            task().with("CONSUL_GRPC_ADDR", "https://127.0.0.1:1").with("CONSUL_GRPC_CACERT", "/nowhere"),
            "CONSUL_GRPC_CACERT: cannot read the CA certificate in /nowhere",
        ),
        (
            task().with("MESH_INIT_ADMIN_BIND", "19000"),
            r#"--admin-bind (MESH_INIT_ADMIN_BIND) is "19000": expected <host>:<port>"#,
        ),
        (
            task().with("MESH_INIT_READY_BIND", "9104"),
            r#"--ready-bind (MESH_INIT_READY_BIND) is "9104": expected <ip>:<port>"#,
        ),
    ];
    for (task, text) in cases {
        task.fails_with(&[], &[text]).await;
    }
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn refused_proxy_leaves_no_service_behind() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let mut task = Task::new(&agent.http, &token);
    task.document["proxy"]["upstreams"][0]["destinationPartition"] = json!("ap1");
    task.fails_with(&[], &["cannot register web-f1a2", "DestinationPartition", "Consul Enterprise 1.11"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));

    // mesh-init learns of an option in the central configuration only after it has registered the proxy.
    let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "envoy_stats_bind_addr": "9102" } });
    agent.call("PUT", "/v1/config", &defaults).await;
    Task::new(&agent.http, &token).fails_with(&[], &["envoy_stats_bind_addr: expected <ip>:<port>"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn temporary_files_of_a_killed_run_are_removed() {
    let agent = Agent::start().await;
    let task = Task::new(&agent.http, "");
    let (left, _) = create_beside(&task.volume.path().join("envoy-bootstrap.json"), 0o640).unwrap();
    std::fs::write(left, "t0k3n").unwrap();
    task.starts().await;
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn unusable_metadata_or_consul_gives_one_line() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let bound = ["--timeout", "1s"];
    let with_metadata = |address: String| {
        let mut task = Task::new(&nobody, "");
        task.metadata = address;
        task
    };
    let gave_up = "gave up waiting for the task metadata after 1s";
    with_metadata(nobody.clone()).fails_with(&bound, &[gave_up, "cannot reach http://127.0.0.1"]).await;
    with_metadata(silent().address).fails_with(&bound, &[gave_up]).await;
    with_metadata(endless().address).fails_with(&["--timeout", "30s"], &["is larger than 1048576 bytes"]).await;
    with_metadata(answering("<html>").address).fails_with(&bound, &["cannot decode the task metadata"]).await;
    // ECS's agent gives such an answer while it starts.
    let unfinished =
        r#"{"Cluster":"blue","Family":"web","TaskARN":"arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2"}"#;
    with_metadata(answering(unfinished).address).fails_with(&bound, &[gave_up, "lists no containers"]).await;

    let gave_up = "cannot register web-f1a2: gave up waiting for Consul's agent at ";
    Task::new(&nobody, "").fails_with(&bound, &[gave_up, "Consul is not reachable"]).await;
    Task::new(&silent().address, "").fails_with(&bound, &[gave_up]).await;
    let endless = Task::new(&endless().address, "");
    endless.fails_with(&["--timeout", "30s"], &["is not from Consul"]).await;
    let nonsense = Task::new(&answering("<html>").address, "");
    nonsense.fails_with(&bound, &["the answer is not from Consul"]).await;
}

#[tokio::test]
async fn unknown_token_is_retried_to_the_bound_and_not_shown() {
    let agent = Agent::start_with_acls().await;
    let token = "11111111-2222-3333-4444-555555555555";
    let task = Task::new(&agent.http, token);
    task.fails_with(
        &["--timeout", "1s"],
        &["expected a token with the service identity web", "after 1s", "the ACL token is unknown"],
    )
    .await;
    let traced = run(task.command().args(["--timeout", "1s"]), BOUND).await;
    assert!(!traced.stderr.contains(token), "{}", traced.stderr);
}
