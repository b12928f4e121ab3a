//! The configuration document from end to end. A real agent shows every field that Consul 1.8.7 knows, and `mesh-init validate` reports
//! errors. The tests of mesh-config check each field of the requests.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use http_fixture::{Answer, Server};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Finished, run};
use mesh_tests::{binary, eventually, free_port};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

#[tokio::test]
async fn every_field_of_a_service_shows_in_the_agent() {
    let agent = Agent::start_with(&json!({ "enable_local_script_checks": true, "enable_script_checks": true })).await;
    let metadata = Metadata::start("shop", json!([]));
    let volume = tempfile::tempdir().unwrap();
    let checked = Server::start(|_| Answer::ok(""));
    let url = format!("{}/health", checked.url());
    let (public, upstream, exposed) = (free_port(), free_port(), free_port());
    let quiet = json!({ "interval": "1h", "timeout": "1s", "status": "warning", "notes": "for humans" });
    let check = |name: &str, fields: Value| {
        let mut check = quiet.clone();
        check["name"] = name.into();
        check.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        check
    };
    let mut alias = json!({ "name": "alias", "aliasService": "shop" });
    alias["checkId"] = "alias-id".into();
    let document = json!({
        "bootstrapDir": volume.path(), "logLevel": "DEBUG",
        "service": {
            "name": "web", "port": 8080, "tags": ["a", "b"], "enableTagOverride": true, "meta": { "k": "v" },
            "weights": { "passing": 6, "warning": 5 },
            "checks": [
                { "checkId": "http-id", "name": "http", "http": url, "method": "POST", "header": { "X-Some": ["1", "2"] },
                  "body": "the body", "interval": "1s", "timeout": "5s", "tlsSkipVerify": true, "status": "critical",
                  "successBeforePassing": 2, "failuresBeforeCritical": 3 },
                check("tcp", json!({ "tcp": "127.0.0.1:1" })),
                check("grpc", json!({ "grpc": "127.0.0.1:1", "grpcUseTls": true })),
                check("args", json!({ "args": ["/bin/true"] })),
                { "name": "ttl", "ttl": "10m", "status": "passing" },
                alias,
            ],
        },
        "proxy": {
            "config": { "protocol": "http", "nested": { "a": [1, 0.1] } }, "publicListenerPort": public,
            "meshGateway": { "mode": "local" },
            "upstreams": [{ "destinationType": "prepared_query", "destinationName": "api", "datacenter": "dc2",
                "localBindAddress": "127.0.0.2", "localBindPort": upstream, "config": { "protocol": "grpc" },
                "meshGateway": { "mode": "remote" } }],
            "expose": { "checks": false, "paths": [{ "path": "/things", "listenerPort": exposed, "localPathPort": 8080,
                "protocol": "http2" }] },
        },
    });
    let mut command = Command::new(binary("mesh-init"));
    command.env_clear().env("CONSUL_HTTP_ADDR", &agent.http).env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    let finished = run(command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()), BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);

    let service = agent.call("GET", "/v1/agent/service/web-f1a2", &Value::Null).await;
    let of_document = &document["service"];
    assert_eq!((&service["Service"], &service["Port"]), (&of_document["name"], &of_document["port"]));
    assert_eq!(service["Tags"], of_document["tags"]);
    assert_eq!(service["EnableTagOverride"], true);
    assert_eq!(service["Meta"]["k"], "v");
    assert_eq!(service["Weights"], json!({ "Passing": 6, "Warning": 5 }));

    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    for (id, name) in [("http-id", "http"), ("alias-id", "alias")] {
        assert_eq!(checks[id]["Name"], name, "{checks}");
    }
    let with_notes: Vec<_> =
        checks.as_object().unwrap().values().filter(|check| check["Notes"] == "for humans").collect();
    let mut kinds: Vec<_> = with_notes.iter().map(|check| check["Type"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["grpc", "script", "tcp"]);
    let ttl = checks.as_object().unwrap().values().find(|check| check["Name"] == "ttl").unwrap();
    assert_eq!((&ttl["Type"], &ttl["Status"]), (&json!("ttl"), &json!("passing")));

    let proxy = agent.call("GET", "/v1/agent/service/web-f1a2-sidecar-proxy", &Value::Null).await;
    let of_document = &document["proxy"];
    assert_eq!(proxy["Port"], public);
    assert_eq!(proxy["Proxy"]["Config"], of_document["config"]);
    assert_eq!(proxy["Proxy"]["MeshGateway"], json!({ "Mode": "local" }));
    assert_eq!(
        proxy["Proxy"]["Upstreams"],
        json!([{ "DestinationType": "prepared_query", "DestinationName": "api", "Datacenter": "dc2",
            "LocalBindAddress": "127.0.0.2", "LocalBindPort": upstream, "Config": { "protocol": "grpc" },
            "MeshGateway": { "Mode": "remote" } }])
    );
    let path = json!({ "Path": "/things", "ListenerPort": exposed, "LocalPathPort": 8080, "Protocol": "http2",
        "ParsedFromCheck": false });
    assert_eq!(proxy["Proxy"]["Expose"]["Paths"], json!([path]));

    let asked = async || checked.requests().pop().ok_or_else(|| "no request".to_owned());
    let request = eventually("the agent runs the check", BOUND, asked).await;
    assert!(request.head.starts_with("POST /health HTTP/1.1\r\n"), "{request:?}");
    assert!(request.head.contains("X-Some: 1\r\nX-Some: 2\r\n") && request.body == "the body", "{request:?}");
}

#[tokio::test]
async fn every_field_of_a_gateway_shows_in_the_agent() {
    let agent = Agent::start().await;
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.3"] }]);
    let metadata = Metadata::start("family", json!([{ "Name": "sidecar-proxy", "Networks": networks }]));
    let volume = tempfile::tempdir().unwrap();
    // The check must dial the gateway's own address, so only that address has a listener.
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = json!({
        "kind": "mesh-gateway", "name": "edge", "tags": ["a", "b"], "meta": { "k": "v" },
        "lanAddress": { "address": "127.0.0.2", "port": port },
        "wanAddress": { "address": "gw.example.com", "port": 443 },
        "proxy": { "config": { "connect_timeout_ms": 7, "nested": { "a": [1, 0.1] } } },
    });
    let document = json!({ "bootstrapDir": volume.path(), "gateway": gateway });
    let mut command = Command::new(binary("mesh-init"));
    command.env_clear().env("CONSUL_HTTP_ADDR", &agent.http).env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    let finished = run(command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()), BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);

    let registered = agent.call("GET", "/v1/agent/service/edge-f1a2", &Value::Null).await;
    assert_eq!((&registered["Kind"], &registered["Service"]), (&gateway["kind"], &gateway["name"]));
    assert_eq!((&registered["Tags"], &registered["Meta"]["k"]), (&gateway["tags"], &json!("v")));
    assert_eq!((&registered["Address"], &registered["Port"]), (&json!("127.0.0.2"), &json!(port)));
    let tagged = &registered["TaggedAddresses"];
    assert_eq!(tagged["lan"], json!({ "Address": "127.0.0.2", "Port": port }));
    assert_eq!(tagged["wan"], json!({ "Address": "gw.example.com", "Port": 443 }));
    assert_eq!(registered["Proxy"]["Config"], gateway["proxy"]["config"]);
    eventually("the check has dialled the listener", BOUND, async || {
        let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
        let check = checks.as_object().unwrap().values().find(|check| check["Name"] == "mesh-gateway listener");
        if check.is_some_and(|check| check["Status"] == "passing") { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
}

async fn validate(arguments: &[&str], document: Option<&str>) -> Finished {
    let mut command = Command::new(binary("mesh-init"));
    command.env_clear().arg("validate").args(arguments);
    if let Some(text) = document {
        command.env("CONSUL_ECS_CONFIG_JSON", text);
    }
    run(&mut command, BOUND).await
}

#[tokio::test]
async fn validate_prints_each_error_or_the_registration() {
    let wrong = r#"{"service": {"port": "80", "adress": 1}, "healthSyncContainers": ["a"], "proxy": {"upstreams": [
        {"destinationName": "a", "localBindPort": 20000}]}, "x": 1}"#;
    let told = validate(&[], Some(wrong)).await;
    assert_eq!((told.code, told.stdout.as_str()), (1, ""));
    let lines = |kind: &str| told.stderr.lines().filter(|line| line.starts_with(kind)).count();
    assert_eq!((lines("error: "), lines("warning: service.adress: ")), (4, 1), "{}", told.stderr);
    assert_eq!(told.stderr.lines().count(), 5, "{}", told.stderr);
    assert!(told.stderr.contains("error: service.port: expected an integer, got \"80\"\n"));
    assert!(told.stderr.contains(" [port-once]\n"), "{}", told.stderr);

    // Without `validate`, mesh-init logs each warning and prints all errors on one line.
    let mut mesh_init = Command::new(binary("mesh-init"));
    let told = run(mesh_init.env_clear().env("CONSUL_ECS_CONFIG_JSON", wrong), BOUND).await;
    assert_eq!((told.code, told.stderr.lines().count()), (1, 2), "{}", told.stderr);
    assert!(told.stderr.contains(" WARN CONSUL_ECS_CONFIG_JSON: service.adress: "), "{}", told.stderr);

    // `validate` needs no volume, no metadata and no agent.
    let right = r#"{"bootstrapDir": "/nowhere", "service": {"name": "web", "port": 8080, "adress": 1},
        "proxy": {"upstreams": [{"destinationName": "api", "localBindPort": 1}]}}"#;
    let told = validate(&[], Some(right)).await;
    assert_eq!(told.code, 0, "{}", told.stderr);
    let says = "valid: registers the service web on port 8080, and its sidecar proxy on port 20000 with 1 upstream\n";
    assert_eq!(told.stdout, says);
    assert!(
        told.stderr.starts_with("warning: service.adress: ") && told.stderr.lines().count() == 1,
        "{}",
        told.stderr
    );

    let both =
        r#"{"bootstrapDir": "/consul", "service": {"port": 1}, "gateway": {"kind": "mesh-gateway", "name": "edge"}}"#;
    let told = validate(&[], Some(both)).await;
    assert_eq!((told.code, told.stdout.as_str()), (0, "valid: registers the mesh-gateway edge\n"));
    assert!(told.stderr.starts_with("warning: ") && told.stderr.ends_with(" [gateway-first]\n"), "{}", told.stderr);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, right).unwrap();
    assert_eq!(validate(&[file.to_str().unwrap()], Some(wrong)).await.stdout, says);
    for (arguments, document, line) in [
        (&["/nowhere/config.json"][..], None, "mesh-init: cannot read /nowhere/config.json: "),
        (&[], Some("{"), "mesh-init: the document: not JSON: "),
        (&[], None, "mesh-init: CONSUL_ECS_CONFIG_JSON is not set: "),
    ] {
        let told = validate(arguments, document).await;
        assert_eq!((told.code, told.stdout.as_str()), (1, ""));
        assert!(told.stderr.starts_with(line) && told.stderr.lines().count() == 1, "{}", told.stderr);
    }
}

#[test]
fn validate_reads_the_document_from_standard_input() {
    let mut command = Command::new(binary("mesh-init"));
    command.env_clear().args(["validate", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let document = br#"{"bootstrapDir": "/consul", "service": {"port": 0}}"#;
    child.stdin.take().unwrap().write_all(document).unwrap();
    let told = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let says = "valid: registers the service named as the task family without a port, and its sidecar proxy ";
    assert!(told.starts_with(says), "{told}");
}
