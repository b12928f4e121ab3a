//! A task stops while Consul is missing. The task still ends within its stop timeouts, and health-sync logs what it could not write.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, LogsOptionsBuilder};
use futures_util::StreamExt;
use local_mesh::command;
use local_mesh::docker::{self, PROJECT_LABEL, containers};
use local_mesh::task::{self, StopOrder};
use local_mesh::version::{self, Version};
use mesh_tests::eventually;
use tokio::process::Command;

use crate::{consul_get, restored, whole};

/// A bound for the end of a task: consul-client's stop timeout, the longest one here, and some seconds for Docker.
const BOUND: Duration = Duration::from_secs(30);

/// The writes that fail without an agent, as the last line of health-sync's log names them.
const UNTOLD: [&str; 3] = ["-app-consul-ecs critical", "maintenance of api-", "-sidecar-proxy:"];

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

/// Checks that every container of the task has ended within its stop timeout. consul-client is exempt, because the test breaks it.
async fn none_other_was_killed(docker: &Docker, task: &str) {
    for (name, container) in docker::task(docker, task).await.unwrap() {
        let code = container.state.and_then(|state| state.exit_code);
        assert!(code != Some(137) || name == "consul-client", "{name} was killed");
    }
}

#[tokio::test]
async fn task_stops_in_time_though_the_servers_hang() {
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
    none_other_was_killed(&docker, "api-2").await;
    // Before the agent answers, it sends the maintenance to the servers, which hang.
    says_what_it_could_not_tell(&docker, "api-2", &["maintenance of api-", "-sidecar-proxy:"]).await;
    restored().await;
}

#[tokio::test]
async fn task_stops_in_time_though_its_agent_is_dead_or_frozen() {
    let docker = whole().await;
    let (node, ()) = tokio::join!(its_agent_is_killed(&docker, "api-2"), its_agent_is_frozen(&docker, "api-1"));
    restored().await;
    // The killed agent could not leave the cluster, so acl-controller removes its node.
    eventually("its node is gone", BOUND, async || {
        let nodes = consul_get("/v1/catalog/nodes").await?;
        let there = nodes.as_array().is_some_and(|all| all.iter().any(|one| one["Node"] == node.as_str()));
        if there { Err(nodes.to_string()) } else { Ok(()) }
    })
    .await;
}

/// Kills the task's agent, and returns the name of the agent's node.
async fn its_agent_is_killed(docker: &Docker, task: &str) -> String {
    let node = task::running(docker, task).await.unwrap().node();
    let agent = docker::task(docker, task).await.unwrap()["consul-client"].id.clone().unwrap();
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&agent, Some(kill)).await.unwrap();
    // consul-client is essential, so ecs-local stops the rest of the task.
    let begun = Instant::now();
    task::stopped(docker, task).await.unwrap();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    none_other_was_killed(docker, task).await;
    says_what_it_could_not_tell(docker, task, &UNTOLD).await;
    node
}

async fn its_agent_is_frozen(docker: &Docker, task: &str) {
    let agent = docker::task(docker, task).await.unwrap()["consul-client"].id.clone().unwrap();
    if version::of_mesh().is_some_and(Version::serves_xds_v3) {
        // The agent is PID 1. Only a process outside of the container can freeze it.
        let freeze = KillContainerOptionsBuilder::default().signal("SIGSTOP").build();
        docker.kill_container(&agent, Some(freeze)).await.unwrap();
    } else {
        // This freezes every process except PID 1, the bridge. Pausing the container would not do, because Docker would continue it
        // to deliver TERM.
        let mut freeze = Command::new("docker");
        freeze.args(["run", "--rm", "--pull", "never", "--user", "100:10001", "--pid", &format!("container:{agent}")]);
        command::run(freeze.args(["ecs-mesh/mesh-probe:dev", "freeze"])).await.unwrap();
    }
    let begun = Instant::now();
    task::stop(docker, task, StopOrder::AllAtOnce).await.unwrap();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    none_other_was_killed(docker, task).await;
    says_what_it_could_not_tell(docker, task, &UNTOLD).await;
}

async fn says_what_it_could_not_tell(docker: &Docker, task: &str, what: &[&str]) {
    assert_eq!(exit_code(docker, task, "health-sync").await, 1);
    let log = log(docker, task, "health-sync").await;
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("not written to Consul within 1s"), "{log}");
    for missing in what {
        assert!(last.contains(missing), "{missing:?} is missing in {log}");
    }
}
