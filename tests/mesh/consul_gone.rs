//! Consul gone while a task stops: the task ends within its stop timeouts all the same, and says what it could not tell.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, LogsOptionsBuilder};
use futures_util::StreamExt;
use local_mesh::command;
use local_mesh::docker::{self, PROJECT_LABEL, containers};
use local_mesh::task::{self, StopOrder};
use mesh_tests::eventually;
use tokio::process::Command;

use crate::{consul_get, whole};

/// consul-client's stop timeout, the longest that matters here, and some for Docker.
const BOUND: Duration = Duration::from_secs(30);

async fn log(docker: &Docker, task: &str, container: &str) -> String {
    let containers = docker::task(docker, task).await.unwrap();
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let mut lines = docker.logs(containers[container].id.as_deref().unwrap(), Some(options));
    let mut log = String::new();
    while let Some(line) = lines.next().await {
        log.push_str(&line.unwrap().to_string());
    }
    log
}

async fn exit_code(docker: &Docker, task: &str, container: &str) -> i64 {
    let containers = docker::task(docker, task).await.unwrap();
    containers[container].state.clone().unwrap().exit_code.unwrap()
}

/// Every container of api-2 has ended within its stop timeout, but for consul-client, which is what fails here.
async fn none_other_was_killed(docker: &Docker) {
    for (name, container) in docker::task(docker, "api-2").await.unwrap() {
        let code = container.state.and_then(|state| state.exit_code);
        assert!(code != Some(137) || name == "consul-client", "{name} was killed");
    }
}

/// Stops api-2 and waits for its end; gives how long it took.
async fn stops(docker: &Docker) -> Duration {
    let begun = Instant::now();
    task::stop(docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    begun.elapsed()
}

#[tokio::test]
async fn the_servers_hang() {
    let docker = whole().await;
    let mut servers = Vec::new();
    for container in containers(&docker, &[PROJECT_LABEL]).await.unwrap() {
        if docker::label(&container, "com.docker.compose.service").is_some_and(|name| name.starts_with("consul-server"))
        {
            servers.push(container.id.unwrap());
        }
    }
    for server in &servers {
        docker.pause_container(server).await.unwrap();
    }
    let begun = Instant::now();
    let stopped = task::stop(&docker, "api-2", StopOrder::AllAtOnce).await;
    let took = begun.elapsed();
    for server in &servers {
        docker.unpause_container(server).await.unwrap();
    }
    stopped.unwrap();
    assert_eq!(servers.len(), 3);
    assert!(took < BOUND, "{took:?}");
    none_other_was_killed(&docker).await;
    // The agent tells the servers of a maintenance before it answers.
    says_what_it_could_not_tell(&docker, &["maintenance of api-", "-sidecar-proxy:"]).await;
    whole().await;
}

#[tokio::test]
async fn the_agent_is_killed_first() {
    let docker = whole().await;
    let agent = docker::task(&docker, "api-2").await.unwrap()["consul-client"].id.clone().unwrap();
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&agent, Some(kill)).await.unwrap();
    let node = task::running(&docker, "api-2").await.unwrap().node();
    // It is essential: ecs-local stops the rest.
    let begun = Instant::now();
    task::stopped(&docker, "api-2").await.unwrap();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    none_other_was_killed(&docker).await;
    says_what_it_could_not_tell(&docker, &["-app-consul-ecs critical", "maintenance of api-", "-sidecar-proxy:"]).await;
    whole().await;
    // Nobody told Consul that it leaves: acl-controller removes what is left of it.
    eventually("its node is gone", BOUND, async || {
        let nodes = consul_get("/v1/catalog/nodes").await?;
        let there = nodes.as_array().is_some_and(|all| all.iter().any(|one| one["Node"] == node.as_str()));
        if there { Err(nodes.to_string()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn the_agent_is_frozen() {
    let docker = whole().await;
    let agent = docker::task(&docker, "api-2").await.unwrap()["consul-client"].id.clone().unwrap();
    // Every process but PID 1, which is the bridge: TERM would thaw what Docker has paused.
    let mut freeze = Command::new("docker");
    freeze.args(["run", "--rm", "--pull", "never", "--user", "100:10001", "--pid", &format!("container:{agent}")]);
    command::run(freeze.args(["ecs-mesh/mesh-probe:dev", "freeze"])).await.unwrap();
    let took = stops(&docker).await;
    assert!(took < BOUND, "{took:?}");
    none_other_was_killed(&docker).await;
    says_what_it_could_not_tell(&docker, &["-app-consul-ecs critical", "maintenance of api-", "-sidecar-proxy:"]).await;
    whole().await;
}

async fn says_what_it_could_not_tell(docker: &Docker, what: &[&str]) {
    assert_eq!(exit_code(docker, "api-2", "health-sync").await, 1);
    let log = log(docker, "api-2", "health-sync").await;
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("not written to Consul within 1s"), "{log}");
    for missing in what {
        assert!(last.contains(missing), "{missing:?} is missing in {log}");
    }
}
