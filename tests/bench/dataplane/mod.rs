//! Envoys of tasks without an agent, whose configuration comes straight from a server of Consul, through mesh-dataplane, or through
//! consul-dataplane.
//!
//! To Consul all of them are the same proxy. So Consul has a change for all of them at the same moment, and the measured times differ
//! only by the way that the change takes to Envoy.

pub mod changes;
pub mod killed;
pub mod start;

use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_tests::catalog::NODE;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::Process;
use mesh_tests::servers::Servers;
use mesh_tests::{eventually, free_port, part};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::Who;
use crate::{BOUND, release_binary};

/// The proxy. It is the same for all Envoys.
const PROXY: &str = "web-w1-sidecar-proxy";

/// How many instances `api` has. Each server takes a share of the streams of all proxies, so there must be enough for all Envoys.
const INSTANCES: usize = 8;

/// Servers, and a registered task of `web`, which calls `api`.
pub struct World {
    pub servers: Servers,
    token: String,
    /// The public listener's port. The Envoys share it, as Linux and Envoy allow.
    listener: u16,
    /// The folder with consul-dataplane.
    folder: PathBuf,
    volume: TempDir,
    /// Envoy's bootstrap, as mesh-dataplane has written it.
    bootstrap: Value,
    _metadata: Metadata,
}

/// An Envoy, and what brings it its configuration.
pub struct Envoy {
    pub who: Who,
    /// mesh-dataplane or consul-dataplane, which run Envoy; or Envoy itself.
    pub process: Process,
    admin: u16,
    _volume: TempDir,
}

impl World {
    /// Starts the servers, and lets mesh-init register `web`. mesh-dataplane has run once: the server then has the proxy's certificate.
    pub async fn start(servers: u8, folder: &Path) -> Self {
        let servers = Servers::start(servers).await;
        let app = json!([{ "DockerId": "1", "Name": "app", "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING", "Type": "NORMAL",
            "Networks": [{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }] }]);
        let metadata = Metadata::start("web", app);
        metadata.set_field("TaskARN", "arn:aws:ecs:eu-north-1:210987654321:task/blue/w1".into());
        let volume = tempfile::tempdir().expect("a temporary directory can be made");
        let listener = free_port();
        let document = json!({
            "bootstrapDir": volume.path(), "service": { "name": "web", "port": free_port() }, "healthSyncContainers": [],
            "proxy": {
                "publicListenerPort": listener,
                "upstreams": [{ "destinationName": "api", "localBindPort": free_port() }],
            },
            "transparentProxy": { "enabled": false },
            "consulServers": {
                "hosts": "127.0.0.1", "defaults": { "tls": false },
                "http": { "https": false, "port": servers.http_port() }, "grpc": { "port": servers.grpc },
            },
        });
        let token = servers.any().service_token("web").await;
        let mut command = Command::new(release_binary("mesh-init"));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).env("CONSUL_HTTP_TOKEN", &token);
        let output = command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()).output().expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let folder = folder.to_owned();
        let mut world = Self { servers, token, listener, folder, volume, bootstrap: Value::Null, _metadata: metadata };
        for number in 0..INSTANCES {
            world.register_api(number).await;
        }
        let first = world.run(Who::OursAgentless).await;
        let bootstrap = std::fs::read(first._volume.path().join("envoy-bootstrap.json")).expect("it was written");
        world.bootstrap = serde_json::from_slice(&bootstrap).expect("a bootstrap is JSON");
        drop(first);
        world.is_closed().await;
        world
    }

    async fn register_api(&self, number: usize) {
        let (id, address) = (format!("api-a{number}"), "10.0.0.22");
        let proxy = json!({
            "ID": format!("{id}-sidecar-proxy"), "Service": "api-sidecar-proxy", "Kind": "connect-proxy", "Address": address,
            "Port": 20_000 + number, "Proxy": { "DestinationServiceName": "api", "DestinationServiceID": id },
        });
        for service in [json!({ "ID": id, "Service": "api", "Address": address, "Port": 8080 }), proxy] {
            let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Service": service });
            self.servers.any().call("PUT", "/v1/catalog/register", &body).await;
        }
        self.servers.any().call("PUT", "/v1/catalog/register", &check(number, "passing")).await;
    }

    /// Sets the status of an instance of `api`.
    pub async fn set_status(&self, number: usize, status: &str) {
        self.servers.any().call("PUT", "/v1/catalog/register", &check(number, status)).await;
    }

    /// Starts an Envoy, and waits until it has its listener and all endpoints.
    pub async fn run(&self, who: Who) -> Envoy {
        let envoy = self.spawn(who);
        envoy.has(INSTANCES).await;
        self.is_open(&envoy).await;
        envoy
    }

    /// Starts an Envoy.
    pub fn spawn(&self, who: Who) -> Envoy {
        let volume = tempfile::tempdir().expect("a temporary directory can be made");
        let [admin, ready, status, dns] = [free_port(), free_port(), free_port(), free_port()];
        let envoy = part("envoy").to_string_lossy().into_owned();
        let options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"];
        let mut command = match who {
            Who::OursAgentless => {
                let config = volume.path().join("dataplane.json");
                std::fs::write(&config, self.settings(ready).to_string()).expect("it can be written");
                let mut command = Command::new(release_binary("mesh-dataplane"));
                command.env_clear().env("CONSUL_HTTP_TOKEN", &self.token).env("MESH_DATAPLANE_CONFIG", config);
                for (name, port) in [("ADMIN", admin), ("DNS", dns), ("STATUS", status)] {
                    command.env(format!("MESH_DATAPLANE_{name}_BIND"), format!("127.0.0.1:{port}"));
                }
                command.arg(envoy).args(options);
                command
            }
            Who::Direct => {
                let config = volume.path().join("envoy-bootstrap.json");
                std::fs::write(&config, self.direct(admin, ready).to_string()).expect("it can be written");
                let mut command = Command::new(envoy);
                command.env_clear().arg("--config-path").arg(config).args(options);
                command
            }
            Who::Dataplane => {
                let mut command = Command::new(self.folder.join(who.file()));
                command.env_clear().env("DP_CREDENTIAL_STATIC_TOKEN", &self.token).args(["-credential-type=static"]);
                // consul-dataplane takes one name, or a command that prints all addresses.
                let hosts = self.servers.hosts().replace(',', " ");
                command.arg(format!("-addresses=exec=/bin/echo {hosts}"));
                command.args(["-tls-disabled", "-log-level=warn", "-envoy-concurrency=1"]);
                command.arg(format!("-grpc-port={}", self.servers.grpc)).arg(format!("-proxy-id={PROXY}"));
                command.arg(format!("-proxy-node-name={NODE}")).arg("-envoy-ready-bind-address=127.0.0.1");
                command.arg(format!("-envoy-ready-bind-port={ready}")).arg(format!("-envoy-admin-bind-port={admin}"));
                command.arg(format!("-graceful-port={status}")).arg(format!("-envoy-executable-path={envoy}"));
                command
            }
            other => unreachable!("{} has no dataplane", other.name()),
        };
        Envoy { who, process: Process::spawn(&mut command), admin, _volume: volume }
    }

    /// mesh-dataplane's file, as mesh-init has written it, with all servers and another readiness port.
    fn settings(&self, ready: u16) -> Value {
        let file = std::fs::read(self.volume.path().join("dataplane.json")).expect("mesh-init has written it");
        let mut settings: Value = serde_json::from_slice(&file).expect("it is JSON");
        settings["consul"]["addresses"] = self.servers.hosts().into();
        settings["envoy"]["readyBindPort"] = ready.into();
        settings
    }

    /// The bootstrap for an Envoy that is connected to the first server itself: with the token, and with ports of its own.
    fn direct(&self, admin: u16, ready: u16) -> Value {
        let mut bootstrap = self.bootstrap.clone();
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = admin.into();
        let services = &mut bootstrap["dynamic_resources"]["ads_config"]["grpc_services"];
        services["initial_metadata"] = json!([{ "key": "x-consul-token", "value": self.token }]);
        let statics = &mut bootstrap["static_resources"];
        for cluster in statics["clusters"].as_array_mut().into_iter().flatten() {
            if cluster["name"] == "local_agent" {
                let server = json!({ "socket_address": { "address": "127.0.0.1", "port_value": self.servers.grpc } });
                cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"] = server;
            }
        }
        for listener in statics["listeners"].as_array_mut().into_iter().flatten() {
            listener["address"]["socket_address"]["port_value"] = ready.into();
        }
        bootstrap
    }

    async fn connects(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.listener)).await.is_ok()
    }

    /// Waits until the public listener takes connections.
    async fn is_open(&self, envoy: &Envoy) {
        eventually("the public listener takes connections", BOUND, async || {
            if self.connects().await { Ok(()) } else { Err(envoy.process.output()) }
        })
        .await;
    }

    /// Waits until the public listener of an Envoy that was killed is gone.
    async fn is_closed(&self) {
        eventually("the public listener is gone", BOUND, async || {
            if self.connects().await { Err("it takes connections".to_owned()) } else { Ok(()) }
        })
        .await;
    }
}

/// A write of the check of an instance of `api`, as health-sync makes it.
fn check(number: usize, status: &str) -> Value {
    let id = format!("api-a{number}-sidecar-proxy");
    json!({
        "Node": NODE, "SkipNodeUpdate": true,
        "Check": { "CheckID": format!("{id}-consul-dataplane"), "ServiceID": id, "Status": status,
            "Name": "Consul dataplane readiness", "Type": "consul-ecs-health-check" },
    })
}

impl Envoy {
    /// Waits until it has this many healthy endpoints of `api`.
    pub async fn has(&self, count: usize) {
        eventually(&format!("Envoy has {count} healthy endpoints of api"), BOUND, async || {
            let mut admin = Admin::connect(self).await.ok_or_else(|| self.process.output())?;
            match admin.endpoints().await {
                Some(now) if now == count => Ok(()),
                other => Err(format!("{other:?}: {}", self.process.output())),
            }
        })
        .await;
    }
}

/// A connection to Envoy's admin interface, which is kept: a new one for each request would take longer than what is measured.
pub struct Admin {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Admin {
    /// None if Envoy does not listen yet.
    pub async fn connect(envoy: &Envoy) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", envoy.admin)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, answer: Vec::new() })
    }

    /// How many healthy endpoints of `api` Envoy has. None if it gives no answer.
    pub async fn endpoints(&mut self) -> Option<usize> {
        self.stream.write_all(b"GET /clusters HTTP/1.1\r\nhost: envoy\r\n\r\n").await.ok()?;
        self.answer.clear();
        // The answer comes in chunks, and an empty one ends it.
        while !self.answer.ends_with(b"\r\n0\r\n\r\n") {
            if self.stream.read_buf(&mut self.answer).await.ok()? == 0 {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&self.answer);
        let healthy = |line: &&str| line.starts_with("api.") && line.contains("::health_flags::healthy");
        Some(text.lines().filter(healthy).count())
    }
}
