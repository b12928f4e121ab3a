//! Proxies that are registered in the catalog alone, as those of tasks without an agent. A later Consul serves them itself, and the tests hold
//! for it too.

use mesh_tests::consul::Agent;

use super::*;

const NODE: &str = "arn:aws:ecs:eu-north-1:210987654321:cluster/blue";

/// Registers a service and its proxy, with the service's token. The proxy has these upstreams.
async fn register(server: &Agent, service: &str, ports: [u16; 2], upstreams: Value) -> String {
    let node = json!({ "Node": NODE, "Address": "127.0.0.1" });
    server.call("PUT", "/v1/catalog/register", &node).await;
    let token = server.service_token(service).await;
    let [app, proxy] = ports;
    put(server, &token, json!({ "ID": format!("{service}-1"), "Service": service, "Port": app })).await;
    put_proxy(server, &token, service, [app, proxy], upstreams).await;
    token
}

async fn put(server: &Agent, token: &str, service: Value) {
    let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Service": service }).to_string();
    let url = server.url("/v1/catalog/register");
    let answer = http::request("PUT", &url, &[("X-Consul-Token", token)], &body).await.unwrap();
    assert_eq!(answer.0, 200, "{}", answer.1);
}

async fn put_proxy(server: &Agent, token: &str, service: &str, [app, proxy]: [u16; 2], upstreams: Value) {
    let configuration = json!({ "DestinationServiceName": service, "DestinationServiceID": format!("{service}-1"),
        "LocalServicePort": app, "Upstreams": upstreams });
    let proxy = json!({ "ID": format!("{service}-1-sidecar-proxy"), "Service": format!("{service}-sidecar-proxy"),
        "Kind": "connect-proxy", "Address": "127.0.0.1", "Port": proxy, "Proxy": configuration });
    put(server, token, proxy).await;
}

async fn allow(server: &Agent, source: &str, destination: &str) {
    let intention = json!({ "SourceName": source, "DestinationName": destination, "Action": "allow" });
    server.call("POST", "/v1/connect/intentions", &intention).await;
}

/// The nodes that list a proxy of the service; `passing`: only those whose checks pass.
async fn nodes(server: &Agent, service: &str, passing: bool) -> Vec<String> {
    let query = if passing { "?passing" } else { "" };
    let listed = server.call("GET", &format!("/v1/health/connect/{service}{query}"), &Value::Null).await;
    let nodes = listed.as_array().into_iter().flatten();
    nodes.map(|entry| entry["Node"]["Node"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn requests_pass_between_proxies_of_the_catalog() {
    let server = Agent::start_for_agentless().await;
    let (app_port, app) = app("from api").await;
    let local = free_port();
    let upstreams = json!([{ "DestinationName": "api", "LocalBindPort": local }]);
    let ports = [free_port(), free_port()];
    let web = register(&server, "web", ports, upstreams).await;
    let api = register(&server, "api", [app_port, free_port()], json!([])).await;
    allow(&server, "web", "api").await;
    let callee = Envoy::start_for_catalog("api-1-sidecar-proxy", NODE, server.grpc_port, &api).await;
    eventually("the app's listener", BOUND, async || callee.listener("public_listener").await).await;
    let caller = Envoy::start_for_catalog("web-1-sidecar-proxy", NODE, server.grpc_port, &web).await;
    eventually("an answer", BOUND, async || match ask(local).await?.as_str() {
        "from api" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    // Traffic only goes to what the task has registered.
    assert_eq!(nodes(&server, "api", true).await, [NODE]);

    // A change of the registration reaches Envoy.
    let other = free_port();
    let upstreams = json!([{ "DestinationName": "other", "LocalBindPort": other }]);
    put_proxy(&server, &web, "web", ports, upstreams).await;
    eventually("the other upstream", BOUND, async || caller.listener("other").await).await;
    eventually("the first upstream is gone", BOUND, async || match caller.listener("api").await {
        Err(_) => Ok(()),
        Ok(listener) => Err(listener.to_string()),
    })
    .await;

    drop((caller, callee));
    app.abort();
    // When the streams have ended, the catalog has only what the tasks have registered.
    for service in ["web", "api"] {
        eventually("no copy is left", BOUND, async || {
            let nodes = nodes(&server, service, false).await;
            if nodes == [NODE] { Ok(()) } else { Err(format!("{nodes:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_an_unknown_proxy_gets_nothing() {
    let server = Agent::start_for_agentless().await;
    let ports = [free_port(), free_port()];
    let web = register(&server, "web", ports, json!([])).await;
    let api = server.service_token("api").await;
    let start = async |proxy: &str, token: &str| Envoy::start_for_catalog(proxy, NODE, server.grpc_port, token).await;
    let known = start("web-1-sidecar-proxy", &web).await;
    eventually("the listener of the known proxy", BOUND, async || known.listener("public_listener").await).await;
    // Later Consuls refuse a token only if they have the proxy's configuration already, for another stream.
    let refused = start("web-1-sidecar-proxy", &api).await;
    refused.process.says("closed: 7", BOUND).await;
    // For one proxy, later Consuls accept two streams at a time.
    drop(refused);
    let unknown = start("web-1-sidecar-proxy", "6f1c2c1e-0000-4000-8000-000000000000").await;
    unknown.process.says("closed: 16", BOUND).await;
    drop(unknown);

    // The refused streams have taken nothing from the one that is open.
    let upstreams = json!([{ "DestinationName": "other", "LocalBindPort": free_port() }]);
    put_proxy(&server, &web, "web", ports, upstreams).await;
    let early = start("web-2-sidecar-proxy", &web).await;
    eventually("the new upstream", BOUND, async || known.listener("other").await).await;

    early.listener("public_listener").await.unwrap_err();
    assert!(!early.process.output().contains("closed:"), "{}", early.process.output());
    // Its stream is still open and gets the configuration once the proxy is registered.
    let proxy = json!({ "ID": "web-2-sidecar-proxy", "Service": "web-sidecar-proxy", "Kind": "connect-proxy",
        "Address": "127.0.0.1", "Port": free_port(), "Proxy": { "DestinationServiceName": "web" } });
    put(&server, &web, proxy).await;
    eventually("the listener of the new proxy", BOUND, async || early.listener("public_listener").await).await;
}

#[tokio::test]
async fn server_with_an_https_port_serves_proxies_too() {
    let directory = mesh_tests::consul::certificates().await;
    let server = Agent::start_with_grpc_tls(directory.path(), free_port()).await;
    let proxy = json!({ "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy", "Kind": "connect-proxy",
        "Port": free_port(), "Proxy": { "DestinationServiceName": "web" } });
    let registration = json!({ "Node": NODE, "Address": "127.0.0.1", "Service": proxy });
    server.call("PUT", "/v1/catalog/register", &registration).await;
    let envoy = Envoy::start_for_catalog("web-1-sidecar-proxy", NODE, server.grpc_port, TOKEN).await;
    eventually("the listener", BOUND, async || envoy.listener("public_listener").await).await;
}

#[tokio::test]
async fn logout_ends_the_stream_and_leaves_no_copy() {
    let server = Agent::start_for_agentless().await;
    let platform = crate::login::Platform::trusted_by(&server, "${value.service}").await;
    register(&server, "web", [free_port(), free_port()], json!([])).await;
    let consul = consul_grpc::Servers::new(vec!["127.0.0.1".to_owned()], server.grpc_port, None);
    let consul = consul.connection().await.unwrap();
    let bearer_token = std::fs::read_to_string(platform.proof("web").path()).unwrap();
    let login = |bearer_token: &str| consul_grpc::LoginRequest {
        auth_method: crate::login::METHOD.to_owned(),
        bearer_token: bearer_token.to_owned(),
        ..Default::default()
    };
    let wrong = consul.login(login("no proof")).await.unwrap_err();
    assert_eq!(wrong.code(), Some(consul_grpc::Code::Unauthenticated), "{wrong}");
    let token = consul.login(login(&bearer_token)).await.unwrap().secret_id;
    let envoy = Envoy::start_for_catalog("web-1-sidecar-proxy", NODE, server.grpc_port, token.expose()).await;
    eventually("the listener", BOUND, async || envoy.listener("public_listener").await).await;
    consul.logout(&token, None).await.unwrap();
    assert_eq!(nodes(&server, "web", false).await, [NODE]);
    let refused = consul.features(Some(&token)).await.unwrap_err();
    assert!(refused.is_unauthenticated(), "{refused}");
    assert!(!server.output().contains(token.expose()), "a token in the log");
}
