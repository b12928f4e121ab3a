//! `cargo xtask up --task-definition`: a task of the user's beside `web` and `api`.

use std::path::Path;

use local_mesh::docker;
use local_mesh::events::{Recorder, What};
use local_mesh::task::{self, StopOrder};
use local_mesh::tasks::{self, Agentless, Given, Own};
use mesh_tests::{eventually, http};
use serde_json::{Value, json};

use crate::{BOUND, up, whole};

const IMAGE: &str = "ecs-mesh/demo-app:dev";

/// A service `shop` that calls `api`, as it is deployed: its image is in a registry, and its servers and secrets are those of production.
fn documents() -> (Value, Value) {
    let arn = |name: &str| format!("arn:aws:secretsmanager:eu-west-1:111122223333:secret:{name}-AbCdEf");
    let settings = json!({
        "service": { "port": 7070 },
        "proxy": { "upstreams": [{ "destinationName": "api", "localBindPort": 1234 }] },
        "retryJoin": ["consul.internal"],
        "registry": "registry.example/ecs-mesh",
        "datacenter": "eu-west-1",
        "secrets": { "clientToken": arn("mesh-consul-client-token"), "serviceToken": arn("mesh-shop"), "gossipKey": arn("gossip"), "ca": arn("ca") },
        "shutdownDelay": "3s",
    });
    let definition = json!({
        "family": "shop",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "512",
        "memory": "1024",
        "executionRoleArn": "arn:aws:iam::111122223333:role/shop-execution",
        "containerDefinitions": [
            {
                "name": "app",
                "image": "registry.example/shop:7",
                "entryPoint": ["/demo-app"],
                "command": ["serve"],
                "user": "10001:10001",
                "portMappings": [{ "containerPort": 7070 }],
                "environment": [
                    { "name": "SERVICE_NAME", "value": "shop" },
                    { "name": "LISTEN", "value": "0.0.0.0:7070" },
                    { "name": "UPSTREAMS", "value": "api=http://127.0.0.1:1234" },
                ],
                "secrets": [{ "name": "DB_PASSWORD", "valueFrom": arn("shop-db") }, { "name": "API_KEY", "valueFrom": arn("shop-key") }],
                "healthCheck": { "command": ["CMD", "/demo-app", "health"], "interval": 5, "timeout": 2, "retries": 3 },
                "dependsOn": [{ "containerName": "migrate", "condition": "SUCCESS" }],
            },
            { "name": "migrate", "image": "registry.example/ecs-mesh/demo-app:0.1.0", "command": ["--version"], "essential": false },
        ],
    });
    (settings, definition)
}

/// A service `till`, which has no Consul agent and also calls `api`. Its settings are those of `shop`, except for the servers and secrets.
fn without_an_agent() -> (Value, Value) {
    let (mut settings, mut definition) = documents();
    let fields = settings.as_object_mut().unwrap();
    ["retryJoin", "datacenter", "secrets"].into_iter().for_each(|name| drop(fields.remove(name)));
    fields.insert("consulServers".to_owned(), json!({ "hosts": "consul.internal" }));
    fields.insert("consulLogin".to_owned(), json!({ "enabled": true }));
    settings["service"]["port"] = json!(7071);
    definition["family"] = json!("till");
    definition["taskRoleArn"] = json!("arn:aws:iam::111122223333:role/consul-ecs/till-task");
    let app = &mut definition["containerDefinitions"][0];
    app["portMappings"][0]["containerPort"] = json!(7071);
    for (variable, value) in [(0, "till"), (1, "0.0.0.0:7071")] {
        app["environment"][variable]["value"] = json!(value);
    }
    (settings, definition)
}

fn read(folder: &Path) -> Own {
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let given = [("shop", documents()), ("till", without_an_agent())].map(|(name, (settings, definition))| Given {
        settings: write(&format!("{name}.mesh.json"), settings.to_string()),
        definition: write(&format!("{name}.json"), definition.to_string()),
    });
    let secret = write("password", "pa$$word\n".to_owned()).display().to_string();
    let images = [("app".to_owned(), IMAGE.to_owned())];
    tasks::read(&given, &images, &[("DB_PASSWORD".to_owned(), secret)], Agentless::default()).unwrap()
}

#[tokio::test]
async fn task_definitions_of_the_user_run_beside_web_and_api() {
    let docker = whole().await;
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::start(&docker);
    up(&read(folder.path())).await;

    // From the host to its app, and through both Envoys to api.
    for (task, port) in [("shop", 7070), ("till", 7071)] {
        let what = format!("{task} calls api");
        let answered = eventually(&what, BOUND, async || {
            let answer = http::get_json(&format!("http://127.0.0.1:{port}/")).await?;
            if answer["upstreams"]["api"]["status"] == 200 { Ok(answer) } else { Err(answer.to_string()) }
        });
        assert_eq!(answered.await["service"], task);
    }
    let environment = docker::task(&docker, "shop").await.unwrap()["app"].config.clone().unwrap().env.unwrap();
    for variable in ["DB_PASSWORD=pa$$word", "API_KEY=made-up-api_key"] {
        assert!(environment.iter().any(|set| set == variable), "{variable}");
    }
    let started = recorder.events();
    for (task, proxy) in [("shop", "sidecar-proxy"), ("till", "dataplane")] {
        let at = |events: &[local_mesh::events::Event], container: &str, what: What| {
            let event =
                events.iter().find(|event| event.task == task && event.container == container && event.what == what);
            event.unwrap_or_else(|| panic!("{task}: {container} {what:?}: {events:?}")).at
        };
        let healthy = at(&started, proxy, What::Healthy);
        assert!(healthy < at(&started, "migrate", What::Started), "{task}: every container waits for the proxy");
        let migrated = at(&started, "migrate", What::Exited(0));
        assert!(migrated < at(&started, "app", What::Started), "{task}: its own dependency");

        // It stops as a task of ECS does: the proxy after the app.
        task::stop(&docker, task, StopOrder::DependsOn).await.unwrap();
        let events = recorder.events();
        assert!(at(&events, "app", What::Exited(0)) < at(&events, proxy, What::Exited(0)), "{task}");
        task::start(&docker, task, &[]).await.unwrap();
    }

    // Without the option, the mesh is the one of docker-compose.yml again.
    up(&Own::default()).await;
    let tasks = docker::tasks(&docker).await.unwrap();
    assert!(!tasks.contains_key("shop") && !tasks.contains_key("till"));
    crate::restored().await;
}
