//! The Docker engine, as far as the local mesh needs it.

use std::collections::{BTreeMap, HashMap};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::ListContainersOptionsBuilder;
use ecs_local::labels::{CONTAINER_NAME, FAMILY, TASK_ARN, TYPE};

/// The Compose project.
pub const PROJECT: &str = "ecs-mesh";
/// The label by which Compose marks its containers.
pub const PROJECT_LABEL: &str = "com.docker.compose.project=ecs-mesh";

/// The label with the name that a task has in docker-compose.yml.
pub(crate) const TASK: &str = "ecs-mesh.task";
/// What [`TYPE`] is on the holder of a task's network namespace.
pub(crate) const HOLDER: &str = "CNI_PAUSE";

/// The engine doesn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// It doesn't run, or may not be used.
    #[error("Docker is not running or may not be used: start it (`systemctl start docker`, or `dockerd`)")]
    NotRunning(#[source] bollard::errors::Error),
    /// A request failed.
    #[error("Docker: {what}")]
    Request {
        /// What was asked.
        what: &'static str,
        /// The cause.
        source: bollard::errors::Error,
    },
}

/// Connects to the engine and agrees on an API version.
///
/// # Errors
/// [`DockerError::NotRunning`].
pub async fn connect() -> Result<Docker, DockerError> {
    let docker = Docker::connect_with_defaults().map_err(DockerError::NotRunning)?;
    docker.negotiate_version().await.map_err(DockerError::NotRunning)
}

/// The containers that carry all these labels (`key=value`), running or not.
///
/// # Errors
/// When the engine refuses.
pub async fn containers(docker: &Docker, labels: &[&str]) -> Result<Vec<ContainerSummary>, DockerError> {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    let filters = HashMap::from([("label", labels)]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed = docker.list_containers(Some(options)).await;
    listed.map_err(|source| DockerError::Request { what: "cannot list containers", source })
}

/// A label's value.
#[must_use]
pub fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name).map(String::as_str)
}

/// Kills all containers that carry these labels.
///
/// # Errors
/// When the engine doesn't list them.
pub async fn kill_all(docker: &Docker, labels: &[&str]) -> Result<(), DockerError> {
    let containers = containers(docker, labels).await?;
    let ids = containers.iter().filter_map(|container| container.id.as_deref());
    // One that has ended is not there to be killed.
    futures_util::future::join_all(ids.map(|id| docker.kill_container(id, None))).await;
    Ok(())
}

/// All that the engine knows of a container.
///
/// # Errors
/// When there is no such container, or the engine refuses.
pub async fn inspect(docker: &Docker, id: &str) -> Result<ContainerInspectResponse, DockerError> {
    let inspected = docker.inspect_container(id, None).await;
    inspected.map_err(|source| DockerError::Request { what: "cannot inspect a container", source })
}

/// All that the engine knows of the containers of a task of the local mesh, by their names within the task; without the
/// holder of its network namespace.
///
/// # Errors
/// When the engine refuses.
pub async fn task(docker: &Docker, name: &str) -> Result<HashMap<String, ContainerInspectResponse>, DockerError> {
    let mut task = HashMap::new();
    for container in containers(docker, &[PROJECT_LABEL, &format!("{TASK}={name}")]).await? {
        let holder = label(&container, TYPE) == Some(HOLDER);
        if let (false, Some(id), Some(name)) = (holder, &container.id, label(&container, CONTAINER_NAME)) {
            task.insert(name.to_owned(), inspect(docker, id).await?);
        }
    }
    Ok(task)
}

/// A task of the local mesh, as the holder of its network namespace tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its ECS task ID.
    pub id: String,
    /// Its family, which is its service's name too.
    pub family: String,
    /// Whether the holder runs.
    pub running: bool,
    /// The holder's container ID.
    pub holder: String,
}

impl Task {
    /// The name of its node in Consul, as `mesh-init agent-config` makes it.
    #[must_use]
    pub fn node(&self) -> String {
        format!("{}-{}", self.family, self.id)
    }
}

/// The tasks of the local mesh that have a holder, by the names they have in docker-compose.yml; of two runs of a task the
/// later.
///
/// # Errors
/// When the engine refuses.
pub async fn tasks(docker: &Docker) -> Result<BTreeMap<String, Task>, DockerError> {
    let mut holders = containers(docker, &[PROJECT_LABEL, &format!("{TYPE}={HOLDER}")]).await?;
    holders.sort_by_key(|holder| holder.created);
    let task = |holder: &ContainerSummary| {
        let id = label(holder, TASK_ARN)?.rsplit('/').next()?.to_owned();
        let family = label(holder, FAMILY)?.to_owned();
        let task = Task { id, family, running: is_running(holder), holder: holder.id.clone()? };
        Some((label(holder, TASK)?.to_owned(), task))
    };
    Ok(holders.iter().filter_map(task).collect())
}

/// Whether a container runs.
#[must_use]
pub fn is_running(container: &ContainerSummary) -> bool {
    container.state.as_ref().is_some_and(|state| state.to_string() == "running")
}

/// Whether the tag that a container was created from names another image now.
///
/// # Errors
/// When the engine refuses.
pub async fn image_has_changed(docker: &Docker, container: &ContainerSummary) -> Result<bool, DockerError> {
    let inspected = inspect(docker, container.id.as_deref().unwrap_or_default()).await?;
    let tag = inspected.config.and_then(|config| config.image).unwrap_or_default();
    match docker.inspect_image(&tag).await {
        Ok(image) => Ok(image.id != inspected.image),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(true),
        Err(source) => Err(DockerError::Request { what: "cannot inspect an image", source }),
    }
}
