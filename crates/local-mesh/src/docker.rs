//! The Docker engine, as far as the local mesh needs it.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;

/// The Compose project, and the label by which Compose marks its containers.
pub const PROJECT: &str = "ecs-mesh";
pub(crate) const PROJECT_LABEL: &str = "com.docker.compose.project=ecs-mesh";

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
