//! A real Envoy loads every bootstrap option, and errors name the fields that a real Consul 1.8 does not know.

use mesh_tests::consul::{Agent, certificates};
use serde_json::{Value, json};

use super::mesh_init::{Task, answering};

/// A template that a user has made from Consul's own bootstrap template.
const TEMPLATE: &str = r#"{
  "admin": {
    {{- if .AdminAccessLogConfig }}
    "access_log": [{{ range $index, $log := .AdminAccessLogConfig }}{{ if $index }},{{ end }}{{ $log }}{{ end }}],
    {{- end }}
    "address": { "socket_address": { "address": "{{ .AdminBindAddress }}", "port_value": {{ .AdminBindPort }} } }
  },
  {{- /* The node is how the agent knows the proxy. */}}
  "node": { "cluster": "{{ .ProxyCluster }}", "id": "{{ .ProxyID }}", "metadata": { "mine": true,
    "namespace": "{{ if ne .Namespace "" }}{{ .Namespace }}{{ else }}default{{ end }}" } },
  "static_resources": {
    "clusters": [{
      "name": "{{ .LocalAgentClusterName }}", "connect_timeout": "1s", "type": "STATIC", "http2_protocol_options": {},
      {{- if .AgentTLS }}
      "transport_socket": { "name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": { "validation_context": { "trusted_ca": { "inline_string": "{{ .AgentCAPEM }}" } } } } },
      {{- end }}
      "load_assignment": { "cluster_name": "{{ .LocalAgentClusterName }}", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
        "address": {
          {{- if .AgentSocket -}} "pipe": { "path": "{{ .AgentSocket }}" }
          {{- else -}} "socket_address": { "address": "{{ .GRPC.AgentAddress }}", "port_value": {{ .GRPC.AgentPort }} }
          {{- end -}}
        } } }] }] }
    } {{- if .StaticClustersJSON -}} , {{ .StaticClustersJSON }} {{- end }}]
    {{- if .StaticListenersJSON -}} , "listeners": [ {{ .StaticListenersJSON }} ] {{- end }}
    {{- if .StaticSecretsJSON -}} , "secrets": [ {{ .StaticSecretsJSON }} ] {{- end }}
  },
  {{- if .StatsSinksJSON }} "stats_sinks": [ {{ .StatsSinksJSON }} ], {{- end }}
  {{- if .StatsConfigJSON }} "stats_config": {{ .StatsConfigJSON }}, {{- end }}
  {{- if .StatsFlushInterval }} "stats_flush_interval": "{{ .StatsFlushInterval }}", {{- end }}
  {{- if .TracingConfigJSON }} "tracing": {{ .TracingConfigJSON }}, {{- end }}
  "dynamic_resources": {
    "lds_config": { "ads": {}, "resource_api_version": "V3" }, "cds_config": { "ads": {}, "resource_api_version": "V3" },
    "ads_config": { "api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": {
      "initial_metadata": [{ "key": "x-consul-token", "value": "{{ .Token }}" }],
      "envoy_grpc": { "cluster_name": "{{ .LocalAgentClusterName }}" } } }
  }
}"#;

/// Every option with JSON of the user's own, in one configuration.
fn own_json() -> Value {
    let cluster = |name: &str| {
        let endpoint = json!({ "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9411 } } });
        let endpoints = json!([{ "lb_endpoints": [{ "endpoint": endpoint }] }]);
        let assignment = json!({ "cluster_name": name, "endpoints": endpoints });
        json!({ "name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment }).to_string()
    };
    let listener = json!({
        "name": "mine", "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9105 } },
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "mine", "cluster": "a" } }] }],
    });
    let statsd = "type.googleapis.com/envoy.config.metrics.v3.StatsdSink";
    let sink = json!({ "name": "envoy.stat_sinks.statsd",
        "typed_config": { "@type": statsd, "tcp_cluster_name": "a" } });
    let zipkin = "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig";
    let tracing = json!({ "http": { "name": "envoy.tracers.zipkin", "typed_config": { "@type": zipkin,
        "collector_cluster": "b", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON" } } });
    json!({
        "envoy_extra_static_clusters_json": format!("{}, {}", cluster("a"), cluster("b")),
        "envoy_extra_static_listeners_json": listener.to_string(),
        "envoy_extra_stats_sinks_json": sink.to_string(),
        "envoy_stats_config_json": r#"{ "use_all_default_tags": false }"#,
        "envoy_stats_flush_interval": "10s",
        "envoy_tracing_json": tracing.to_string(),
    })
}

#[tokio::test]
async fn envoy_loads_a_bootstrap_with_every_option() {
    let directory = certificates().await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let authority = path("consul-agent-ca.pem");
    let authorities = tempfile::tempdir().unwrap();
    for copy in ["a.pem", "b.pem"] {
        std::fs::write(authorities.path().join(copy), std::fs::read_to_string(&authority).unwrap().trim_end()).unwrap();
    }
    let authorities = authorities.path().to_str().unwrap();
    let agent = Agent::start().await;
    // Consul 1.8 has no access logs. So this server plays a newer agent, and gives the same answer to every request.
    let newer = |config: &Value| {
        answering(
            &json!({
                "ID": "web-f1a2-sidecar-proxy", "Service": "web-sidecar-proxy", "Datacenter": "dc1",
                "Proxy": { "DestinationServiceName": "web", "Config": config },
                "AccessLogs": { "Enabled": true, "Type": "file", "Path": "/dev/null" },
            })
            .to_string(),
        )
    };
    let none = json!({});
    let scraped = json!({ "envoy_prometheus_bind_addr": "127.0.0.1:9102", "envoy_stats_bind_addr": "127.0.0.1:9103" });
    let collected = json!({ "envoy_telemetry_collector_bind_socket_dir": "/run/telemetry" });
    let everything = {
        let mut config = own_json();
        config.as_object_mut().unwrap().extend(scraped.as_object().unwrap().clone());
        config.as_object_mut().unwrap().extend(collected.as_object().unwrap().clone());
        config["envoy_bootstrap_json_tpl"] = json!(TEMPLATE);
        config
    };
    let (logs, template) = (newer(&none), newer(&everything));
    let six = json!({
        "envoy_statsd_url": "udp://[${HOST_IP}]:8125", "envoy_dogstatsd_url": "unix:///run/dd.sock",
        "envoy_prometheus_bind_addr": "[::]:9102", "envoy_stats_bind_addr": "[::1]:9103", "envoy_stats_tags": ["canary"],
    });
    let tls = |authority: (&'static str, &str)| {
        vec![
            ("MESH_INIT_PROMETHEUS_CERT_FILE", path("dc1-server-consul-0.pem")),
            ("MESH_INIT_PROMETHEUS_KEY_FILE", path("dc1-server-consul-0-key.pem")),
            (authority.0, authority.1.to_owned()),
        ]
    };
    let with = |variables: &[(&'static str, &str)]| -> Vec<_> {
        variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    };
    let address = |address: &'static str| ("CONSUL_GRPC_ADDR", address);
    // The case's name, the agent, the proxy's configuration, more variables, and a text that the bootstrap must contain.
    let cases = [
        ("own JSON", &agent.http, &own_json(), vec![], r#""collector_cluster":"b""#),
        (
            "IPv6 and sinks",
            &agent.http,
            &six,
            with(&[address("[::1]:8502"), ("MESH_INIT_ADMIN_BIND", "[::1]:19000"), ("HOST_IP", "fd00::7")]),
            r#""address":"fd00::7""#,
        ),
        (
            "gRPC over TLS",
            &agent.http,
            &none,
            with(&[address("https://127.0.0.1:8503"), ("CONSUL_GRPC_CACERT", &authority)]),
            "UpstreamTlsContext",
        ),
        (
            "a directory of authorities, TLS on a socket",
            &agent.http,
            &none,
            with(&[address("unix:///run/grpc.sock"), ("CONSUL_GRPC_CAPATH", authorities)]),
            r"-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----",
        ),
        ("gRPC on a socket", &agent.http, &none, with(&[address("unix:///run/grpc.sock")]), "/run/grpc.sock"),
        ("readiness", &agent.http, &none, with(&[("MESH_INIT_READY_BIND", "127.0.0.1:9104")]), "envoy_ready_listener"),
        (
            "a backend",
            &agent.http,
            &scraped,
            with(&[("MESH_INIT_PROMETHEUS_BACKEND_PORT", "20100"), ("MESH_INIT_PROMETHEUS_SCRAPE_PATH", "/scrape")]),
            "prometheus_backend",
        ),
        ("scraping over TLS", &agent.http, &scraped, tls(("MESH_INIT_PROMETHEUS_CA_FILE", &authority)), "trustedCa"),
        (
            "scraping, CA path",
            &agent.http,
            &scraped,
            tls(("MESH_INIT_PROMETHEUS_CA_PATH", authorities)),
            "watchedDirectory",
        ),
        ("a collector", &agent.http, &collected, vec![], r#""stats_flush_interval":"60s""#),
        (
            "an admin log",
            &agent.http,
            &none,
            with(&[("MESH_INIT_ADMIN_ACCESS_LOG_PATH", "/dev/stderr")]),
            "/dev/stderr",
        ),
        ("access logs", &logs.address, &none, with(&[address("127.0.0.1:8502")]), "Consul Listener Filter Log"),
        (
            "a template",
            &template.address,
            &none,
            with(&[address("https://[::1]:8503"), ("CONSUL_GRPC_CACERT", &authority)]),
            r#""mine":true"#,
        ),
    ];
    for (what, agent, config, variables, text) in cases {
        let mut task = Task::new(agent, "");
        task.document["proxy"]["config"] = config.clone();
        let task = variables.into_iter().fold(task, |task, (name, value)| task.with(name, value));
        task.starts().await;
        let bootstrap = task.bootstrap().to_string();
        assert!(bootstrap.contains(text), "{what}: {text} is not in {bootstrap}");
        task.loads_in_envoy_with(what).await;
    }
}

#[tokio::test]
async fn template_from_proxy_defaults_makes_the_bootstrap() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let set = async |template: &str| {
        let config = json!({ "envoy_bootstrap_json_tpl": template });
        let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": config });
        agent.call("PUT", "/v1/config", &defaults).await;
    };
    set(TEMPLATE).await;
    let task = Task::new(&agent.http, &token);
    task.starts().await;
    let bootstrap = task.bootstrap();
    assert_eq!(bootstrap["node"]["metadata"]["mine"], true);
    let grpc = &bootstrap["dynamic_resources"]["ads_config"]["grpc_services"];
    assert_eq!(grpc["initial_metadata"][0]["value"], token.as_str());

    set("{ \"a\": \"{{ .Token }}\", }").await;
    let task = Task::new(&agent.http, &token);
    task.fails_with(&[], &["envoy_bootstrap_json_tpl: expected a template that gives a JSON object"]).await;
    set("{\n{{ .Nothing }}").await;
    let task = Task::new(&agent.http, &token);
    task.fails_with(&[], &["envoy_bootstrap_json_tpl: line 2, column 1: there is no field .Nothing"]).await;
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn unknown_field_error_names_the_consul_that_knows_it() {
    let agent = Agent::start().await;
    let check = |field: &str, value: Value| {
        let mut task = Task::new(&agent.http, "");
        let mut check = json!({ "name": "own", "interval": "5s", "tcp": "127.0.0.1:1" });
        if ["udp", "h2ping"].contains(&field) {
            check.as_object_mut().unwrap().remove("tcp");
        }
        check[field] = value;
        // A document may have either checks or containers to sync, but not both.
        task.document["healthSyncContainers"] = json!([]);
        task.document["service"]["checks"] = json!([check]);
        task
    };
    let cases = [
        (check("tlsServerName", json!("web")), "TLSServerName", "needs Consul 1.10 or later"),
        (check("h2ping", json!("127.0.0.1:1")), "H2PING", "h2ping checks need Consul 1.10 or later"),
        (check("h2pingUseTls", json!(false)), "H2PingUseTLS", "need Consul 1.11 or later"),
        (check("udp", json!("127.0.0.1:1")), "UDP", "UDP checks need Consul 1.13 or later"),
    ];
    for (task, field, cure) in cases {
        let line = format!("cannot register web-f1a2: the agent's Consul does not know the field {field}: ");
        task.fails_with(&[], &[&line, cure]).await;
    }
    assert_eq!(agent.call("GET", "/v1/agent/services", &Value::Null).await, json!({}));
}

#[tokio::test]
async fn every_other_field_of_a_check_is_known_to_consul_1_8() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    task.document["healthSyncContainers"] = json!([]);
    task.document["service"]["checks"] = json!([
        { "name": "http", "checkId": "http", "notes": "n", "status": "passing", "http": "http://127.0.0.1:1",
          "method": "POST", "header": { "a": ["b"] }, "body": "b", "interval": "5s", "timeout": "1s",
          "tlsSkipVerify": true, "successBeforePassing": 2, "failuresBeforeCritical": 3 },
        { "name": "grpc", "checkId": "grpc", "grpc": "127.0.0.1:1", "grpcUseTls": true, "interval": "5s" },
        { "name": "alias", "checkId": "alias", "aliasService": "web-f1a2" },
    ]);
    task.starts().await;
    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    for check in ["http", "grpc", "alias"] {
        assert_eq!(checks[check]["ServiceID"], "web-f1a2", "{check}: {checks}");
    }
}

#[tokio::test]
async fn document_that_the_agent_never_accepts_fails_at_once() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    task.document["healthSyncContainers"] = json!([]);
    task.document["service"]["checks"] = json!([{ "name": "script", "args": ["true"], "interval": "5s" }]);
    task.fails_with(&["--timeout", "30m"], &["cannot register web-f1a2", "Scripts are disabled on this agent"]).await;
}

#[tokio::test]
async fn null_in_the_proxy_configuration_equals_absent() {
    let agent = Agent::start().await;
    let mut task = Task::new(&agent.http, "");
    let config = json!({ "protocol": "http", "a": null, "b": { "c": null, "d": [1, null, { "e": null }] } });
    task.document["proxy"]["config"] = config;
    let upstream =
        json!({ "destinationName": "api", "localBindPort": 1234, "config": { "connect_timeout_ms": 1, "a": null } });
    task.document["proxy"]["upstreams"] = json!([upstream]);
    task.starts().await;
    let proxy = agent.call("GET", "/v1/agent/service/web-f1a2-sidecar-proxy", &Value::Null).await;
    assert_eq!(proxy["Proxy"]["Upstreams"][0]["Config"], json!({ "connect_timeout_ms": 1 }));
    assert_eq!(proxy["Proxy"]["Config"], json!({ "protocol": "http", "b": { "d": [1, {}] } }));
}
