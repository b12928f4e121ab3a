//! A task with only an IPv6 address, as in an IPv6-only subnet. The test runs in its own network namespace, in which only loopback has
//! IPv4. It covers everything from the agent's configuration to the drain, with real Consuls, xds-bridge and a real Envoy.

use std::net::{Ipv6Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::{Agent, version};
use mesh_tests::metadata::{Metadata, OWN_DOCKER_ID};
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port, part};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);
/// This variable is set when the test runs again inside the namespace.
const INSIDE: &str = "MESH_TESTS_IPV6_ONLY";
const TASK: &str = "fd00::7";
const NAMESPACE: &str = r#"ip link set lo up && ip -6 address add fd00::7/128 dev lo nodad && exec "$@""#;

#[tokio::test]
async fn task_with_only_ipv6_joins_the_mesh_and_drains() {
    if std::env::var_os(INSIDE).is_some() {
        return in_the_mesh_and_drains().await;
    }
    let mut command = Command::new("unshare");
    command.args(if geteuid().is_root() { &["--net"][..] } else { &["--map-root-user", "--net"] });
    command.args(["sh", "-c", NAMESPACE, "sh"]).arg(std::env::current_exe().unwrap());
    let name = "ipv6::task_with_only_ipv6_joins_the_mesh_and_drains";
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let inside = run(&mut command, BOUND * 4).await;
    assert_eq!(inside.code, 0, "{}{}", inside.stdout, inside.stderr);
    assert!(inside.stdout.contains("1 passed"), "{}", inside.stdout);
}

/// The task's containers, which share its network. `app` is the status of the app.
fn containers(app: &str) -> Value {
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv6Addresses": [TASK] }]);
    json!([
        { "DockerId": OWN_DOCKER_ID, "Name": "sidecar-proxy", "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING",
          "Networks": networks },
        { "DockerId": "app", "Name": "app", "KnownStatus": app, "DesiredStatus": app, "Networks": networks },
    ])
}

async fn in_the_mesh_and_drains() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let serf = free_port();
    let server = json!({ "bind_addr": TASK, "ports": { "serf_lan": serf } });
    let server = Agent::start_with(&server).await;
    let metadata = Metadata::start("web", containers("RUNNING"));
    let document = json!({ "bootstrapDir": directory.path(), "service": { "port": free_port() } });
    let program = |name: &str| {
        let mut command = Command::new(binary(name));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
        command.env("CONSUL_ECS_CONFIG_JSON", document.to_string());
        command
    };

    let mut agent_config = program("mesh-init");
    agent_config.env("MESH_INIT_CONSUL_VERSION", version().to_string());
    agent_config.arg("agent-config").arg("--output").arg(path("agent.json")).arg("--data-dir").arg(path("data"));
    let written = run(agent_config.env("CONSUL_RETRY_JOIN", format!("[{TASK}]:{serf}")), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    let mut agent = if version().serves_xds_v3() {
        Command::new(part("consul"))
    } else {
        let mut bridge = Command::new(binary("xds-bridge"));
        bridge.args(["--listen", "[::1]:8502", "--socket"]).arg(path("grpc.sock")).arg(part("consul"));
        bridge
    };
    agent.args(["agent", "-pid-file"]).arg(path("pid")).arg("-config-file").arg(path("agent.json"));
    let _agent = Consul { _bridge: Process::spawn(&mut agent), pid_file: path("pid") };

    let registered = run(&mut program("mesh-init"), BOUND).await;
    assert_eq!(registered.code, 0, "{}", registered.stderr);
    let bootstrap = std::fs::read(path("envoy-bootstrap.json")).unwrap();
    let bootstrap: Value = serde_json::from_slice(&bootstrap).unwrap();
    assert_eq!(bootstrap["admin"]["address"]["socket_address"]["address"], "::1");

    let mut envoy = program("envoy-entrypoint");
    envoy
        .env("ENVOY_ENTRYPOINT_DRAIN", "true")
        .arg(part("envoy"))
        .arg("--config-path")
        .arg(path("envoy-bootstrap.json"));
    envoy.args(["--disable-hot-restart", "--concurrency", "1", "--drain-strategy", "immediate"]);
    let mut envoy = Process::spawn(&mut envoy);
    eventually("the servers have the proxy with its listener passing", BOUND, async || {
        let proxies = server.call("GET", "/v1/health/service/web-sidecar-proxy?passing", &Value::Null).await;
        match &proxies.as_array().unwrap()[..] {
            [proxy] if proxy["Node"]["Address"] == TASK => Ok(()),
            _ => Err(proxies.to_string()),
        }
    })
    .await;
    let task = (TASK.parse::<Ipv6Addr>().unwrap(), 20000);
    assert!(TcpStream::connect(task).is_ok(), "others reach the public listener at the task's address");

    envoy.signal(Signal::TERM);
    envoy.says("draining the inbound listeners", BOUND).await;
    metadata.set_containers(containers("STOPPED"));
    assert_eq!(envoy.exit_code(BOUND).await, 0);
}

/// Consul has its own process group, which survives the death of the bridge.
struct Consul {
    _bridge: Process,
    pid_file: std::path::PathBuf,
}

impl Drop for Consul {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.pid_file).ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
