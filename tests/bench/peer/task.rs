//! A task with the programs of one side: its metadata, its volume, its document, and its check in Consul.

use std::path::{Path, PathBuf};
use std::process::Command;

use mesh_tests::catalog::NODE;
use mesh_tests::consul::Agent;
use mesh_tests::metadata::{Metadata, OWN_DOCKER_ID};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Who;
use crate::release_binary;

/// The programs of one side.
#[derive(Debug, Clone)]
pub struct Side {
    pub who: Who,
    folder: PathBuf,
}

impl Side {
    /// `folder` has the peers' programs.
    pub fn new(who: Who, folder: &Path) -> Self {
        Self { who, folder: folder.to_owned() }
    }

    /// The command of mesh-init, health-sync or an entry point. Its PATH begins with the peers' folder: consul-ecs 0.6 runs `consul`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match self.who {
            who if who.is_ours() => Command::new(release_binary(program)),
            peer => {
                let mut command = Command::new(self.folder.join(peer.file()));
                command.arg(program);
                command
            }
        };
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", self.folder.display()));
        // The command in Envoy's place has no admin page. Without this setting, ecs-mesh would ask it for listeners again and again.
        command.env("ENVOY_ENTRYPOINT_LISTENER_TIMEOUT", "0s");
        command
    }
}

/// A mesh-init that could not register its task.
#[derive(Debug)]
pub struct Failed {
    who: Who,
    reason: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(text, "mesh-init of {} failed: {}", self.who.name(), self.reason)
    }
}

/// A task of the family `family`. At first, its app is running and healthy.
pub struct Task {
    pub side: Side,
    pub family: String,
    pub metadata: Metadata,
    volume: TempDir,
}

impl Task {
    pub fn start(side: &Side, family: &str) -> Self {
        let family = format!("{family}-{}", side.who.short());
        let volume = tempfile::tempdir().expect("a temporary directory can be made");
        let metadata = Metadata::start(&family, containers(side.who, &family, "RUNNING", "HEALTHY"));
        Self { side: side.clone(), family, metadata, volume }
    }

    /// Sets the status and the health of the app.
    pub fn set_app(&self, status: &str, health: &str) {
        self.metadata.set_containers(containers(self.side.who, &self.family, status, health));
    }

    /// A command of this task, with the variables that ECS and the task definition give a container. `http` is Consul's address.
    pub fn command(&self, program: &str, agent: &Agent, http: &str) -> Command {
        let mut document = json!({
            "bootstrapDir": self.volume.path(), "service": { "port": 8080 }, "healthSyncContainers": ["app"],
            "proxy": { "upstreams": [{ "destinationName": "api", "localBindPort": 1234 }] },
        });
        if self.side.who.is_agentless() {
            let port = http.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
            // consul-ecs has it on by default, and would change the network of the machine.
            document["transparentProxy"] = json!({ "enabled": false });
            document["consulServers"] = json!({
                "hosts": "127.0.0.1", "defaults": { "tls": false },
                "http": { "port": port, "https": false }, "grpc": { "port": agent.grpc_port },
            });
        }
        let mut command = self.side.command(program);
        command.env("CONSUL_HTTP_ADDR", http).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
        command.env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri);
        command
    }

    /// Runs mesh-init, which registers the task.
    ///
    /// # Errors
    /// If it fails: the last line that it wrote.
    pub fn register(&self, agent: &Agent, http: &str) -> Result<(), Failed> {
        let failed = |reason: String| Failed { who: self.side.who, reason };
        let output = self.command("mesh-init", agent, http).output().map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it wrote nothing");
        Err(failed(format!("{}: {}", output.status, last.trim())))
    }

    /// Removes the registration, so that the next mesh-init registers the task again.
    pub async fn deregister(&self, agent: &Agent) {
        for id in [self.service(), self.proxy()] {
            if self.side.who.is_agentless() {
                let service = json!({ "Node": NODE, "ServiceID": id });
                agent.call("PUT", "/v1/catalog/deregister", &service).await;
            } else {
                agent.call("PUT", &format!("/v1/agent/service/deregister/{id}"), &Value::Null).await;
            }
        }
    }

    /// The status of the app's check.
    pub async fn status(&self, agent: &Agent) -> String {
        let status = if self.side.who.is_agentless() {
            let checks = agent.call("GET", &format!("/v1/health/checks/{}", self.family), &Value::Null).await;
            let id = self.check();
            let checks = checks.as_array().into_iter().flatten();
            checks.filter(|check| check["CheckID"] == id.as_str()).map(|check| check["Status"].clone()).next()
        } else {
            let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
            Some(checks[self.check()]["Status"].clone())
        };
        status.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The ID of the app's check.
    fn check(&self) -> String {
        let end = if self.side.who.is_agentless() { "app" } else { "app-consul-ecs" };
        format!("{}-{end}", self.service())
    }

    /// Writes the app's check once, as health-sync does.
    pub async fn write(&self, agent: &Agent, status: &str) {
        if self.side.who.is_agentless() {
            let check = json!({ "CheckID": self.check(), "ServiceID": self.service(), "Status": status, "Output": "alone",
                "Name": "Consul ECS health check synced" });
            let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Check": check });
            agent.call("PUT", "/v1/catalog/register", &body).await;
        } else {
            let path = format!("/v1/agent/check/update/{}", self.check());
            agent.call("PUT", &path, &json!({ "Status": status, "Output": "alone" })).await;
        }
    }

    fn service(&self) -> String {
        format!("{}-f1a2", self.family)
    }

    fn proxy(&self) -> String {
        format!("{}-f1a2-sidecar-proxy", self.family)
    }
}

/// The containers of a task, with the fields that ECS's agent gives for each. The names of the sidecars are those that all sides know.
fn containers(who: Who, family: &str, status: &str, health: &str) -> Value {
    let proxy = if who.is_agentless() { "consul-dataplane" } else { "sidecar-proxy" };
    let containers = [
        ("consul-ecs-mesh-init", "a1", "STOPPED", None),
        ("consul-client", "a2", "RUNNING", None),
        (proxy, OWN_DOCKER_ID, "RUNNING", Some("HEALTHY")),
        ("consul-ecs-health-sync", "a4", "RUNNING", None),
        ("app", "a5", status, Some(health)),
    ];
    // A task without an agent has no such container, and consul-ecs 0.10 would count it as an app.
    let containers = containers.into_iter().filter(|(name, ..)| !who.is_agentless() || *name != "consul-client");
    let containers = containers.map(|(name, id, status, health)| {
        let mut container = json!({
            "DockerId": id, "Name": name, "DockerName": format!("ecs-{family}-7-{name}-c0dec0dec0dec0dec0de"),
            "Image": format!("210987654321.dkr.ecr.eu-north-1.amazonaws.com/{name}:1.0.0"),
            "ImageID": "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "Labels": {
                "com.amazonaws.ecs.cluster": NODE, "com.amazonaws.ecs.container-name": name,
                "com.amazonaws.ecs.task-arn": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
                "com.amazonaws.ecs.task-definition-family": family, "com.amazonaws.ecs.task-definition-version": "7",
            },
            "DesiredStatus": if status == "STOPPED" { "STOPPED" } else { "RUNNING" }, "KnownStatus": status,
            "Limits": { "CPU": 128, "Memory": 256 }, "Type": "NORMAL",
            "CreatedAt": "2026-11-30T08:00:00.123456789Z", "StartedAt": "2026-11-30T08:00:01.123456789Z",
            "LogDriver": "awslogs",
            "LogOptions": { "awslogs-group": "/ecs/blue", "awslogs-region": "eu-north-1", "awslogs-stream": name },
            "ContainerARN": "arn:aws:ecs:eu-north-1:210987654321:container/blue/f1a2/5c0ffee0-0000-4000-8000-000000000000",
            "Networks": [{
                "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"], "AttachmentIndex": 0,
                "MACAddress": "0e:10:e2:01:bd:91", "IPv4SubnetCIDRBlock": "10.0.2.0/24",
                "PrivateDNSName": "ip-10-0-2-100.eu-north-1.compute.internal",
                "SubnetGatewayIpv4Address": "10.0.2.1/24",
            }],
        });
        if let Some(health) = health {
            container["Health"] = json!({ "status": health, "statusSince": "2026-11-30T08:00:31.123456789Z" });
        }
        container
    });
    containers.collect()
}
