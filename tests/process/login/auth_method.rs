//! Logins through an auth method of type `jwt`, and logouts.

use super::*;

#[tokio::test]
async fn login_gives_a_token_and_the_task_end_removes_it() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let task = Task::that_logs_in(&agent.http);
    let variables =
        [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap())];
    let first = task.starts(&variables).await;
    let token = task.token();
    let bearer = std::fs::read_to_string(proof.path()).unwrap();
    assert!(!first.stderr.contains(&token) && !first.stderr.contains(&bearer), "{}", first.stderr);
    let mode = std::fs::metadata(task.volume.path().join("service-token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let made = logins(&agent).await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0]["ServiceIdentities"][0]["ServiceName"], "web");
    let description = made[0]["Description"].as_str().unwrap();
    for meta in [
        r#""consul.hashicorp.com/task-id":"f1a2""#,
        r#""consul.hashicorp.com/cluster":"arn:aws:ecs:eu-north-1:210987654321:cluster/blue""#,
        r#""team":"shop""#,
    ] {
        assert!(description.contains(meta), "{description}");
    }
    let bootstrap = std::fs::read_to_string(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert!(bootstrap.contains(&token));

    // A second run uses the same token, as long as it works.
    task.starts(&variables).await;
    assert_eq!((task.token(), logins(&agent).await.len()), (token.clone(), 1));
    // A run that fails does not destroy a token of an earlier run, because the task may still use it.
    let without_agent = [("CONSUL_HTTP_ADDR", "http://127.0.0.1:1"), variables[1], ("MESH_INIT_TIMEOUT", "1s")];
    let failed = run(&mut task.command("mesh-init", &without_agent), BOUND).await;
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert_eq!((task.token(), logins(&agent).await.len()), (token.clone(), 1));
    let accessor = made[0]["AccessorID"].as_str().unwrap();
    agent.call("DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null).await;
    task.starts(&variables).await;
    assert_ne!(task.token(), token);
    assert_eq!(logins(&agent).await.len(), 1);

    let mut sync = Process::spawn(&mut task.command("health-sync", &variables[..1]));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
    // The agent needs the token to send statuses to the servers. The servers have the critical statuses, so the token was destroyed after
    // that.
    let checks = agent.call("GET", "/v1/health/checks/web", &Value::Null).await;
    let statuses = checks.as_array().unwrap().iter().map(|check| &check["Status"]).collect::<Vec<_>>();
    assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == "critical"), "{checks}");
    assert!(!sync.output().contains(&task.token()));

    // A token that is already gone is no error.
    let mut again = Process::spawn(&mut task.command("health-sync", &variables[..1]));
    again.says("syncing the health", BOUND).await;
    again.signal(Signal::TERM);
    again.exit_code(BOUND).await;
    assert!(!again.output().contains("not logged out"), "{}", again.output());
}

#[tokio::test]
async fn agent_config_logs_in_and_health_sync_logs_out() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let mut task = Task::new();
    let (sink, output) = (task.volume.path().join("client-token"), task.volume.path().join("agent.json"));
    let variables = [
        ("CONSUL_RETRY_JOIN", "server"),
        ("CONSUL_HTTP_ADDR", agent.http.as_str()),
        ("CONSUL_LOGIN", "true"),
        ("CONSUL_LOGIN_METHOD", METHOD),
        ("CONSUL_LOGIN_TOKEN_SINK", sink.to_str().unwrap()),
        ("MESH_INIT_AGENT_CONFIG", output.to_str().unwrap()),
        ("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap()),
    ];
    let configured = async || {
        let finished = run(task.command("mesh-init", &variables).arg("agent-config"), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let config: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
        let token = config["acl"]["tokens"]["agent"].as_str().unwrap().to_owned();
        assert!(!finished.stderr.contains(&token));
        token
    };
    let token = configured().await;
    assert_eq!(std::fs::read_to_string(&sink).unwrap(), token);
    assert_eq!(configured().await, token);
    assert_eq!(logins(&agent).await.len(), 1);

    let both = [&variables[..], &[("CONSUL_CLIENT_TOKEN", "t")]].concat();
    let refused = run(task.command("mesh-init", &both).arg("agent-config"), BOUND).await;
    assert!(refused.code == 1 && refused.stderr.contains("both set"), "{}", refused.stderr);

    let service_token = agent.service_token("web").await;
    let with_token = [variables[1], ("CONSUL_HTTP_TOKEN", service_token.as_str())];
    task.starts(&with_token).await;
    // The first server in the list accepts requests and never answers.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    task.document["consulHTTPAddr"] = format!("{},{}", hangs.local_addr().unwrap(), agent.http).into();
    let mut sync = Process::spawn(&mut task.command("health-sync", &with_token));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
}

#[tokio::test]
async fn failed_login_gives_one_line_and_leaves_no_token() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let (proof, nobody, old) = (platform.proof("web"), platform.proof("nobody"), platform.proof_at("web", 1_000_000));
    let given = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let (proof, nobody, old) = (given(&proof), given(&nobody), given(&old));
    let agent_at = ("CONSUL_HTTP_ADDR", agent.http.as_str());
    let bearer = "CONSUL_LOGIN_BEARER_TOKEN_FILE";
    let task = Task::that_logs_in(&agent.http);

    task.fails_with(&[agent_at], &["no AWS credentials", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]).await;
    let refuses = r#"the auth method "platform" refuses this task: check its binding rules"#;
    task.fails_with(&[agent_at, (bearer, &nobody)], &[refuses]).await;
    task.fails_with(&[agent_at, (bearer, &old)], &["consulLogin: ", "expired"]).await;
    task.fails_with(&[agent_at, (bearer, "/no/proof")], &["CONSUL_LOGIN_BEARER_TOKEN_FILE", "/no/proof"]).await;

    let mut wrong = Task::that_logs_in(&agent.http);
    wrong.document["consulLogin"]["method"] = "other".into();
    wrong.fails_with(&[agent_at, (bearer, &proof)], &[r#"there is no auth method "other" at http://127"#]).await;
    // The default auth method is of type aws-iam, which this Consul does not have.
    let mut aws = Task::that_logs_in(&agent.http);
    aws.document["consulLogin"] = json!({ "enabled": true, "includeEntity": false });
    let key = [agent_at, ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
    let needs = [r#"there is no auth method "iam-ecs-service-token""#, "aws-iam needs Consul 1.12 or later"];
    aws.fails_with(&key, &needs).await;
    let nowhere = Task::that_logs_in(&format!("127.0.0.1:{}", free_port()));
    nowhere.fails_with(&[agent_at, (bearer, &proof)], &["Consul is not reachable", "Connection refused"]).await;
    let mut authority = Task::that_logs_in(&agent.http);
    authority.document["consulCACertFile"] = "/no/ca.pem".into();
    authority.fails_with(&[agent_at, (bearer, &proof)], &["servers", "cannot read /no/ca.pem"]).await;

    // If a later step fails, mesh-init destroys the new token. In the first case no agent answers, in the second one the registration is
    // refused.
    let no_agent = format!("127.0.0.1:{}", free_port());
    task.fails_with(&[("CONSUL_HTTP_ADDR", &no_agent), (bearer, &proof)], &["not all servers know the token"]).await;
    let mut other = Task::that_logs_in(&agent.http);
    other.document["service"]["name"] = "other".into();
    let denied = "cannot register other-f1a2 (expected a token with the service identity other)";
    other.fails_with(&[agent_at, (bearer, &proof)], &[denied, "Permission denied"]).await;
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
}

#[tokio::test]
async fn term_before_the_first_metadata_logs_out() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let task = Task::that_logs_in(&agent.http);
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path()))];
    task.starts(&variables).await;
    assert_eq!(logins(&agent).await.len(), 1);
    let nobody = format!("http://127.0.0.1:{}/v4/x", free_port());
    let no_metadata = [variables[0], ("ECS_CONTAINER_METADATA_URI_V4", &nobody)];

    let mut sync = Process::spawn(&mut task.command("health-sync", &no_metadata));
    sync.says("no task metadata: ", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before there was any task metadata: nothing was written to Consul", BOUND).await;
    assert_eq!(logins(&agent).await, Vec::<Value>::new(), "{}", sync.output());
}
