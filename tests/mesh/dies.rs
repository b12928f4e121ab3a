//! A sidecar that dies while its task runs: the task ends, or ECS's restart policy heals it.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::KillContainerOptionsBuilder;
use local_mesh::docker;
use local_mesh::{command, task};
use mesh_tests::eventually;
use tokio::process::Command;

use crate::{BOUND, restored, started, whole};

/// The restart attempt period of health-sync in docker-compose.yml.
const PERIOD: Duration = Duration::from_secs(10);

async fn id_of(docker: &Docker, task: &str, container: &str) -> String {
    docker::task(docker, task).await.unwrap()[container].id.clone().unwrap()
}

async fn kill(docker: &Docker, task: &str, container: &str) -> Result<(), bollard::errors::Error> {
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&id_of(docker, task, container).await, Some(kill)).await
}

/// Kills every process of a container except PID 1. The test then sees whether PID 1 ends too.
async fn kill_below(docker: &Docker, task: &str, container: &str, user: &str) {
    let of = format!("container:{}", id_of(docker, task, container).await);
    let mut kill = Command::new("docker");
    kill.args(["run", "--rm", "--pull", "never", "--user", user, "--pid", &of, "ecs-mesh/mesh-probe:dev", "kill"]);
    command::run(&mut kill).await.unwrap();
}

async fn exit_code(docker: &Docker, task: &str, container: &str) -> Option<i64> {
    docker::task(docker, task).await.unwrap()[container].state.clone().unwrap().exit_code
}

// main.rs and consul_gone.rs kill the main processes of sidecar-proxy and consul-client: the task ends.

#[tokio::test]
async fn killed_sidecar_is_restarted_or_ends_its_task() {
    let docker = whole().await;
    tokio::join!(
        envoy_killed_under_envoy_entrypoint_ends_the_task(&docker, "api-1"),
        health_sync_is_restarted_unless_it_dies_too_soon(&docker, "web"),
    );
    restored().await;
}

#[tokio::test]
async fn agent_killed_under_the_bridge_ends_its_task() {
    let docker = whole().await;
    kill_below(&docker, "api-2", "consul-client", "100:10001").await;
    task::stopped(&docker, "api-2").await.unwrap();
    assert_ne!(exit_code(&docker, "api-2", "consul-client").await, Some(0));
    restored().await;
}

async fn envoy_killed_under_envoy_entrypoint_ends_the_task(docker: &Docker, task: &str) {
    kill_below(docker, task, "sidecar-proxy", "101:10001").await;
    task::stopped(docker, task).await.unwrap();
    assert_eq!(exit_code(docker, task, "sidecar-proxy").await, Some(128 + 9));
}

async fn health_sync_is_restarted_unless_it_dies_too_soon(docker: &Docker, task: &str) {
    let run_of = async || {
        let containers = docker::task(docker, task).await.unwrap();
        let state = containers["health-sync"].state.clone().unwrap();
        (state.running == Some(true), state.started_at.unwrap_or_default())
    };
    let id = task::running(docker, task).await.unwrap().id;
    let others = async || {
        let mut all = started(docker, task).await;
        all.retain(|(name, _)| name != "health-sync");
        all
    };
    let (before, first) = (others().await, run_of().await.1);
    // Its restart policy works only if it has run for the whole period.
    tokio::time::sleep(PERIOD).await;
    kill(docker, task, "health-sync").await.unwrap();
    eventually("health-sync runs again", BOUND, async || match run_of().await {
        (true, started) if started != first => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    task::healthy_in_ecs(docker, task).await.unwrap();
    task::ready(docker, task).await.unwrap();
    let after = (others().await, task::running(docker, task).await.unwrap().id);
    assert_eq!(after, (before, id), "nothing else was restarted");

    // Each new health-sync is killed at once, so it has run for less than the period. On a slow machine it may be restarted one more time.
    // Docker refuses to kill one that ends at this moment.
    eventually("a health-sync that runs for less than ten seconds ends the task", BOUND, async || {
        if run_of().await.0 {
            kill(docker, task, "health-sync").await.map_err(|error| error.to_string())?;
        }
        match task::running(docker, task).await {
            Ok(_) => Err("it runs".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    task::stopped(docker, task).await.unwrap();
}
