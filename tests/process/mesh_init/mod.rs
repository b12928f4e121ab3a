//! mesh-init with a real agent and a real Envoy: what it registers, that a second run changes nothing, and its errors.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http_fixture::{Answer, Server};
use mesh_tests::consul::{Agent, certificates};
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, eventually, free_port, http, part, readme};
use serde_json::{Value, json};
use sidecar_kit::file::create_beside;
use tempfile::TempDir;

mod agent_config;
mod agentless;
mod errors;
mod registration;
mod service_defaults;

const BOUND: Duration = Duration::from_secs(60);
const ARN: &str = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";

/// Serves the metadata of task `f1a2` of family `Web` at 127.0.0.1.
fn metadata() -> Server {
    let task = json!({
        "Cluster": "blue", "TaskARN": ARN, "Family": "Web", "Revision": "1",
        "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
        "Containers": [{ "DockerId": "1", "Name": "app", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "Type": "NORMAL", "Networks": [{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }] }],
    });
    answering(&task.to_string())
}

/// A server that answers every request with this body.
pub(super) fn answering(body: &str) -> Server {
    let body = body.to_owned();
    Server::start(move |_| Answer::ok(&body))
}

/// A server that takes requests and never answers.
fn silent() -> Server {
    Server::start(|_| Answer::silent())
}

/// A server whose answers never end.
fn endless() -> Server {
    Server::start(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n[".to_vec();
        answer.resize(1 << 16, b'1');
        Answer::endless(answer)
    })
}

/// A task for mesh-init: its metadata, its volume, its document and its variables.
pub(super) struct Task {
    /// The address of its metadata endpoint.
    metadata: String,
    volume: TempDir,
    pub(super) document: Value,
    variables: Vec<(&'static str, String)>,
}

impl Task {
    pub(super) fn new(consul: &str, token: &str) -> Self {
        let volume = tempfile::tempdir().unwrap();
        let document = json!({
            "bootstrapDir": volume.path(),
            "healthSyncContainers": ["app"],
            "service": {
                "port": 9090, "tags": ["blue"], "meta": { "env": "test" }, "weights": { "passing": 3, "warning": 2 },
            },
            "proxy": { "upstreams": [{ "destinationName": "api", "localBindPort": 1234 }] },
        });
        let variables = [("CONSUL_HTTP_ADDR", consul), ("CONSUL_HTTP_TOKEN", token), ("LOG_LEVEL", "trace")];
        let variables = variables.map(|(name, value)| (name, value.to_owned())).into();
        Self { metadata: metadata().address, volume, document, variables }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary("mesh-init"));
        command.env_clear();
        command.env("ECS_CONTAINER_METADATA_URI_V4", format!("http://{}/v4/1", self.metadata));
        command.env("CONSUL_ECS_CONFIG_JSON", self.document.to_string());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(super) async fn starts(&self) -> Finished {
        let finished = run(&mut self.command(), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    }

    pub(super) fn bootstrap(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.volume.path().join("envoy-bootstrap.json")).unwrap()).unwrap()
    }

    async fn loads_in_envoy(&self) {
        self.loads_in_envoy_with("").await;
    }

    /// Checks that Envoy accepts the bootstrap. The message of a failure begins with `what`.
    pub(super) async fn loads_in_envoy_with(&self, what: &str) {
        let mut envoy = Command::new(part("envoy"));
        envoy.args(["--mode", "validate", "--base-id", &free_port().to_string(), "--config-path"]);
        let validated = run(envoy.arg(self.volume.path().join("envoy-bootstrap.json")), BOUND).await;
        assert_eq!(validated.code, 0, "{what}: {}", validated.stderr);
    }

    /// Checks that mesh-init fails with one line on standard error that contains all of `texts`, and leaves nothing on the volume.
    pub(super) async fn fails_with(&self, arguments: &[&str], texts: &[&str]) {
        let mut command = self.command();
        let finished = run(command.env("LOG_LEVEL", "error").args(arguments), BOUND).await;
        let line = finished.stderr.trim_end();
        assert_eq!(finished.code, 1, "{line}");
        assert!(line.starts_with("mesh-init: ") && line.lines().count() == 1, "{line}");
        for text in texts {
            assert!(line.contains(text), "{text:?} is not in {line}");
        }
        assert_eq!(std::fs::read_dir(self.volume.path()).unwrap().count(), 0, "{line}");
    }
}

/// The services and checks in the catalog, once the catalog has all changes that the agent has now. The agent sends its changes together.
/// So this registers a marker service, and waits until the catalog has it.
async fn catalog(agent: &Agent, marker: &str) -> Value {
    let registration = json!({ "ID": marker, "Name": marker });
    agent.call("PUT", "/v1/agent/service/register", &registration).await;
    eventually("the catalog has the agent's changes", BOUND, async || {
        let instances = agent.call("GET", &format!("/v1/catalog/service/{marker}"), &Value::Null).await;
        if instances.as_array().is_some_and(|list| !list.is_empty()) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    agent.call("PUT", &format!("/v1/agent/service/deregister/{marker}"), &Value::Null).await;
    let mut catalog = Vec::new();
    for service in ["web", "web-sidecar-proxy"] {
        let mut instances = agent.call("GET", &format!("/v1/health/service/{service}"), &Value::Null).await;
        catalog.append(instances.as_array_mut().unwrap());
    }
    catalog.into()
}

async fn status(agent: &Agent, check: &str) -> Value {
    agent.call("GET", "/v1/agent/checks", &Value::Null).await[check]["Status"].take()
}
