//! The mesh as a whole: brought up, asked, taken down.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::query_parameters::{ListImagesOptionsBuilder, LogsOptionsBuilder, RemoveImageOptionsBuilder};
use futures_util::StreamExt;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::http::{Client, Limits};
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::compose::{self, Compose, ComposeError};
use crate::demo::ExampleError;
use crate::docker::{self, DockerError, PROJECT_LABEL, containers, inspect, label};
use crate::events::{Event, Recorder};
use crate::images::{self, ImagesError};
use crate::keys;
use crate::load::NoRequest;
use crate::secrets::SecretsError;
use crate::task::{self, TaskError};
use crate::{Progress, mesh_dir, workspace};

/// What the world outside asks the mesh: web's app.
pub const FRONT: &str = "http://127.0.0.1:9090/";

/// Published on the host, and for what.
const PORTS: [(u16, &str); 4] =
    [(9090, "web's app"), (8500, "Consul's HTTP API"), (51678, "the ECS API"), (5000, "Secrets Manager")];

/// How long the end of a connection keeps its port, and some.
const PORT_BOUND: Duration = Duration::from_secs(70);

/// How long the mesh may take from its last container's start to its first answer.
const READY_BOUND: Duration = Duration::from_secs(90);

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
    /// A task does not stop or does not start.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Consul refuses.
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    /// There is no token to look into Consul with.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// An example file can't be used.
    #[error(transparent)]
    Example(#[from] ExampleError),
    /// Load doesn't begin.
    #[error(transparent)]
    NoLoad(WaitError<NoRequest>),
    /// Load has given no report.
    #[error("{container} gave no report but {said:?}")]
    NoReport {
        /// Its container.
        container: String,
        /// Its standard output.
        said: String,
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
    remove_another_s(&docker).await?;
    images::build(progress, UP_STEPS).await?;
    progress.step(images::STEPS + 1, UP_STEPS, "starting Consul and the tasks");
    // Images take minutes.
    check_ports(&docker).await?;
    let mut recorder = Recorder::start(&docker);
    start_all(&docker).await?;
    progress.step(images::STEPS + 2, UP_STEPS, "waiting for the first answer");
    let status = first_answer().await?;
    Ok(Up { events: recorder.events(), status })
}

/// Starts all that docker-compose.yml has and that doesn't run, or runs otherwise than it says.
///
/// # Errors
/// See [`MeshError`].
pub async fn start_all(docker: &Docker) -> Result<(), MeshError> {
    task::stop_outdated(docker).await?;
    compose_up(docker, Compose::default(), &["--remove-orphans"]).await
}

/// Starts services and waits for what they depend on.
pub(crate) async fn compose_up(docker: &Docker, compose: Compose<'_>, services: &[&str]) -> Result<(), MeshError> {
    let begun = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    match compose.run(&[&["up", "--detach"], services].concat()).await {
        Ok(_) => Ok(()),
        // Compose says only that something failed; the container said why.
        Err(error) => Err(failed_container(docker, &begun).await?.unwrap_or(error.into())),
    }
}

/// Builds and generates what docker-compose.yml needs, and no more.
///
/// # Errors
/// See [`MeshError`].
pub async fn build_images(progress: &dyn Progress) -> Result<(), MeshError> {
    docker::connect().await?;
    Ok(images::build(progress, images::STEPS).await?)
}

/// A mesh of another checkout goes: it has other keys, and its servers keep their gossip key in their volumes, whatever they are
/// told, so that no agent of this checkout would ever join them.
async fn remove_another_s(docker: &Docker) -> Result<(), MeshError> {
    let is_here = |directory: &str| fs::canonicalize(directory).ok() == fs::canonicalize(workspace()).ok();
    let there = containers(docker, &[PROJECT_LABEL]).await?;
    let mut owners = there.iter().filter_map(|container| label(container, "com.docker.compose.project.working_dir"));
    let other = owners.find(|directory| !is_here(directory));
    if keys::exist() && other.is_none() {
        return Ok(());
    }
    if !there.is_empty() {
        tracing::warn!("removing the mesh of {}: it has other keys", other.unwrap_or("an earlier checkout"));
    }
    remove(docker).await
}

/// Removes all that [`up`] made: containers, networks, volumes, images and generated files. Fetched parts stay with
/// cargo's artifacts in `target`.
///
/// # Errors
/// See [`MeshError`].
pub async fn down() -> Result<(), MeshError> {
    let docker = docker::connect().await?;
    remove(&docker).await?;
    remove_images(&docker).await?;
    match fs::remove_dir_all(mesh_dir()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MeshError::Remove(error)),
        _ => Ok(()),
    }
}

/// Removes containers, networks and volumes.
async fn remove(docker: &Docker) -> Result<(), MeshError> {
    // Nobody is left who could miss a graceful end, and Compose would wait for one container after the other.
    docker::kill_all(docker, &[PROJECT_LABEL]).await?;
    // Load that was left behind.
    docker::kill_all(docker, &[docker::TASK]).await?;
    compose::run(&["down", "--volumes", "--remove-orphans"]).await?;
    Ok(())
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
    let holder = task::running(&docker, task).await?.holder;
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--pull", "never"]);
    command.args(["--network", &format!("container:{holder}")]);
    command.args(["ecs-mesh/demo-app:dev", "get", url]);
    Ok(command)
}

/// Says which of the host's ports is taken before anything is built, unless the mesh itself has it.
async fn check_ports(docker: &Docker) -> Result<(), MeshError> {
    let ours = containers(docker, &[PROJECT_LABEL]).await?;
    let published = |port| {
        let mut ports = ours.iter().filter_map(|container| container.ports.as_ref()).flatten();
        ports.any(|published| published.public_port == Some(port))
    };
    for (port, what) in PORTS {
        if !published(port) {
            free(port, what).await?;
        }
    }
    Ok(())
}

/// Waits until a port can be published on, unless somebody listens there. One that nobody listens on belongs to the near end of a
/// connection, which has it for a minute more after its end (TIME_WAIT): 51678 is among those that Linux hands out.
async fn free(port: u16, what: &'static str) -> Result<(), MeshError> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let free = until(&format!("port {port}"), PORT_BOUND, Backoff::default(), async || {
        if TcpListener::bind(address).is_ok() {
            return Attempt::Done(());
        }
        let taken = MeshError::PortTaken { port, what };
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Attempt::Again(taken),
            _ => Attempt::Final(taken),
        }
    })
    .await;
    free.map_err(|_| MeshError::PortTaken { port, what })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_waited_for_unless_somebody_listens_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        {
            let mut free = std::pin::pin!(free(near.local_addr().unwrap().port(), "x"));
            let early = tokio::time::timeout(Duration::from_millis(300), &mut free).await;
            assert!(early.is_err(), "a connection has it: {early:?}");
            // Who closes first has TIME_WAIT.
            drop(listener.accept().unwrap());
            drop(near);
            free.await.unwrap();
        }
        let listens = free(listener.local_addr().unwrap().port(), "x").await;
        assert!(matches!(listens, Err(MeshError::PortTaken { .. })));
    }
}
