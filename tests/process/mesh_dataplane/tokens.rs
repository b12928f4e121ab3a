//! Tokens that expire, are deleted, or are replaced.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use http_fixture::{Answer, Pass, Relay, Server};

use super::*;
use crate::login::{METHOD, Platform, caller_identity, logins};

/// The tasks of `web` and of two instances of `api`. `web` logs in.
async fn with_login(
    max_token_ttl: Option<&str>,
) -> (Servers, Member, Vec<Member>, String, Vec<Process>, tempfile::NamedTempFile) {
    let servers = Servers::start(1).await;
    let platform = Platform::trusted_by(servers.any(), "${value.service}").await;
    if let Some(ttl) = max_token_ttl {
        let mut method = servers.any().call("GET", &format!("/v1/acl/auth-method/{METHOD}"), &Value::Null).await;
        method["MaxTokenTTL"] = ttl.into();
        servers.any().call("PUT", &format!("/v1/acl/auth-method/{METHOD}"), &method).await;
    }
    let token = servers.any().service_token("api").await;
    let (mut api, mut apps) = (Vec::new(), Vec::new());
    for id in ["a1", "a2"] {
        let (port, app) = app();
        apps.push(app);
        let task = Task::new(&servers, "api", id, port).with("CONSUL_HTTP_TOKEN", &token);
        task.register().await;
        let member = task.starts().await;
        member.set_status(&servers, "passing").await;
        api.push(member);
    }
    let proof = platform.proof("web");
    let (mut web, upstream) = web(&servers);
    web.document["consulLogin"] = json!({ "enabled": true, "method": METHOD });
    let web = web.with("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap());
    web.register().await;
    let web = web.starts().await;
    web.has_endpoints(2).await;
    eventually("requests reach api", BOUND, async || http::get(&upstream).await).await;
    (servers, web, api, upstream, apps, proof)
}

#[tokio::test]
async fn expiring_token_is_replaced_under_load_and_later_changes_arrive() {
    let (servers, mut web, api, upstream, _apps, _proof) = with_login(Some("60s")).await;
    let load = Load::start(&upstream);
    let [first] = &logins(servers.any()).await[..] else { panic!("one login") };
    let expired = async || {
        let tokens = logins(servers.any()).await;
        if tokens.iter().all(|token| token["AccessorID"] != first["AccessorID"]) {
            Ok(())
        } else {
            Err(format!("{tokens:?}"))
        }
    };
    eventually("the first token is gone", Duration::from_secs(90), expired).await;
    assert!(web.metric("mesh_dataplane_tokens_total").await >= 2);
    assert!(!web.dataplane.output().contains("no longer know the token"), "it was replaced in time");
    api[0].set_status(&servers, "critical").await;
    web.has_endpoints(1).await;
    let report = load.end().await;
    assert_eq!(report.failed, 0, "{report:?}");
    // At the end, the tokens are given back.
    web.task.metadata.set_containers(json!([]));
    web.dataplane.signal(Signal::TERM);
    assert_eq!(web.dataplane.exit_code(BOUND).await, 0);
    assert_eq!(logins(servers.any()).await, Vec::<Value>::new(), "{}", web.dataplane.output());
}

#[tokio::test]
async fn deleted_token_is_noticed_and_replaced() {
    let (servers, web, api, upstream, _apps, _proof) = with_login(None).await;
    let load = Load::start(&upstream);
    let accessor = logins(servers.any()).await[0]["AccessorID"].as_str().unwrap().to_owned();
    servers.any().call("DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null).await;
    web.dataplane.says("no longer know the token", Duration::from_secs(10)).await;
    eventually("a second token is confirmed", BOUND, async || match web.metric("mesh_dataplane_tokens_total").await {
        2 => Ok(()),
        other => Err(format!("{other} tokens")),
    })
    .await;
    assert_eq!(logins(servers.any()).await.len(), 1);
    api[0].set_status(&servers, "critical").await;
    web.has_endpoints(1).await;
    let report = load.end().await;
    assert_eq!(report.failed, 0, "{report:?}");
}

#[tokio::test]
async fn replaced_token_in_a_file_is_read_again() {
    let servers = Servers::start(1).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), servers.any().service_token("web").await).unwrap();
    let (web, _) = web(&servers);
    let web = web.with("CONSUL_HTTP_TOKEN_FILE", file.path().to_str().unwrap());
    web.register().await;
    let web = web.starts().await;
    let tokens = servers.any().call("GET", "/v1/acl/tokens", &Value::Null).await;
    let own = tokens.as_array().unwrap().iter().find(|token| token["ServiceIdentities"].is_array()).unwrap();
    let own = own["AccessorID"].as_str().unwrap();
    std::fs::write(file.path(), servers.any().service_token("web").await).unwrap();
    servers.any().call("DELETE", &format!("/v1/acl/token/{own}"), &Value::Null).await;
    web.dataplane.says("its file has another one, which is used now", BOUND).await;
    eventually("the second token is confirmed", BOUND, async || {
        match web.metric("mesh_dataplane_tokens_total").await {
            2 => Ok(()),
            other => Err(format!("{other} tokens")),
        }
    })
    .await;
}

/// The task of `web`, registered but not started, and the file with its proof for a login.
async fn registered_with_login(servers: &Servers) -> (Task, tempfile::NamedTempFile) {
    let platform = Platform::trusted_by(servers.any(), "${value.service}").await;
    let proof = platform.proof("web");
    let (mut web, _) = web(servers);
    web.document["consulLogin"] = json!({ "enabled": true, "method": METHOD });
    let web = web.with("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap());
    web.register().await;
    (web, proof)
}

#[tokio::test]
async fn task_logs_out_if_term_comes_before_the_expiry_is_known() {
    let servers = Servers::start(1).await;
    let (web, _proof) = registered_with_login(&servers).await;
    let before = logins(servers.any()).await.len();
    // Nothing answers HTTP, so the expiry stays unknown.
    let mut settings: Value = serde_json::from_slice(&std::fs::read(web.file("dataplane.json")).unwrap()).unwrap();
    settings["consul"]["http"]["port"] = free_port().into();
    std::fs::write(web.file("dataplane.json"), settings.to_string()).unwrap();
    let mut starting = Process::spawn(&mut web.with_envoy("warning"));
    starting.says("the expiry of the token is not known yet", BOUND).await;
    assert_eq!(logins(servers.any()).await.len(), before + 1);
    starting.signal(Signal::TERM);
    assert_eq!(starting.exit_code(BOUND).await, 143);
    assert_eq!(logins(servers.any()).await.len(), before, "{}", starting.output());
}

#[tokio::test]
async fn task_logs_out_at_another_server_if_its_own_hangs() {
    let mut servers = Servers::start(3).await;
    let (web, _proof) = registered_with_login(&servers).await;
    let before = logins(servers.any()).await.len();
    let mut web = web.starts().await;
    let own = web.server();
    servers.kept = (own + 1) % 3;
    // Without a leader, no server can delete a token.
    eventually("another server is the leader", BOUND, async || {
        let leader = servers.any().call("GET", "/v1/status/leader", &Value::Null).await;
        if !leader.as_str().unwrap().starts_with(&format!("127.0.0.{}:", own + 1)) {
            return Ok(());
        }
        servers.any().call("PUT", "/v1/operator/raft/transfer-leader", &Value::Null).await;
        Err(leader.to_string())
    })
    .await;
    assert_eq!(web.server(), own);
    servers.all[own].freeze();
    web.task.metadata.set_containers(json!([]));
    web.dataplane.signal(Signal::TERM);
    assert_eq!(web.dataplane.exit_code(BOUND).await, 0, "{}", web.dataplane.output());
    assert_eq!(logins(servers.any()).await.len(), before, "{}", web.dataplane.output());
}

#[tokio::test]
async fn task_logs_out_if_term_comes_while_it_logs_in() {
    let servers = Servers::start(1).await;
    let (web, proof) = registered_with_login(&servers).await;
    let before = logins(servers.any()).await.len();
    // The answer to the login waits until `go` is dropped.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (wait, asked) = (Mutex::new(wait), Arc::new(AtomicBool::new(false)));
    let (bearer, noted) = (std::fs::read(proof.path()).unwrap(), asked.clone());
    let look = move |_, bytes: &[u8]| {
        if bytes.windows(bearer.len()).any(|window| window == bearer) {
            noted.store(true, Ordering::SeqCst);
        }
        Pass::On
    };
    let hold = move |_, _: &[u8]| {
        if asked.load(Ordering::SeqCst) {
            let _ = wait.lock().unwrap().recv();
        }
    };
    let relay = Relay::start(&format!("127.0.0.1:{}", servers.grpc), look, hold);
    let mut settings: Value = serde_json::from_slice(&std::fs::read(web.file("dataplane.json")).unwrap()).unwrap();
    settings["consul"]["grpcPort"] = relay.address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap().into();
    std::fs::write(web.file("dataplane.json"), settings.to_string()).unwrap();
    let mut starting = Process::spawn(&mut web.with_envoy("warning"));
    eventually("Consul has made the token", BOUND, async || {
        let count = logins(servers.any()).await.len();
        if count == before + 1 { Ok(()) } else { Err(starting.output()) }
    })
    .await;
    starting.signal(Signal::TERM);
    starting.says("ended by a signal before Envoy's start", BOUND).await;
    drop(go);
    assert_eq!(starting.exit_code(BOUND).await, 143);
    assert_eq!(logins(servers.any()).await.len(), before, "{}", starting.output());
}

/// An auth method for this IAM principal. Consul's servers send the signed request to STS, which answers with an IAM user.
async fn trusting(servers: &Servers, sts: &Server, principal: &str) {
    let config = json!({ "BoundIAMPrincipalARNs": [principal], "STSEndpoint": sts.url() });
    let method = json!({ "Name": METHOD, "Type": "aws-iam", "MaxTokenTTL": "1h", "Config": config });
    servers.any().call("PUT", "/v1/acl/auth-method", &method).await;
}

const ANN: &str = "arn:aws:iam::210987654321:user/ann";

/// The task of `web`, which logs in with the keys of an IAM user, registered but not started.
async fn registered_with_aws(servers: &Servers, sts: &Server) -> Task {
    trusting(servers, sts, ANN).await;
    let rule = json!({ "AuthMethod": METHOD, "BindType": "service", "BindName": "web" });
    servers.any().call("PUT", "/v1/acl/binding-rule", &rule).await;
    let (mut web, _) = web(servers);
    web.document["consulLogin"] = json!({ "enabled": true, "method": METHOD, "stsEndpoint": sts.url() });
    let web = web.with("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").with("AWS_SECRET_ACCESS_KEY", "an+example");
    web.register().await;
    web
}

#[tokio::test]
async fn first_login_is_tried_again_if_consul_could_not_reach_aws() {
    let servers = Servers::start(1).await;
    // Each login asks STS twice: mesh-dataplane for the user's ARN, then Consul. Consul's first question fails.
    let (asked, failing) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(u32::MAX)));
    let (count, fails) = (asked.clone(), failing.clone());
    let sts = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) == fails.load(Ordering::Relaxed) {
        true => Answer::new("503 Service Unavailable", "busy"),
        false => caller_identity(),
    });
    let web = registered_with_aws(&servers, &sts).await;
    let before = asked.load(Ordering::Relaxed);
    failing.store(before + 1, Ordering::Relaxed);
    let web = web.starts().await;
    assert!(asked.load(Ordering::Relaxed) > before + 2, "{}", web.dataplane.output());
    assert_eq!(logins(servers.any()).await.len(), 1);
}

#[tokio::test]
async fn first_login_of_an_untrusted_role_ends_the_dataplane_at_once() {
    let servers = Servers::start(1).await;
    let sts = Server::start(|_| caller_identity());
    let web = registered_with_aws(&servers, &sts).await;
    trusting(&servers, &sts, "arn:aws:iam::210987654321:role/other").await;
    let before = sts.requests().len();
    let mut dataplane = Process::spawn(web.with_envoy("warning").env("MESH_DATAPLANE_TIMEOUT", "10m"));
    assert_eq!(dataplane.exit_code(BOUND).await, 1, "{}", dataplane.output());
    dataplane.says("BoundIAMPrincipalARNs", BOUND).await;
    // mesh-dataplane asks STS for the user's ARN, and Consul asks it to check the login.
    assert_eq!(sts.requests().len() - before, 2, "{}", dataplane.output());
}

#[tokio::test]
async fn dataplane_logs_in_with_aws_credentials_and_out_again() {
    let servers = Servers::start(1).await;
    let sts = Server::start(|_| caller_identity());
    let mut web = registered_with_aws(&servers, &sts).await.starts().await;
    let [login] = &logins(servers.any()).await[..] else { panic!("one login, because mesh-init has logged out") };
    assert_eq!(login["ServiceIdentities"][0]["ServiceName"], "web");
    web.has_listener().await;
    web.task.metadata.set_containers(json!([]));
    web.dataplane.signal(Signal::TERM);
    assert_eq!(web.dataplane.exit_code(BOUND).await, 0);
    assert_eq!(logins(servers.any()).await, Vec::<Value>::new(), "{}", web.dataplane.output());
    for file in ["dataplane.json", "envoy-bootstrap.json"] {
        let text = std::fs::read_to_string(web.task.file(file)).unwrap();
        assert!(!text.contains("an+example") && !text.contains("Signature="), "{text}");
    }
    let output = web.dataplane.output();
    assert!(!output.contains("an+example") && !output.contains("Signature="), "{output}");
}
