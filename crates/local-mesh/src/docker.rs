//! The Docker engine: containers, their labels, and the tasks that they form.

use std::collections::{BTreeMap, HashMap};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{ListContainersOptionsBuilder, LogsOptionsBuilder};
use ecs_local::labels::{CONTAINER_NAME, FAMILY, TASK_ARN, TYPE};
use futures_util::StreamExt;

/// The Compose project.
pub(crate) const PROJECT: &str = "ecs-mesh";
/// The label of every container of the Compose project.
pub const PROJECT_LABEL: &str = "com.docker.compose.project=ecs-mesh";

/// The label with a task's name in docker-compose.yml.
pub(crate) const TASK: &str = "ecs-mesh.task";
/// The label with a gateway's kind, one of the task's tags.
const GATEWAY_KIND: &str = "ecs-mesh.tag.consul.hashicorp.com/gateway-kind";
/// The value of [`TYPE`] on the container that holds a task's network namespace.
pub(crate) const HOLDER: &str = "CNI_PAUSE";

/// Why a request to Docker's engine failed.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The engine is not running, or this user may not use it.
    #[error("Docker is not running or may not be used: start it (`systemctl start docker`, or `dockerd`)")]
    NotRunning(#[source] bollard::errors::Error),
    /// The engine refused a request.
    #[error("Docker: {what}")]
    Request {
        /// The request.
        what: &'static str,
        /// The cause.
        source: bollard::errors::Error,
    },
}

/// Connects to the engine and agrees with it on an API version.
pub async fn connect() -> Result<Docker, DockerError> {
    let docker = Docker::connect_with_defaults().map_err(DockerError::NotRunning)?;
    docker.negotiate_version().await.map_err(DockerError::NotRunning)
}

/// The containers that carry all these labels (`key=value`), running or not.
pub async fn containers(docker: &Docker, labels: &[&str]) -> Result<Vec<ContainerSummary>, DockerError> {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    let filters = HashMap::from([("label", labels)]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed = docker.list_containers(Some(options)).await;
    listed.map_err(|source| DockerError::Request { what: "cannot list containers", source })
}

/// The value of a container's label.
#[must_use]
pub fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name).map(String::as_str)
}

/// Kills all containers that carry these labels.
pub(crate) async fn kill_all(docker: &Docker, labels: &[&str]) -> Result<(), DockerError> {
    let containers = containers(docker, labels).await?;
    let ids = containers.iter().filter_map(|container| container.id.as_deref());
    // Docker refuses to kill a container that has exited.
    futures_util::future::join_all(ids.map(|id| docker.kill_container(id, None))).await;
    Ok(())
}

/// The details of a container.
pub async fn inspect(docker: &Docker, id: &str) -> Result<ContainerInspectResponse, DockerError> {
    let inspected = docker.inspect_container(id, None).await;
    inspected.map_err(|source| DockerError::Request { what: "cannot inspect a container", source })
}

/// The last lines of a container's log, at most `count`.
pub(crate) async fn last_lines(docker: &Docker, id: &str, count: usize) -> Vec<String> {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&count.to_string()).build();
    let mut logs = docker.logs(id, Some(options));
    let mut lines = Vec::new();
    while let Some(Ok(line)) = logs.next().await {
        lines.push(line.to_string().trim().to_owned());
    }
    lines
}

/// The details of a task's containers, by their names within the task. The container that holds the network namespace is not
/// included.
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

/// The container of a task that runs Envoy: with a Consul agent, without one, or in a task of consul-ecs without one.
const PROXIES: [&str; 3] = ["sidecar-proxy", "dataplane", "consul-dataplane"];

/// The name of the container of a task that runs Envoy.
pub async fn proxy(docker: &Docker, name: &str) -> Result<&'static str, DockerError> {
    let containers = task(docker, name).await?;
    Ok(PROXIES.into_iter().find(|proxy| containers.contains_key(*proxy)).unwrap_or(PROXIES[0]))
}

/// A task of the local mesh, as its holder shows it: the container that holds the task's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The ECS task ID.
    pub id: String,
    /// The task family, which is also the name of the service.
    pub family: String,
    /// Whether the holder runs.
    pub running: bool,
    /// Whether the task is a gateway.
    pub is_gateway: bool,
    /// The holder's container ID.
    pub holder: String,
}

impl Task {
    /// The name of the task's node in Consul, as `mesh-init agent-config` makes it.
    #[must_use]
    pub fn node(&self) -> String {
        format!("{}-{}", self.family, self.id)
    }
}

/// The tasks of the local mesh, by their names in docker-compose.yml. If a task ran more than once, this has the last run.
pub async fn tasks(docker: &Docker) -> Result<BTreeMap<String, Task>, DockerError> {
    let mut holders = containers(docker, &[PROJECT_LABEL, &format!("{TYPE}={HOLDER}")]).await?;
    holders.sort_by_key(|holder| holder.created);
    let task = |holder: &ContainerSummary| {
        let id = label(holder, TASK_ARN)?.rsplit('/').next()?.to_owned();
        let family = label(holder, FAMILY)?.to_owned();
        let is_gateway = label(holder, GATEWAY_KIND).is_some();
        let task = Task { id, family, running: is_running(holder), is_gateway, holder: holder.id.clone()? };
        Some((label(holder, TASK)?.to_owned(), task))
    };
    Ok(holders.iter().filter_map(task).collect())
}

/// Whether a container runs.
#[must_use]
pub fn is_running(container: &ContainerSummary) -> bool {
    container.state.as_ref().is_some_and(|state| state.to_string() == "running")
}

/// Whether the tag of a container's image now names another image.
pub(crate) async fn image_has_changed(docker: &Docker, container: &ContainerSummary) -> Result<bool, DockerError> {
    let inspected = inspect(docker, container.id.as_deref().unwrap_or_default()).await?;
    let tag = inspected.config.and_then(|config| config.image).unwrap_or_default();
    match docker.inspect_image(&tag).await {
        Ok(image) => Ok(image.id != inspected.image),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(true),
        Err(source) => Err(DockerError::Request { what: "cannot inspect an image", source }),
    }
}
