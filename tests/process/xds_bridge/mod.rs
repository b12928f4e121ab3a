//! xds-bridge between a real Consul 1.8.7 and real Envoys. Envoy's admin page shows what Envoy got.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::version;
use mesh_tests::process::Process;
use mesh_tests::{binary, eventually, free_port, http, part};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

mod agentless;
mod authorisation;
mod changes;
mod restarts;

pub(super) const BOUND: Duration = Duration::from_secs(30);
/// Envoy warms a cluster or listener for at most 15 s, then uses it without the missing resource. If it is active within this shorter time,
/// nothing was missing.
const BEFORE_ENVOY_GIVES_UP: Duration = Duration::from_secs(8);
const TOKEN: &str = "5ec2e7-t0ken-of-the-pr0xy";

/// Consul 1.8 under the bridge. A later Consul serves xDS v3 itself and runs without the bridge.
pub(super) struct Bridge {
    process: Process,
    port: u16,
    pub(super) http: u16,
    directory: TempDir,
    ports: [u16; 2],
}

impl Drop for Bridge {
    /// Consul has its own process group, which survives the death of the bridge.
    fn drop(&mut self) {
        if let Some(consul) = self.consul() {
            let _ = kill_process(consul, Signal::KILL);
        }
    }
}

impl Bridge {
    /// Consul's process, once it runs.
    fn consul(&self) -> Option<Pid> {
        let pid = std::fs::read_to_string(self.directory.path().join("pid")).ok()?;
        Pid::from_raw(pid.trim().parse().ok()?)
    }

    pub(super) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, http, ports) = (free_port(), free_port(), [free_port(), free_port()]);
        let process = Self::spawn(directory.path(), port, http, ports);
        let bridge = Self { process, port, http, directory, ports };
        bridge.has_leader().await;
        bridge
    }

    fn spawn(directory: &Path, port: u16, http: u16, [server, serf]: [u16; 2]) -> Process {
        let mut config = json!({
            "server": true, "bootstrap": true, "data_dir": directory.join("data"), "pid_file": directory.join("pid"),
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "node_name": "node",
            "connect": {"enabled": true}, "enable_central_service_config": true, "log_level": "info",
            "ports": {"http": http, "grpc": port, "dns": -1, "server": server, "serf_lan": serf, "serf_wan": -1},
            "performance": {"raft_multiplier": 1}, "leave_on_terminate": true,
        });
        if version().at_least(1, 14) {
            config["ports"]["grpc_tls"] = (-1).into();
        }
        let file = directory.join("consul.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = if version().serves_xds_v3() {
            Command::new(part("consul"))
        } else {
            let mut command = Command::new(binary("xds-bridge"));
            command.arg("--listen").arg(format!("127.0.0.1:{port}")).arg("--socket").arg(directory.join("grpc.sock"));
            command.arg(part("consul")).env("LOG_LEVEL", "debug");
            command
        };
        Process::spawn(command.arg("agent").arg("-config-file").arg(file))
    }

    /// Ends the bridge with TERM, as ECS does, and returns its exit code.
    async fn stop(&mut self) -> i32 {
        self.process.signal(Signal::TERM);
        self.process.exit_code(BOUND).await
    }

    async fn start_again(&mut self) {
        self.process = Self::spawn(self.directory.path(), self.port, self.http, self.ports);
        self.has_leader().await;
    }

    async fn has_leader(&self) {
        eventually("Consul has a leader and its CA", BOUND, async || {
            http::get_json(&format!("http://127.0.0.1:{}/v1/connect/ca/roots", self.http)).await.and_then(|roots| {
                if roots["Roots"].as_array().is_some_and(|roots| !roots.is_empty()) {
                    Ok(())
                } else {
                    Err(roots.to_string())
                }
            })
        })
        .await;
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: &Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.http);
        let answer = http::request(method, &url, &[], &body.to_string()).await;
        assert!(matches!(answer, Ok((200, _))), "{path} {body}: {answer:?}");
    }

    pub(super) async fn register(&self, service: &Value) {
        self.call("PUT", "/v1/agent/service/register", service).await;
    }

    pub(super) async fn config(&self, entry: &Value) {
        self.call("PUT", "/v1/config", entry).await;
    }

    /// Registers an instance of a service's proxy. No such proxy runs.
    async fn instance(&self, service: &str, number: u8) {
        let id = format!("{service}-{number}-proxy");
        let address = format!("127.9.0.{number}");
        let proxy = json!({"DestinationServiceName": service});
        let name = format!("{service}-proxy");
        self.register(
            &json!({"ID": id, "Name": name, "Kind": "connect-proxy", "Address": address, "Port": 1, "Proxy": proxy}),
        )
        .await;
    }

    /// What the bridge has logged as sent, after the first `from` bytes of its output: kind, resources, removed.
    fn sent(&self, from: usize) -> Vec<String> {
        let output = self.process.output();
        let sent = output[from..].lines().filter_map(|line| line.split_once("sending node=\"web-proxy\" "));
        sent.map(|(_, what)| what.to_owned()).collect()
    }

    fn mark(&self) -> usize {
        self.process.output().len()
    }
}

/// The proxy `web-proxy` with these upstreams.
fn web(port: u16, upstreams: &[Value]) -> Value {
    json!({"ID": "web-proxy", "Name": "web-proxy", "Kind": "connect-proxy", "Address": "127.0.0.1", "Port": port,
        "Proxy": {"DestinationServiceName": "web", "LocalServicePort": 9, "Upstreams": upstreams}})
}

fn upstream(service: &str, port: u16, config: Value) -> Value {
    json!({"DestinationName": service, "LocalBindPort": port, "Config": config})
}

pub(super) struct Envoy {
    process: Process,
    admin: String,
    _directory: TempDir,
}

impl Envoy {
    pub(super) async fn start(node: &str, agent: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("envoy.json");
        std::fs::write(&config, bootstrap(node, agent, TOKEN).to_string()).unwrap();
        Self::with(&config, directory).await
    }

    /// Starts the Envoy of a proxy of the catalog.
    async fn start_for_catalog(proxy: &str, node: &str, server: u16, token: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("envoy.json");
        let mut bootstrap = bootstrap(proxy, server, token);
        bootstrap["node"]["metadata"] = json!({ "node_name": node });
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        Self::with(&config, directory).await
    }

    /// Starts an Envoy with this bootstrap. It keeps `directory` until its end.
    pub(super) async fn with(config: &Path, directory: TempDir) -> Self {
        let admin = directory.path().join("admin");
        let mut command = Command::new(part("envoy"));
        command.arg("--config-path").arg(config).arg("--admin-address-path").arg(&admin);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        let process = Process::spawn(&mut command);
        let admin = eventually("Envoy's admin address", BOUND, async || {
            let address = std::fs::read_to_string(&admin).map_err(|error| error.to_string())?;
            if address.is_empty() { Err("empty".into()) } else { Ok(address) }
        })
        .await;
        Self { process, admin, _directory: directory }
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        http::get_json(&format!("http://{}{path}", self.admin)).await
    }

    async fn dump(&self, entries: &str) -> Result<Vec<Value>, String> {
        let dump = self.get("/config_dump?include_eds").await?;
        let configs = dump["configs"].as_array().cloned().unwrap_or_default();
        Ok(configs.iter().flat_map(|config| config[entries].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Envoy's cluster for a service. Consul's name for the cluster begins with the name of the service.
    async fn cluster(&self, service: &str) -> Result<Value, String> {
        let clusters = self.dump("dynamic_active_clusters").await?;
        let prefix = format!("{service}.");
        let found = clusters.iter().find(|entry| {
            entry["cluster"]["name"].as_str().is_some_and(|name| name == service || name.starts_with(&prefix))
        });
        found.cloned().ok_or_else(|| format!("no cluster {service} in {}", names(&clusters)))
    }

    /// Envoy's active listener for an upstream.
    pub(super) async fn listener(&self, service: &str) -> Result<Value, String> {
        let listeners = self.dump("dynamic_listeners").await?;
        let prefix = format!("{service}:");
        let active = listeners.iter().find(|entry| {
            let name = entry["name"].as_str().unwrap_or_default();
            (name == service || name.starts_with(&prefix)) && !entry["active_state"].is_null()
        });
        active.cloned().ok_or_else(|| format!("no listener {service} in {}", names(&listeners)))
    }

    /// The addresses of the endpoints that Envoy has for a service.
    async fn endpoints(&self, service: &str) -> Result<Vec<String>, String> {
        let prefix = format!("{service}.");
        let configs = self.dump("dynamic_endpoint_configs").await?;
        let config = configs.iter().map(|entry| &entry["endpoint_config"]).find(|config| {
            config["cluster_name"].as_str().is_some_and(|name| name == service || name.starts_with(&prefix))
        });
        let config = config.ok_or("no such endpoints")?;
        let localities = config["endpoints"].as_array().into_iter().flatten();
        let endpoints = localities.flat_map(|locality| locality["lb_endpoints"].as_array().into_iter().flatten());
        let address = |endpoint: &Value| endpoint["endpoint"]["address"]["socket_address"]["address"].to_string();
        Ok(endpoints.map(|endpoint| address(endpoint).trim_matches('"').to_owned()).collect())
    }

    pub(super) async fn stat(&self, name: &str) -> u64 {
        let text = http::get(&format!("http://{}/stats?filter=^{name}$", self.admin)).await.unwrap();
        text.trim().rsplit_once(": ").map_or(0, |(_, value)| value.parse().unwrap())
    }

    /// How many updates Envoy has accepted: of all clusters, of all listeners, and of each cluster's endpoints.
    async fn updates(&self) -> BTreeMap<String, u64> {
        let text = http::get(&format!("http://{}/stats?filter=update_success$", self.admin)).await.unwrap();
        let stats = text.lines().filter_map(|line| line.split_once(": "));
        stats.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Waits until Envoy has exactly these endpoints for a service.
    async fn has_endpoints(&self, service: &str, expected: &[&str]) {
        eventually(&format!("Envoy has the endpoints of {service}"), BOUND, async || {
            let mut endpoints = self.endpoints(service).await?;
            endpoints.sort();
            if endpoints == expected { Ok(()) } else { Err(format!("{endpoints:?}")) }
        })
        .await;
    }

    async fn nothing_warms(&self) {
        eventually("nothing warms", BEFORE_ENVOY_GIVES_UP, async || {
            let clusters = self.dump("dynamic_warming_clusters").await?;
            let mut listeners = self.dump("dynamic_listeners").await?;
            listeners.retain(|entry| !entry["warming_state"].is_null());
            if clusters.is_empty() && listeners.is_empty() {
                return Ok(());
            }
            Err(format!("{} {}", names(&clusters), names(&listeners)))
        })
        .await;
    }
}

fn names(entries: &[Value]) -> String {
    let names = entries.iter().map(|entry| entry["name"].as_str().or(entry["cluster"]["name"].as_str()));
    format!("{:?}", names.map(Option::unwrap_or_default).collect::<Vec<_>>())
}

fn bootstrap(node: &str, agent: u16, token: &str) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": node, "cluster": node},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "cds_config": ads, "lds_config": ads,
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": {"envoy_grpc": {"cluster_name": "local_agent"},
                    "initial_metadata": [{"key": "x-consul-token", "value": token}]}},
        },
        "static_resources": {"clusters": [{
            "name": "local_agent", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "local_agent", "endpoints": [{"lb_endpoints": [{"endpoint":
                {"address": {"socket_address": {"address": "127.0.0.1", "port_value": agent}}}}]}]},
        }]},
    })
}

/// An Envoy with two upstreams, `a` and `b`, that have one instance each. Returns when nothing is warming.
async fn two_upstreams(bridge: &Bridge, agent: u16) -> (Envoy, [u16; 3]) {
    let ports = [free_port(), free_port(), free_port()];
    bridge.instance("a", 1).await;
    bridge.instance("b", 2).await;
    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({})), upstream("b", ports[2], json!({}))])).await;
    let envoy = Envoy::start("web-proxy", agent).await;
    envoy.has_endpoints("a", &["127.9.0.1"]).await;
    envoy.has_endpoints("b", &["127.9.0.2"]).await;
    for listener in ["public_listener", "a", "b"] {
        eventually(&format!("the listener {listener}"), BOUND, async || envoy.listener(listener).await).await;
    }
    envoy.nothing_warms().await;
    (envoy, ports)
}

fn only_increased(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, prefix: &str) {
    let increased: Vec<_> = after.iter().filter(|(name, value)| before.get(*name) != Some(value)).collect();
    assert!(matches!(increased[..], [(name, _)] if name.starts_with(prefix)), "{increased:?}");
}

/// Sends a line to the local port of an upstream, and returns the app's answer.
pub(super) async fn ask(port: u16) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"hello\n").await?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    match tokio::time::timeout(Duration::from_secs(5), exchange).await {
        Ok(Ok(answer)) if !answer.is_empty() => Ok(answer),
        Ok(answer) => Err(format!("{answer:?}")),
        Err(_) => Err("no answer".into()),
    }
}

/// An app that sends the same answer to each connection. Returns its port.
pub(super) async fn app(answer: &'static str) -> (u16, JoinHandle<()>) {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = app.local_addr().unwrap().port();
    let app = tokio::spawn(async move {
        loop {
            let (mut stream, _) = app.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, app)
}

/// The Envoy of a service, in front of the service's app.
pub(super) async fn callee(bridge: &Bridge, service: &str, app_port: u16) -> Envoy {
    let (id, port) = (format!("{service}-proxy"), free_port());
    let proxy = json!({"DestinationServiceName": service, "LocalServicePort": app_port});
    let callee =
        json!({"ID": id, "Name": id, "Kind": "connect-proxy", "Address": "127.0.0.1", "Port": port, "Proxy": proxy});
    bridge.register(&callee).await;
    let callee = Envoy::start(&id, bridge.port).await;
    eventually("the app's listener", BOUND, async || callee.listener("public_listener").await).await;
    callee
}

/// The Envoy of `web`, and the local port on which it forwards connections to a service.
pub(super) async fn caller(bridge: &Bridge, service: &str) -> (Envoy, u16) {
    let port = free_port();
    bridge.register(&web(free_port(), &[upstream(service, port, json!({}))])).await;
    (Envoy::start("web-proxy", bridge.port).await, port)
}
