//! The three kinds of gateway, as mesh-init registers them and writes their bootstraps. The tests run a real Consul 1.8.7 under xds-bridge
//! and a real Envoy with the bootstrap, and send traffic through it.

use std::process::Command;
use std::time::Duration;

use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port, http};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::xds_bridge::{BOUND, Bridge, Envoy, app, ask, callee, caller};

/// The task of a gateway, after mesh-init has registered it.
struct Gateway {
    port: u16,
    document: Value,
    metadata: Metadata,
    volume: TempDir,
}

impl Gateway {
    async fn registered(bridge: &Bridge, kind: &str) -> Self {
        let (port, volume) = (free_port(), tempfile::tempdir().unwrap());
        let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }]);
        let metadata = Metadata::start("edge", json!([{ "Name": "sidecar-proxy", "Networks": networks }]));
        let gateway = json!({ "kind": kind, "lanAddress": { "port": port } });
        let document = json!({ "bootstrapDir": volume.path(), "gateway": gateway });
        let gateway = Self { port, document, metadata, volume };
        let mut mesh_init = gateway.command(bridge, "mesh-init");
        let finished = run(mesh_init.args(["--admin-bind", &format!("127.0.0.1:{}", free_port())]), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        gateway
    }

    fn command(&self, bridge: &Bridge, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command.env_clear().env("CONSUL_HTTP_ADDR", format!("127.0.0.1:{}", bridge.http));
        command.env("CONSUL_ECS_CONFIG_JSON", self.document.to_string());
        command.env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri);
        command
    }

    fn bootstrap(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.volume.path().join("envoy-bootstrap.json")).unwrap()).unwrap()
    }

    async fn envoy(&self) -> Envoy {
        Envoy::with(&self.volume.path().join("envoy-bootstrap.json"), tempfile::tempdir().unwrap()).await
    }
}

async fn get(bridge: &Bridge, path: &str) -> Value {
    http::get_json(&format!("http://127.0.0.1:{}{path}", bridge.http)).await.unwrap()
}

/// Waits until the gateway's only check passes, which connects to its listener.
async fn passes(bridge: &Bridge) {
    eventually("the check of the gateway's listener passes", BOUND, async || {
        let checks = get(bridge, "/v1/health/checks/edge").await;
        match &checks.as_array().unwrap()[..] {
            [check] if check["Status"] == "passing" => Ok(()),
            _ => Err(checks.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn each_kind_of_gateway_is_registered_with_its_bootstrap() {
    let bridge = Bridge::start().await;
    for (kind, ready) in [("mesh-gateway", false), ("ingress-gateway", true), ("terminating-gateway", false)] {
        let gateway = Gateway::registered(&bridge, kind).await;
        let registered = get(&bridge, "/v1/agent/service/edge-f1a2").await;
        assert_eq!(registered["Kind"], kind);
        assert_eq!((&registered["Service"], &registered["Port"]), (&json!("edge"), &json!(gateway.port)));
        let checks = get(&bridge, "/v1/health/checks/edge").await;
        assert_eq!(checks[0]["Name"], format!("{kind} listener"));
        assert_eq!(checks.as_array().map(Vec::len), Some(1), "{checks}");
        let bootstrap = gateway.bootstrap();
        assert_eq!(bootstrap["node"]["id"], "edge-f1a2");
        assert_eq!(bootstrap["node"]["cluster"], "edge");
        assert_eq!(bootstrap["static_resources"]["listeners"].is_array(), ready, "{kind}");
        let source = json!({ "tag_name": "consul.source.service", "fixed_value": "edge" });
        assert!(bootstrap["stats_config"]["stats_tags"].as_array().unwrap().contains(&source));
        // Consul refuses another kind for the same ID, so this gateway is deregistered first.
        bridge.call("PUT", "/v1/agent/service/deregister/edge-f1a2", &Value::Null).await;
    }
}

#[tokio::test]
async fn ingress_gateway_with_config_entry_lets_requests_in() {
    let bridge = Bridge::start().await;
    let gateway = Gateway::registered(&bridge, "ingress-gateway").await;
    let _envoy = gateway.envoy().await;
    let (a, _app) = app("the app").await;
    let (h, _http_app) = app("HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nover web").await;
    bridge.config(&json!({ "Kind": "service-defaults", "Name": "h", "Protocol": "http" })).await;
    let (_a, _h) = (callee(&bridge, "a", a).await, callee(&bridge, "h", h).await);
    let (tcp, web) = (free_port(), free_port());
    let listeners = json!([
        { "Port": tcp, "Protocol": "tcp", "Services": [{ "Name": "a" }] },
        { "Port": web, "Protocol": "http", "Services": [{ "Name": "h", "Hosts": ["*"] }] },
    ]);
    bridge.config(&json!({ "Kind": "ingress-gateway", "Name": "edge", "Listeners": listeners })).await;
    passes(&bridge).await;
    let ready = format!("http://127.0.0.1:{}/ready", gateway.port);
    eventually("Envoy says that it is ready", BOUND, async || http::get(&ready).await).await;
    let (status, _) = http::request("GET", &ready.replace("ready", "stats"), &[], "").await.unwrap();
    assert_eq!(status, 404, "this port serves nothing else of the admin interface");
    let answer = eventually("a connection through the gateway is answered", BOUND, async || ask(tcp).await).await;
    assert_eq!(answer, "the app");
    let url = format!("http://127.0.0.1:{web}/");
    let answer = eventually("a request through the gateway is answered", BOUND, async || http::get(&url).await).await;
    assert_eq!(answer, "over web");
}

#[tokio::test]
async fn terminating_gateway_reaches_a_linked_service() {
    let bridge = Bridge::start().await;
    let gateway = Gateway::registered(&bridge, "terminating-gateway").await;
    let envoy = gateway.envoy().await;
    // The gateway listens even without a link, so its check passes.
    passes(&bridge).await;

    let (port, _app) = app("the legacy app").await;
    let service = json!({ "Service": "legacy", "Port": port });
    let outside = json!({ "Node": "outside", "Address": "127.0.0.1", "Service": service });
    bridge.call("PUT", "/v1/catalog/register", &outside).await;
    bridge.config(&json!({ "Kind": "terminating-gateway", "Name": "edge", "Services": [{ "Name": "legacy" }] })).await;
    let (_caller, legacy) = caller(&bridge, "legacy").await;
    let answer = eventually("an answer from outside", BOUND, async || ask(legacy).await).await;
    assert_eq!(answer, "the legacy app");
    envoy.listener("default").await.unwrap();
}

/// A ClientHello of TLS 1.2. In this version, the server sends its certificate unencrypted.
fn client_hello(sni: &str) -> Vec<u8> {
    let with_length = |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
    let extension = |number: u16, bytes: Vec<u8>| [&number.to_be_bytes()[..], &with_length(bytes)].concat();
    let extensions = [
        extension(0, with_length([&[0][..], &with_length(sni.into())].concat())),
        // The three extensions offer the curve P-256, uncompressed points, and ECDSA with SHA-256.
        extension(10, vec![0, 2, 0, 23]),
        extension(11, vec![1, 0]),
        extension(13, vec![0, 2, 4, 3]),
    ]
    .concat();
    let version = [3, 3];
    // No session ID, one cipher suite (ECDHE-ECDSA-AES128-GCM-SHA256), no compression.
    let body = [&version[..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0], &with_length(extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[22][..], &version, &with_length(handshake)].concat()
}

/// A gateway's answer to a client that asks for this server name. It ends with the server's certificate. It is empty if the gateway closes
/// the connection.
async fn hello(port: u16, sni: &str) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(&client_hello(sni)).await?;
        let mut answer = vec![0; 16_384];
        let mut length = 0;
        // The certificate contains the service's name, so this is the end.
        while !String::from_utf8_lossy(&answer[..length]).contains("/svc/") {
            match stream.read(&mut answer[length..]).await? {
                0 => break,
                read => length += read,
            }
        }
        answer.truncate(length);
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await.map_err(|error| error.to_string())?;
    answer.map_err(|error| error.to_string())
}

#[tokio::test]
async fn mesh_gateway_leads_to_the_named_service() {
    let bridge = Bridge::start().await;
    let gateway = Gateway::registered(&bridge, "mesh-gateway").await;
    let envoy = gateway.envoy().await;
    passes(&bridge).await;
    envoy.listener("default").await.unwrap();

    let (port, _app) = app("the app").await;
    // A mesh gateway sends requests only to proxies whose service is registered.
    bridge.register(&json!({ "ID": "a-1", "Name": "a", "Port": port })).await;
    let _callee = callee(&bridge, "a", port).await;
    let roots = get(&bridge, "/v1/connect/ca/roots").await;
    let domain = roots["TrustDomain"].as_str().unwrap();
    let sni = |service: &str| format!("{service}.default.dc1.internal.{domain}");
    let answer =
        eventually("the service's own proxy answers", BOUND, async || match hello(gateway.port, &sni("a")).await? {
            answer if answer.is_empty() => Err("nothing".to_owned()),
            answer => Ok(answer),
        })
        .await;
    let certificate = format!("spiffe://{domain}/ns/default/dc/dc1/svc/a");
    assert!(String::from_utf8_lossy(&answer).contains(&certificate), "the certificate of a");
    let nobody = hello(gateway.port, &sni("nobody")).await;
    assert!(nobody.as_ref().map_or(true, Vec::is_empty), "the connection is closed or reset: {nobody:?}");
}

#[tokio::test]
async fn term_puts_a_gateway_into_maintenance() {
    let bridge = Bridge::start().await;
    let gateway = Gateway::registered(&bridge, "terminating-gateway").await;
    let _envoy = gateway.envoy().await;
    passes(&bridge).await;
    let maintained = async || {
        let checks = get(&bridge, "/v1/agent/checks").await;
        checks["_service_maintenance:edge-f1a2"]["Status"].as_str().map(str::to_owned)
    };
    let start = || Process::spawn(&mut gateway.command(&bridge, "health-sync"));
    let mut sync = start();
    sync.says("syncing the health", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(maintained().await.as_deref(), Some("critical"));

    bridge.call("PUT", "/v1/agent/service/deregister/edge-f1a2", &Value::Null).await;
    let _sync = start();
    eventually("the gateway is registered again", BOUND, async || {
        let services = get(&bridge, "/v1/agent/services").await;
        if services["edge-f1a2"].is_object() { Ok(()) } else { Err(services.to_string()) }
    })
    .await;
    passes(&bridge).await;
    assert_eq!(maintained().await, None);
}
