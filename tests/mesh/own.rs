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

fn read(folder: &Path) -> Own {
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let (settings, definition) = documents();
    let given = Given {
        settings: write("mesh.json", settings.to_string()),
        definition: write("shop.json", definition.to_string()),
    };
    let secret = write("password", "pa$$word\n".to_owned()).display().to_string();
    let images = [("app".to_owned(), IMAGE.to_owned())];
    tasks::read(&[given], &images, &[("DB_PASSWORD".to_owned(), secret)], Agentless::default()).unwrap()
}

#[tokio::test]
async fn task_definition_of_the_user_runs_beside_web_and_api() {
    let docker = whole().await;
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::start(&docker);
    up(&read(folder.path())).await;

    // From the host to its app, and through both Envoys to api.
    let answered = eventually("shop calls api", BOUND, async || {
        let answer = http::get_json("http://127.0.0.1:7070/").await?;
        if answer["upstreams"]["api"]["status"] == 200 { Ok(answer) } else { Err(answer.to_string()) }
    });
    assert_eq!(answered.await["service"], "shop");
    let environment = docker::task(&docker, "shop").await.unwrap()["app"].config.clone().unwrap().env.unwrap();
    for variable in ["DB_PASSWORD=pa$$word", "API_KEY=made-up-api_key"] {
        assert!(environment.iter().any(|set| set == variable), "{variable}");
    }
    let at = |events: &[local_mesh::events::Event], container: &str, what: What| {
        let event =
            events.iter().find(|event| event.task == "shop" && event.container == container && event.what == what);
        event.unwrap_or_else(|| panic!("{container} {what:?}: {events:?}")).at
    };
    let events = recorder.events();
    let proxy = at(&events, "sidecar-proxy", What::Healthy);
    assert!(proxy < at(&events, "migrate", What::Started), "every container waits for the proxy");
    assert!(at(&events, "migrate", What::Exited(0)) < at(&events, "app", What::Started), "the task's own dependency");

    // It stops as a task of ECS does: the proxy after the app.
    task::stop(&docker, "shop", StopOrder::DependsOn).await.unwrap();
    let events = recorder.events();
    assert!(at(&events, "app", What::Exited(0)) < at(&events, "sidecar-proxy", What::Exited(0)));
    task::start(&docker, "shop", &[]).await.unwrap();

    // Without the option, the mesh is the one of docker-compose.yml again.
    up(&Own::default()).await;
    assert!(!docker::tasks(&docker).await.unwrap().contains_key("shop"));
    crate::restored().await;
}
