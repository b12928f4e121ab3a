//! The mesh as a whole: brought up, asked, taken down.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListImagesOptionsBuilder, LogsOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures_util::StreamExt;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::http::{Client, Limits};
use sidecar_kit::wait::{Attempt, until};
use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::compose::{self, ComposeError};
use crate::docker::{self, DockerError, PROJECT_LABEL, containers, inspect, label};
use crate::images::{self, ImagesError};
use crate::timeline::{Event, Recorder};
use crate::{Progress, mesh_dir};

/// What the world outside asks the mesh: web's app.
pub const FRONT: &str = "http://127.0.0.1:9090/";

/// Published on the host, and for what.
const PORTS: [(u16, &str); 2] = [(9090, "web's app"), (8500, "Consul's HTTP API")];

/// How long the mesh may take from its last container's start to its first answer.
const READY_BOUND: Duration = Duration::from_secs(90);

/// A task's stop timeouts, and some.
const STOP_BOUND: Duration = Duration::from_secs(60);

/// Why the mesh doesn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Docker doesn't.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The images could not be built.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Compose doesn't.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// Something else listens there.
    #[error("port {port} of 127.0.0.1 is taken: end what listens there; {what} is to be published on it")]
    PortTaken {
        /// The port.
        port: u16,
        /// For what it is needed.
        what: &'static str,
    },
    /// A container failed.
    #[error("{container} exited with {code} and said: {said}")]
    Container {
        /// Its name.
        container: String,
        /// Its exit code.
        code: i64,
        /// Its last line.
        said: String,
    },
    /// The mesh came up but gave no answer.
    #[error("the mesh is up but GET {FRONT} fails: see `docker-compose logs`")]
    NotReady(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A task goes on running.
    #[error("a task was told to stop and did not")]
    NotStopped(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no such task.
    #[error("there is no running task {task:?}: {known}")]
    NoTask {
        /// What was asked for.
        task: String,
        /// What there is.
        known: String,
    },
    /// A directory could not be removed.
    #[error("cannot remove {}", mesh_dir().display())]
    Remove(#[source] io::Error),
}

/// A running mesh, and what happened while it started.
#[derive(Debug)]
pub struct Up {
    /// What happened to the tasks' containers.
    pub events: Vec<Event>,
    /// The status of the first answer.
    pub status: u16,
}

/// How many steps [`up`] reports.
pub const UP_STEPS: usize = images::STEPS + 2;

/// Brings the mesh up and waits for its first answer: images, containers, request. One that is up is left as it is, but for
/// what changed.
///
/// # Errors
/// See [`MeshError`].
pub async fn up(progress: &dyn Progress) -> Result<Up, MeshError> {
    let docker = docker::connect().await?;
    check_ports(&docker).await?;
    images::build(progress, UP_STEPS).await?;
    progress.step(images::STEPS + 1, UP_STEPS, "starting Consul and the tasks");
    compose::remove_outdated_tasks(&docker).await?;
    let mut recorder = Recorder::start(&docker);
    let begun = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    if let Err(error) = compose::run(None, &["up", "--detach", "--remove-orphans"]).await {
        // Compose says only that something failed; the container said why.
        return Err(failed_container(&docker, &begun).await?.unwrap_or(error.into()));
    }
    progress.step(images::STEPS + 2, UP_STEPS, "waiting for the first answer");
    let status = first_answer().await?;
    Ok(Up { events: recorder.events(), status })
}

/// Builds and generates what docker-compose.yml needs, and no more.
///
/// # Errors
/// See [`MeshError`].
pub async fn build_images(progress: &dyn Progress) -> Result<(), MeshError> {
    docker::connect().await?;
    Ok(images::build(progress, images::STEPS).await?)
}

/// Removes all that [`up`] made: containers, networks, volumes, images and generated files. Fetched parts stay with
/// cargo's artifacts in `target`.
///
/// # Errors
/// See [`MeshError`].
pub async fn down() -> Result<(), MeshError> {
    let docker = docker::connect().await?;
    // Nobody is left who could miss a graceful end, and Compose would wait for one container after the other.
    docker::kill_all(&docker).await?;
    compose::run(None, &["down", "--volumes", "--remove-orphans"]).await?;
    remove_images(&docker).await?;
    match std::fs::remove_dir_all(mesh_dir()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MeshError::Remove(error)),
        _ => Ok(()),
    }
}

async fn remove_images(docker: &Docker) -> Result<(), MeshError> {
    let failed = |what| move |source| DockerError::Request { what, source };
    let filters = HashMap::from([("label", vec![images::LABEL])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let listed = docker.list_images(Some(options)).await.map_err(failed("cannot list images"))?;
    for image in listed {
        // Tagged ones by their tags: an image with two can only be removed so. One whose tag has moved on has none.
        let tags = image.repo_tags.into_iter().filter(|tag| !tag.contains("<none>")).collect::<Vec<_>>();
        for name in if tags.is_empty() { vec![image.id] } else { tags } {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            docker.remove_image(&name, Some(options), None).await.map_err(failed("cannot remove an image"))?;
        }
    }
    Ok(())
}

/// Stops a task as ECS does when its app exits: TERM to the app, upon which ecs-local stops the rest. Returns when none of
/// its containers runs. `docker-compose stop` would not do: consul-client would get TERM from both, and Consul takes a second
/// one as an order not to leave the cluster.
///
/// # Errors
/// See [`MeshError`].
pub async fn stop_task(task: &str) -> Result<(), MeshError> {
    let docker = docker::connect().await?;
    let id = holder(&docker, task).await?;
    let containers = docker::task(&docker, task).await?;
    if let Some(app) = containers.get("app").and_then(|app| app.id.as_deref()) {
        let term = KillContainerOptionsBuilder::default().signal("SIGTERM").build();
        let killed = docker.kill_container(app, Some(term)).await;
        killed.map_err(|source| DockerError::Request { what: "cannot stop the app", source })?;
    }
    // The holder goes last.
    until("the task's end", STOP_BOUND, Backoff::default(), async || match inspect(&docker, &id).await {
        Ok(holder) if holder.state.as_ref().is_some_and(|state| state.running == Some(true)) => {
            Attempt::Again(StillRuns(task.to_owned()))
        }
        Ok(_) | Err(_) => Attempt::Done(()),
    })
    .await
    .map_err(|error| MeshError::NotStopped(error.into()))
}

#[derive(Debug, thiserror::Error)]
#[error("{0} still runs")]
struct StillRuns(String);

/// Runs `demo-app get URL` in a task's network namespace, with this process's standard streams.
///
/// # Errors
/// See [`MeshError`]; a request that fails is the exit status's matter.
pub async fn get(task: &str, url: &str) -> Result<ExitStatus, MeshError> {
    let status = get_command(task, url).await?.stdin(Stdio::null()).status().await;
    status.map_err(|source| CommandError::Start { program: "docker".to_owned(), source }.into())
}

/// The body of what a URL answers within a task's network namespace.
///
/// # Errors
/// See [`MeshError`]; any status but 2xx is a failed command.
pub async fn fetch(task: &str, url: &str) -> Result<String, MeshError> {
    Ok(run(&mut get_command(task, url).await?).await?)
}

async fn get_command(task: &str, url: &str) -> Result<Command, MeshError> {
    let docker = docker::connect().await?;
    let holder = holder(&docker, task).await?;
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--pull", "never"]);
    command.args(["--network", &format!("container:{holder}")]);
    command.args(["ecs-mesh/demo-app:dev", "get", url]);
    Ok(command)
}

/// The container that holds a task's network namespace.
async fn holder(docker: &Docker, task: &str) -> Result<String, MeshError> {
    let holders = containers(docker, &[PROJECT_LABEL, "ecs-mesh.type=CNI_PAUSE"]).await?;
    let running = holders.iter().filter(|holder| is_running(holder)).collect::<Vec<_>>();
    let found = running.iter().find(|holder| label(holder, "ecs-mesh.task") == Some(task));
    found.and_then(|holder| holder.id.clone()).ok_or_else(|| {
        let mut names = running.iter().filter_map(|holder| label(holder, "ecs-mesh.task")).collect::<Vec<_>>();
        names.sort_unstable();
        let known = match names.as_slice() {
            [] => "none runs; `cargo xtask up` starts them".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        MeshError::NoTask { task: task.to_owned(), known }
    })
}

fn is_running(container: &ContainerSummary) -> bool {
    container.state.as_ref().is_some_and(|state| state.to_string() == "running")
}

/// Says which of the host's ports is taken before anything is built, unless the mesh itself has it.
async fn check_ports(docker: &Docker) -> Result<(), MeshError> {
    let ours = containers(docker, &[PROJECT_LABEL]).await?;
    let published = |port| {
        let mut ports = ours.iter().filter_map(|container| container.ports.as_ref()).flatten();
        ports.any(|published| published.public_port == Some(port))
    };
    for (port, what) in PORTS {
        if !published(port) && TcpListener::bind(("127.0.0.1", port)).is_err() {
            return Err(MeshError::PortTaken { port, what });
        }
    }
    Ok(())
}

/// The first of the mesh's containers that exited with an error since `begun` (RFC 3339, UTC, as Docker's times are), with
/// the last line of its log.
async fn failed_container(docker: &Docker, begun: &str) -> Result<Option<MeshError>, MeshError> {
    for container in containers(docker, &[PROJECT_LABEL]).await? {
        let Some(id) = container.id else { continue };
        let inspected = inspect(docker, &id).await?;
        let state = inspected.state.unwrap_or_default();
        let code = state.exit_code.unwrap_or_default();
        let recent = state.finished_at.as_deref().is_some_and(|finished| finished > begun);
        if state.running != Some(true) && code != 0 && recent {
            let container = inspected.name.unwrap_or_default().trim_start_matches('/').to_owned();
            return Ok(Some(MeshError::Container { container, code, said: last_line(docker, &id).await }));
        }
    }
    Ok(None)
}

async fn last_line(docker: &Docker, id: &str) -> String {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("1").build();
    let mut logs = docker.logs(id, Some(options));
    let mut last = String::new();
    while let Some(Ok(line)) = logs.next().await {
        last = line.to_string().trim().to_owned();
    }
    last
}

async fn first_answer() -> Result<u16, MeshError> {
    #[derive(Debug, thiserror::Error)]
    enum NotYet {
        #[error(transparent)]
        Http(#[from] sidecar_kit::http::Error),
        #[error("it answers {0}: {1}")]
        Status(u16, String),
    }
    let client = Client::plain();
    let limits = Limits { time: Duration::from_secs(5), bytes: 1 << 20 };
    until("the first answer", READY_BOUND, Backoff::default(), async || {
        let request = hyper::Request::get(FRONT).body(Default::default()).expect("the URL is one");
        match client.send(request, limits).await {
            Ok(response) if response.status.is_success() => Attempt::Done(response.status.as_u16()),
            Ok(response) => Attempt::Again(NotYet::Status(response.status.as_u16(), response.excerpt())),
            Err(error) => Attempt::Again(error.into()),
        }
    })
    .await
    .map_err(|error| MeshError::NotReady(error.into()))
}
