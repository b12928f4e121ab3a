//! Tasks without a Consul agent.

use mesh_task::{Document, Problems, policy, render};
use serde_json::{Value, json};

fn arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:eu-west-1:111122223333:secret:{name}-AbCdEf")
}

fn settings() -> Value {
    json!({
        "service": { "port": 8080 },
        "consulServers": { "hosts": "consul.internal" },
        "registry": "registry.example/ecs-mesh",
        "secrets": { "serviceToken": arn("mesh-shop"), "ca": arn("ca") },
    })
}

fn with_an_agent() -> Value {
    json!({ "service": { "port": 8080 }, "retryJoin": ["consul.internal"], "registry": "registry.example/ecs-mesh" })
}

fn task() -> Value {
    json!({
        "family": "shop",
        "networkMode": "awsvpc",
        "containerDefinitions": [{ "name": "app", "image": "registry.example/shop:7", "portMappings": [{ "containerPort": 8080 }] }],
    })
}

fn rendered(settings: &Value, task: &Value) -> Value {
    render(settings, task).unwrap_or_else(|problems| panic!("{problems}")).definition
}

/// A field of each container, by the container's name.
fn of_each(definition: &Value, field: &str) -> Vec<(String, Value)> {
    let containers = definition["containerDefinitions"].as_array().unwrap();
    containers.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one[field].clone())).collect()
}

fn of(definition: &Value, container: &str, field: &str) -> Value {
    of_each(definition, field).into_iter().find(|(name, _)| name == container).expect("the container exists").1
}

/// The document that a sidecar gets.
fn document(definition: &Value, container: &str) -> Value {
    let set = of(definition, container, "environment").as_array().unwrap().clone();
    let document = set.iter().find(|one| one["name"] == "CONSUL_ECS_CONFIG_JSON").unwrap();
    serde_json::from_str(document["value"].as_str().unwrap()).unwrap()
}

#[test]
fn the_document_says_that_there_is_no_transparent_proxy() {
    assert_eq!(document(&rendered(&settings(), &task()), "mesh-init")["transparentProxy"], json!({ "enabled": false }));
    assert_eq!(document(&rendered(&with_an_agent(), &task()), "mesh-init").get("transparentProxy"), None);
    let mut own = settings();
    own["transparentProxy"] = json!({ "enabled": false, "consulDNS": { "enabled": false } });
    assert_eq!(document(&rendered(&own, &task()), "mesh-init")["transparentProxy"], own["transparentProxy"]);
}

#[test]
fn the_servers_in_the_settings_make_a_task_without_an_agent() {
    let definition = rendered(&settings(), &task());
    let notes = render(&settings(), &task()).unwrap().notes;
    assert!(!notes.iter().any(|note| note.starts_with("transparentProxy")), "{notes:?}");
    let on = |name: &str, condition: &str| json!([{ "containerName": name, "condition": condition }]);
    let expected = [
        ("app", on("dataplane", "HEALTHY")),
        ("mesh-init", json!([])),
        ("dataplane", on("mesh-init", "SUCCESS")),
        ("health-sync", on("mesh-init", "SUCCESS")),
    ];
    let depends_on = of_each(&definition, "dependsOn").into_iter();
    let depends_on: Vec<_> = depends_on.map(|(name, on)| (name, if on.is_null() { json!([]) } else { on })).collect();
    assert_eq!(depends_on, expected.map(|(name, on)| (name.to_owned(), on)));
    assert_eq!(definition["volumes"], json!([{ "name": "mesh" }]));
    assert_eq!(
        of(&definition, "dataplane", "image"),
        format!("registry.example/ecs-mesh/mesh-dataplane:{}", env!("CARGO_PKG_VERSION"))
    );
    let healthy = json!(["CMD", "/usr/local/bin/mesh-dataplane", "healthy"]);
    assert_eq!(of(&definition, "dataplane", "healthCheck")["command"], healthy);
    let command = of(&definition, "dataplane", "command").to_string();
    assert!(!command.contains("--config-path"), "mesh-dataplane sets it: {command}");
    // health-sync deregisters the task after Envoy has ended.
    assert_eq!(of(&definition, "dataplane", "stopTimeout"), 40);
    assert_eq!(of(&definition, "health-sync", "stopTimeout"), 50);
    let wait = json!({ "name": "HEALTH_SYNC_DATAPLANE_WAIT", "value": "40s" });
    assert_eq!(of(&definition, "health-sync", "environment")[1], wait);
    assert_eq!(rendered(&settings(), &definition), definition, "a second rendering changes nothing");
}

#[test]
fn each_container_has_only_the_secrets_that_it_needs() {
    let definition = rendered(&settings(), &task());
    let names = |container: &str| -> Vec<String> {
        let secrets = of(&definition, container, "secrets");
        secrets.as_array().into_iter().flatten().map(|secret| secret["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("mesh-init"), ["CONSUL_HTTP_TOKEN", "CONSUL_HTTPS_CACERT_PEM", "CONSUL_GRPC_CACERT_PEM"]);
    assert_eq!(names("dataplane"), ["CONSUL_HTTP_TOKEN"]);
    assert_eq!(names("health-sync"), ["CONSUL_HTTP_TOKEN", "CONSUL_HTTPS_CACERT_PEM"]);
    assert_eq!(names("app"), [""; 0]);
    let statement = &policy(&settings(), &task()).unwrap()["executionRole"]["Statement"][0];
    assert_eq!(statement["Resource"], json!([arn("ca"), arn("mesh-shop")]));

    let mut login = settings();
    login["secrets"] = json!({ "ca": arn("ca") });
    login["consulLogin"] = json!({ "enabled": true });
    let definition = rendered(&login, &task());
    assert_eq!(of(&definition, "dataplane", "secrets"), Value::Null, "mesh-dataplane logs in with the task's role");
}

#[test]
fn a_task_moves_to_the_other_mode_and_back() {
    let (agent, agentless) = (rendered(&with_an_agent(), &task()), rendered(&settings(), &task()));
    assert_eq!(rendered(&settings(), &agent), agentless);
    assert_eq!(rendered(&with_an_agent(), &agentless), agent);
}

#[test]
fn settings_of_an_agent_are_refused_without_one() {
    let mut settings = settings();
    settings["retryJoin"] = json!(["consul.internal"]);
    settings["datacenter"] = json!("dc1");
    settings["tls"] = json!(true);
    settings["images"] = json!({ "consul": "consul:1" });
    settings["secrets"]["gossipKey"] = json!(arn("gossip"));
    let Problems(problems) = render(&settings, &task()).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|problem| problem.error.path.as_str()).collect();
    assert_eq!(paths, ["images.consul", "secrets.gossipKey", "datacenter", "retryJoin", "tls"]);
    assert!(problems.iter().all(|problem| problem.document == Document::Settings));
    let text = problems[0].error.to_string();
    assert!(text.contains("the task has no Consul agent"), "{text}");
}

#[test]
fn ports_of_the_dataplane_are_taken_and_those_of_an_agent_are_free() {
    let mapped = |port: u16| {
        let mut task = task();
        task["containerDefinitions"][0]["portMappings"] = json!([{ "containerPort": port }]);
        render(&settings(), &task).is_ok()
    };
    assert!([8500, 8501, 8502, 8301].into_iter().all(mapped));
    assert!(![8600, 19000, 20000, 22000].into_iter().any(mapped));
}
