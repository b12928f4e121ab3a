//! Many tasks without an agent that start at once and register at one server.

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use http_fixture::{Answer, Server};
use mesh_tests::catalog::{host_and_port, register_node, servers};
use mesh_tests::consul::Agent;
use serde_json::json;
use sidecar_kit::http::{Client, Limits};

use crate::release_binary;
use crate::requests::{Recorder, Sent, again};

pub const TASKS: usize = 1_000;

/// How many services they belong to.
pub const SERVICES: usize = 100;

/// How many tasks register at the same time. More would only wait for this machine's processors, which the server needs, too.
const AT_ONCE: usize = 32;

const LIMITS: Limits = Limits { time: Duration::from_secs(30), bytes: 16 << 20 };

/// The time of all registrations, and the floor: one process that does nothing but the same writes, over connections that it keeps.
pub struct Measured {
    pub took: Duration,
    pub floor: Duration,
}

pub async fn measure() -> Measured {
    // Each measurement has a server of its own: with an empty catalog, and then with the tasks.
    let writes = recorded().await;
    let agent = server().await;
    let client = Client::plain();
    let began = Instant::now();
    let raw = stream::iter(0..TASKS).map(async |number| {
        for write in &writes {
            let of_task = |body: String| body.replace(&id(0), &id(number)).replace(&service(0), &service(number));
            client.send(again(write, &agent, of_task), LIMITS).await.expect("the server answers");
        }
    });
    raw.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    let floor = began.elapsed();
    assert_eq!(registered(&agent).await, 2 * TASKS, "the floor has registered all tasks");

    let agent = server().await;
    let metadata = metadata();
    let began = Instant::now();
    let ours =
        stream::iter(0..TASKS).map(async |number| register(&agent.http, &agent.management, &metadata, number).await);
    ours.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    let took = began.elapsed();
    assert_eq!(registered(&agent).await, 2 * TASKS, "mesh-init has registered all tasks");
    Measured { took, floor }
}

/// A server with the node of the tasks' cluster.
async fn server() -> Agent {
    let agent = Agent::start_with_acls().await;
    register_node(&agent).await;
    agent
}

fn service(number: usize) -> String {
    format!("service-{:03}", number % SERVICES)
}

fn id(number: usize) -> String {
    format!("task{number:04}")
}

/// The metadata of all tasks, by the number in the path.
fn metadata() -> Server {
    Server::start(move |request| {
        let number = request.path().split('/').nth(2).and_then(|number| number.parse::<usize>().ok());
        let Some(number) = number else { return Answer::new("404 Not Found", "") };
        let arn = format!("arn:aws:ecs:eu-north-1:210987654321:task/blue/{}", id(number));
        let app = json!([{ "DockerId": "1", "Name": "app", "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING", "Type": "NORMAL",
            "Networks": [{ "NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.0.21"] }] }]);
        Answer::ok(json!({ "Cluster": "blue", "Family": service(number), "Revision": "1", "DesiredStatus": "RUNNING",
            "KnownStatus": "RUNNING", "TaskARN": arn, "Containers": app }))
    })
}

/// Runs mesh-init for this task.
async fn register(http: &str, token: &str, metadata: &Server, number: usize) {
    let volume = tempfile::tempdir().expect("a temporary directory can be made");
    let (host, port) = host_and_port(http);
    let document = json!({
        "bootstrapDir": volume.path(), "service": { "port": 8080 }, "healthSyncContainers": ["app"],
        "proxy": { "upstreams": [{ "destinationName": "api", "localBindPort": 1234 }] },
        "consulServers": servers(host, port), "transparentProxy": { "enabled": false },
    });
    let mut command = Command::new(release_binary("mesh-init"));
    command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", format!("{}/v4/{number}", metadata.url()));
    command.env("CONSUL_HTTP_TOKEN", token).env("CONSUL_ECS_CONFIG_JSON", document.to_string());
    let output = tokio::process::Command::from(command).output().await.expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The writes of mesh-init for the first task.
async fn recorded() -> Vec<Sent> {
    let agent = server().await;
    let recorder = Recorder::start(&agent.http);
    register(&recorder.address, &agent.management, &metadata(), 0).await;
    // A transaction with only reads is a PUT, too.
    let is_write = |(method, path, ..): &Sent| method == "PUT" && !path.starts_with("/v1/txn");
    let writes = recorder.requests().into_iter().filter(is_write).collect::<Vec<_>>();
    assert_eq!(writes.len(), 2, "the service and the proxy");
    writes
}

/// How many services the node has.
async fn registered(agent: &Agent) -> usize {
    let (services, _) = mesh_tests::catalog::on_node(agent).await;
    services.as_object().map_or(0, serde_json::Map::len)
}
