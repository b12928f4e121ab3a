//! Logins of a task without an agent, and how long their tokens live.

use mesh_tests::catalog::{NODE, host_and_port, on_node, register_node, servers};
use mesh_tests::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn mesh_init_logs_in_at_the_servers_and_out_again() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    register_node(&agent).await;
    let (host, port) = host_and_port(&agent.http);
    let mut task = Task::that_logs_in("");
    let document = task.document.as_object_mut().unwrap();
    document.remove("consulHTTPAddr");
    document.insert("transparentProxy".to_owned(), json!({ "enabled": false }));
    document.insert("consulServers".to_owned(), servers(host, port));
    let variables = [("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path()))];
    let started = task.starts(&variables).await;
    let bearer = std::fs::read_to_string(proof.path()).unwrap();
    assert!(started.stderr.contains("logged in with platform") && !started.stderr.contains(&bearer));
    // mesh-dataplane and health-sync log in themselves.
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
    let written = std::fs::read_to_string(task.volume.path().join("dataplane.json")).unwrap();
    assert!(!written.contains(&bearer), "{written}");
    let written: Value = serde_json::from_str(&written).unwrap();
    let login = &written["consul"]["credentials"]["login"];
    assert_eq!((&login["authMethod"], &login["aws"]["includeEntity"]), (&json!(METHOD), &json!(true)));
    assert_eq!(login["meta"]["consul.hashicorp.com/cluster"], NODE);
    assert_eq!(
        (&login["meta"]["consul.hashicorp.com/task-id"], &login["meta"]["team"]),
        (&json!("f1a2"), &json!("shop"))
    );
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
    let services = agent.call("GET", "/v1/catalog/service/web", &Value::Null).await;
    assert_eq!(services[0]["Node"], NODE);

    // A failure after the login leaves no token behind.
    let mut refused = task;
    refused.document["service"]["name"] = "api".into();
    let variables = [variables[0], ("MESH_INIT_TIMEOUT", "10s")];
    let failed = run(&mut refused.command("mesh-init", &variables), BOUND).await;
    assert!(failed.code == 1 && failed.stderr.contains("expected a token with the service identity api"));
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
}

/// The token's life is the shortest that Consul allows. health-sync renews it after about two thirds of a minute.
#[tokio::test]
async fn health_sync_renews_its_login_replaces_a_deleted_token_and_logs_out() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let mut method = agent.call("GET", &format!("/v1/acl/auth-method/{METHOD}"), &Value::Null).await;
    method["MaxTokenTTL"] = "1m".into();
    agent.call("PUT", &format!("/v1/acl/auth-method/{METHOD}"), &method).await;
    let proof = platform.proof("web");
    register_node(&agent).await;
    let mut task = Task::that_logs_in("");
    let (host, port) = host_and_port(&agent.http);
    let document = task.document.as_object_mut().unwrap();
    document.remove("consulHTTPAddr");
    document.insert("transparentProxy".to_owned(), json!({ "enabled": false }));
    document.insert("consulServers".to_owned(), servers(host, port));
    let app = |health: &str| json!([{ "Name": "app", "Health": { "status": health } }]);
    task.metadata.set_containers(app("HEALTHY"));
    let variables = [("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path())), ("HEALTH_SYNC_INTERVAL", "50ms")];
    let mut sync = Process::spawn(task.command("health-sync", &variables).env("LOG_LEVEL", "debug"));
    let becomes = async |wanted: &str| {
        eventually(&format!("the app's check is {wanted}"), BOUND, async || {
            let (_, checks) = on_node(&agent).await;
            if checks["web-f1a2-app"]["Status"] == wanted { Ok(()) } else { Err(checks.to_string()) }
        })
        .await;
    };
    let one_login = async |what: &str, not: &Value| {
        eventually(what, BOUND, async || match &*logins(&agent).await {
            [login] if login["AccessorID"] != *not => Ok(login["AccessorID"].clone()),
            other => Err(format!("{other:?}")),
        })
        .await
    };
    becomes("passing").await;
    let first = one_login("health-sync has logged in", &Value::Null).await;
    agent.call("DELETE", &format!("/v1/acl/token/{}", first.as_str().unwrap()), &Value::Null).await;
    task.metadata.set_containers(app("UNHEALTHY"));
    becomes("critical").await;
    sync.says("logging in again", BOUND).await;
    let second = one_login("the deleted token is replaced", &first).await;
    // The new token is in use before the old one is deleted. TERM comes before that.
    eventually("the login is renewed", BOUND, async || match &*logins(&agent).await {
        both @ [_, _] if both.iter().any(|login| login["AccessorID"] == second) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    task.metadata.set_containers(app("HEALTHY"));
    becomes("passing").await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
    assert_eq!(on_node(&agent).await.0, json!({}));
    let bearer = std::fs::read_to_string(proof.path()).unwrap();
    assert!(!sync.output().contains(&bearer), "{}", sync.output());
}

/// A Consul server at this address that knows no token.
async fn knows_no_token(at: (&str, u16)) {
    let listener = tokio::net::TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let _ = client.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 13\r\nConnection: close\r\n\r\nACL not found";
            let _ = client.write_all(answer).await;
        }
    });
}

#[tokio::test]
async fn one_server_that_knows_the_token_is_enough_for_a_login() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    register_node(&agent).await;
    let port = host_and_port(&agent.http).1;
    knows_no_token(("127.0.0.2", port)).await;
    let mut task = Task::that_logs_in("");
    let document = task.document.as_object_mut().unwrap();
    document.remove("consulHTTPAddr");
    document.insert("transparentProxy".to_owned(), json!({ "enabled": false }));
    document.insert("consulServers".to_owned(), servers("127.0.0.1,127.0.0.2", port));
    let variables = [("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path())), ("HEALTH_SYNC_INTERVAL", "50ms")];
    let sync = Process::spawn(&mut task.command("health-sync", &variables));
    eventually("the app's check is passing", BOUND, async || {
        let (_, checks) = on_node(&agent).await;
        if checks["web-f1a2-app"]["Status"] == "passing" { Ok(()) } else { Err(sync.output()) }
    })
    .await;
    assert_eq!(logins(&agent).await.len(), 1, "{}", sync.output());
    assert!(sync.output().contains("does not know the token of this login"), "{}", sync.output());
}

#[tokio::test]
async fn token_of_a_login_says_when_it_expires() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let bearer = Secret::new(std::fs::read_to_string(platform.proof("web").path()).unwrap());
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", agent.http.as_str())]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let meta = BTreeMap::new();
    let login = consul_api::Login { method: METHOD, bearer_token: &bearer, meta: &meta };
    let token = client.login(login).await.unwrap().secret_id;
    let left = consul_login::expiry(&client, &token).await.unwrap().expect("the method has MaxTokenTTL");
    assert!((3500..=3600).contains(&left.as_secs()), "{left:?}");
    let endless = Secret::new(&agent.management);
    assert_eq!(consul_login::expiry(&client, &endless).await.unwrap(), None);
    client.logout(&token, BOUND).await.unwrap();
    assert!(consul_login::expiry(&client, &token).await.unwrap_err().is_unknown_token());
}

#[tokio::test]
async fn expiry_that_is_not_a_time_is_an_error() {
    let servers = Server::start(|_| Answer::ok(r#"{ "ExpirationTime": "soon" }"#));
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", servers.address.as_str())]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let error = consul_login::expiry(&client, &Secret::new("any")).await.unwrap_err();
    assert!(matches!(error, consul_api::Error::Undecodable { .. }), "{error}");
}

#[tokio::test]
async fn mesh_init_logs_out_at_term() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let (host, port) = host_and_port(&agent.http);
    let mut task = Task::that_logs_in("");
    let document = task.document.as_object_mut().unwrap();
    document.remove("consulHTTPAddr");
    document.insert("transparentProxy".to_owned(), json!({ "enabled": false }));
    document.insert("consulServers".to_owned(), servers(host, port));
    // The task's cluster has no node.
    let variables = [("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path()))];
    let mut waiting = Process::spawn(&mut task.command("mesh-init", &variables));
    waiting.says("waiting for the node", BOUND).await;
    assert_eq!(logins(&agent).await.len(), 1);
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.exit_code(BOUND).await, 143);
    assert_eq!(logins(&agent).await, Vec::<Value>::new(), "{}", waiting.output());
}
