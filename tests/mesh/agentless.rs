//! Tasks without a Consul agent beside tasks with one: `cargo xtask up --agentless web,api-2`.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, StartContainerOptions};
use local_mesh::docker::{self, PROJECT_LABEL, containers, label};
use local_mesh::load::{Load, Options};
use local_mesh::task::{self, StopOrder};
use local_mesh::tasks::{self, Agentless, Own};
use mesh_tests::eventually;
use serde_json::Value;

use crate::{BOUND, answered_by, answering_task, consul_get, restored, up, whole};

pub const LOAD: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 100, connections: 8, fresh: "0.2", shutdown_delay: "0s" };

pub fn without_an_agent(tasks: &[&str]) -> Own {
    let agentless = Agentless::Tasks(tasks.iter().map(|task| (*task).to_owned()).collect());
    tasks::read(&[], &[], &[], agentless).unwrap()
}

/// The nodes on which Consul has the instances of api, by the task's ID.
async fn nodes_of_api() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listed = consul_get("/v1/catalog/service/api").await.unwrap();
    let node = |one: &Value| (text(&one["ServiceMeta"]["task-id"]), text(&one["Node"]));
    listed.as_array().unwrap().iter().map(node).collect()
}

/// Stops a task and starts it again, in both orders, while web calls api.
async fn is_replaced_without_a_failed_request(docker: &Docker, name: &str) {
    for order in [StopOrder::AllAtOnce, StopOrder::DependsOn] {
        let load = Load::start(docker, "web", LOAD).await.unwrap();
        task::stop(docker, name, order).await.unwrap();
        task::start(docker, name, &[]).await.unwrap();
        task::in_rotation(docker, name).await.unwrap();
        let report = load.end().await.unwrap();
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{name}, {order:?}: {report:?}");
        assert!(report.sent > 0);
    }
}

#[tokio::test]
async fn tasks_of_both_kinds_call_each_other_and_are_replaced() {
    let docker = whole().await;
    // From a task with an agent to both kinds.
    up(&without_an_agent(&["api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    let tasks = docker::tasks(&docker).await.unwrap();
    let nodes = nodes_of_api().await;
    let node = |task: &str| &nodes.iter().find(|(id, _)| *id == tasks[task].id).unwrap().1;
    assert!(node("api-2").ends_with(":cluster/ecs-mesh"), "{nodes:?}");
    assert_eq!(*node("api-1"), tasks["api-1"].node());
    is_replaced_without_a_failed_request(&docker, "api-2").await;

    // From a task without an agent to both kinds.
    up(&without_an_agent(&["web", "api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    for task in ["api-1", "api-2"] {
        is_replaced_without_a_failed_request(&docker, task).await;
    }

    // Back to tasks with an agent. Nothing of the others stays in Consul.
    up(&Own::default()).await;
    restored().await;
    eventually("the tasks without an agent are gone", BOUND, async || {
        let nodes = nodes_of_api().await;
        if nodes.iter().any(|(_, node)| node.contains(":cluster/")) { Err(format!("{nodes:?}")) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn dead_servers_fail_no_request() {
    let docker = whole().await;
    up(&without_an_agent(&["web", "api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    let load = Load::start(&docker, "web", LOAD).await.unwrap();
    for server in servers(&docker).await {
        let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        docker.kill_container(&server, Some(kill)).await.unwrap();
        docker.start_container(&server, None::<StartContainerOptions>).await.unwrap();
        // The next server may die only when this one takes part again.
        eventually("the servers are healthy", BOUND, async || {
            let health = consul_get("/v1/operator/autopilot/health").await?;
            if health["FailureTolerance"] == 1 { Ok(()) } else { Err(health.to_string()) }
        })
        .await;
    }
    let report = load.end().await.unwrap();
    assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{report:?}");
    // Changes still arrive.
    task::stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    let only = async || {
        let answered = answering_task().await?;
        let known = docker::tasks(&docker).await.map_err(|error| error.to_string())?;
        if answered == known["api-1"].id { Ok(()) } else { Err(answered) }
    };
    eventually("api-1 answers", Duration::from_secs(5), only).await;
    up(&Own::default()).await;
    restored().await;
}

/// The containers of Consul's servers.
async fn servers(docker: &Docker) -> Vec<String> {
    let all = containers(docker, &[PROJECT_LABEL]).await.unwrap();
    let is_server = |container: &&bollard::models::ContainerSummary| {
        label(container, "com.docker.compose.service").is_some_and(|name| name.starts_with("consul-server"))
    };
    let servers: Vec<_> = all.iter().filter(is_server).filter_map(|container| container.id.clone()).collect();
    assert_eq!(servers.len(), 3);
    servers
}
