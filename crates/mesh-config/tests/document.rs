//! The document as teams write it: what is read, and what is said about what cannot be.

use mesh_config::{CheckStatus, Config, DestinationType, LogLevel, MeshGatewayMode};

/// The error's line.
fn refused(text: &str) -> String {
    Config::parse(text).expect_err(text).to_string()
}

#[test]
fn the_smallest_document_is_a_bootstrap_directory() {
    let config = Config::parse(r#"{"bootstrapDir": "/consul"}"#).unwrap();
    assert_eq!(config.bootstrap_dir.to_str(), Some("/consul"));
    assert_eq!(config.proxy.public_listener_port, 20000);
    assert!(config.service.is_none() && config.gateway.is_none() && config.warnings.is_empty());
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_path_value_and_what_would_do() {
    let text = r#"{
        "logLevel": "loud",
        "service": {"port": "80", "tags": ["a", 1, "a"], "name": "Web", "checks": [{"http": 5, "ttl": "1s", "tls": true}]},
        "proxy": {"upstreams": [{"destinationName": "api", "localBindPort": "80"}, {"localBindPort": 99999}, 7]},
        "extra": 1
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
        "proxy.upstreams[1].destinationName: missing, expected a string that is not empty",
        "proxy.upstreams[1].localBindPort: expected an integer from 1 to 65535, got 99999",
        "proxy.upstreams[2]: expected an object, got 7",
        "extra: expected one of the fields bootstrapDir, ",
    ] {
        assert!(line.contains(finding), "{finding}\nis not in\n{line}");
    }
    assert_eq!(line.lines().count(), 1);
    assert_eq!(line.split("; ").count(), 13, "{line}");
}

#[test]
fn ports_that_two_listeners_would_share_are_refused() {
    let document = |ports: [u16; 2], listener: u16, exposed: u16| {
        format!(
            r#"{{"bootstrapDir": "/consul", "service": {{"port": 1}}, "proxy": {{"publicListenerPort": {listener},
            "upstreams": [{{"destinationName": "a", "localBindPort": {}}}, {{"destinationName": "b", "localBindPort": {}}}],
            "expose": {{"paths": [{{"listenerPort": {exposed}}}]}}}}}}"#,
            ports[0], ports[1]
        )
    };
    assert_eq!(
        refused(&document([1234, 1234], 20000, 20001)),
        "proxy.upstreams[1].localBindPort: expected a port that no other upstream and not the public listener has, \
         got 1234"
    );
    assert!(refused(&document([20000, 1234], 20000, 20001)).starts_with("proxy.upstreams[0].localBindPort: "));
    assert!(refused(&document([1233, 1234], 20000, 1234)).starts_with("proxy.expose.paths[0].listenerPort: "));
    assert!(Config::parse(&document([20000, 1234], 21000, 20001)).is_ok());
}

#[test]
fn an_unknown_field_warns_where_the_schema_lets_it_pass() {
    let text = r#"{"bootstrapDir": "/consul", "service": {"port": 1, "adress": "x"},
        "proxy": {"listenerPort": 1, "meshGateway": {"mode": "local", "more": 1}}}"#;
    let warnings = Config::parse(text).unwrap().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().any(|line| line.starts_with("service.adress: an unknown field, ignored; known are ")));
}

#[test]
fn what_is_not_json_or_no_object_is_refused() {
    let error = Config::parse("{").unwrap_err();
    assert_eq!(error.to_string(), "not JSON");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(refused("[]"), "the document: expected an object, got an array");
    assert_eq!(refused(r#"{"bootstrapDir": ""}"#), r#"bootstrapDir: expected a string that is not empty, got """#);
}

#[test]
fn a_check_s_header_and_body_are_never_repeated() {
    let text = r#"{"bootstrapDir": "/consul", "service": {"port": 1, "checks": [
        {"header": {"Authorization": "Bearer s3cr3t"}}, {"header": {"A": ["s3cr3t", 1]}}, {"body": {"pin": "s3cr3t"}}]}}"#;
    let line = refused(text);
    assert!(!line.contains("s3cr3t"), "{line}");
    assert!(line.contains("service.checks[0].header.Authorization: expected an array of strings, got a string"));
}

#[test]
fn every_field_is_read() {
    let text = r#"{"bootstrapDir": "/consul", "logLevel": "WARN", "consulHTTPAddr": "unix:///run/c", "consulCACertFile": "/ca",
        "consulLogin": {"enabled": true, "meta": {"a": "b"}, "region": "eu-west-1"},
        "healthSyncContainers": ["app"],
        "service": {"name": "web", "port": 80.0, "tags": ["a"], "enableTagOverride": true, "meta": {"k": "v"},
            "weights": {"passing": 3, "warning": 1}, "namespace": "ns", "partition": "",
            "checks": [{"checkId": "c", "http": "http://localhost", "header": {"H": ["1", "2"]}, "status": "passing",
                "interval": "5s", "h2pingUseTls": false, "successBeforePassing": 2}]},
        "proxy": {"config": {"a": [1]}, "meshGateway": {"mode": "remote"},
            "upstreams": [{"destinationType": "prepared_query", "destinationName": "q", "localBindPort": 81}],
            "expose": {"checks": true, "paths": [{"path": "/p"}]}}}"#;
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

#[test]
fn the_reference_documents_are_read() {
    let Some(reference) = std::env::var_os("REFERENCE_DIR") else {
        println!("without REFERENCE_DIR the reference documents were not read");
        return;
    };
    let reference = std::path::Path::new(&reference).join("consul-ecs-config");
    let read = |name: &str| {
        let path = reference.join(name);
        Config::parse(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    let config = read("extensive.json").unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.service.unwrap().checks.len(), 6);
    assert_eq!(config.gateway.unwrap().wan_address.unwrap().port, Some(443));
    assert_eq!(config.proxy.expose.unwrap().paths[0].listener_port, Some(20001));

    let config = read("null-nested-fields.json").unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.proxy.upstreams[0].local_bind_port, 2345);
    assert_eq!(
        config.service.unwrap().checks[0],
        mesh_config::Check { name: Some("check-null".to_owned()), ..Default::default() }
    );
}
