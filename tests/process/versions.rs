//! What docs/compatibility.md says of the versions of Consul. `tests/needs.txt` says which test needs which version.

use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::{Agent, certificates};
use mesh_tests::process::run;
use mesh_tests::{free_port, http, part};
use serde_json::{Value, json};

use super::mesh_init::Task;

const BOUND: Duration = Duration::from_secs(60);
const PROXY: &str = "web-f1a2-sidecar-proxy";

/// Writes an entry for all proxies of the cluster.
async fn proxy_defaults(agent: &Agent, more: Value) {
    let mut entry = json!({ "Kind": "proxy-defaults", "Name": "global" });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    agent.call("PUT", "/v1/config", &entry).await;
}

/// The bootstrap that Consul's own command makes for a registered proxy.
async fn made_by_consul(agent: &Agent, token: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new(part("consul"));
    command.env_clear().env("CONSUL_HTTP_ADDR", &agent.http).env("CONSUL_HTTP_TOKEN", token);
    command.args(["connect", "envoy", "-bootstrap", "-ignore-envoy-compatibility", "-proxy-id", PROXY]);
    // Consul's default is `localhost`, which may be an IPv6 address. So mesh-init has another default.
    command.args(["-admin-bind", "127.0.0.1:19000"]).args(arguments);
    let made = run(&mut command, BOUND).await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    serde_json::from_str(&made.stdout).unwrap_or_else(|error| panic!("{error}: {}", made.stdout))
}

#[tokio::test]
async fn bootstrap_equals_that_of_consul_s_own_command() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let grpc = format!("127.0.0.1:{}", agent.grpc_port);
    let cases = [
        ("nothing set", json!({})),
        (
            "metrics",
            json!({ "envoy_prometheus_bind_addr": "127.0.0.1:9102", "envoy_stats_bind_addr": "127.0.0.1:9103" }),
        ),
        (
            "sinks",
            json!({ "envoy_statsd_url": "udp://127.0.0.1:8125", "envoy_dogstatsd_url": "unix:///run/dd.sock",
                    "envoy_stats_tags": ["canary", "owner=shop"], "envoy_stats_flush_interval": "10s" }),
        ),
        ("a collector", json!({ "envoy_telemetry_collector_bind_socket_dir": "/run/telemetry" })),
    ];
    for (what, config) in cases {
        proxy_defaults(&agent, json!({ "Config": config })).await;
        let task = Task::new(&agent.http, &token).with("CONSUL_GRPC_ADDR", &grpc);
        task.starts().await;
        assert_eq!(task.bootstrap(), made_by_consul(&agent, &token, &["-grpc-addr", &grpc]).await, "{what}");
    }
}

#[tokio::test]
async fn access_logs_of_proxy_defaults_are_in_the_bootstrap() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let grpc = format!("127.0.0.1:{}", agent.grpc_port);
    let logs = json!({ "Enabled": true, "Type": "file", "Path": "/dev/null" });
    proxy_defaults(&agent, json!({ "AccessLogs": logs })).await;
    let task = Task::new(&agent.http, &token).with("CONSUL_GRPC_ADDR", &grpc);
    task.starts().await;
    let bootstrap = task.bootstrap();
    assert_eq!(bootstrap, made_by_consul(&agent, &token, &["-grpc-addr", &grpc]).await);
    assert!(bootstrap["admin"]["access_log"].to_string().contains("/dev/null"), "{bootstrap}");
}

#[tokio::test]
async fn envoy_uses_the_plain_grpc_port_unless_there_is_only_one_with_tls() {
    let directory = certificates().await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let authority = path("consul-agent-ca.pem");
    let tls = json!({ "grpc": {
        "ca_file": authority, "cert_file": path("dc1-server-consul-0.pem"), "key_file": path("dc1-server-consul-0-key.pem"),
    } });
    let tls_port = free_port();
    let both = Agent::start_with(&json!({ "tls": tls, "ports": { "grpc_tls": tls_port } })).await;
    let ports = both.call("GET", "/v1/agent/self", &Value::Null).await["xDS"]["Ports"].take();
    assert_eq!(ports, json!({ "Plaintext": both.grpc_port, "TLS": tls_port }));
    let agent_cluster = |bootstrap: Value| bootstrap["static_resources"]["clusters"][0].to_string();
    let task = Task::new(&both.http, "");
    task.starts().await;
    let ours = agent_cluster(task.bootstrap());
    assert!(ours.contains(&format!(r#""port_value":{}"#, both.grpc_port)), "{ours}");
    // Consul's own command prefers the other one.
    let theirs = agent_cluster(made_by_consul(&both, "", &["-grpc-ca-file", &authority]).await);
    assert!(theirs.contains(&format!(r#""port_value":{tls_port}"#)), "{theirs}");

    let tls_port = free_port();
    let only_tls = Agent::start_with(&json!({ "tls": tls, "ports": { "grpc": -1, "grpc_tls": tls_port } })).await;
    let task = Task::new(&only_tls.http, "");
    task.fails_with(&[], &["CONSUL_GRPC_ADDR", "CONSUL_GRPC_CACERT"]).await;
    let task = task.with("CONSUL_GRPC_ADDR", format!("https://127.0.0.1:{tls_port}"));
    let task = task.with("CONSUL_GRPC_CACERT", &authority);
    task.starts().await;
    let cluster = agent_cluster(task.bootstrap());
    assert!(
        cluster.contains(&format!(r#""port_value":{tls_port}"#)) && cluster.contains("UpstreamTlsContext"),
        "{cluster}"
    );
}

#[tokio::test]
async fn server_listens_for_grpc_with_tls_by_default() {
    // The port of the default must be free.
    let agent = Agent::start_with(&json!({ "ports": { "grpc": null, "grpc_tls": null } })).await;
    let ports = agent.call("GET", "/v1/agent/self", &Value::Null).await["xDS"]["Ports"].take();
    assert_eq!(ports, json!({ "Plaintext": -1, "TLS": 8503 }));
}

#[tokio::test]
async fn agent_answers_with_the_datacenter_of_a_service() {
    let agent = Agent::start().await;
    Task::new(&agent.http, "").starts().await;
    let proxy = agent.call("GET", &format!("/v1/agent/service/{PROXY}"), &Value::Null).await;
    assert_eq!(proxy["Datacenter"], "dc1");
}

#[tokio::test]
async fn legacy_acls_are_gone() {
    let agent = Agent::start_with_acls().await;
    let token = [("X-Consul-Token", agent.management.as_str())];
    let created =
        http::request("PUT", &agent.url("/v1/acl/create"), &token, r#"{ "Name": "a", "Type": "client" }"#).await;
    let (status, answer) = created.unwrap();
    assert!([404, 410].contains(&status), "{status}: {answer}");
}

#[tokio::test]
async fn agent_takes_the_fields_that_consul_1_8_refuses() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    task.document["healthSyncContainers"] = json!([]);
    task.document["service"]["checks"] = json!([
        { "name": "tls", "checkId": "tls", "http": "https://127.0.0.1:1", "tlsServerName": "web", "interval": "5s" },
        { "name": "h2", "checkId": "h2", "h2ping": "127.0.0.1:1", "h2pingUseTls": false, "interval": "5s" },
        { "name": "udp", "checkId": "udp", "udp": "127.0.0.1:1", "interval": "5s" },
    ]);
    task.starts().await;
    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    for (check, kind) in [("tls", "http"), ("h2", "h2ping"), ("udp", "udp")] {
        assert_eq!(
            (&checks[check]["ServiceID"], &checks[check]["Type"]),
            (&json!("web-f1a2"), &json!(kind)),
            "{checks}"
        );
    }
}

#[tokio::test]
async fn enterprise_field_error_names_the_edition() {
    let agent = Agent::start().await;
    let in_service = |field: &str| {
        let mut task = Task::new(&agent.http, "");
        task.document["service"][field] = json!("a");
        task
    };
    let in_upstream = |field: &str| {
        let mut task = Task::new(&agent.http, "");
        task.document["proxy"]["upstreams"][0][field] = json!("a");
        task
    };
    let in_variable = |name: &'static str| Task::new(&agent.http, "").with(name, "a");
    let partitions = "admin partitions need Consul Enterprise 1.11 or later";
    let namespaces = "namespaces need Consul Enterprise 1.7 or later";
    let cases = [
        (in_service("namespace"), "Namespace", namespaces),
        (in_service("partition"), "Partition", partitions),
        (in_upstream("destinationNamespace"), "DestinationNamespace", namespaces),
        (in_upstream("destinationPartition"), "DestinationPartition", partitions),
        (in_variable("CONSUL_NAMESPACE"), "Namespace", namespaces),
        (in_variable("CONSUL_PARTITION"), "Partition", partitions),
    ];
    for (task, field, cure) in cases {
        let line = format!("cannot register web-f1a2: the agent's Consul does not know the field {field}: ");
        task.fails_with(&[], &[&line, cure]).await;
    }
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn default_partition_and_namespace_are_the_same_as_none() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let mut task = Task::new(&agent.http, &token).with("CONSUL_PARTITION", "default");
    task.document["proxy"]["upstreams"][0]["destinationNamespace"] = "default".into();
    task.starts().await;
    let registered = agent.call("GET", "/v1/agent/services", &Value::Null).await;
    assert_eq!(registered.as_object().unwrap().keys().collect::<Vec<_>>(), ["web-f1a2", PROXY]);
}
