//! A real Envoy accepts everything that was recorded from Consul 1.8.7. It refuses nothing, and nothing stays warming.

mod common;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use sidecar_kit::http::{Client, Limits};
use tokio::net::{TcpListener, UnixListener};
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;
use xds_bridge::codec::Raw;
use xds_bridge::copies::Copies;
use xds_bridge::local::Local;
use xds_bridge::resource::Kind;
use xds_bridge::{consul, server, wire};

const BOUND: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { time: Duration::from_secs(5), bytes: 16 << 20 };

/// Plays Consul: answers the first request for a kind with the recorded response.
#[derive(Clone)]
struct Recorded(String);

impl Service<hyper::Request<Body>> for Recorded {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let recorded = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(recorded, request).await) })
    }
}

impl tonic::server::StreamingService<Bytes> for Recorded {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let scenario = self.0.clone();
        let answers = request.into_inner().filter_map(move |request| {
            let request = request.expect("the bridge does not break its stream");
            let field = |number| wire::fields(&request).map(Result::unwrap).find(|field| field.number == number);
            let kind = Kind::of_url(field(4).unwrap().text().unwrap()).unwrap();
            let answer = if field(5).is_none() { common::fixture(&scenario, kind) } else { None };
            ready(answer.map(|message| Ok(message.into())))
        });
        ready(Ok(Response::new(answers.boxed())))
    }
}

struct Envoy {
    child: Child,
    admin: String,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    async fn start(directory: &Path, bridge: u16) -> Self {
        let given = std::env::var_os("ENVOY").filter(|path| !path.is_empty()).map(PathBuf::from);
        let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/parts/envoy");
        let program = given.unwrap_or_else(fetched);
        assert!(program.exists(), "{} is missing: run `cargo xtask images` to fetch it", program.display());
        let config = directory.join("envoy.json");
        std::fs::write(&config, bootstrap(bridge).to_string()).unwrap();
        let admin = directory.join("admin");
        let mut command = Command::new(program);
        command.arg("--config-path").arg(config).arg("--admin-address-path").arg(&admin);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(directory.join("log")).unwrap());
        let mut envoy = Self { child: command.spawn().unwrap(), admin: String::new() };
        let deadline = Instant::now() + BOUND;
        while envoy.admin.is_empty() {
            assert!(Instant::now() < deadline, "Envoy's admin port: {}", log(directory));
            tokio::time::sleep(Duration::from_millis(50)).await;
            envoy.admin = std::fs::read_to_string(&admin).unwrap_or_default();
        }
        envoy
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let request = hyper::Request::get(format!("http://{}{path}", self.admin)).body(Default::default()).unwrap();
        let response = Client::plain().send(request, LIMITS).await.ok()?;
        serde_json::from_slice(&response.body).ok()
    }

    /// The names in one list of Envoy's `/config_dump`, such as `dynamic_active_clusters`.
    async fn names(&self, entries: &str) -> Vec<String> {
        let dump = self.get("/config_dump?include_eds").await.unwrap_or_default();
        let configs = dump["configs"].as_array().cloned().unwrap_or_default();
        let entries = configs.iter().flat_map(|config| config[entries].as_array().cloned().unwrap_or_default());
        let mut names: Vec<_> = entries
            .map(|entry| {
                let names = [&entry["name"], &entry["cluster"]["name"], &entry["route_config"]["name"]];
                let name = names.into_iter().chain([&entry["endpoint_config"]["cluster_name"]]).find_map(Value::as_str);
                name.unwrap_or_default().to_owned()
            })
            .collect();
        names.sort();
        names
    }
}

fn bootstrap(bridge: u16) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": "web-proxy", "cluster": "web"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "cds_config": ads, "lds_config": ads,
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": {"envoy_grpc": {"cluster_name": "local_agent"}}},
        },
        "static_resources": {"clusters": [{
            "name": "local_agent", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "local_agent", "endpoints": [{"lb_endpoints": [{"endpoint":
                {"address": {"socket_address": {"address": "127.0.0.1", "port_value": bridge}}}}]}]},
        }]},
    })
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// Checks that Envoy has every recorded resource, by kind.
async fn expect(envoy: &Envoy, scenario: &str) -> Result<(), String> {
    for (kind, entries) in [
        (Kind::Cluster, "dynamic_active_clusters"),
        (Kind::Endpoint, "dynamic_endpoint_configs"),
        (Kind::Listener, "dynamic_listeners"),
        (Kind::Route, "dynamic_route_configs"),
    ] {
        let mut names: Vec<_> = common::converted(scenario, kind).into_iter().map(|resource| resource.name).collect();
        names.sort();
        // Consul sends a cluster once for each upstream that uses it.
        names.dedup();
        let mut has = envoy.names(entries).await;
        if kind == Kind::Endpoint {
            // Envoy's dump also has the endpoints of clusters without discovery.
            has.retain(|name| names.contains(name));
        }
        if has != names {
            return Err(format!("{kind}: Envoy has {has:?} of {names:?}"));
        }
    }
    let stats =
        envoy.get("/stats?format=json&filter=(update_rejected|warming|create_failure)").await.unwrap_or_default();
    for stat in stats["stats"].as_array().into_iter().flatten() {
        if stat["value"].as_u64().is_some_and(|value| value > 0) {
            return Err(stat.to_string());
        }
    }
    Ok(())
}

#[tokio::test]
async fn envoy_accepts_every_recorded_resource_and_warms_all() {
    let mut failed = Vec::new();
    for scenario in common::scenarios() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("grpc.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let incoming = futures_util::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let consul = tonic::transport::Server::builder().serve_with_incoming(Recorded(scenario.clone()), incoming);
        let consul = tokio::spawn(consul);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The HTTP API is for tasks without an agent.
        let copies = Copies::new(Local::new("127.0.0.1:1".to_owned(), ([127, 0, 0, 1], 1).into()).unwrap());
        let bridge =
            tokio::spawn(server::serve(server::plain(listener), consul::Consul::new(socket, false).unwrap(), copies));

        let envoy = Envoy::start(directory.path(), port).await;
        let deadline = Instant::now() + BOUND;
        while let Err(reason) = expect(&envoy, &scenario).await {
            if Instant::now() > deadline || log(directory.path()).contains("rejected") {
                failed.push(format!("{scenario}: {reason}\n{}", log(directory.path())));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bridge.abort();
        consul.abort();
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
