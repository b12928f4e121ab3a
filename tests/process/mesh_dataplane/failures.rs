//! What ends mesh-dataplane before Envoy has its first configuration, and what does not end it later.

use super::*;

async fn registered(servers: &Servers) -> Task {
    let token = servers.any().service_token("web").await;
    let (web, _) = web(servers);
    let web = web.with("CONSUL_HTTP_TOKEN", token).with("MESH_DATAPLANE_TIMEOUT", "5s");
    web.register().await;
    web
}

#[tokio::test]
async fn unknown_proxy_refused_token_or_silent_server_gives_one_line() {
    let servers = Servers::start(1).await;
    let web = registered(&servers).await;

    let unknown = web.with("CONSUL_HTTP_TOKEN", "6f1c2c1e-0000-4000-8000-5ec3e7000000");
    unknown.fails_with(&["Consul's servers do not know the token", "CONSUL_HTTP_TOKEN", "Unauthenticated"]).await;

    let other = servers.any().service_token("api").await;
    let other = unknown.with("CONSUL_HTTP_TOKEN", other).with("MESH_DATAPLANE_LISTENER_TIMEOUT", "3s");
    // This token may read the service `web`, so only the silence of xDS shows that it is the wrong one.
    let texts =
        ["no listeners from Consul within 3s", "web-w1-sidecar-proxy", "has its token the identity of its service"];
    other.fails_with(&texts).await;

    let id = other.proxy_id();
    let token = servers.any().service_token("web").await;
    let web = other.with("CONSUL_HTTP_TOKEN", token);
    let deregister = json!({ "Node": NODE, "ServiceID": id });
    servers.any().call("PUT", "/v1/catalog/deregister", &deregister).await;
    web.fails_with(&["Consul does not know the proxy web-w1-sidecar-proxy", NODE, "expected mesh-init"]).await;

    // A server that accepts connections and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.9", servers.grpc)).unwrap();
    let mut settings: Value = serde_json::from_slice(&std::fs::read(web.file("dataplane.json")).unwrap()).unwrap();
    settings["consul"]["addresses"] = "127.0.0.9".into();
    std::fs::write(web.file("dataplane.json"), settings.to_string()).unwrap();
    let silence = web.with("MESH_DATAPLANE_TIMEOUT", "2s");
    silence.fails_with(&["Envoy cannot start: gave up waiting for Consul's servers at 127.0.0.9 after 2s"]).await;
    drop(silent);
    std::fs::remove_file(silence.file("dataplane.json")).unwrap();
    silence.fails_with(&["cannot read", "dataplane.json: expected the file that mesh-init writes"]).await;
}

#[tokio::test]
async fn term_before_envoy_starts_ends_the_program() {
    let servers = Servers::start(1).await;
    let web = registered(&servers).await.with("MESH_DATAPLANE_TIMEOUT", "60s");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(web.file("dataplane.json")).unwrap()).unwrap();
    settings["consul"]["addresses"] = "127.0.0.9".into();
    std::fs::write(web.file("dataplane.json"), settings.to_string()).unwrap();
    let mut waiting = Process::spawn(&mut web.with_envoy("warning"));
    waiting.says("waiting for Consul's servers at 127.0.0.9", BOUND).await;
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.exit_code(BOUND).await, 143);
}

#[tokio::test]
async fn envoy_gets_no_token_in_its_environment() {
    let servers = Servers::start(1).await;
    let web = registered(&servers).await.with("CONSUL_LOGIN_BEARER_TOKEN", "5ec3e7");
    let finished = run(&mut web.command(&["/bin/sh", "-c", "/usr/bin/env", "sh"]), BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let variables = finished.stdout;
    assert!(variables.contains("MESH_DATAPLANE_TIMEOUT=5s"), "{variables}");
    assert!(!variables.contains("CONSUL_HTTP_TOKEN") && !variables.contains("5ec3e7"), "{variables}");
}

#[tokio::test]
async fn wait_for_a_new_proxy_begins_with_the_first_refusal() {
    let servers = Servers::start(1).await;
    let web = registered(&servers).await.with("MESH_DATAPLANE_TIMEOUT", "60s");
    let deregister = json!({ "Node": NODE, "ServiceID": web.proxy_id() });
    servers.any().call("PUT", "/v1/catalog/deregister", &deregister).await;
    let mut settings: Value = serde_json::from_slice(&std::fs::read(web.file("dataplane.json")).unwrap()).unwrap();
    settings["consul"]["addresses"] = "127.0.0.9".into();
    std::fs::write(web.file("dataplane.json"), settings.to_string()).unwrap();
    let mut waiting = Process::spawn(&mut web.command(&["/bin/sh", "-c", "exit 7", "sh"]));
    // The second line comes after 10 s. That is longer than a new proxy may take.
    eventually("the servers are away for a while", BOUND, async || {
        let output = waiting.output();
        if output.matches("waiting for Consul's servers at 127.0.0.9").count() > 1 { Ok(()) } else { Err(output) }
    })
    .await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.9", servers.grpc)).await.unwrap();
    let server = ("127.0.0.1", servers.grpc);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    waiting.says("Consul does not know the proxy", BOUND).await;
    web.register().await;
    assert_eq!(waiting.exit_code(BOUND).await, 7, "{}", waiting.output());
}

#[tokio::test]
async fn outage_of_consul_ends_nothing_and_shows_in_ready() {
    let mut mesh = Mesh::start(1, 1).await;
    mesh.servers.all[0].kill();
    let status = mesh.web.task.status;
    mesh.web.dataplane.says("no server of Consul can be used", BOUND).await;
    let url = format!("http://127.0.0.1:{status}/ready");
    eventually("/ready shows the outage", BOUND, async || match http::request("GET", &url, &[], "").await? {
        (503, body) if body.starts_with("no server of Consul can be used for") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(mesh.web.metric("mesh_dataplane_connected").await, 0);
    http::get(&mesh.upstream).await.unwrap();
    assert_eq!(mesh.web.task.healthy().await, 0);
}
