//! docker-compose, as a program of its own (1.29 or 2.x) or as Docker's plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bollard::Docker;
use tokio::process::Command;

use crate::command::{self, CommandError};
use crate::docker::{self, DockerError, PROJECT, PROJECT_LABEL, containers, label};
use crate::workspace;

/// Compose didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// It is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Docker failed.
    #[error(transparent)]
    Docker(#[from] DockerError),
}

/// Runs docker-compose on the mesh's file, and on another over it where one is given; gives its standard output.
///
/// # Errors
/// See [`ComposeError`].
pub async fn run(over: Option<&Path>, arguments: &[&str]) -> Result<String, ComposeError> {
    let mut command = program().await?;
    // Said outright: COMPOSE_PROJECT_NAME or COMPOSE_FILE of the caller's shell would lead to another's containers.
    command.current_dir(workspace()).args(["--project-name", PROJECT, "--file", "docker-compose.yml"]);
    if let Some(over) = over {
        command.arg("--file").arg(over);
    }
    Ok(command::run(command.args(arguments)).await?)
}

async fn program() -> Result<Command, ComposeError> {
    let plugin = || {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    };
    match command::run(Command::new("docker-compose").arg("version")).await {
        Ok(_) => Ok(Command::new("docker-compose")),
        Err(missing) => match command::run(plugin().arg("version")).await {
            Ok(_) => Ok(plugin()),
            Err(_) => Err(missing.into()),
        },
    }
}

/// Stops and removes every task of which a container's image or definition has changed since it was created. ECS
/// replaces a task as a whole; Compose would replace container by container, and the first essential one that it stops ends
/// the task under the others.
///
/// # Errors
/// See [`ComposeError`].
pub async fn remove_outdated_tasks(docker: &Docker) -> Result<(), ComposeError> {
    const SERVICE: &str = "com.docker.compose.service";
    let hashes = run(None, &["config", "--hash", "*"]).await?;
    let hashes = hashes.lines().filter_map(|line| line.split_once(' ')).collect::<BTreeMap<_, _>>();
    let existing = containers(docker, &[PROJECT_LABEL, "ecs-mesh.task"]).await?;
    let mut outdated = BTreeSet::new();
    for container in &existing {
        let (Some(task), Some(service)) = (label(container, "ecs-mesh.task"), label(container, SERVICE)) else {
            continue;
        };
        let same_definition = hashes.get(service).copied() == label(container, "com.docker.compose.config-hash");
        if !same_definition || docker::image_has_changed(docker, container).await? {
            outdated.insert(task);
        }
    }
    let services = existing
        .iter()
        .filter(|container| label(container, "ecs-mesh.task").is_some_and(|task| outdated.contains(task)));
    let services = services.filter_map(|container| label(container, SERVICE)).collect::<Vec<_>>();
    if !services.is_empty() {
        // Else it would take the first container's end for the task's and tell the others to stop too: Consul takes a second
        // TERM as an order not to leave the cluster.
        run(None, &["stop", "ecs-local"]).await?;
        run(None, &[&["rm", "--stop", "--force", "-v"], services.as_slice()].concat()).await?;
    }
    Ok(())
}
