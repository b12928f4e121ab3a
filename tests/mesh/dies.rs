//! A sidecar that dies while its task runs: the task ends, or ECS's restart policy heals it.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::KillContainerOptionsBuilder;
use local_mesh::docker;
use local_mesh::{command, task};
use mesh_tests::eventually;
use tokio::process::Command;

use crate::{BOUND, started, whole};

/// The restart attempt period of health-sync in docker-compose.yml.
const PERIOD: Duration = Duration::from_secs(10);

async fn id_of(docker: &Docker, container: &str) -> String {
    docker::task(docker, "api-2").await.unwrap()[container].id.clone().unwrap()
}

async fn kill(docker: &Docker, container: &str) {
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&id_of(docker, container).await, Some(kill)).await.unwrap();
}

/// Kills every process of a container but PID 1, by which it is seen whether PID 1 ends too.
async fn kill_below(docker: &Docker, container: &str, user: &str) {
    let of = format!("container:{}", id_of(docker, container).await);
    let mut kill = Command::new("docker");
    kill.args(["run", "--rm", "--pull", "never", "--user", user, "--pid", &of, "ecs-mesh/mesh-probe:dev", "kill"]);
    command::run(&mut kill).await.unwrap();
}

async fn exit_code(docker: &Docker, container: &str) -> Option<i64> {
    docker::task(docker, "api-2").await.unwrap()[container].state.clone().unwrap().exit_code
}

// The main processes of sidecar-proxy and consul-client that are killed are in main.rs and consul_gone.rs: the task ends.

#[tokio::test]
async fn an_envoy_that_is_killed_under_envoy_entrypoint_ends_the_task() {
    let docker = whole().await;
    kill_below(&docker, "sidecar-proxy", "101:10001").await;
    task::stopped(&docker, "api-2").await.unwrap();
    assert_eq!(exit_code(&docker, "sidecar-proxy").await, Some(128 + 9));
    whole().await;
}

#[tokio::test]
async fn a_consul_agent_that_is_killed_under_its_image_s_main_process_ends_the_task() {
    let docker = whole().await;
    kill_below(&docker, "consul-client", "100:10001").await;
    task::stopped(&docker, "api-2").await.unwrap();
    assert_ne!(exit_code(&docker, "consul-client").await, Some(0));
    whole().await;
}

#[tokio::test]
async fn a_health_sync_that_is_killed_is_restarted_and_one_that_dies_again_too_soon_ends_the_task() {
    let docker = whole().await;
    let run_of = async || {
        let containers = docker::task(&docker, "api-2").await.unwrap();
        let state = containers["health-sync"].state.clone().unwrap();
        (state.running == Some(true), state.started_at.unwrap_or_default())
    };
    let id = task::running(&docker, "api-2").await.unwrap().id;
    let others = async || {
        let mut all = started(&docker, "api-2").await;
        all.retain(|(name, _)| name != "health-sync");
        all
    };
    let (before, first) = (others().await, run_of().await.1);
    // It may have started a moment ago.
    tokio::time::sleep(PERIOD).await;
    kill(&docker, "health-sync").await;
    eventually("health-sync runs again", BOUND, async || match run_of().await {
        (true, started) if started != first => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    task::healthy_in_ecs(&docker, "api-2").await.unwrap();
    task::ready(&docker, "api-2").await.unwrap();
    assert_eq!(
        (others().await, task::running(&docker, "api-2").await.unwrap().id),
        (before, id),
        "nothing else began anew"
    );

    // At its first health check it has run for a second or so. On a machine that took longer it is restarted once more.
    eventually("a health-sync that does not run for ten seconds ends the task", BOUND, async || {
        if run_of().await.0 {
            kill(&docker, "health-sync").await;
        }
        match task::running(&docker, "api-2").await {
            Ok(_) => Err("it runs".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    task::stopped(&docker, "api-2").await.unwrap();
    whole().await;
}
