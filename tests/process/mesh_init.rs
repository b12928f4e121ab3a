//! mesh-init against a real agent and a real Envoy: what it registers, that it may be repeated, and what it says when it
//! cannot.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::{Agent, certificates};
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, eventually, free_port, http, part, readme};
use serde_json::{Value, json};
use sidecar_kit::file::create_beside;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);
const ARN: &str = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";

/// A loopback server that gives every connection the same bytes.
pub(super) struct Server(pub(super) String);

impl Server {
    /// Serves the metadata of task `f1a2` of family `Web` at 127.0.0.1.
    fn of_metadata() -> Self {
        let task = json!({
            "Cluster": "blue", "TaskARN": ARN, "Family": "Web", "Revision": "1",
            "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "Containers": [{ "DockerId": "1", "Name": "app", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
                "Type": "NORMAL", "Networks": [{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }] }],
        });
        Self::that_answers(&task.to_string())
    }

    pub(super) fn that_answers(body: &str) -> Self {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        Self::that_does(move |stream| drop(stream.write_all(answer.as_bytes())))
    }

    /// Takes requests and never answers.
    fn that_is_silent() -> Self {
        Self::that_does(|stream| while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {})
    }

    /// Answers without end.
    fn that_never_ends() -> Self {
        Self::that_does(|stream| {
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n[");
            while sent.is_ok() {
                sent = stream.write_all(&[b'1'; 1 << 16]);
            }
        })
    }

    fn that_does(does: impl Fn(&mut std::net::TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let does = std::sync::Arc::new(does);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let does = does.clone();
                std::thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    does(&mut stream);
                });
            }
        });
        Self(address)
    }
}

/// A task to be put into the mesh: its metadata, its volume and its variables.
pub(super) struct Task {
    metadata: Server,
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
        Self { metadata: Server::of_metadata(), volume, document, variables }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary("mesh-init"));
        command.env_clear();
        command.env("ECS_CONTAINER_METADATA_URI_V4", format!("http://{}/v4/1", self.metadata.0));
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

    /// `what` is what the message of a failure begins with.
    pub(super) async fn loads_in_envoy_with(&self, what: &str) {
        let mut envoy = Command::new(part("envoy"));
        envoy.args(["--mode", "validate", "--base-id", &free_port().to_string(), "--config-path"]);
        let validated = run(envoy.arg(self.volume.path().join("envoy-bootstrap.json")), BOUND).await;
        assert_eq!(validated.code, 0, "{what}: {}", validated.stderr);
    }

    /// That it fails with one line on standard error which holds all of `texts`, and leaves nothing on the volume.
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

/// The services and checks as the catalog has them, once it has all that the agent has now: the agent hands its changes
/// on together, so a change made later shows that those before it are there.
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

#[tokio::test]
async fn a_token_with_only_a_service_identity_puts_the_task_into_the_mesh() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let task = Task::new(&agent.http, &token);
    let finished = task.starts().await;
    assert!(!finished.stderr.contains(&token) && finished.stdout.is_empty());

    let service = agent.call("GET", "/v1/agent/service/web-f1a2", &Value::Null).await;
    assert_eq!(service["Service"], "web");
    assert_eq!(service["Port"], 9090);
    assert_eq!(service["Tags"], json!(["blue"]));
    assert_eq!(service["Weights"], json!({ "Passing": 3, "Warning": 2 }));
    let meta = json!({ "env": "test", "source": "consul-ecs", "task-arn": ARN, "task-id": "f1a2" });
    assert_eq!(service["Meta"], meta);
    assert_eq!(service["Address"], "");

    let proxy = agent.call("GET", "/v1/agent/service/web-f1a2-sidecar-proxy", &Value::Null).await;
    assert_eq!((&proxy["Service"], &proxy["Kind"]), (&json!("web-sidecar-proxy"), &json!("connect-proxy")));
    assert_eq!(proxy["Port"], 20000);
    assert_eq!(proxy["Meta"], meta);
    assert_eq!(proxy["Proxy"]["DestinationServiceName"], "web");
    assert_eq!(proxy["Proxy"]["DestinationServiceID"], "web-f1a2");
    assert_eq!(proxy["Proxy"]["LocalServicePort"], 9090);
    assert_eq!(proxy["Proxy"]["Upstreams"][0]["DestinationName"], "api");

    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    let synced = &checks["web-f1a2-app-consul-ecs"];
    assert_eq!((&synced["Name"], &synced["Status"]), (&json!("consul ecs synced"), &json!("critical")));
    assert_eq!(synced["ServiceID"], "web-f1a2");
    let of_proxy = checks.as_object().unwrap().values().filter(|check| check["ServiceID"] == proxy["ID"]);
    let names: Vec<_> = of_proxy.map(|check| check["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Proxy Public Listener", "Destination Alias"]);

    let bootstrap = task.bootstrap();
    assert_eq!(bootstrap["node"]["id"], "web-f1a2-sidecar-proxy");
    assert_eq!(bootstrap["node"]["cluster"], "web");
    let grpc = &bootstrap["dynamic_resources"]["ads_config"]["grpc_services"];
    assert_eq!(grpc["initial_metadata"][0]["value"], token.as_str());
    let tags = bootstrap["stats_config"]["stats_tags"].as_array().unwrap();
    assert!(tags.contains(&json!({ "tag_name": "consul.source.datacenter", "fixed_value": "dc1" })));
    let file = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
    task.loads_in_envoy().await;
}

#[tokio::test]
async fn run_twice_it_changes_nothing_and_keeps_what_health_sync_has_set() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let public_listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut task = Task::new(&agent.http, &token);
    task.document["proxy"]["publicListenerPort"] = json!(public_listener.local_addr().unwrap().port());
    task.starts().await;
    let set = json!({ "Status": "passing", "Output": "HEALTHY" });
    agent.call("PUT", "/v1/agent/check/update/web-f1a2-app-consul-ecs", &set).await;
    // Consul runs the proxy's own two checks when it likes; they follow.
    eventually("all checks pass", BOUND, async || {
        let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
        let passing = checks.as_object().unwrap().values().all(|check| check["Status"] == "passing");
        if passing { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    let before = catalog(&agent, "first").await;
    let file = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();

    let again = task.starts().await;
    assert!(again.stderr.contains("is as it should be"), "{}", again.stderr);
    assert_eq!(status(&agent, "web-f1a2-app-consul-ecs").await, "passing");
    let after = catalog(&agent, "second").await;
    assert_eq!(before.as_array().unwrap().len(), 2);
    assert_eq!(before, after);
    let untouched = std::fs::metadata(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert_eq!((file.ino(), file.mtime_nsec()), (untouched.ino(), untouched.mtime_nsec()));
}

#[tokio::test]
async fn a_check_that_left_the_document_leaves_consul() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    let synced = task.document["healthSyncContainers"].take();
    task.document["service"]["checks"] = json!([{ "checkId": "own", "name": "own", "ttl": "10m" }]);
    task.starts().await;
    assert_eq!(status(&agent, "own").await, "critical");
    task.document["service"]["checks"] = json!([]);
    task.document["healthSyncContainers"] = synced;
    task.starts().await;
    assert_eq!(status(&agent, "own").await, Value::Null);
    assert_eq!(status(&agent, "web-f1a2-app-consul-ecs").await, "critical");
}

#[tokio::test]
async fn proxy_defaults_and_the_agent_s_grpc_port_reach_the_bootstrap() {
    let agent = Agent::start().await;
    let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": {
        "envoy_prometheus_bind_addr": "127.0.0.1:9102", "envoy_dogstatsd_url": "udp://127.0.0.1:8125",
        "envoy_stats_tags": ["canary"],
    } });
    agent.call("PUT", "/v1/config", &defaults).await;
    let task = Task::new(&agent.http, "");
    task.starts().await;
    let bootstrap = task.bootstrap();
    let resources = &bootstrap["static_resources"];
    assert_eq!(resources["listeners"][0]["name"], "envoy_prometheus_metrics_listener");
    assert_eq!(bootstrap["stats_sinks"][0]["name"], "envoy.stat_sinks.dog_statsd");
    assert_eq!(bootstrap["stats_config"]["stats_tags"][0]["tag_name"], "canary");
    let cluster = resources["clusters"][0].to_string();
    assert!(cluster.contains(&format!("\"port_value\":{}", agent.grpc_port)), "{cluster}");
    task.loads_in_envoy().await;

    let elsewhere = Task::new(&agent.http, "").with("CONSUL_GRPC_ADDR", "unix:///run/grpc.sock");
    elsewhere.starts().await;
    assert!(elsewhere.bootstrap()["static_resources"]["clusters"][0].to_string().contains("/run/grpc.sock"));
}

#[tokio::test]
async fn it_waits_for_the_agent_and_says_so() {
    let port = free_port();
    let task = Task::new(&format!("127.0.0.1:{port}"), "").with("LOG_LEVEL", "info");
    let mut started = Process::spawn(&mut task.command());
    started.says(&format!("waiting for Consul's agent at http://127.0.0.1:{port}, at most 1m 30s: "), BOUND).await;
    let agent = Agent::start().await;
    let relay = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let address = agent.http.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = relay.accept().await {
            let mut to = tokio::net::TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    assert_eq!(started.exit_code(BOUND).await, 0);
    assert_eq!(task.bootstrap()["node"]["id"], "web-f1a2-sidecar-proxy");
}

#[tokio::test]
async fn what_cannot_be_used_ends_in_one_line_and_nothing_is_registered() {
    let agent = Agent::start().await;
    let task = || Task::new(&agent.http, "");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut task = task();
        change(&mut task.document);
        task
    };
    let cases = [
        (task().with("CONSUL_ECS_CONFIG_JSON", ""), "CONSUL_ECS_CONFIG_JSON is not set"),
        (task().with("CONSUL_ECS_CONFIG_JSON", "{"), "CONSUL_ECS_CONFIG_JSON: not JSON: "),
        (with(&|d| d["service"]["port"] = json!("80")), r#"service.port: expected an integer, got "80""#),
        (with(&|d| d["services"] = json!({})), "services: expected one of the fields bootstrapDir, "),
        (
            with(&|d| d["proxy"]["upstreams"][0]["localBindPort"] = json!(20000)),
            "proxy.upstreams[0].localBindPort: expected an address and port that no other listener",
        ),
        (
            with(&|d| drop(d.as_object_mut().unwrap().remove("service"))),
            "service: missing, expected an object with at least port, or gateway",
        ),
        (with(&|d| d["consulLogin"] = json!({ "enabled": true })), "consulLogin: no AWS credentials"),
        (with(&|d| d["bootstrapDir"] = json!("/nowhere")), "bootstrapDir: cannot write to /nowhere: mount the task's"),
        (with(&|d| d["bootstrapDir"] = json!("/dev/null")), "bootstrapDir: cannot write to /dev/null: "),
        (
            with(&|d| d["proxy"]["config"] = json!({ "envoy_stats_bind_addr": "9102" })),
            r#"envoy_stats_bind_addr: expected <ip>:<port>, got "9102""#,
        ),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", ""), "ECS_CONTAINER_METADATA_URI_V4 is not set"),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", "169.254.170.2"), "expected a URL such as "),
        (task().with("CONSUL_HTTP_ADDR", "ftp://consul"), r#"CONSUL_HTTP_ADDR is "ftp://consul": expected host:port"#),
        (
            task().with("CONSUL_HTTP_TOKEN_FILE", "/nowhere"),
            "CONSUL_HTTP_TOKEN_FILE: cannot read the secret in /nowhere",
        ),
        (task().with("CONSUL_GRPC_ADDR", "8502"), r#"CONSUL_GRPC_ADDR is "8502": expected <host>:<port>"#),
        (
            task().with("CONSUL_GRPC_ADDR", "https://127.0.0.1:1").with("CONSUL_GRPC_CACERT", "/nowhere"),
            "CONSUL_GRPC_CACERT: cannot read the CA certificate in /nowhere",
        ),
        (
            task().with("MESH_INIT_ADMIN_BIND", "19000"),
            r#"--admin-bind (MESH_INIT_ADMIN_BIND) is "19000": expected <host>:<port>"#,
        ),
        (
            task().with("MESH_INIT_READY_BIND", "9104"),
            r#"--ready-bind (MESH_INIT_READY_BIND) is "9104": expected <ip>:<port>"#,
        ),
    ];
    for (task, text) in cases {
        task.fails_with(&[], &[text]).await;
    }
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn a_proxy_that_consul_refuses_leaves_no_service_behind() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let mut task = Task::new(&agent.http, &token);
    task.document["proxy"]["upstreams"][0]["destinationPartition"] = json!("ap1");
    task.fails_with(&[], &["cannot register web-f1a2", "DestinationPartition", "Consul Enterprise 1.11"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));

    // An option that only the central configuration has is not known before the proxy is registered.
    let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "envoy_stats_bind_addr": "9102" } });
    agent.call("PUT", "/v1/config", &defaults).await;
    Task::new(&agent.http, &token).fails_with(&[], &["envoy_stats_bind_addr: expected <ip>:<port>"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn what_a_killed_run_left_on_the_volume_is_removed() {
    let agent = Agent::start().await;
    let task = Task::new(&agent.http, "");
    let (left, _) = create_beside(&task.volume.path().join("envoy-bootstrap.json"), 0o640).unwrap();
    std::fs::write(left, "t0k3n").unwrap();
    task.starts().await;
    assert_eq!(std::fs::read_dir(task.volume.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn metadata_and_consul_that_are_absent_slow_endless_or_nonsense_end_in_one_line() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let bound = ["--timeout", "1s"];
    let with_metadata = |server: Server| {
        let mut task = Task::new(&nobody, "");
        task.metadata = server;
        task
    };
    let gave_up = "gave up waiting for the task metadata after 1s";
    with_metadata(Server(nobody.clone())).fails_with(&bound, &[gave_up, "cannot reach http://127.0.0.1"]).await;
    with_metadata(Server::that_is_silent()).fails_with(&bound, &[gave_up]).await;
    with_metadata(Server::that_never_ends()).fails_with(&["--timeout", "30s"], &["is larger than 1048576 bytes"]).await;
    with_metadata(Server::that_answers("<html>")).fails_with(&bound, &["cannot decode the task metadata"]).await;
    // ECS's agent gives such an answer while it starts.
    let unfinished =
        r#"{"Cluster":"blue","Family":"web","TaskARN":"arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2"}"#;
    with_metadata(Server::that_answers(unfinished)).fails_with(&bound, &[gave_up, "lists no containers"]).await;

    let gave_up = "cannot register web-f1a2: gave up waiting for Consul's agent at ";
    Task::new(&nobody, "").fails_with(&bound, &[gave_up, "Consul is not reachable"]).await;
    Task::new(&Server::that_is_silent().0, "").fails_with(&bound, &[gave_up]).await;
    let endless = Task::new(&Server::that_never_ends().0, "");
    endless.fails_with(&["--timeout", "30s"], &["is not what Consul gives"]).await;
    let nonsense = Task::new(&Server::that_answers("<html>").0, "");
    nonsense.fails_with(&bound, &["the answer is not what Consul gives"]).await;
}

#[tokio::test]
async fn a_token_that_consul_does_not_know_is_waited_for_until_the_bound_and_never_shown() {
    let agent = Agent::start_with_acls().await;
    let token = "11111111-2222-3333-4444-555555555555";
    let task = Task::new(&agent.http, token);
    task.fails_with(
        &["--timeout", "1s"],
        &["expected a token with the service identity web", "after 1s", "the ACL token is unknown"],
    )
    .await;
    let traced = run(task.command().args(["--timeout", "1s"]), BOUND).await;
    assert!(!traced.stderr.contains(token), "{}", traced.stderr);
}

/// A server with ACLs and gossip encryption, and its gossip key.
async fn closed_cluster() -> (Agent, &'static str) {
    let key = "pUqJrVyVRj5jsiYEkM/tFQ==";
    (Agent::start_with_acls_and(json!({ "encrypt": key })).await, key)
}

/// A client token as the acl-controller makes it.
async fn client_token(agent: &Agent) -> String {
    let rules = readme("acl-controller", "hcl", 3);
    agent.call("PUT", "/v1/acl/policy", &json!({ "Name": "client", "Rules": rules })).await;
    let token = json!({ "Policies": [{ "Name": "client" }] });
    agent.call("PUT", "/v1/acl/token", &token).await["SecretID"].as_str().unwrap().to_owned()
}

fn agent_config(task: &Task, output: &Path, data: &Path) -> Command {
    let mut command = task.command();
    command.env_remove("CONSUL_HTTP_TOKEN").env_remove("CONSUL_ECS_CONFIG_JSON");
    command.arg("agent-config").arg("--output").arg(output).arg("--data-dir").arg(data);
    command
}

#[tokio::test]
async fn an_agent_with_the_written_configuration_joins_and_takes_the_task() {
    let (server, key) = closed_cluster().await;
    let token = client_token(&server).await;
    let itself = server.call("GET", "/v1/agent/self", &Value::Null).await;
    let serf = itself["DebugConfig"]["SerfPortLAN"].as_u64().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (output, data) = (directory.path().join("agent.json"), directory.path().join("data"));
    let secret = directory.path().join("token");
    std::fs::write(&secret, format!("{token}\n")).unwrap();

    let client_http = free_port();
    let service_token = server.service_token("web").await;
    let task = Task::new(&format!("127.0.0.1:{client_http}"), &service_token)
        .with("CONSUL_RETRY_JOIN", format!("127.0.0.1:{serf}, "))
        .with("CONSUL_DATACENTER", "dc1")
        .with("CONSUL_CLIENT_TOKEN_FILE", secret.to_str().unwrap())
        .with("CONSUL_GOSSIP_KEY", key);
    let written = run(&mut agent_config(&task, &output, &data), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert!(!written.stderr.contains(&token) && !written.stderr.contains(key));
    assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o640);
    let again = run(&mut agent_config(&task, &output, &data), BOUND).await;
    assert!(again.stderr.contains("is as it should be"), "{}", again.stderr);
    // As ECS gives it, in a variable, it comes to the same.
    let mut by_variable = agent_config(&task, &output, &data);
    by_variable.env_remove("CONSUL_CLIENT_TOKEN_FILE").env("CONSUL_CLIENT_TOKEN", &token);
    let by_variable = run(&mut by_variable, BOUND).await;
    assert!(by_variable.stderr.contains("is as it should be"), "{}", by_variable.stderr);
    assert_eq!(by_variable.code, 0);

    let validated = run(Command::new(part("consul")).arg("validate").arg(&output), BOUND).await;
    assert_eq!(validated.code, 0, "{}{}", validated.stdout, validated.stderr);

    // Beside the server on one host, the client needs other ports than in a task of its own.
    let ports = directory.path().join("ports.json");
    let (grpc, serf_lan) = (free_port(), free_port());
    let other = json!({ "ports": { "http": client_http, "grpc": grpc, "serf_lan": serf_lan, "dns": -1 } });
    std::fs::write(&ports, other.to_string()).unwrap();
    let mut consul = Command::new(part("consul"));
    consul.arg("agent").arg("-config-file").arg(&output).arg("-config-file").arg(&ports);
    let client = Process::spawn(&mut consul);
    // At once: the agent refuses, then doesn't know its servers, then takes it.
    task.starts().await;
    eventually("the catalog has the task on its own node", BOUND, async || {
        let instances = server.call("GET", "/v1/catalog/service/web", &Value::Null).await;
        match (instances[0]["Node"].as_str(), instances[0]["Address"].as_str()) {
            (Some("Web-f1a2"), Some("127.0.0.1")) => Ok(()),
            _ => Err(instances.to_string()),
        }
    })
    .await;

    // An agent that was killed and lost its data is the same node. Another one of its name would be refused while the servers take
    // the first one to be alive.
    drop(client);
    std::fs::remove_dir_all(&data).unwrap();
    let _client = Process::spawn(&mut consul);
    let mut task = task;
    task.document["service"]["tags"] = json!(["green"]);
    task.starts().await;
    eventually("the catalog has what the agent has without its data", Duration::from_secs(20), async || {
        let instances = server.call("GET", "/v1/catalog/service/web", &Value::Null).await;
        if instances[0]["ServiceTags"] == json!(["green"]) { Ok(()) } else { Err(instances.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn an_agent_whose_grpc_is_off_is_an_error_and_nothing_stays_registered() {
    let agent = Agent::start_with(&json!({ "ports": { "grpc": -1 } })).await;
    let task = Task::new(&agent.http, "");
    task.fails_with(&[], &["the agent serves no gRPC, which Envoy needs: expected ports { grpc = 8502 }"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
    // Where Envoy is given another agent, this one need not serve it.
    task.with("CONSUL_GRPC_ADDR", "127.0.0.1:8502").starts().await;
}

#[tokio::test]
async fn the_admin_address_is_of_the_agent_s_family_whatever_that_of_grpc_is() {
    let server = |bound: &str| {
        Server::that_answers(
            &json!({
                "ID": "web-f1a2-sidecar-proxy", "Service": "web-sidecar-proxy", "Datacenter": "dc1",
                "Proxy": { "DestinationServiceName": "web" },
                "Config": { "Datacenter": "dc1", "NodeName": "n", "Version": "1.21.4" },
                "DebugConfig": { "BindAddr": bound, "GRPCPort": 8502 },
            })
            .to_string(),
        )
    };
    let (v4, v6) = (server("0.0.0.0"), server("::"));
    for (agent, grpc, admin) in
        [(&v6, "127.0.0.1:8502", "::1"), (&v4, "[::1]:8502", "127.0.0.1"), (&v6, "unix:///grpc.sock", "::1")]
    {
        let task = Task::new(&agent.0, "").with("CONSUL_GRPC_ADDR", grpc);
        task.starts().await;
        assert_eq!(task.bootstrap()["admin"]["address"]["socket_address"]["address"], admin, "{grpc}");
    }
}

#[tokio::test]
async fn an_agent_with_a_ca_gets_its_certificate_from_the_servers_and_keeps_grpc_in_plain_text() {
    let directory = certificates().await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let authority = path("consul-agent-ca.pem");
    let server = Agent::start_with(&json!({
        "ca_file": authority, "cert_file": path("dc1-server-consul-0.pem"), "key_file": path("dc1-server-consul-0-key.pem"),
        "verify_incoming_rpc": true, "verify_outgoing": true, "verify_server_hostname": true,
        "auto_encrypt": { "allow_tls": true },
    }))
    .await;
    let ports = server.call("GET", "/v1/agent/self", &Value::Null).await["DebugConfig"].take();

    let config_dir = directory.path().join("config");
    std::fs::create_dir(&config_dir).unwrap();
    let task = Task::new("", "").with("CONSUL_CACERT", &authority);
    let task = task.with("CONSUL_RETRY_JOIN", format!("127.0.0.1:{}", ports["SerfPortLAN"]));
    let output = config_dir.join("agent.json");
    let written = run(&mut agent_config(&task, &output, &directory.path().join("data")), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    let copy = std::fs::read(config_dir.join("ca.pem")).unwrap();
    assert_eq!(copy, std::fs::read(&authority).unwrap());

    let (http_port, grpc_port) = (free_port(), free_port());
    let other = json!({ "ports": { "http": http_port, "grpc": grpc_port, "serf_lan": free_port(), "dns": -1,
        // Where a client asks for its certificate.
        "server": ports["ServerPort"] } });
    std::fs::write(config_dir.join("ports.json"), other.to_string()).unwrap();
    let _client = Process::spawn(Command::new(part("consul")).arg("agent").arg("-config-dir").arg(&config_dir));
    eventually("the client answers from the servers", BOUND, async || {
        let nodes = http::get(&format!("http://127.0.0.1:{http_port}/v1/catalog/nodes")).await?;
        if nodes.contains("Web-f1a2") { Ok(()) } else { Err(nodes) }
    })
    .await;
    // HTTP/2 in plain text begins with the server's settings.
    let mut grpc = std::net::TcpStream::connect(("127.0.0.1", grpc_port)).unwrap();
    grpc.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    grpc.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "{frame:?} is no settings frame");
}

#[tokio::test]
async fn an_agent_configuration_that_cannot_be_made_is_one_line_and_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let (output, data) = (directory.path().join("agent.json"), directory.path().join("data"));
    let task = || Task::new("", "").with("CONSUL_RETRY_JOIN", "a");
    let cases = [
        (task().with("CONSUL_RETRY_JOIN", ""), "CONSUL_RETRY_JOIN is not set"),
        (task().with("CONSUL_GOSSIP_KEY", "s3cr3t"), "CONSUL_GOSSIP_KEY is not a gossip key"),
        (
            task().with("CONSUL_CLIENT_TOKEN_FILE", "/nowhere"),
            "CONSUL_CLIENT_TOKEN_FILE: cannot read the secret in /nowhere",
        ),
        (
            task().with("CONSUL_CLIENT_TOKEN_FILE", "/dev/null"),
            "CONSUL_CLIENT_TOKEN_FILE: cannot read the secret in /dev/null: it is empty",
        ),
        (task().with("CONSUL_CACERT", "/nowhere"), "CONSUL_CACERT: cannot read /nowhere"),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", ""), "ECS_CONTAINER_METADATA_URI_V4 is not set"),
    ];
    for (task, text) in cases {
        let finished = run(agent_config(&task, &output, &data).env("LOG_LEVEL", "error"), BOUND).await;
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        assert!(finished.stderr.contains(text) && finished.stderr.lines().count() == 1, "{text}: {}", finished.stderr);
        assert!(!finished.stderr.contains("s3cr3t"));
    }
    let yaml = Path::new("/nowhere/agent.yaml");
    let finished = run(agent_config(&task(), yaml, &data).env("LOG_LEVEL", "error"), BOUND).await;
    assert!(
        finished.stderr.contains("--output (MESH_INIT_AGENT_CONFIG) is /nowhere/agent.yaml"),
        "{}",
        finished.stderr
    );
    let nowhere = Path::new("/nowhere/agent.json");
    let finished = run(agent_config(&task(), nowhere, &data).env("LOG_LEVEL", "error"), BOUND).await;
    assert!(finished.code == 1 && finished.stderr.contains("cannot write /nowhere/agent.json"), "{}", finished.stderr);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
