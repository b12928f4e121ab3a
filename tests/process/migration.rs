//! Follows the guide docs/migration.md with its example: a task of consul-ecs becomes a mesh task, and is moved back.

use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::run;
use mesh_tests::{binary, workspace};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

fn example(name: &str) -> Value {
    let path = workspace().join("docs/examples/consul-ecs").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn container<'a>(definition: &'a Value, name: &str) -> &'a Value {
    let mut all = definition["containerDefinitions"].as_array().unwrap().iter();
    all.find(|container| container["name"] == name).unwrap_or_else(|| panic!("no container {name}: {definition:#}"))
}

fn document(container: &Value) -> Value {
    let mut variables = container["environment"].as_array().unwrap().iter();
    let found = variables.find(|variable| variable["name"] == "CONSUL_ECS_CONFIG_JSON").unwrap();
    serde_json::from_str(found["value"].as_str().unwrap()).unwrap()
}

/// The ARNs of a container's secrets, in order.
fn secrets(container: &Value) -> Vec<&str> {
    let list = container["secrets"].as_array().into_iter().flatten();
    let mut arns: Vec<_> = list.map(|secret| secret["valueFrom"].as_str().unwrap()).collect();
    arns.sort_unstable();
    arns
}

async fn rendered() -> Value {
    let mut command = Command::new(binary("mesh-task"));
    let arguments = ["render", "--settings", "mesh.json", "plain.json"];
    command.env_clear().args(arguments).current_dir(workspace().join("docs/examples/consul-ecs"));
    let rendered = run(&mut command, BOUND).await;
    assert_eq!(rendered.code, 0, "{}", rendered.stderr);
    serde_json::from_str(&rendered.stdout).unwrap()
}

/// The service, its proxy and the checks at the agent, after the task has registered with this document.
async fn registered(document: &Value) -> [Value; 3] {
    let agent = Agent::start().await;
    let containers = json!([{ "Name": "shop", "Health": { "status": "HEALTHY" } }]);
    let metadata = Metadata::start("shop", containers);
    let volume = tempfile::tempdir().unwrap();
    let mut document = document.clone();
    document["bootstrapDir"] = json!(volume.path());
    let mut command = Command::new(binary("mesh-init"));
    command.env_clear().env("CONSUL_HTTP_ADDR", &agent.http).env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri);
    let finished = run(command.env("CONSUL_ECS_CONFIG_JSON", document.to_string()), BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let mut all = Vec::new();
    for path in ["service/shop-f1a2", "service/shop-f1a2-sidecar-proxy", "checks"] {
        all.push(agent.call("GET", &format!("/v1/agent/{path}"), &Value::Null).await);
    }
    all.try_into().unwrap()
}

#[tokio::test]
async fn task_of_consul_ecs_becomes_a_mesh_task() {
    let (old, new) = (example("task.json"), rendered().await);
    let old_document = document(container(&old, "consul-ecs-mesh-init"));
    // The settings are the old document without bootstrapDir, together with the fields of mesh-task.
    let settings = example("mesh.json");
    for (field, value) in old_document.as_object().unwrap() {
        assert!(field == "bootstrapDir" || settings[field] == *value, "{field}");
    }
    // The app is the same program, with the same delay.
    let app = container(&new, "shop");
    assert_eq!(app["image"], container(&old, "shop")["image"]);
    let of_old = &container(&old, "shop")["entryPoint"][2];
    assert_eq!(*of_old, format!("-shutdown-delay={}", settings["shutdownDelay"].as_str().unwrap()));
    assert_eq!(app["entryPoint"][2], settings["shutdownDelay"], "{app:#}");
    assert_eq!(app["command"], container(&old, "shop")["command"]);
    // Both read the same secrets, so that running tasks of both kinds keep their tokens.
    for (of_old, of_new) in [
        ("consul-ecs-mesh-init", "mesh-init"),
        ("consul-ecs-health-sync", "health-sync"),
        ("consul-client", "consul-config"),
    ] {
        assert_eq!(secrets(container(&old, of_old)), secrets(container(&new, of_new)), "{of_new}");
    }
    let tags = |definition: &Value| {
        let of_mesh = |tag: &&Value| tag["key"].as_str().unwrap().starts_with("consul.hashicorp.com/");
        definition["tags"].as_array().unwrap().iter().filter(of_mesh).cloned().collect::<Vec<_>>()
    };
    assert_eq!(tags(&old), tags(&new));
}

#[tokio::test]
async fn both_task_definitions_register_the_same() {
    let old = document(container(&example("task.json"), "consul-ecs-mesh-init"));
    let new = document(container(&rendered().await, "mesh-init"));
    let [service, proxy, checks] = registered(&new).await;
    // The names that consul-ecs gives.
    assert_eq!((&service["Service"], &service["ID"]), (&json!("shop"), &json!("shop-f1a2")));
    assert_eq!(service["Tags"], json!(["v7"]));
    let meta = json!({ "source": "consul-ecs", "task-id": "f1a2", "team": "shop",
        "task-arn": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2" });
    assert_eq!((&service["Meta"], &proxy["Meta"]), (&meta, &meta));
    assert_eq!(proxy["Service"], "shop-sidecar-proxy");
    let of_shop = &checks["shop-f1a2-shop-consul-ecs"];
    assert_eq!((&of_shop["Name"], &of_shop["Type"]), (&json!("consul ecs synced"), &json!("ttl")), "{checks:#}");

    // To move back, a team deploys the old task definition. Its document gives the same registration.
    let [old_service, old_proxy, old_checks] = registered(&old).await;
    let names = |checks: &Value| {
        let mut names: Vec<_> = checks.as_object().unwrap().keys().cloned().collect();
        names.sort_unstable();
        names
    };
    assert_eq!((&old_service["ID"], &old_service["Meta"]), (&service["ID"], &service["Meta"]));
    assert_eq!((&old_service["Port"], &old_service["Tags"]), (&service["Port"], &service["Tags"]));
    assert_eq!((&old_proxy["Proxy"]["Upstreams"], &old_proxy["Port"]), (&proxy["Proxy"]["Upstreams"], &proxy["Port"]));
    assert_eq!(names(&old_checks), names(&checks));
}
