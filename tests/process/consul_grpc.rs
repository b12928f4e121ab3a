//! consul-grpc with a real Consul: the answers to right, wrong and missing tokens, and what happens if a server falls silent or a token is
//! deleted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consul_grpc::{Code, DnsProtocol, Follower, Servers, State, Tls, Trust};
use mesh_tests::consul::{Agent, certificates, version};
use mesh_tests::free_port;
use serde_json::{Value, json};
use sidecar_kit::secret::Secret;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(60);
const NODE: &str = "arn:aws:ecs:eu-north-1:210987654321:cluster/blue";

fn servers(port: u16) -> Servers {
    Servers::new(vec!["127.0.0.1".to_owned()], port, None)
}

/// Consul 1.8 closes the connection when the catalog has a `null` in a list.
fn nested() -> Value {
    let last = if version().serves_xds_v3() { Value::Null } else { json!("text") };
    json!({ "list": [1, 0.5, last] })
}

/// Registers a service `web` and its proxy on the node of a cluster.
async fn register(agent: &Agent) {
    let node = json!({ "Node": NODE, "Address": "10.0.0.14" });
    let with = |service: Value| {
        let mut registration = node.clone();
        registration["Service"] = service;
        registration
    };
    let proxy = json!({ "DestinationServiceName": "web", "DestinationServiceID": "web-1",
        "Config": { "envoy_stats_flush_interval": "7s", "nested": nested() } });
    for service in [
        json!({ "ID": "web-1", "Service": "web", "Port": 9090 }),
        json!({ "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy", "Kind": "connect-proxy", "Port": 20000,
                "Proxy": proxy }),
    ] {
        agent.call("PUT", "/v1/catalog/register", &with(service)).await;
    }
}

/// Lets everyone read nodes and services, as acl-controller does.
async fn anonymous_may_read(agent: &Agent) {
    let rules = r#"node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;
    let policy = agent.call("PUT", "/v1/acl/policy", &json!({ "Name": "anonymous", "Rules": rules })).await;
    let anonymous = "00000000-0000-0000-0000-000000000002";
    let token = json!({ "AccessorID": anonymous, "Policies": [{ "ID": policy["ID"] }] });
    agent.call("PUT", &format!("/v1/acl/token/{anonymous}"), &token).await;
}

#[tokio::test]
async fn every_call_is_answered_as_the_contract_says() {
    let agent = Agent::start_for_agentless().await;
    register(&agent).await;
    let token = Secret::new(agent.service_token("web").await);
    let unknown = Secret::new("6f1c2c1e-0000-4000-8000-000000000000");
    let server = servers(agent.grpc_port).connection().await.unwrap();

    assert!(server.features(Some(&token)).await.unwrap().watch_servers);
    for token in [None, Some(&unknown)] {
        let refused = server.features(token).await.unwrap_err();
        assert!(refused.is_unauthenticated() && !refused.to_string().contains(unknown.expose()), "{refused}");
    }

    let place = (None, None);
    let params = server.bootstrap_params(NODE, "web-1-sidecar-proxy", place, Some(&token)).await.unwrap();
    assert_eq!((params.service.as_str(), params.datacenter.as_str()), ("web", "dc1"));
    assert_eq!(params.node_name, NODE);
    assert_eq!(params.config["envoy_stats_flush_interval"], "7s");
    assert_eq!(params.config["nested"], nested());
    for (node, proxy) in [(NODE, "web-2-sidecar-proxy"), ("other", "web-1-sidecar-proxy")] {
        let missing = server.bootstrap_params(node, proxy, place, Some(&token)).await.unwrap_err();
        assert_eq!(missing.code(), Some(Code::NotFound), "{missing}");
    }

    let mut watch = server.watch_servers(Some(&token)).await.unwrap();
    let listed = timeout(BOUND, watch.next()).await.expect("in time").unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].address, "127.0.0.1");

    // Consul 1.8 answers DNS queries with the rights of the anonymous token.
    anonymous_may_read(&agent).await;
    // A query for the A records of consul.service.consul.
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06consul\x07service\x06consul\x00\x00\x01\x00\x01";
    let answer = server.dns_query(query.to_vec(), DnsProtocol::Udp, Some(&token)).await.unwrap();
    assert_eq!((&answer[..2], answer[3] & 0x0f), (&b"\x12\x34"[..], 0), "{answer:?}");

    let login = consul_grpc::LoginRequest { auth_method: "nope".to_owned(), ..Default::default() };
    assert_eq!(server.login(login).await.unwrap_err().code(), Some(Code::InvalidArgument));
    server.logout(&unknown, None).await.unwrap();
    let refused = server.logout(&token, None).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::PermissionDenied), "{refused}");
    assert!(!refused.to_string().contains(token.expose()));
}

#[tokio::test]
async fn follower_notices_a_deleted_token_and_goes_on_with_another() {
    let agent = Agent::start_for_agentless().await;
    let [old, new] = [agent.service_token("web").await, agent.service_token("web").await].map(Secret::new);
    let follower = Follower::start(Arc::new(servers(agent.grpc_port)), Some(old.clone()));
    let mut state = follower.state();
    let ready = state.wait_for(|state| matches!(state, State::Ready(_)));
    timeout(BOUND, ready).await.expect("in time").unwrap();
    let accessor = agent.call("GET", "/v1/acl/tokens", &Value::Null).await;
    let own = accessor.as_array().unwrap().iter().filter(|token| token["ServiceIdentities"].is_array());
    let oldest = own.min_by_key(|token| token["CreateIndex"].as_u64()).unwrap()["AccessorID"].as_str().unwrap();
    agent.call("DELETE", &format!("/v1/acl/token/{oldest}"), &Value::Null).await;
    let deleted = Instant::now();
    let refused = state.wait_for(|state| matches!(state, State::Refused));
    timeout(BOUND, refused).await.expect("in time").unwrap();
    assert!(deleted.elapsed() < Duration::from_secs(10), "noticed after {:?}", deleted.elapsed());
    follower.set_token(Some(new.clone()));
    let ready = state.wait_for(|state| matches!(state, State::Ready(ready) if ready.token == Some(new.clone())));
    timeout(BOUND, ready).await.expect("in time").unwrap();
}

/// A relay to a server. Once it is frozen, it passes nothing on, and closes no connection.
async fn relay(listener: TcpListener, server: SocketAddr, frozen: watch::Receiver<bool>) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut frozen = frozen.clone();
        tokio::spawn(async move {
            let mut server = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = async { let _ = frozen.wait_for(|frozen| *frozen).await; } => std::future::pending().await,
            }
        });
    }
}

#[tokio::test]
async fn server_that_falls_silent_is_left_within_25_seconds() {
    let agent = Agent::start_for_agentless().await;
    let token = Secret::new(agent.service_token("web").await);
    let server = SocketAddr::from(([127, 0, 0, 1], agent.grpc_port));
    let port = free_port();
    let mut freeze = Vec::new();
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let (switch, frozen) = watch::channel(false);
        tokio::spawn(relay(listener, server, frozen));
        freeze.push((ip, switch));
    }
    let hosts = freeze.iter().map(|(ip, _)| (*ip).to_owned()).collect();
    let follower = Follower::start(Arc::new(Servers::new(hosts, port, None)), Some(token));
    let mut state = follower.state();
    let ready = state.wait_for(|state| matches!(state, State::Ready(_)));
    let State::Ready(ready) = timeout(BOUND, ready).await.expect("in time").unwrap().clone() else { unreachable!() };
    let first = ready.connection.server();
    // The stream is there before the server falls silent. Otherwise a call's own time limit ends it sooner.
    let mut watch = ready.connection.watch_servers(ready.token.as_ref()).await.unwrap();
    timeout(BOUND, watch.next()).await.expect("in time").unwrap();
    let begin = Instant::now();
    let (_, switch) = freeze.iter().find(|(ip, _)| first.ip().to_string() == *ip).unwrap();
    switch.send_replace(true);
    let broken = timeout(BOUND, watch.next()).await.expect("in time").unwrap_err();
    let silence = begin.elapsed();
    assert!(matches!(broken, consul_grpc::Error::Broken { .. }), "{broken}");
    assert!((Duration::from_secs(8)..Duration::from_secs(27)).contains(&silence), "left after {silence:?}");
    let moved = state.wait_for(|state| matches!(state, State::Ready(ready) if ready.connection.server() != first));
    timeout(BOUND, moved).await.expect("in time").unwrap();
}

#[tokio::test]
async fn tls_of_a_real_server_is_checked_by_its_name() {
    let directory = certificates().await;
    let grpc_tls = free_port();
    let agent = Agent::start_with_grpc_tls(directory.path(), grpc_tls).await;
    let servers = |name: &str| {
        let authority = directory.path().join("consul-agent-ca.pem");
        let tls = Tls { trust: Trust::File(authority), server_name: Some(name.to_owned()) };
        Servers::new(vec!["127.0.0.1".to_owned()], grpc_tls, Some(tls))
    };
    let features =
        async |servers: Servers| servers.call(true, |server| async move { server.features(None).await }).await;
    assert!(features(servers("server.dc1.consul")).await.unwrap().watch_servers, "{}", agent.http);
    let wrong = features(servers("server.dc2.consul")).await.unwrap_err();
    assert!(matches!(wrong, consul_grpc::Error::Connect { .. }), "{wrong}");
}
