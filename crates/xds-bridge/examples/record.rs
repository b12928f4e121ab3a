//! Records the responses of a real Consul 1.8.7 to the proxies of `tests/scenarios`, in `tests/fixtures`.
//!
//! `cargo run -p xds-bridge --example record [SCENARIO…]` records all scenarios, or only the named ones. It runs the Consul
//! `target/parts/consul` on loopback, once for each scenario.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper::Request as HttpRequest;
use serde_json::Value;
use sidecar_kit::http::{Client, Limits};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use xds_bridge::consul::{Consul, Token};
use xds_bridge::messages::{self, Response};
use xds_bridge::resource::Kind;
use xds_bridge::wire::{put_bytes, put_varint};

/// The token of the stream. Consul copies it into resources, so the fixtures contain it.
const TOKEN: &str = "the-token-of-the-recording";
/// A recording ends when Consul has sent nothing new for this time.
const QUIET: Duration = Duration::from_secs(3);
const BOUND: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 1 << 20 };

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let named: Vec<String> = std::env::args().skip(1).collect();
    for file in std::fs::read_dir(tests.join("scenarios"))? {
        let file = file?.path();
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if named.is_empty() || named.contains(&name) {
            let scenario: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            let recorded = record(&scenario).await.map_err(|error| format!("{name}: {error}"))?;
            let directory = tests.join("fixtures").join(&name);
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir_all(&directory)?;
            for (kind, message) in recorded {
                println!("{name}: {kind}: {} bytes", message.len());
                std::fs::write(directory.join(format!("{kind}.bin")), message)?;
            }
        }
    }
    Ok(())
}

async fn record(scenario: &Value) -> Result<BTreeMap<Kind, Vec<u8>>> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("grpc.sock");
    let http = free_port()?;
    let (server, serf) = (free_port()?, free_port()?);
    let consul = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/parts/consul");
    let settings = format!(
        r#"addresses {{ grpc = "unix://{}" }} ports {{ http = {http} grpc = 8502 server = {server} serf_lan = {serf} serf_wan = -1 dns = -1 }}
           connect {{ enabled = true }} enable_central_service_config = true log_level = "err""#,
        socket.display()
    );
    let mut command = Command::new(consul);
    command.args(["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-hcl", &settings]);
    let _consul = Killed(command.stdout(Stdio::null()).spawn()?);

    let deadline = Instant::now() + BOUND;
    while call(http, "GET", "/v1/status/leader", "").await.is_none_or(|leader| leader == "\"\"") {
        if Instant::now() > deadline {
            return Err("no leader".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (part, method, path) in [
        ("config", "PUT", "/v1/config"),
        ("services", "PUT", "/v1/agent/service/register"),
        ("queries", "POST", "/v1/query"),
    ] {
        for body in scenario[part].as_array().into_iter().flatten() {
            call(http, method, path, &body.to_string()).await.ok_or_else(|| format!("Consul refused {body}"))?;
        }
    }

    let proxy = scenario["proxy"].as_str().ok_or("no proxy")?;
    let kind = scenario["services"].as_array().into_iter().flatten().find(|service| service["ID"] == proxy);
    let kind = kind.and_then(|service| service["Kind"].as_str()).ok_or("no such proxy")?;
    // Consul ends the stream of a gateway without routes that asks for them.
    let routes = matches!(kind, "connect-proxy" | "ingress-gateway");
    let kinds = Kind::ALL.into_iter().filter(|kind| routes || *kind != Kind::Route);
    let (requests, receiver) = mpsc::unbounded_channel();
    let node = node(proxy);
    for kind in kinds {
        requests.send(messages::request(kind, &node, "", "").into())?;
    }
    let receiver = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|request| (request, receiver))
    });
    let mut metadata = MetadataMap::new();
    metadata.insert("x-consul-token", TOKEN.parse()?);
    let consul = Consul::new(socket, false).unwrap();
    let mut stream = timeout(BOUND, consul.stream(&Token::of(&metadata), receiver)).await??;
    let mut recorded = BTreeMap::new();
    while let Ok(message) = timeout(QUIET, stream.message()).await {
        let message = message?.ok_or("Consul ended the stream")?;
        let response = Response::decode(&message)?;
        let kind = Kind::of_url(&response.type_url).ok_or("an unknown type")?;
        requests.send(messages::request(kind, &node, &response.version, &response.nonce).into())?;
        recorded.insert(kind, message.to_vec());
    }
    Ok(recorded)
}

/// The node of an Envoy 1.40: `id` 1, `user_agent_name` 6, `user_agent_build_version` 8, its `version` 1.
fn node(id: &str) -> Vec<u8> {
    let (mut node, mut build, mut version) = (Vec::new(), Vec::new(), Vec::new());
    put_varint(&mut version, 1, 1);
    put_varint(&mut version, 2, 40);
    put_bytes(&mut build, 1, &version);
    put_bytes(&mut node, 1, id.as_bytes());
    put_bytes(&mut node, 6, b"envoy");
    put_bytes(&mut node, 8, &build);
    node
}

async fn call(port: u16, method: &str, path: &str, body: &str) -> Option<String> {
    let request = HttpRequest::builder().method(method).uri(format!("http://127.0.0.1:{port}{path}"));
    let request = request.body(body.to_owned().into()).ok()?;
    let response = Client::plain().send(request, LIMITS).await.ok()?;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    if response.status.as_u16() == 200 {
        return Some(text);
    }
    eprintln!("{path}: {}: {text}", response.status);
    None
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
