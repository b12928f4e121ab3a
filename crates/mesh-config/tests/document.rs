//! Parsing and checking of documents as teams write them.

use mesh_config::{
    CheckStatus, Config, ConfigError, DestinationType, GatewayKind, LogLevel, MeshGatewayMode, Mode, ServerEndpoint,
    rules,
};
use serde_json::{Value, json};

/// The error's line.
fn refused(text: &str) -> String {
    Config::parse(text).expect_err(text).to_string()
}

#[test]
fn the_smallest_documents_are_valid() {
    let config = Config::parse(r#"{"bootstrapDir": "/consul", "service": {"port": 0}}"#).unwrap();
    assert_eq!(config.bootstrap_dir.to_str(), Some("/consul"));
    assert_eq!(config.proxy.public_listener_port, 20000);
    assert!(config.gateway.is_none() && config.warnings.is_empty());
    let config = Config::parse(r#"{"bootstrapDir": "/consul", "gateway": {"kind": "ingress-gateway"}}"#).unwrap();
    assert_eq!(config.gateway.unwrap().kind, GatewayKind::Ingress);
    assert!(config.service.is_none() && config.warnings.is_empty());
}

#[test]
fn null_is_the_same_as_absent_if_the_schema_allows_it() {
    let text = r#"{"bootstrapDir": "/consul", "logLevel": null, "proxy": null, "consulLogin": null,
        "service": {"port": 1, "weights": null, "tags": null, "checks": [{"status": null}]}}"#;
    let absent = r#"{"bootstrapDir": "/consul", "service": {"port": 1, "checks": [{}]}}"#;
    assert_eq!(Config::parse(text).unwrap(), Config::parse(absent).unwrap());
    assert_eq!(
        refused(r#"{"bootstrapDir": null, "service": {"port": null, "checks": [{"name": null}]}, "gateway": null}"#),
        "bootstrapDir: expected a string that is not empty, got null; service.port: expected an integer, got null; \
         service.checks[0].name: expected a string, got null; gateway: expected an object, got null"
    );
}

#[test]
fn all_errors_have_their_path_value_and_expectation() {
    let text = r#"{
        "logLevel": "loud",
        "service": {"port": "80", "tags": ["a", 1, "a"], "name": "Web", "checks": [{"http": 5, "ttl": "1s", "tls": true}]},
        "proxy": {"upstreams": [{"destinationName": "api", "localBindPort": "80"}, {"localBindPort": 99999}, 7]},
        "extra": 1, "b\nreak": 2
    }"#;
    let line = refused(text);
    for finding in [
        "bootstrapDir: missing, expected a string that is not empty",
        r#"logLevel: expected one of TRACE, DEBUG, INFO, WARN, ERROR, got "loud""#,
        r#"service.port: expected an integer, got "80""#,
        "service.tags[1]: expected a string, got 1",
        r#"service.tags[2]: expected each value once, got "a" again"#,
        r#"service.name: expected lower-case letters, digits, - and _, with a letter or digit at both ends, got "Web""#,
        "service.checks[0].http: expected a string, got 5",
        "service.checks[0].tls: expected one of the fields aliasNode, ",
        r#"proxy.upstreams[0].localBindPort: expected an integer, got "80""#,
        "proxy.upstreams[1].destinationName: missing, expected a string",
        "proxy.upstreams[1].localBindPort: expected an integer from 1 to 65535, got 99999 [port-range]",
        "proxy.upstreams[2]: expected an object, got 7",
        "extra: expected one of the fields bootstrapDir, ",
        "b\u{fffd}reak: expected one of the fields bootstrapDir, ",
    ] {
        assert!(line.contains(finding), "{finding}\nis not in\n{line}");
    }
    assert_eq!(line.lines().count(), 1);
    assert_eq!(line.split("; ").count(), 14, "{line}");
    // The warnings are reported too.
    let warnings = Config::parse(&text.replace(r#""port": "80""#, r#""port": "80", "adress": 1"#));
    let warnings = warnings.unwrap_err().warnings().to_vec();
    assert!(warnings.len() == 1 && warnings[0].starts_with("service.adress: "), "{warnings:?}");
}

#[test]
fn an_unknown_field_that_the_schema_allows_is_a_warning() {
    let text = r#"{"bootstrapDir": "/consul", "service": {"port": 1, "adress": "x"},
        "proxy": {"listenerPort": 1, "meshGateway": {"mode": "local", "more": 1}}}"#;
    let warnings = Config::parse(text).unwrap().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().any(|line| line.starts_with("service.adress: an unknown field, ignored; known are ")));
}

#[test]
fn only_a_json_object_is_accepted() {
    let error = Config::parse("{").unwrap_err();
    assert_eq!(error.to_string(), "not JSON");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(refused("[]"), "the document: expected an object, got an array");
    assert_eq!(
        refused(r#"{"bootstrapDir": "", "service": {"port": 1}}"#),
        r#"bootstrapDir: expected a string that is not empty, got """#
    );
}

#[test]
fn no_error_repeats_a_possible_credential() {
    let text = r#"{"bootstrapDir": "/consul", "service": {"port": 1, "checks": [
        {"header": {"Authorization": "Bearer s3cr3t"}}, {"header": {"A": ["s3cr3t", 1]}}, {"body": {"pin": "s3cr3t"}},
        {"header": "s3cr3t"}]}, "proxy": {"config": "s3cr3t"}}"#;
    let line = refused(text);
    assert!(!line.contains("s3cr3t"), "{line}");
    assert!(line.contains("service.checks[0].header.Authorization: expected an array of strings, got a string"));
}

#[test]
fn every_field_is_read() {
    let text = r#"{"bootstrapDir": "/consul", "logLevel": "WARN", "consulHTTPAddr": "unix:///run/c", "consulCACertFile": "/ca",
        "consulLogin": {"enabled": true, "meta": {"a": "b"}, "region": "eu-west-1"},
        "healthSyncContainers": [],
        "service": {"name": "web", "port": 80.0, "tags": ["a"], "enableTagOverride": true, "meta": {"k": "v"},
            "weights": {"passing": 3, "warning": 1}, "namespace": "ns", "partition": "",
            "checks": [{"checkId": "c", "http": "http://localhost", "header": {"H": ["1", "2"]}, "status": "passing",
                "interval": "5s", "h2pingUseTls": false, "successBeforePassing": 2}]},
        "proxy": {"config": {"a": [1]}, "meshGateway": {"mode": "remote"},
            "upstreams": [{"destinationType": "prepared_query", "destinationName": "q", "localBindPort": 81}],
            "expose": {"checks": true, "paths": [{"path": "/p", "listenerPort": 1, "localPathPort": 2}]}}}"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(config.log_level, Some(LogLevel::Warn));
    let login = config.consul_login.unwrap();
    assert!(login.enabled && login.include_entity);
    assert_eq!(login.method, "iam-ecs-service-token");
    let service = config.service.unwrap();
    assert_eq!((service.port, service.partition, service.weights.unwrap().passing), (80, None, 3));
    assert_eq!(service.checks[0].header["H"], ["1", "2"]);
    assert_eq!(service.checks[0].status, Some(CheckStatus::Passing));
    assert_eq!(service.checks[0].h2ping_use_tls, Some(false));
    assert_eq!(config.proxy.mesh_gateway, Some(MeshGatewayMode::Remote));
    assert_eq!(config.proxy.upstreams[0].destination_type, Some(DestinationType::PreparedQuery));
    assert_eq!(config.proxy.config["a"][0], 1);
    assert_eq!(config.proxy.expose.unwrap().paths[0].path.as_deref(), Some("/p"));
}

/// Changes a valid document, and returns the names of the broken rules, in the order of the rules.
fn broken(change: impl FnOnce(&mut Value)) -> Vec<&'static str> {
    let mut document = json!({
        "bootstrapDir": "/consul",
        "service": { "port": 8080, "weights": { "passing": 1, "warning": 0 }, "checks": [{ "name": "c", "ttl": "1m" }] },
        "proxy": {
            "upstreams": [{ "destinationName": "a", "localBindPort": 1 }, { "destinationName": "b", "localBindPort": 2 }],
            "expose": { "paths": [{ "path": "/", "listenerPort": 3, "localPathPort": 8080 }] },
        },
    });
    change(&mut document);
    match Config::parse(&document.to_string()) {
        Ok(config) => {
            let of = |line: &String| {
                let rule = rules::RULES.iter().find(|rule| rule.warns && line.ends_with(&format!(" [{}]", rule.name)));
                rule.unwrap_or_else(|| panic!("no rule in {line}")).name
            };
            config.warnings.iter().map(of).collect()
        }
        Err(ConfigError::Fields { errors, .. }) => {
            errors.iter().map(|error| error.rule.expect("a rule's name")).collect()
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn each_broken_rule_is_reported_by_its_name() {
    let none: [&str; 0] = [];
    assert_eq!(broken(|_| {}), none);
    let remove = |d: &mut Value, field: &str| drop(d.as_object_mut().unwrap().remove(field));
    assert_eq!(broken(|d| remove(d, "service")), ["service-or-gateway"]);
    assert_eq!(broken(|d| d["gateway"] = json!({ "kind": "mesh-gateway" })), ["gateway-first"]);

    assert_eq!(broken(|d| d["healthSyncContainers"] = json!(["app"])), ["one-kind-of-checks"]);
    assert_eq!(broken(|d| d["healthSyncContainers"] = json!([])), none);
    let gateway_with_both = broken(|d| {
        d["healthSyncContainers"] = json!(["app"]);
        d["gateway"] = json!({ "kind": "mesh-gateway" });
    });
    assert_eq!(gateway_with_both, ["gateway-first"]);
    let gateway_beside = |name: &str, value: Value| {
        broken(|d| {
            *d = json!({ "bootstrapDir": "/consul", "gateway": { "kind": "mesh-gateway" } });
            d[name] = value;
        })
    };
    let config = json!({ "config": { "protocol": "http" } });
    for (name, value) in
        [("service", json!({ "port": 1 })), ("proxy", config), ("healthSyncContainers", json!(["app"]))]
    {
        assert_eq!(gateway_beside(name, value), ["gateway-first"], "{name}");
    }
    for (name, value) in
        [("proxy", json!(null)), ("healthSyncContainers", json!(null)), ("healthSyncContainers", json!([]))]
    {
        assert_eq!(gateway_beside(name, value), none, "{name}");
    }

    for (pointer, zero_is_none) in [
        ("/service/port", true),
        ("/proxy/publicListenerPort", true),
        ("/proxy/upstreams/0/localBindPort", false),
        ("/proxy/expose/paths/0/listenerPort", false),
        ("/proxy/expose/paths/0/localPathPort", false),
    ] {
        let set = |port: Value| {
            broken(|d| {
                d["proxy"]["publicListenerPort"] = json!(20000);
                *d.pointer_mut(pointer).unwrap() = port;
            })
        };
        for port in [json!(-1), json!(65536), json!(1e300), json!(u64::MAX)] {
            assert_eq!(set(port), ["port-range"], "{pointer}");
        }
        assert_eq!(set(json!(65535.0)), none, "{pointer}");
        assert_eq!(set(json!(0)).is_empty(), zero_is_none, "{pointer}");
    }
    let gateway_port = |address: Value, port: Value| {
        broken(|d| {
            remove(d, "service");
            remove(d, "proxy");
            d["gateway"] = json!({ "kind": "mesh-gateway", "wanAddress": { "address": address, "port": port } });
        })
    };
    assert_eq!(gateway_port(json!("a"), json!(65536)), ["port-range"]);
    assert_eq!(gateway_port(json!("a"), json!(443)), none);
    for no_address in [json!(null), json!("")] {
        assert_eq!(gateway_port(no_address.clone(), json!(0)), none);
        assert_eq!(gateway_port(no_address, json!(443)), ["wan-address"]);
    }

    assert_eq!(broken(|d| d["proxy"]["upstreams"][1]["localBindPort"] = json!(1)), ["port-once"]);
    assert_eq!(broken(|d| d["proxy"]["upstreams"][1]["localBindPort"] = json!(20000)), ["port-once"]);
    assert_eq!(broken(|d| d["proxy"]["publicListenerPort"] = json!(2)), ["port-once"]);
    assert_eq!(broken(|d| d["proxy"]["expose"]["paths"][0]["listenerPort"] = json!(2)), ["port-once"]);
    let moved = broken(|d| {
        d["proxy"]["publicListenerPort"] = json!(21000);
        d["proxy"]["upstreams"][1]["localBindPort"] = json!(20000);
    });
    assert_eq!(moved, none);

    assert_eq!(broken(|d| d["proxy"]["upstreams"][0]["destinationName"] = json!("")), ["upstream-name"]);
    let path = |change: Value| broken(|d| d["proxy"]["expose"]["paths"][0] = change);
    assert_eq!(path(json!({})), ["exposed-path"; 3]);
    assert_eq!(path(json!({ "path": "x", "listenerPort": 3, "localPathPort": 4 })), ["exposed-path"]);
    assert_eq!(broken(|d| d["service"]["weights"]["passing"] = json!(0)), ["weight-range"]);
    assert_eq!(broken(|d| d["service"]["weights"]["warning"] = json!(65536)), ["weight-range"]);
    assert_eq!(broken(|d| d["service"]["checks"][0]["successBeforePassing"] = json!(-1)), ["check-count"]);
    assert_eq!(broken(|d| d["service"]["checks"][0]["failuresBeforeCritical"] = json!(65536)), ["check-count"]);
}

/// The broken rules of a document with an app on port 9090 and this proxy.
fn broken_by(proxy: Value) -> Vec<&'static str> {
    let document = json!({ "bootstrapDir": "/consul", "service": { "port": 9090 }, "proxy": proxy });
    rules::broken(&document).into_iter().map(|(rule, _)| rule.name).collect()
}

#[test]
fn two_listeners_must_differ_in_address_or_port() {
    let upstreams = |addresses: &[(&str, u16)]| {
        let upstream = |(address, port): &(&str, u16)| json!({ "destinationName": "a", "localBindAddress": address, "localBindPort": port });
        broken_by(json!({ "upstreams": addresses.iter().map(upstream).collect::<Vec<_>>() }))
    };
    let none: [&str; 0] = [];
    for apart in [
        [("127.0.0.2", 9090), ("127.0.0.3", 9090)],
        [("", 5432), ("127.0.0.2", 5432)],
        [("127.0.0.1", 5432), ("::1", 5432)],
        [("127.0.0.1", 5432), ("127.0.0.1", 5433)],
    ] {
        assert_eq!(upstreams(&apart), none, "{apart:?}");
    }
    for same in [
        [("", 5432), ("127.0.0.1", 5432)],
        [("localhost", 5432), ("127.0.0.1", 5432)],
        [("::ffff:127.0.0.2", 5432), ("127.0.0.2", 5432)],
        [("::1", 5432), ("0:0:0:0:0:0:0:1", 5432)],
        [("0.0.0.0", 5432), ("127.0.0.2", 5432)],
        [("127.0.0.2", 5432), ("::", 5432)],
        [("127.0.0.2", 20000), ("127.0.0.2", 5432)],
        [("127.0.0.1", 9090), ("127.0.0.2", 5432)],
        [("0.0.0.0", 9090), ("127.0.0.2", 5432)],
    ] {
        assert_eq!(upstreams(&same), ["port-once"], "{same:?}");
    }
    let exposed = json!({ "paths": [{ "path": "/", "listenerPort": 5432, "localPathPort": 9090 }] });
    let upstream = json!([{ "destinationName": "a", "localBindAddress": "127.0.0.2", "localBindPort": 5432 }]);
    assert_eq!(broken_by(json!({ "upstreams": upstream, "expose": exposed })), ["port-once"]);
    let scraped =
        |bind: &str| broken_by(json!({ "upstreams": upstream, "config": { "envoy_prometheus_bind_addr": bind } }));
    assert_eq!(scraped("127.0.0.2:5432"), ["port-once"]);
    assert_eq!(scraped("[::]:5432"), ["port-once"]);
    assert_eq!(scraped("127.0.0.3:5432"), none);
    // Envoy's options are known in any case.
    let upper = json!({ "ENVOY_Stats_Bind_Addr": "127.0.0.2:5432" });
    assert_eq!(broken_by(json!({ "upstreams": upstream, "config": upper })), ["port-once"]);
}

#[test]
fn ports_of_the_sidecars_cause_a_warning() {
    let none: [&str; 0] = [];
    let upstream = |address: &str, port: u16| {
        broken_by(
            json!({ "upstreams": [{ "destinationName": "a", "localBindAddress": address, "localBindPort": port }] }),
        )
    };
    for port in [8301, 8500, 8502, 8600, 19000] {
        assert_eq!(upstream("", port), ["port-of-a-sidecar"], "{port}");
        assert_eq!(upstream("::1", port), ["port-of-a-sidecar"], "{port}");
        assert_eq!(broken_by(json!({ "publicListenerPort": port })), ["port-of-a-sidecar"], "{port}");
        let app = json!({ "bootstrapDir": "/consul", "service": { "port": port } });
        assert!(matches!(&rules::broken(&app)[..], [(rule, _)] if rule.warns), "{port}");
        let gateway = |address: &str| {
            let lan = json!({ "address": address, "port": port });
            let document =
                json!({ "bootstrapDir": "/consul", "gateway": { "kind": "mesh-gateway", "lanAddress": lan } });
            rules::broken(&document).into_iter().map(|(rule, _)| rule.name).collect::<Vec<_>>()
        };
        assert_eq!(gateway(""), ["port-of-a-sidecar"], "{port}");
        assert_eq!(gateway("10.0.0.1").is_empty(), port != 8301, "{port}");
    }
    assert_eq!(upstream("127.0.0.2", 8500), none);
    assert_eq!(upstream("127.0.0.2", 8301), ["port-of-a-sidecar"]);
    let text = json!({
        "bootstrapDir": "/consul", "service": { "port": 9090 }, "proxy": { "publicListenerPort": 8502 },
    });
    let config = Config::parse(&text.to_string()).unwrap();
    assert_eq!(
        config.warnings,
        ["proxy.publicListenerPort: expected another port: 8502 is that of gRPC of the task's Consul agent, got 8502 \
          [port-of-a-sidecar]"]
    );
}

#[test]
fn debug_shows_no_opaque_configuration_or_check_header() {
    let config = json!({ "envoy_statsd_url": "5ec3e7" });
    let document = json!({
        "bootstrapDir": "/consul",
        "service": { "port": 9090, "checks": [{ "http": "http://127.0.0.1", "header": { "A": ["5ec3e7"] }, "body": "5ec3e7" }] },
        "proxy": { "config": config, "upstreams": [{ "destinationName": "a", "localBindPort": 1, "config": config }] },
        "gateway": { "kind": "mesh-gateway", "proxy": { "config": config } },
    });
    let shown = format!("{:?}", Config::parse(&document.to_string()).unwrap());
    assert!(!shown.contains("5ec3e7"), "{shown}");
}

#[test]
#[ignore = "needs REFERENCE_DIR: the folder with the documents of consul-ecs"]
fn documents_of_consul_ecs_are_accepted() {
    let reference = std::env::var_os("REFERENCE_DIR").expect("REFERENCE_DIR names the folder with the reference data");
    let reference = std::path::Path::new(&reference).join("consul-ecs-config");
    let read = |name: &str| {
        let path = reference.join(name);
        Config::parse(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    // Both have a gateway and a service.
    let config = read("extensive.json").unwrap();
    assert!(config.warnings.len() == 1 && config.warnings[0].ends_with("[gateway-first]"), "{:?}", config.warnings);
    assert_eq!(config.service.unwrap().checks.len(), 6);
    assert_eq!(config.gateway.unwrap().wan_address.unwrap().port, Some(443));
    assert_eq!(config.proxy.expose.unwrap().paths[0].listener_port, Some(20001));

    let config = read("null-nested-fields.json").unwrap();
    assert!(config.warnings.len() == 1 && config.warnings[0].ends_with("[gateway-first]"), "{:?}", config.warnings);
    assert_eq!(config.proxy.upstreams[0].local_bind_port, 2345);
    assert_eq!(
        config.service.unwrap().checks[0],
        mesh_config::Check { name: Some("check-null".to_owned()), ..Default::default() }
    );
}

/// A document of a task without an agent that breaks no rule.
fn agentless() -> Value {
    json!({
        "bootstrapDir": "/consul", "consulServers": { "hosts": "consul.internal" },
        "transparentProxy": { "enabled": false }, "service": { "port": 8080 },
    })
}

fn agentless_with(change: impl FnOnce(&mut Value)) -> Result<Config, String> {
    let mut document = agentless();
    change(&mut document);
    Config::parse(&document.to_string()).map_err(|error| error.to_string())
}

#[test]
fn consul_servers_choose_the_mode_without_an_agent() {
    let config = agentless_with(|_| ()).unwrap();
    assert_eq!((config.mode(), &config.warnings[..]), (Mode::Agentless, &[][..]));
    let servers = config.consul_servers.unwrap();
    let (http, grpc) = (servers.http_endpoint(), servers.grpc_endpoint());
    assert_eq!((http.port, http.tls, grpc.port, grpc.tls), (8501, true, 8503, true));
    assert_eq!(servers.hosts().collect::<Vec<_>>(), ["consul.internal"]);
    let with_agent = Config::parse(r#"{"bootstrapDir": "/consul", "service": {"port": 1}}"#).unwrap();
    assert_eq!(with_agent.mode(), Mode::Agent);
    // The field decides, whatever it holds.
    let null = agentless_with(|d| d["consulServers"] = json!(null)).unwrap_err();
    assert_eq!(null, "consulServers: expected an object, got null");
}

#[test]
fn http_and_grpc_override_the_defaults_for_tls() {
    let servers = |value: Value| agentless_with(|d| d["consulServers"] = value).unwrap().consul_servers.unwrap();
    let both = servers(json!({
        "hosts": "a, 10.0.0.1 ,::1",
        "defaults": { "caCertFile": "/ca", "tls": false, "tlsServerName": "server.dc1.consul" },
        "http": { "port": 443, "tlsServerName": "front" }, "grpc": { "port": 9503, "caCertFile": "/grpc-ca" },
    }));
    assert_eq!(both.hosts().collect::<Vec<_>>(), ["a", "10.0.0.1", "::1"]);
    let path = |path: &'static str| Some(std::path::Path::new(path));
    // As in consul-ecs, `https` alone decides for HTTP.
    let http = ServerEndpoint { port: 443, tls: true, ca_file: path("/ca"), server_name: Some("front") };
    assert_eq!(both.http_endpoint(), http);
    let grpc =
        ServerEndpoint { port: 9503, tls: false, ca_file: path("/grpc-ca"), server_name: Some("server.dc1.consul") };
    assert_eq!(both.grpc_endpoint(), grpc);
    let plain = servers(json!({ "hosts": "a", "http": { "https": false }, "grpc": { "tls": false } }));
    assert_eq!((plain.http_endpoint().tls, plain.grpc_endpoint().tls), (false, false));
}

#[test]
fn a_field_of_the_other_mode_is_refused_with_the_reason() {
    let error = |change: fn(&mut Value)| agentless_with(change).unwrap_err();
    assert_eq!(
        error(|d| d["service"]["checks"] = json!([])),
        "service.checks: expected no such field: no agent is there to run them; list the containers in \
         `healthSyncContainers`, got a value"
    );
    assert!(error(|d| d["consulHTTPAddr"] = json!(null)).contains("has its servers in `consulServers`"));
    assert!(error(|d| d["consulCACertFile"] = json!("/ca")).contains("in `consulServers.defaults.caCertFile`"));
    assert!(error(|d| d["service"]["adress"] = json!(1)).contains("expected one of the fields enableTagOverride, "));
    let with_agent = |change: fn(&mut Value)| {
        let mut document = json!({ "bootstrapDir": "/c", "service": { "port": 1 }, "consulLogin": {},
            "proxy": { "upstreams": [{ "destinationName": "a", "localBindPort": 2 }] } });
        change(&mut document);
        refused(&document.to_string())
    };
    for (path, change) in [
        ("controller", (|d| d["controller"] = json!({})) as fn(&mut Value)),
        ("transparentProxy", |d| d["transparentProxy"] = json!({})),
        ("consulLogin.datacenter", |d| d["consulLogin"]["datacenter"] = json!("dc1")),
        ("proxy.upstreams[0].destinationPeer", |d| d["proxy"]["upstreams"][0]["destinationPeer"] = json!("p")),
    ] {
        let line = with_agent(change);
        let expected = format!("{path}: expected no such field: it is for a task without an agent, ");
        assert!(line.starts_with(&expected), "{line}");
    }
}

#[test]
fn what_is_not_built_for_a_task_without_an_agent_is_refused_by_its_rule() {
    let broken = |change: fn(&mut Value)| {
        let mut document = agentless();
        change(&mut document);
        rules::broken(&document).into_iter().map(|(rule, _)| rule.name).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(broken(|_| ()), none);
    for hosts in ["exec=discover -q", "", "a b", "http://consul", "consul:8500", "a,"] {
        let mut document = agentless();
        document["consulServers"]["hosts"] = json!(hosts);
        let names: Vec<_> = rules::broken(&document).into_iter().map(|(rule, _)| rule.name).collect();
        assert_eq!(names, ["server-hosts"], "{hosts}");
    }
    let command = agentless_with(|d| d["consulServers"]["hosts"] = json!("exec=discover key=5ec3e7")).unwrap_err();
    assert!(command.contains("is not supported, got exec=…") && !command.contains("5ec3e7"), "{command}");
    assert_eq!(broken(|d| d["transparentProxy"] = json!({})), ["transparent-proxy"]);
    assert_eq!(broken(|d| d["transparentProxy"]["enabled"] = json!(true)), ["transparent-proxy"]);
    assert_eq!(broken(|d| d["transparentProxy"] = json!(null)), ["transparent-proxy-default"]);
    assert!(agentless_with(|d| d["transparentProxy"] = json!(null)).unwrap().warnings[0].contains("here it is off"));
    let gateway =
        |kind: &str| json!({ "bootstrapDir": "/c", "consulServers": { "hosts": "a" }, "gateway": { "kind": kind } });
    let of_gateway = |kind: &str| {
        let error = Config::parse(&gateway(kind).to_string());
        error.map(|config| config.warnings).map_err(|error| error.to_string())
    };
    assert_eq!(of_gateway("mesh-gateway"), Ok(Vec::new()));
    assert!(
        of_gateway("api-gateway")
            .unwrap_err()
            .ends_with("API gateways are not supported, got \"api-gateway\" [api-gateway]")
    );
    assert!(of_gateway("ingress-gateway").unwrap_err().starts_with("gateway.kind: expected one of mesh-gateway, "));
    let too_many = |d: &mut Value| {
        d["service"]["networkResilienceConfig"] = json!({ "outlierDetection": { "maxFailures": 5_000_000_000_u64 } });
    };
    assert_eq!(broken(too_many), ["outlier-range"]);
    assert_eq!(broken(|d| d["consulServers"]["http"] = json!({ "port": 0 })), ["port-range"]);
    assert_eq!(broken(|d| d["proxy"] = json!({ "healthCheckPort": "22000" })), ["port-range"]);
    assert_eq!(broken(|d| d["proxy"] = json!({ "publicListenerPort": 22000 })), ["port-once"]);
    assert_eq!(broken(|d| d["proxy"] = json!({ "publicListenerPort": 22000, "healthCheckPort": 1 })), none);
    // No agent is there with its ports.
    assert_eq!(broken(|d| d["service"]["port"] = json!(8500)), none);
    assert_eq!(broken(|d| d["service"]["port"] = json!(8600)), ["port-of-a-sidecar"]);
}
