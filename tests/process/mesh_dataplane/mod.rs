//! mesh-dataplane with a real Envoy and real servers of Consul, after a real mesh-init has registered the task in the catalog.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use local_mesh::load::Report;
use mesh_tests::catalog::NODE;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Process, run};
use mesh_tests::servers::Servers;
use mesh_tests::{binary, eventually, free_port, http, part};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

mod dns;
mod failures;
mod mesh_gateway;
mod servers;
mod stop;
mod tls;
mod tokens;
mod traffic;

const BOUND: Duration = Duration::from_secs(60);

/// A task without an agent.
struct Task {
    id: String,
    service: String,
    metadata: Metadata,
    volume: TempDir,
    document: Value,
    variables: Vec<(&'static str, String)>,
    admin: u16,
    dns: u16,
    status: u16,
}

impl Task {
    /// A task of this service, whose app listens on `port`.
    fn new(servers: &Servers, service: &str, id: &str, port: u16) -> Self {
        let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }]);
        let app = json!([{ "DockerId": "1", "Name": "app", "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING",
            "Type": "NORMAL", "Networks": networks }]);
        let metadata = Metadata::start(service, app);
        metadata.set_field("TaskARN", format!("arn:aws:ecs:eu-north-1:210987654321:task/blue/{id}").into());
        let volume = tempfile::tempdir().unwrap();
        let document = json!({
            "bootstrapDir": volume.path(), "healthSyncContainers": [],
            "service": { "name": service, "port": port },
            "proxy": { "publicListenerPort": free_port(), "healthCheckPort": free_port() },
            "transparentProxy": { "enabled": false },
            "consulServers": {
                "hosts": servers.hosts(), "defaults": { "tls": false },
                "http": { "https": false, "port": servers.http_port() }, "grpc": { "port": servers.grpc },
            },
        });
        let (id, service) = (id.to_owned(), service.to_owned());
        let [admin, dns, status] = [free_port(), free_port(), free_port()];
        Self { id, service, metadata, volume, document, variables: vec![], admin, dns, status }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.into()));
        self
    }

    fn proxy_id(&self) -> String {
        format!("{}-{}-sidecar-proxy", self.service, self.id)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.volume.path().join(name)
    }

    /// Runs mesh-init. Its server for HTTP is always the one at 127.0.0.1.
    async fn register(&self) {
        let mut document = self.document.clone();
        document["consulServers"]["hosts"] = "127.0.0.1".into();
        let mut command = Command::new(binary("mesh-init"));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri);
        command.env("CONSUL_ECS_CONFIG_JSON", document.to_string());
        let finished = run(command.envs(self.variables.iter().map(|(name, value)| (name, value))), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let mut settings: Value = serde_json::from_slice(&std::fs::read(self.file("dataplane.json")).unwrap()).unwrap();
        settings["consul"]["addresses"] = self.document["consulServers"]["hosts"].clone();
        std::fs::write(self.file("dataplane.json"), settings.to_string()).unwrap();
    }

    /// mesh-dataplane with its verb or Envoy's command.
    fn command(&self, rest: &[&str]) -> Command {
        let mut command = Command::new(binary("mesh-dataplane"));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri).env("LOG_LEVEL", "debug");
        command.env("MESH_DATAPLANE_CONFIG", self.file("dataplane.json"));
        for (name, port) in [("ADMIN", self.admin), ("DNS", self.dns), ("STATUS", self.status)] {
            command.env(format!("MESH_DATAPLANE_{name}_BIND"), format!("127.0.0.1:{port}"));
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).args(rest);
        command
    }

    fn with_envoy(&self, log_level: &str) -> Command {
        let envoy = part("envoy").to_str().unwrap().to_owned();
        self.command(&[&envoy, "--disable-hot-restart", "--concurrency", "1", "--log-level", log_level])
    }

    async fn healthy(&self) -> i32 {
        run(&mut self.command(&["healthy"]), BOUND).await.code
    }

    async fn starts(self) -> Member {
        let dataplane = Process::spawn(&mut self.with_envoy("warning"));
        let member = Member { dataplane, task: self };
        eventually("the dataplane is healthy", BOUND, async || {
            if member.task.healthy().await == 0 { Ok(()) } else { Err(member.dataplane.output()) }
        })
        .await;
        member
    }

    /// Checks that mesh-dataplane ends with 1 and one line that contains all of `texts`.
    async fn fails_with(&self, texts: &[&str]) {
        let mut command = self.with_envoy("off");
        command.env("LOG_LEVEL", "error");
        let finished = run(&mut command, BOUND).await;
        let line = finished.stderr.trim_end();
        assert_eq!((finished.code, line.lines().count()), (1, 1), "{line}");
        for text in texts {
            assert!(line.contains(text), "{text:?} is not in {line}");
        }
    }
}

/// A task whose dataplane runs.
struct Member {
    dataplane: Process,
    task: Task,
}

impl Member {
    /// Writes the statuses of the proxy's check, as health-sync does.
    async fn set_status(&self, servers: &Servers, status: &str) {
        let id = self.task.proxy_id();
        let check = json!({
            "Node": NODE, "SkipNodeUpdate": true,
            "Checks": [{ "CheckID": format!("{id}-consul-dataplane"), "ServiceID": id, "Status": status,
                "Name": "Consul dataplane readiness", "Type": "consul-ecs-health-check" }],
        });
        servers.any().call("PUT", "/v1/catalog/register", &check).await;
    }

    async fn get(&self, port: u16, path: &str) -> Result<String, String> {
        http::get(&format!("http://127.0.0.1:{port}{path}")).await
    }

    /// A counter of mesh-dataplane itself.
    async fn metric(&self, name: &str) -> u64 {
        let text = self.get(self.task.status, "/metrics").await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().parse().unwrap()
    }

    /// How many healthy endpoints its Envoy has for `api`.
    async fn endpoints(&self) -> Result<usize, String> {
        let text = self.get(self.task.admin, "/clusters").await?;
        let hosts = text.lines().filter(|line| line.starts_with("api.") && line.contains("::health_flags::healthy"));
        Ok(hosts.count())
    }

    /// Waits until Envoy has the public listener, which comes from Consul.
    async fn has_listener(&self) {
        eventually("Envoy has its listener", BOUND, async || {
            let listeners = self.get(self.task.admin, "/listeners").await?;
            if listeners.contains("public_listener") { Ok(()) } else { Err(listeners) }
        })
        .await;
    }

    async fn has_endpoints(&self, count: usize) {
        eventually(&format!("Envoy has {count} healthy endpoints of api"), BOUND, async || {
            let endpoints = self.endpoints().await?;
            if endpoints == count { Ok(()) } else { Err(format!("{endpoints} endpoints")) }
        })
        .await;
    }
}

/// The app of `api`.
fn app() -> (u16, Process) {
    let port = free_port();
    let mut app = Command::new(binary("demo-app"));
    app.arg("serve").env("LISTEN", format!("127.0.0.1:{port}")).env("SERVICE_NAME", "api");
    (port, Process::spawn(&mut app))
}

/// `web` calls the instances of `api`. All have static tokens.
struct Mesh {
    servers: Servers,
    web: Member,
    api: Vec<Member>,
    upstream: String,
    _apps: Vec<Process>,
}

impl Mesh {
    async fn start(servers: u8, instances: u8) -> Self {
        let servers = Servers::start(servers).await;
        let token = servers.any().service_token("api").await;
        let (mut api, mut apps) = (Vec::new(), Vec::new());
        for number in 1..=instances {
            let (port, app) = app();
            apps.push(app);
            let task = Task::new(&servers, "api", &format!("a{number}"), port).with("CONSUL_HTTP_TOKEN", &token);
            task.register().await;
            let member = task.starts().await;
            member.set_status(&servers, "passing").await;
            api.push(member);
        }
        let token = servers.any().service_token("web").await;
        let (web, upstream) = web(&servers);
        let web = web.with("CONSUL_HTTP_TOKEN", token).with("MESH_DATAPLANE_READY_OUTAGE", "3s");
        web.register().await;
        let web = web.starts().await;
        let mesh = Self { servers, web, api, upstream, _apps: apps };
        mesh.web.has_endpoints(usize::from(instances)).await;
        eventually("requests reach api", BOUND, async || http::get(&mesh.upstream).await).await;
        mesh
    }
}

/// The task of `web`, and the URL at which it reaches `api`.
fn web(servers: &Servers) -> (Task, String) {
    let port = free_port();
    let mut web = Task::new(servers, "web", "w1", free_port());
    web.document["proxy"]["upstreams"] = json!([{ "destinationName": "api", "localBindPort": port }]);
    (web, format!("http://127.0.0.1:{port}/"))
}

/// Requests at a steady rate.
struct Load(Process);

impl Load {
    fn start(url: &str) -> Self {
        let mut load = Command::new(binary("demo-app"));
        Self(Process::spawn(load.args(["load", url, "--json", "--rate", "100", "--fresh", "0.2", "--duration", "10m"])))
    }

    async fn end(mut self) -> Report {
        self.0.signal(Signal::INT);
        self.0.exit_code(BOUND).await;
        eventually("the load has printed its report", BOUND, async || {
            let output = self.0.output();
            output.lines().find_map(|line| serde_json::from_str(line).ok()).ok_or(output)
        })
        .await
    }
}
