//! The mesh as a whole: brought up, asked, taken down.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::http::{Client, Limits};
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::compose::{self, Compose, ComposeError};
use crate::diagnosis::{self, Diagnosis};
use crate::docker::{self, DockerError, PROJECT_LABEL, containers, label};
use crate::events::{Event, Recorder};
use crate::images::{self, ImagesError};
use crate::keys;
use crate::ports::{self, PortsError};
use crate::task::{self, TaskError};
use crate::tasks::{self, Own, TasksError};
use crate::vendors::Programs;
use crate::{Progress, mesh_dir, version, workspace};

/// The URL of web's app, on the host.
pub const FRONT: &str = "http://127.0.0.1:9090/";

/// The label of Consul's servers with their version.
const VERSION: &str = "ecs-mesh.consul-version";

/// How long the mesh may take to answer after its last container has started.
const READY_BOUND: Duration = Duration::from_secs(90);

/// Why the mesh did not come up, or was not removed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The images could not be built.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// docker-compose failed.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// A port is in use.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// A task or another container did not start.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The user's tasks could not be written.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// All containers run, and a log shows why requests fail.
    #[error("the mesh is up but GET {FRONT} fails")]
    NotReadyBecause(#[source] Diagnosis),
    /// All containers run, but requests fail.
    #[error("the mesh is up but GET {FRONT} fails: see `docker-compose logs`")]
    NotReady(#[source] WaitError<NoAnswer>),
    /// The generated files could not be removed.
    #[error("cannot remove {}", mesh_dir().display())]
    Remove(#[source] io::Error),
}

/// Why web's app gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It gave no answer.
    #[error(transparent)]
    Http(#[from] sidecar_kit::http::Error),
    /// It answered with another status than 2xx.
    #[error("the answer is {0}: {1}")]
    Status(u16, String),
}

/// Why a request from within a task could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The task does not run.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// docker failed, or the answer was not 2xx.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The result of [`up`].
#[derive(Debug)]
pub struct Up {
    /// The events of the tasks' containers.
    pub events: Vec<Event>,
    /// The status of the first answer.
    pub status: u16,
}

/// How many steps [`up`] reports.
pub const UP_STEPS: usize = images::STEPS + 2;

/// Builds the images, starts the containers, and waits for the first answer. If the mesh is up, this replaces only what changed. `own` are
/// the user's tasks; those of an earlier call are removed.
pub async fn up(progress: &dyn Progress, programs: &Programs, own: &Own) -> Result<Up, MeshError> {
    let docker = docker::connect().await?;
    ports::check(&docker, &own.ports).await?;
    // Building takes minutes, so an image that is missing is named before.
    let (built, others): (Vec<_>, Vec<_>) =
        own.images.iter().cloned().partition(|(_, image)| image.starts_with(images::BUILT));
    images::ensure(&others).await?;
    remove_of_other_checkout(&docker).await?;
    images::build(progress, UP_STEPS, programs).await?;
    remove_of_other_version(&docker).await?;
    progress.step(images::STEPS + 1, UP_STEPS, "starting Consul and the tasks");
    images::ensure(&built).await?;
    tasks::write(own)?;
    // Building takes minutes, in which a program may have taken a port.
    ports::check(&docker, &own.ports).await?;
    let mut recorder = Recorder::start(&docker);
    let begun = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    start_all(&docker).await?;
    progress.step(images::STEPS + 2, UP_STEPS, "waiting for the first answer");
    let status = match first_answer().await {
        Ok(status) => status,
        Err(error) => match diagnosis::of_containers(&docker, &begun).await? {
            Some(found) => return Err(MeshError::NotReadyBecause(found)),
            None => return Err(MeshError::NotReady(error)),
        },
    };
    for name in &own.tasks {
        task::ready(&docker, name).await?;
    }
    Ok(Up { events: recorder.events(), status })
}

/// The engine of a running mesh. The load of the demos comes from its task web.
pub async fn running() -> Result<Docker, TaskError> {
    let docker = docker::connect().await?;
    task::running(&docker, "web").await?;
    Ok(docker)
}

/// Starts everything in docker-compose.yml that does not run or whose definition has changed. The gateways are left out unless one of
/// them runs.
pub async fn start_all(docker: &Docker) -> Result<(), TaskError> {
    task::stop_outdated(docker).await?;
    Ok(Compose::default().up(docker, &["--remove-orphans"]).await?)
}

/// Builds and generates everything that docker-compose.yml needs, and starts nothing.
pub async fn build_images(progress: &dyn Progress, programs: &Programs) -> Result<(), MeshError> {
    docker::connect().await?;
    Ok(images::build(progress, images::STEPS, programs).await?)
}

/// Removes the mesh of another checkout, or of this one if its keys are gone. That mesh has other keys. Its servers also keep their gossip key in their volumes, so an agent of
/// this checkout could not join them.
async fn remove_of_other_checkout(docker: &Docker) -> Result<(), MeshError> {
    let is_here = |directory: &str| fs::canonicalize(directory).ok() == fs::canonicalize(workspace()).ok();
    let present = containers(docker, &[PROJECT_LABEL]).await?;
    let mut owners = present.iter().filter_map(|container| label(container, "com.docker.compose.project.working_dir"));
    let other = owners.find(|directory| !is_here(directory));
    if keys::exist() && other.is_none() {
        return Ok(());
    }
    if !present.is_empty() {
        tracing::warn!("removing the mesh of {}: it has other keys", other.unwrap_or("an earlier checkout"));
    }
    remove(docker).await
}

/// Removes a mesh of another Consul version. Consul cannot read the data of a later version, or of a much earlier one.
async fn remove_of_other_version(docker: &Docker) -> Result<(), MeshError> {
    let wanted = version::of_mesh().map(|version| version.to_string());
    let present = containers(docker, &[PROJECT_LABEL, VERSION]).await?;
    let Some(other) = present.iter().find(|container| label(container, VERSION) != wanted.as_deref()) else {
        return Ok(());
    };
    tracing::warn!(
        "removing the mesh of Consul {}: its data are of another version",
        label(other, VERSION).unwrap_or_default()
    );
    remove(docker).await
}

/// Removes everything that [`up`] made: containers, networks, volumes, images and generated files. The fetched packages stay in
/// `target`, beside cargo's artifacts.
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
    // All containers go, so none needs a graceful end. Compose would stop one container after the other.
    docker::kill_all(docker, &[PROJECT_LABEL]).await?;
    // The containers of a load are not in the Compose project.
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
        // Docker removes an image with two tags only by its tags. An image whose tag has moved to another image has none.
        let tags = image.repo_tags.into_iter().filter(|tag| !tag.contains("<none>")).collect::<Vec<_>>();
        for name in if tags.is_empty() { vec![image.id] } else { tags } {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            docker.remove_image(&name, Some(options), None).await.map_err(failed("cannot remove an image"))?;
        }
    }
    Ok(())
}

/// Runs `demo-app get URL` in a task's network namespace, with this process's standard streams. A failed request is no error; its
/// exit status shows it.
pub async fn get(task: &str, url: &str) -> Result<ExitStatus, RequestError> {
    let status = get_command(task, url).await?.stdin(Stdio::null()).status().await;
    status.map_err(|source| CommandError::Start { program: "docker".to_owned(), source }.into())
}

/// The body of the answer to a request from within a task's network namespace. Any status except 2xx is an error.
pub async fn fetch(task: &str, url: &str) -> Result<String, RequestError> {
    Ok(run(&mut get_command(task, url).await?).await?)
}

async fn get_command(task: &str, url: &str) -> Result<Command, RequestError> {
    let docker = docker::connect().await.map_err(TaskError::from)?;
    let holder = task::running(&docker, task).await?.holder;
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--pull", "never"]);
    command.args(["--network", &format!("container:{holder}")]);
    command.args(["ecs-mesh/demo-app:dev", "get", url]);
    Ok(command)
}

async fn first_answer() -> Result<u16, WaitError<NoAnswer>> {
    let client = Client::plain();
    let limits = Limits { time: Duration::from_secs(5), bytes: 1 << 20 };
    until("the first answer", READY_BOUND, Backoff::default(), async || {
        let request = hyper::Request::get(FRONT).body(Default::default()).expect("the URL is valid");
        match client.send(request, limits).await {
            Ok(response) if response.status.is_success() => Attempt::Done(response.status.as_u16()),
            Ok(response) => Attempt::Again(NoAnswer::Status(response.status.as_u16(), response.excerpt())),
            Err(error) => Attempt::Again(error.into()),
        }
    })
    .await
}
