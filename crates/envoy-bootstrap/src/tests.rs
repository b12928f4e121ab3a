use std::net::{Ipv4Addr, Ipv6Addr};

use super::listener::{PrometheusAuthority, PrometheusTls};
use sidecar_kit::env::Env;

use super::*;

/// The values that a test can change. By default they are those of the reference: `test-proxy` of service `test` in `dc1`.
struct Case {
    config: Value,
    token: Option<Secret>,
    local: IpAddr,
    prometheus: Prometheus,
    ready_bind: Option<&'static str>,
    admin_access_log_path: &'static str,
    access_log: Option<Value>,
    authorities: Option<CertificatesPem>,
    datacenter: Option<&'static str>,
    node: Option<&'static str>,
    env: Env,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            config: json!({}),
            token: None,
            local: Ipv4Addr::LOCALHOST.into(),
            prometheus: Prometheus::default(),
            ready_bind: None,
            admin_access_log_path: "/dev/null",
            access_log: None,
            authorities: None,
            datacenter: Some("dc1"),
            node: None,
            env: Env::default(),
        }
    }
}

impl Case {
    fn bootstrap(&self) -> Result<Value, BootstrapError> {
        Bootstrap {
            service: "test",
            proxy_id: "test-proxy",
            node: self.node,
            namespace: None,
            partition: None,
            datacenter: self.datacenter,
            token: self.token.as_ref(),
            xds: &XdsAddress { endpoint: Endpoint::Tcp(self.local, 8502), authorities: self.authorities.clone() },
            admin: (self.local, 19000),
            prometheus: &self.prometheus,
            ready_bind: self.ready_bind.map(ready_bind).transpose()?,
            admin_access_log_path: self.admin_access_log_path,
            access_log: self.access_log.as_ref(),
            options: &ProxyOptions::parse(self.config.as_object().unwrap(), &self.env)?,
        }
        .to_json()
    }

    fn refused(config: Value) -> String {
        Self { config, ..Self::default() }.bootstrap().unwrap_err().to_string()
    }
}

/// The first difference between two documents, for a readable message.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let null = Value::Null;
                difference(&format!("{path}.{key}"), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| difference(&format!("{path}[{index}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: ours {a}, theirs {b}")),
    }
}

/// `UPDATE_GOLDEN=1 cargo test -p envoy-bootstrap` writes the files in `golden/` anew.
#[test]
fn golden_cases_give_their_bootstraps() {
    let tls = PrometheusTls {
        authority: PrometheusAuthority::Path("/tls/authorities".to_owned()),
        cert_file: "/tls/metrics.crt".to_owned(),
        key_file: "/tls/metrics.key".to_owned(),
    };
    let prometheus = Prometheus { backend_port: Some(9901), scrape_path: "/stats".to_owned(), tls: Some(tls) };
    let logs =
        json!({ "AccessLogs": { "Enabled": true, "Type": "file", "Path": "/log/admin", "TextFormat": "%PROTOCOL%" } });
    let cases = [
        ("defaults", Case::default()),
        ("token", Case { token: Some(Secret::new("a-token")), datacenter: None, ..Case::default() }),
        (
            "metrics",
            Case {
                config: json!({ "envoy_prometheus_bind_addr": "0.0.0.0:9102", "envoy_stats_bind_addr": "0.0.0.0:9103" }),
                prometheus,
                ready_bind: Some("0.0.0.0:9104"),
                ..Case::default()
            },
        ),
        (
            "ipv6",
            Case {
                local: Ipv6Addr::LOCALHOST.into(),
                config: json!({ "envoy_statsd_url": "udp://[fd00::7]:8125", "envoy_stats_flush_interval": "5s" }),
                ..Case::default()
            },
        ),
        (
            "statistics",
            Case {
                config: json!({
                    "envoy_dogstatsd_url": "unix:///run/statsd.sock", "envoy_stats_tags": ["zone=b"],
                    "envoy_telemetry_collector_bind_socket_dir": "/run/telemetry",
                }),
                ..Case::default()
            },
        ),
        (
            "extras",
            Case {
                config: json!({
                    "envoy_extra_static_clusters_json": r#"{"name": "more", "type": "STATIC"}"#,
                    "envoy_extra_static_listeners_json": r#"{"name": "door"}"#,
                    "envoy_extra_stats_sinks_json": r#"{"name": "sink"}"#,
                    "envoy_stats_config_json": r#"{"use_all_default_tags": false}"#,
                    "envoy_tracing_json": r#"{"http": {"name": "tracer"}}"#,
                }),
                access_log: access_log_of(&logs).unwrap(),
                ..Case::default()
            },
        ),
        ("dataplane", Case { node: Some("arn:aws:ecs:eu-north-1:210987654321:cluster/blue"), ..Case::default() }),
    ];
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/golden");
    for (name, case) in cases {
        let made = case.bootstrap().unwrap();
        let path = golden.join(format!("{name}.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{made:#}\n")).unwrap();
        }
        let expected = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(difference("", &made, &expected), None, "{name}");
    }
}

#[test]
#[ignore = "needs REFERENCE_DIR: the folder with the bootstraps of `consul connect envoy`"]
fn bootstraps_equal_those_of_consul() {
    let reference = std::env::var_os("REFERENCE_DIR").expect("REFERENCE_DIR names the folder with the reference data");
    let read = |name: &str| -> Value {
        let path = std::path::Path::new(&reference).join("envoy-bootstrap").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap()
    };
    let keys = "../../../test/key/";
    let tls = PrometheusTls {
        authority: PrometheusAuthority::File(format!("{keys}ourdomain.cer")),
        cert_file: format!("{keys}ourdomain_server.cer"),
        key_file: format!("{keys}ourdomain_server.key"),
    };
    let prometheus = Prometheus { backend_port: Some(20100), scrape_path: "/scrape-path".to_owned(), tls: Some(tls) };
    let zipkin = read("zipkin-tracing-dualstack.json");
    let v6 = || Case { local: Ipv6Addr::LOCALHOST.into(), ..Case::default() };
    let cases = [
        ("acl-token.json", Case { token: Some(Secret::new("foo")), ..Case::default() }),
        (
            "prometheus-tls.json",
            Case { config: json!({ "envoy_prometheus_bind_addr": "0.0.0.0:9000" }), prometheus, ..Case::default() },
        ),
        (
            "stats-config-override-dualstack.json",
            Case { config: json!({ "envoy_stats_config_json": r#"{"name": "fake_config"}"# }), ..v6() },
        ),
        (
            "zipkin-tracing-dualstack.json",
            Case {
                config: json!({
                    "envoy_tracing_json": zipkin["tracing"].to_string(),
                    "envoy_extra_static_clusters_json": zipkin["static_resources"]["clusters"][1].to_string(),
                }),
                ..v6()
            },
        ),
    ];
    for (name, case) in cases {
        let difference = difference("", &case.bootstrap().unwrap(), &read(name));
        assert_eq!(difference, None, "{name}");
    }
}

#[test]
fn node_and_tags_have_namespace_partition_and_service() {
    let xds = XdsAddress { endpoint: Endpoint::Unix("/run/consul.sock".to_owned()), authorities: None };
    let bootstrap = Bootstrap {
        service: "shop",
        proxy_id: "shop-f1a2-sidecar-proxy",
        node: None,
        namespace: Some("ns1"),
        partition: Some("ap1"),
        datacenter: None,
        token: None,
        xds: &xds,
        admin: (Ipv4Addr::LOCALHOST.into(), 19001),
        prometheus: &Prometheus::default(),
        ready_bind: None,
        admin_access_log_path: "/dev/null",
        access_log: None,
        options: &ProxyOptions::default(),
    }
    .to_json()
    .unwrap();
    assert_eq!(
        bootstrap["node"],
        json!({
            "cluster": "shop", "id": "shop-f1a2-sidecar-proxy", "metadata": { "namespace": "ns1", "partition": "ap1" },
        })
    );
    let tags = bootstrap["stats_config"]["stats_tags"].as_array().unwrap();
    let fixed = tags.iter().filter_map(|tag| Some((tag["tag_name"].as_str()?, tag["fixed_value"].as_str()?)));
    let fixed: Vec<_> = fixed.collect();
    assert_eq!(
        fixed,
        [
            ("local_cluster", "shop"),
            ("consul.source.service", "shop"),
            ("consul.source.namespace", "ns1"),
            ("consul.source.partition", "ap1"),
        ]
    );
    let address = &bootstrap["static_resources"]["clusters"][0]["loadAssignment"]["endpoints"][0]["lbEndpoints"][0];
    assert_eq!(address["endpoint"]["address"], json!({ "pipe": { "path": "/run/consul.sock" } }));
}

#[test]
fn a_user_s_tags_come_first_and_replace_ours() {
    let config = json!({ "envoy_stats_tags": ["Canary", "local_cluster=mine", "a=b=c"] });
    let bootstrap = Case { config, ..Case::default() }.bootstrap().unwrap();
    let tags = bootstrap["stats_config"]["stats_tags"].as_array().unwrap();
    assert_eq!(tags[0], json!({ "tag_name": "canary", "fixed_value": "1" }));
    assert_eq!(tags[2], json!({ "tag_name": "a", "fixed_value": "b=c" }));
    assert_eq!(tags.iter().filter(|tag| tag["tag_name"] == "local_cluster").count(), 1);
}

#[test]
fn listeners_share_one_cluster_and_their_secrets() {
    let tls = PrometheusTls {
        authority: PrometheusAuthority::Path("/ca".to_owned()),
        cert_file: "/cert".to_owned(),
        key_file: "/key".to_owned(),
    };
    let case = Case {
        config: json!({ "envoy_prometheus_bind_addr": "[::]:9102", "ENVOY_STATS_BIND_ADDR": "0.0.0.0:9103",
            "envoy_extra_static_listeners_json": r#"{"name": "mine"}"# }),
        prometheus: Prometheus { tls: Some(tls), ..Prometheus::default() },
        ready_bind: Some("0.0.0.0:9104"),
        ..Case::default()
    };
    let resources = &case.bootstrap().unwrap()["static_resources"];
    let names = |list: &str| -> Vec<String> {
        resources[list].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("clusters"), ["local_agent", "self_admin"]);
    assert_eq!(
        names("listeners"),
        ["mine", "envoy_prometheus_metrics_listener", "envoy_metrics_listener", "envoy_ready_listener"]
    );
    assert_eq!(names("secrets"), ["prometheus_cert", "prometheus_validation_context"]);
    assert_eq!(resources["listeners"][1]["address"]["socket_address"]["address"], "::");
}

#[test]
fn sinks_take_urls_sockets_and_variables() {
    let case = Case {
        config: json!({
            "envoy_statsd_url": "udp://${HOST_IP}:8125",
            "envoy_dogstatsd_url": "$DOGSTATSD",
            "envoy_extra_stats_sinks_json": r#"{"name": "a"}, {"name": "b"}"#,
            "envoy_stats_flush_interval": "10s",
        }),
        env: Env::from_iter([("HOST_IP", "10.0.0.7"), ("DOGSTATSD", "unix:///run/dd.sock")]),
        ..Case::default()
    };
    let bootstrap = case.bootstrap().unwrap();
    let sinks = bootstrap["stats_sinks"].as_array().unwrap();
    assert_eq!(sinks.len(), 4);
    assert_eq!(
        sinks[0]["typedConfig"]["address"]["socket_address"],
        json!({ "address": "10.0.0.7", "port_value": 8125 })
    );
    assert_eq!(sinks[1]["typedConfig"]["address"]["pipe"]["path"], "/run/dd.sock");
    assert_eq!(bootstrap["stats_flush_interval"], "10s");
}

#[test]
fn the_telemetry_cluster_has_the_socket_that_consul_uses() {
    let config = json!({ "envoy_telemetry_collector_bind_socket_dir": "/run/telemetry/" });
    let bootstrap = Case { config, ..Case::default() }.bootstrap().unwrap();
    let cluster = &bootstrap["static_resources"]["clusters"][1];
    assert_eq!(
        cluster["name"],
        bootstrap["stats_sinks"][0]["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"]
    );
    // The base64 of the SHA-1 of "default_test-proxy".
    let path = "/run/telemetry/k3bWnyJyKvjUYXrBdOX2nXzSSCQ.sock";
    assert!(cluster["loadAssignment"].to_string().contains(path), "{cluster}");
}

#[test]
fn a_telemetry_collector_gets_metrics_once_a_minute() {
    let interval = |more: Value| {
        let mut config = json!({ "envoy_telemetry_collector_bind_socket_dir": "/run/telemetry" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Case { config, ..Case::default() }.bootstrap().unwrap()["stats_flush_interval"].take()
    };
    assert_eq!(interval(json!({})), "60s");
    assert_eq!(interval(json!({ "envoy_stats_flush_interval": "10s" })), "10s");
    assert_eq!(interval(json!({ "envoy_statsd_url": "udp://127.0.0.1:8125" })), Value::Null);
    assert_eq!(Case::default().bootstrap().unwrap()["stats_flush_interval"], Value::Null);
}

#[test]
fn admin_interface_logs_as_proxy_defaults_say() {
    let logs = |logs: Value| access_log_of(&json!({ "Kind": "proxy-defaults", "AccessLogs": logs })).unwrap();
    let with = |access_log| Case { access_log, ..Case::default() }.bootstrap().unwrap()["admin"]["access_log"].take();
    let file = with(logs(json!({ "Enabled": true, "Type": "file", "Path": "/log", "TextFormat": "%START_TIME%" })));
    assert_eq!(
        file[0]["typedConfig"],
        json!({
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/log",
            "logFormat": { "textFormatSource": { "inlineString": "%START_TIME%\n" } },
        })
    );
    let standard = with(logs(json!({ "Enabled": true })));
    assert_eq!(standard[0]["typedConfig"]["logFormat"]["jsonFormat"]["method"], "%REQ(:METHOD)%");
    assert_eq!(with(logs(json!({ "Enabled": false })))[0]["typed_config"]["path"], "/dev/null");
    let case = Case { admin_access_log_path: "/admin.log", ..Case::default() };
    assert_eq!(case.bootstrap().unwrap()["admin"]["access_log"][0]["typed_config"]["path"], "/admin.log");
}

#[test]
fn tls_to_the_agent_trusts_the_given_authorities() {
    let pem = authority();
    let case = Case { authorities: Some(pem.clone()), ..Case::default() };
    let cluster = &case.bootstrap().unwrap()["static_resources"]["clusters"][0];
    let context = &cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"];
    assert_eq!(context["trusted_ca"]["inline_string"], pem.as_str());
}

fn authority() -> CertificatesPem {
    let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
    CertificatesPem::new(made.cert.pem()).unwrap()
}

#[test]
fn an_invalid_option_is_reported_with_what_is_expected() {
    assert_eq!(
        Case::refused(json!({ "envoy_prometheus_bind_addr": "9102" })),
        r#"proxy configuration envoy_prometheus_bind_addr: expected <ip>:<port>, got "9102""#
    );
    assert_eq!(
        Case::refused(json!({ "envoy_stats_tags": [["a"]] })),
        "proxy configuration envoy_stats_tags: expected an array of strings, got an array"
    );
    let ready = Case { ready_bind: Some("9104"), ..Case::default() }.bootstrap().unwrap_err().to_string();
    assert_eq!(ready, r#"--ready-bind (MESH_INIT_READY_BIND) is "9104": expected <ip>:<port>"#);
    assert!(Case::refused(json!({ "envoy_tracing_json": "{" })).contains("text that is not JSON"));
    assert!(Case::refused(json!({ "envoy_extra_static_clusters_json": "[{}]" })).ends_with("got an array"));
    assert!(Case::refused(json!({ "envoy_statsd_url": "tcp://1.2.3.4:1" })).contains("expected udp://"));
    for url in ["udp://localhost:8125", "udp://$HOST_IPS:8125", "udp://::1:8125", "unix://run/x", "$UNSET"] {
        let line = Case::refused(json!({ "envoy_dogstatsd_url": url }));
        assert!(line.contains("envoy_dogstatsd_url: expected udp://<ip>:<port>"), "{line}");
    }
    let line = Case::refused(json!({ "envoy_statsd_url": "udp://user:passw0rd@10.0.0.1:8125" }));
    assert!(!line.contains("passw0rd"), "{line}");
    // The variable holds an address, which is not a URL.
    let line = Case::refused(json!({ "envoy_statsd_url": "$HOST_IP" }));
    assert!(line.ends_with("got $HOST_IP"), "{line}");
    let line = Case::refused(json!({ "envoy_stats_bind_addr": "localhost:9102" }));
    assert!(line.contains("envoy_stats_bind_addr: expected <ip>:<port>"), "{line}");
}

#[test]
fn ipv6_addresses_are_written_in_brackets() {
    let config = json!({
        "envoy_statsd_url": "udp://[${HOST_IP}]:8125", "envoy_dogstatsd_url": "UDP://[$HOST_IP]:8126/",
        "envoy_stats_bind_addr": "[::]:9103",
    });
    let case = Case {
        config,
        local: Ipv6Addr::LOCALHOST.into(),
        env: Env::from_iter([("HOST_IP", "fd00::7")]),
        ..Case::default()
    };
    let bootstrap = case.bootstrap().unwrap();
    for (sink, port) in [(0, 8125), (1, 8126)] {
        let address = &bootstrap["stats_sinks"][sink]["typedConfig"]["address"]["socket_address"];
        assert_eq!(*address, json!({ "address": "fd00::7", "port_value": port }));
    }
    assert_eq!(bootstrap["admin"]["address"]["socket_address"]["address"], "::1");
}

#[test]
fn a_template_gets_the_values_of_the_other_options() {
    let template = r#"{
        {{- if (not .AdminAccessLogConfig) }} "log": "{{ .AdminAccessLogPath }}", {{- end }}
        "admin": ["{{ .AdminBindAddress }}", {{ .AdminBindPort }}],
        "id": "{{ .ProxyID }} {{ .ProxyCluster }} {{ .ProxySourceService }} {{ .Datacenter }}",
        "namespace": "{{ if ne .Namespace "" }}{{ .Namespace }}{{ else }}default{{ end }}",
        "agent": ["{{ .GRPC.AgentAddress }}", {{ .AgentPort }}, {{ .AgentTLS }}, "{{ .AgentCAPEM }}"],
        "clusters": [ "{{ .LocalAgentClusterName }}" {{- if .StaticClustersJSON -}} , {{ .StaticClustersJSON }} {{- end }} ],
        "listeners": [ {{ .StaticListenersJSON }} ], "secrets": [ {{ .StaticSecretsJSON }} ],
        "stats_sinks": [ {{ .StatsSinksJSON }} ], "stats_config": {{ .StatsConfigJSON }},
        {{- if .StatsFlushInterval }} "interval": "{{ .StatsFlushInterval }}", {{- end }}
        {{- /* nothing traces */}} {{ if .TracingConfigJSON }} "tracing": {{ .TracingConfigJSON }}, {{ end }}
        "prometheus": "{{ .PrometheusBackendPort }}{{ .PrometheusScrapePath }}{{ .PrometheusCertFile }}",
        "token": "{{ .Token }}"
    }"#;
    let pem = authority();
    let case = Case {
        config: json!({ "envoy_bootstrap_json_tpl": template, "envoy_stats_config_json": "{}",
            "envoy_extra_static_clusters_json": r#"{"name": "a"}, {"name": "b"}"#,
            "envoy_prometheus_bind_addr": "0.0.0.0:9102", "envoy_telemetry_collector_bind_socket_dir": "/run" }),
        token: Some(Secret::new("t0k3n")),
        authorities: Some(pem.clone()),
        ..Case::default()
    };
    let made = case.bootstrap().unwrap();
    let names = made["clusters"].as_array().unwrap().iter().map(|cluster| cluster["name"].as_str().unwrap_or("agent"));
    let names: Vec<_> = names.collect();
    assert_eq!(names, ["agent", "a", "b", "self_admin", "consul_telemetry_collector_loopback"]);
    assert_eq!(made["listeners"][0]["name"], "envoy_prometheus_metrics_listener");
    assert_eq!(made["stats_sinks"][0]["name"], "envoy.stat_sinks.metrics_service");
    let mut rest = made.clone();
    for key in ["clusters", "listeners", "stats_sinks"] {
        rest.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(
        rest,
        json!({
            "log": "/dev/null", "admin": ["127.0.0.1", 19000], "id": "test-proxy test test dc1", "namespace": "default",
            "agent": ["127.0.0.1", 8502, true, pem.as_str()], "secrets": [], "stats_config": {}, "interval": "60s",
            "prometheus": "/metrics", "token": "t0k3n",
        })
    );
}

#[test]
fn a_template_s_malformed_output_is_not_shown() {
    let refused = |template: &str| {
        let config = json!({ "envoy_bootstrap_json_tpl": template });
        Case { config, token: Some(Secret::new("t0k3n")), ..Case::default() }.bootstrap().unwrap_err().to_string()
    };
    let option = "proxy configuration envoy_bootstrap_json_tpl: ";
    let expected = "expected a template that gives a JSON object, got ";
    assert_eq!(refused("[]"), format!("{option}{expected}an array"));
    let line = refused("{ {{ .Token }} }");
    assert!(
        line.starts_with(&format!("{option}{expected}text that is not JSON (")) && !line.contains("t0k3n"),
        "{line}"
    );
    assert!(refused("{{ .Tokens }}").starts_with(&format!("{option}line 1, column 1: there is no field .Tokens")));
}
