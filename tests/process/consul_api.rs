//! The Consul client against a real agent: every call, and every kind of error that this agent gives.

use std::time::Duration;

use consul_api::{
    AclLink, CheckDefinition, CheckStatus, Client, Config, Error, IntentionAction, KeyValue, KeyWrite, NewPolicy,
    NewSession, Proxy, ServiceIdentity, ServiceKind, ServiceRegistration, TokenGrants, Upstream, XdsPort, at_start,
};
use http_fixture::{Answer, Server};
use mesh_tests::consul::Agent;
use mesh_tests::{eventually, free_port};
use serde_json::json;
use sidecar_kit::env::Env;
use sidecar_kit::wait::WaitError;

fn client(agent: &Agent, token: &str) -> Client {
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_HTTP_TOKEN", token)]);
    Client::new(Config::from_env(&env).unwrap()).unwrap()
}

fn service() -> ServiceRegistration {
    ServiceRegistration {
        id: "api-1".into(),
        name: "api".to_owned(),
        port: Some(8080),
        tags: vec!["v1".to_owned()],
        meta: [("task-id".to_owned(), "1".to_owned())].into(),
        checks: vec![CheckDefinition {
            check_id: Some("api-1-app-consul-ecs".into()),
            name: "consul ecs synced".to_owned(),
            ttl: Some("100000h".to_owned()),
            status: Some(CheckStatus::Critical),
            ..CheckDefinition::default()
        }],
        ..ServiceRegistration::default()
    }
}

#[tokio::test]
async fn service_is_registered_read_maintained_and_removed() {
    let agent = Agent::start().await;
    let client = client(&agent, "");
    assert_eq!(client.agent_self().await.unwrap().xds_port(), XdsPort::Plain(agent.grpc_port));
    assert!(client.leader().await.unwrap().is_some());

    let (api, proxy_id) = ("api-1".into(), "api-1-sidecar-proxy".into());
    let services = [&api, &proxy_id];
    client.register_service(&service()).await.unwrap();
    let read = client.agent_service(&"api-1".into()).await.unwrap();
    assert_eq!((read.service.as_str(), read.port, read.kind), ("api", 8080, None));
    assert_eq!(read.tags, ["v1"]);
    assert_eq!(read.meta["task-id"], "1");

    let proxy = ServiceRegistration {
        kind: Some(ServiceKind::ConnectProxy),
        id: "api-1-sidecar-proxy".into(),
        name: "api-sidecar-proxy".to_owned(),
        port: Some(20000),
        proxy: Some(Proxy {
            destination_service_name: "api".to_owned(),
            destination_service_id: Some("api-1".into()),
            local_service_port: Some(8080),
            upstreams: vec![Upstream {
                destination_name: "db".to_owned(),
                local_bind_port: 1234,
                ..Upstream::default()
            }],
            ..Proxy::default()
        }),
        ..ServiceRegistration::default()
    };
    client.register_service(&proxy).await.unwrap();
    let read = client.agent_service(&"api-1-sidecar-proxy".into()).await.unwrap();
    assert_eq!(read.kind, Some(ServiceKind::ConnectProxy));
    let read = read.proxy.unwrap();
    assert_eq!((read.destination_service_name.as_str(), read.upstreams[0].local_bind_port), ("api", 1234));
    assert_eq!(client.agent_services(&services).await.unwrap().len(), 2);

    client.update_check(&"api-1-app-consul-ecs".into(), CheckStatus::Passing, "HEALTHY").await.unwrap();
    let checks = client.agent_checks(&services).await.unwrap();
    assert_eq!(checks["api-1-app-consul-ecs"].status, CheckStatus::Passing);
    assert_eq!(checks["api-1-app-consul-ecs"].output, "HEALTHY");

    client.set_maintenance(&"api-1".into(), true, "the task stops").await.unwrap();
    let checks = client.agent_checks(&services).await.unwrap();
    let maintenance =
        checks.values().find(|check| check.check_id.as_str().starts_with("_service_maintenance")).unwrap();
    assert_eq!((maintenance.status, maintenance.notes.as_str()), (CheckStatus::Critical, "the task stops"));
    client.set_maintenance(&"api-1".into(), false, "").await.unwrap();
    assert_eq!(client.agent_checks(&services).await.unwrap().len(), 1);

    client.deregister_service(&"api-1-sidecar-proxy".into()).await.unwrap();
    client.deregister_service(&"api-1".into()).await.unwrap();
    assert!(client.agent_services(&services).await.unwrap().is_empty());
}

#[tokio::test]
async fn blocking_query_returns_when_the_service_changes() {
    let agent = Agent::start().await;
    let client = client(&agent, "");
    client.register_service(&service()).await.unwrap();
    let wait = Duration::from_secs(30);
    let first = eventually("the catalog has the service, and a wait without a change runs out", wait, async || {
        let query =
            async |after, wait| client.service_health("api", after, wait).await.map_err(|error| error.to_string());
        let first = query(None, wait).await?;
        let short = query(first.index, Duration::from_millis(300)).await?;
        if first.value.is_empty() || short.index != first.index { Err("not yet".to_owned()) } else { Ok(first) }
    })
    .await;
    assert_eq!(first.value[0].service.id, "api-1");
    assert_eq!(client.catalog_service("api").await.unwrap()[0].datacenter, "dc1");
    assert!(client.catalog_services().await.unwrap().contains_key("api"));
    assert_eq!(client.catalog_nodes().await.unwrap().len(), 1);

    let check = "api-1-app-consul-ecs".into();
    let changed = async {
        let mut index = first.index;
        loop {
            let changed = client.service_health("api", index, wait).await.unwrap();
            assert_ne!(changed.index, index, "the query returned before its time without a change");
            let check = changed.value[0].checks.iter().find(|check| check.service_id == "api-1").unwrap();
            // Later versions of Consul may also return for changes of the cluster.
            if check.status == CheckStatus::Passing {
                return;
            }
            index = changed.index;
        }
    };
    let ((), updated) = tokio::join!(changed, client.update_check(&check, CheckStatus::Passing, ""));
    updated.unwrap();
}

#[tokio::test]
async fn entries_and_intentions_are_written_read_and_removed() {
    let agent = Agent::start().await;
    let client = client(&agent, "");
    let entry = json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" });
    client.put_config_entry(&entry).await.unwrap();
    assert_eq!(client.config_entry("service-defaults", "api").await.unwrap()["Protocol"], "http");
    assert_eq!(client.config_entries("service-defaults").await.unwrap().len(), 1);
    client.delete_config_entry("service-defaults", "api").await.unwrap();
    let missing = client.config_entry("service-defaults", "api").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");

    // A server that has just started takes no intentions while it converts old ones.
    let create =
        async || client.create_intention("web", "api", IntentionAction::Allow).await.map_err(|e| e.to_string());
    let id = eventually("Consul takes intentions", Duration::from_secs(20), create).await;
    let intentions = client.intentions().await.unwrap();
    assert_eq!((intentions[0].id.as_str(), intentions[0].action), (id.as_str(), Some(IntentionAction::Allow)));
    client.delete_intention(&intentions[0]).await.unwrap();
    assert!(client.intentions().await.unwrap().is_empty());
}

#[tokio::test]
async fn intention_without_an_id_is_removed_by_its_pair() {
    let agent = Agent::start().await;
    let client = client(&agent, "");
    eventually("a new cluster takes intentions", Duration::from_secs(30), async || {
        let written = client.put_intention("web", "api", IntentionAction::Allow).await;
        written.map_err(|error| error.to_string())
    })
    .await;
    let intentions = client.intentions().await.unwrap();
    assert_eq!((intentions.len(), intentions[0].id.as_str()), (1, ""));
    client.delete_intention(&intentions[0]).await.unwrap();
    assert!(client.intentions().await.unwrap().is_empty());
}

#[tokio::test]
async fn error_type_follows_the_answer_of_the_agent() {
    let agent = Agent::start_with_acls().await;
    let management = client(&agent, &agent.management);
    let missing = management.update_check(&"nope".into(), CheckStatus::Passing, "").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    let missing = management.agent_service(&"nope".into()).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    let missing = management.deregister_service(&"nope".into()).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    let missing = management.set_maintenance(&"nope".into(), true, "").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");

    let namespaced = ServiceRegistration { partition: Some("p".to_owned()), ..service() };
    let unknown = management.register_service(&namespaced).await.unwrap_err();
    assert!(matches!(&unknown, Error::UnknownField { field, .. } if field == "Partition"), "{unknown:?}");
    assert!(!unknown.may_pass_at_start());
    let nameless = ServiceRegistration { name: String::new(), ..service() };
    let refused = management.register_service(&nameless).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { status, .. } if *status == 400), "{refused:?}");
    assert!(!refused.may_pass_at_start());

    let unknown_token = client(&agent, "11111111-1111-1111-1111-111111111111");
    let denied = unknown_token.agent_self().await.unwrap_err();
    assert!(matches!(&denied, Error::PermissionDenied { body, .. } if body == "ACL not found"), "{denied:?}");
    assert!(denied.may_pass_at_start());
    let task = client(&agent, &agent.service_token("api").await);
    let denied = task.agent_self().await.unwrap_err();
    assert!(
        matches!(&denied, Error::PermissionDenied { body, .. } if body.starts_with("Permission denied")),
        "{denied:?}"
    );
    task.register_service(&service()).await.unwrap();
    let foreign = ServiceRegistration { id: "web-1".into(), name: "web".to_owned(), ..service() };
    assert!(matches!(task.register_service(&foreign).await.unwrap_err(), Error::PermissionDenied { .. }));
}

#[tokio::test]
async fn agent_without_servers_has_not_joined() {
    let data = tempfile::tempdir().unwrap();
    let port = mesh_tests::free_port();
    let config = json!({
        "data_dir": data.path(), "bind_addr": "127.0.0.1", "node_name": "alone",
        "ports": { "http": port, "dns": -1, "serf_lan": mesh_tests::free_port(), "serf_wan": -1 }
    });
    let file = data.path().join("agent.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = std::process::Command::new(mesh_tests::part("consul"));
    let _agent = mesh_tests::process::Process::spawn(command.arg("agent").arg("-config-file").arg(file));
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", format!("127.0.0.1:{port}"))]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let error = eventually("the agent says that it has no servers", Duration::from_secs(20), async || {
        match client.catalog_nodes().await {
            Err(Error::Unreachable { .. }) => Err("not up yet".to_owned()),
            other => Ok(other.unwrap_err()),
        }
    })
    .await;
    assert!(matches!(error, Error::NotJoined { .. }), "{error:?}");
    assert!(error.may_pass_at_start());
}

#[tokio::test]
async fn server_that_is_no_agent_gives_a_typed_error() {
    let client_of = |address: &str| {
        let env = Env::from_iter([("CONSUL_HTTP_ADDR", address)]);
        Client::new(Config::from_env(&env).unwrap()).unwrap()
    };
    let agent = Agent::start().await;
    let closed = client_of(&format!("127.0.0.1:{}", mesh_tests::free_port())).leader().await.unwrap_err();
    assert!(matches!(closed, Error::Unreachable { .. }) && closed.may_pass_at_start(), "{closed:?}");
    let no_tls = client_of(&format!("https://{}", agent.http)).leader().await.unwrap_err();
    assert!(matches!(no_tls, Error::Tls { .. }) && !no_tls.may_pass_at_start(), "{no_tls:?}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = client_of(&silent.local_addr().unwrap().to_string()).leader().await.unwrap_err();
    assert!(matches!(silent, Error::TimedOut { .. }) && silent.may_pass_at_start(), "{silent:?}");
    let grpc = client_of(&format!("127.0.0.1:{}", agent.grpc_port)).leader().await.unwrap_err();
    assert!(matches!(grpc, Error::Undecodable { .. }) && !grpc.may_pass_at_start(), "{grpc:?}");
}

#[tokio::test]
async fn at_start_only_an_unknown_token_is_retried() {
    let agent = Agent::start_with_acls().await;
    let secret = "22222222-3333-4444-5555-666666666666";
    let task = client(&agent, secret);
    let denied = task.register_service(&service()).await.unwrap_err();
    assert!(matches!(denied, Error::PermissionDenied { .. }), "steady state fails at once: {denied:?}");
    let registered = at_start("the agent", Duration::from_secs(30), async || task.register_service(&service()).await);
    let made = async {
        let token = json!({ "SecretID": secret, "ServiceIdentities": [{ "ServiceName": "api" }] });
        agent.call("PUT", "/v1/acl/token", &token).await;
    };
    let (registered, ()) = tokio::join!(registered, made);
    registered.unwrap();
    let nameless = ServiceRegistration { name: String::new(), ..service() };
    let wrong = at_start("the agent", Duration::from_secs(600), async || task.register_service(&nameless).await).await;
    assert!(matches!(wrong, Err(WaitError::Final(Error::Refused { .. }))), "{wrong:?}");
}

#[tokio::test]
async fn tokens_and_policies_are_created_changed_and_removed() {
    let agent = Agent::start_with_acls().await;
    let client = client(&agent, &agent.management);
    let rules = "service_prefix \"\" { policy = \"read\" }";
    let policy = client.create_policy(&NewPolicy { name: "reads", description: "d", rules }).await.unwrap();
    let changed = NewPolicy { name: "reads", description: "d", rules: "node_prefix \"\" { policy = \"read\" }" };
    let listed = client.policies().await.unwrap().into_iter().find(|listed| listed.id == policy.id).unwrap();
    client.update_policy(&policy.id, &changed).await.unwrap();
    let read = client.policy(&policy.id).await.unwrap();
    assert_eq!(read.rules, changed.rules);
    assert!(read.modify_index > listed.modify_index);

    let identity = |name: &str| ServiceIdentity { service_name: name.to_owned(), datacenters: Vec::new() };
    let mut grants = TokenGrants {
        description: "one\ntwo".to_owned(),
        policies: vec![AclLink { id: String::new(), name: "reads".to_owned() }],
        service_identities: vec![identity("web")],
        ..TokenGrants::default()
    };
    let made = client.create_token(&grants).await.unwrap();
    let accessor = &made.entry.accessor_id;
    assert!(!format!("{made:?}").contains(made.secret_id.expose()), "a token is not printed");
    grants.service_identities = vec![identity("api")];
    grants.policies.clear();
    client.update_token(accessor, &grants).await.unwrap();
    let listed = client.tokens().await.unwrap().into_iter().find(|token| token.accessor_id == *accessor).unwrap();
    assert_eq!(listed.grants, grants);
    assert!(listed.modify_index > made.entry.modify_index && listed.create_index == made.entry.create_index);
    let read = client.token(accessor).await.unwrap();
    assert_eq!((read.secret_id, read.entry.grants), (made.secret_id.clone(), grants));
    client.delete_token(accessor).await.unwrap();
    let gone = client.token(accessor).await.unwrap_err();
    assert!(matches!(&gone, Error::PermissionDenied { body, .. } if body.contains("ACL not found")), "{gone:?}");

    let missing = client.update_token(accessor, &TokenGrants::default()).await.unwrap_err();
    assert!(missing.is_missing_token(), "{missing:?}");

    // The same token again, and the policy that it links.
    let again = TokenGrants {
        policies: vec![AclLink { id: String::new(), name: "reads".to_owned() }],
        ..TokenGrants::default()
    };
    let again = client.create_token_as(&again, accessor, &made.secret_id).await.unwrap();
    assert_eq!((&again.entry.accessor_id, &again.secret_id), (accessor, &made.secret_id));
    let role = json!({ "Name": "readers", "Policies": [{ "Name": "reads" }] });
    agent.call("PUT", "/v1/acl/role", &role).await;
    let roles = client.roles().await.unwrap();
    assert_eq!(roles[0].policies[0].id, policy.id, "{roles:?}");
    client.delete_policy(&policy.id).await.unwrap();
    assert!(client.policies().await.unwrap().iter().all(|listed| listed.id != policy.id));
}

#[tokio::test]
async fn keys_are_written_at_once_and_read_by_prefix() {
    let agent = Agent::start().await;
    let client = client(&agent, "");
    let write = |key: &str, value: Option<&str>| KeyWrite { key: key.to_owned(), value: value.map(str::to_owned) };
    let all = async || {
        let keys = client.keys_below("a:b/c/").await.unwrap();
        keys.into_iter().map(|KeyValue { key, value }| (key, value)).collect::<Vec<_>>()
    };
    assert_eq!(all().await, []);
    let first = [write("a:b/c/1", Some("one")), write("a:b/c/d/2", Some("")), write("a:b/cc", Some("beside"))];
    client.write_keys(&first).await.unwrap();
    assert_eq!(all().await, [("a:b/c/1".into(), "one".into()), ("a:b/c/d/2".into(), String::new())]);
    let second = [write("a:b/c/1", None), write("a:b/c/d/2", Some("two"))];
    client.write_keys(&second).await.unwrap();
    assert_eq!(all().await, [("a:b/c/d/2".to_owned(), "two".to_owned())]);
}

#[tokio::test]
async fn lock_is_free_after_its_session_and_the_lock_delay() {
    let within = Duration::from_secs(5);
    let agent = Agent::start().await;
    let client = client(&agent, "");
    let key = "ecs-mesh/arn:aws:ecs:r:1:cluster/blue/leader";
    let new = NewSession { name: "test", ttl: Duration::from_secs(10), lock_delay: Duration::from_secs(1) };
    // A leader that has just been elected may not have its own node in the catalog yet.
    let one = eventually("a session", within, async || {
        client.create_session(new, within).await.map_err(|error| error.to_string())
    })
    .await;
    let two = client.create_session(new, within).await.unwrap();
    assert_eq!(client.lock_holder(key, within).await.unwrap(), None);
    assert!(client.acquire(key, &one, "one", within).await.unwrap());
    assert!(!client.acquire(key, &two, "two", within).await.unwrap());
    assert!(client.renew_session(&one, within).await.unwrap());
    assert_eq!(client.lock_holder(key, within).await.unwrap(), Some(one.clone()));
    client.destroy_session(&one, within).await.unwrap();
    assert!(!client.renew_session(&one, within).await.unwrap(), "it has ended");
    let since = std::time::Instant::now();
    assert!(!client.acquire(key, &two, "two", within).await.unwrap(), "the lock-delay");
    eventually("the lock is free", within, async || match client.acquire(key, &two, "two", within).await {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    assert!(client.release(key, &two, within).await.unwrap());
    assert_eq!(client.lock_holder(key, within).await.unwrap(), None, "given back, it is free at once");
}

#[tokio::test]
async fn read_goes_to_the_next_server_if_one_fails() {
    let agent = Agent::start().await;
    // The hanging server accepts the connection and never answers.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let servers = format!("127.0.0.1:{}, {} ,{}", free_port(), hangs.local_addr().unwrap(), agent.http);
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", servers.as_str())]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let short = Duration::from_millis(300);
    let new = NewSession { name: "test", ttl: Duration::from_secs(10), lock_delay: Duration::ZERO };
    // A write that may have arrived is not repeated elsewhere by itself.
    let first = client.create_session(new, short).await.unwrap_err();
    assert!(matches!(first, Error::TimedOut { .. }), "{first:?}");
    client.create_session(new, Duration::from_secs(5)).await.unwrap();
    assert!(client.leader().await.unwrap().is_some());
    drop(hangs);
}

#[tokio::test]
async fn write_goes_to_the_next_server_without_tls_or_on_429() {
    let agent = Agent::start().await;
    let limits = Server::start(|_| Answer::new("429 Too Many Requests", ""));
    let new = NewSession { name: "test", ttl: Duration::from_secs(10), lock_delay: Duration::ZERO };
    // Its node is there a moment after the leader.
    let at = |servers: &str| {
        Client::new(Config::from_env(&Env::from_iter([("CONSUL_HTTP_ADDR", servers)])).unwrap()).unwrap()
    };
    let direct = at(&agent.http);
    eventually("a session can be made", Duration::from_secs(20), async || {
        direct.create_session(new, Duration::from_secs(5)).await.map_err(|error| error.to_string())
    })
    .await;
    // The agent speaks plain text there: the handshake fails.
    let without_tls = format!("https://{}", agent.http);
    for fails in [without_tls, limits.address] {
        let two = at(&format!("{fails},{}", agent.http));
        two.create_session(new, Duration::from_secs(5)).await.unwrap();
        assert!(two.leader().await.unwrap().is_some());
        // Where it is the only one, its error stays.
        let error = at(&fails).leader().await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. } | Error::Refused { .. }), "{error:?}");
    }
}
