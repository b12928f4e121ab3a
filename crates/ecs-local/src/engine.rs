//! The Docker engine's containers that belong to tasks.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{
    EventsOptionsBuilder, ListContainersOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, TryStreamExt};
use time::OffsetDateTime;

use crate::labels::{CLUSTER, TASK_ARN};

/// The engine is on this machine. Even a busy engine lists its containers within a second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// `DOCKER_HOST` is not the path of a socket.
    #[error("DOCKER_HOST is {0:?}: expected unix:// and the path of the Docker engine's socket")]
    Host(String),
    /// Nothing answers at the socket.
    #[error("cannot reach the Docker engine at {host} (is it running?)")]
    Unreachable {
        /// The socket.
        host: String,
        /// Why.
        source: bollard::errors::Error,
    },
    /// The engine refused a request.
    #[error("the Docker engine did not {what}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Why.
        source: bollard::errors::Error,
    },
    /// The engine reports that it stopped a container, but the container still runs.
    #[error("container {0} still runs though the Docker engine stopped it")]
    StillRuns(String),
}

/// A container of a task, as the engine lists it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A connection to the engine. It needs API 1.41 (Docker 20.10) or later.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    docker: Docker,
    cluster: Option<String>,
    /// The labels that a container must have.
    labels: Vec<String>,
}

impl Engine {
    /// Connects to the engine. It shows only the tasks of `cluster`, or all tasks if there is no `cluster`.
    pub(crate) async fn connect(host: &str, cluster: Option<&str>) -> Result<Self, EngineError> {
        let path = host.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| EngineError::Host(host.to_owned()))?;
        let unreachable = |source| EngineError::Unreachable { host: host.to_owned(), source };
        let docker = Docker::connect_with_unix(path, TIMEOUT.as_secs(), API_DEFAULT_VERSION).map_err(unreachable)?;
        let mut labels = vec![TASK_ARN.to_owned()];
        labels.extend(cluster.map(|cluster| format!("{CLUSTER}={cluster}")));
        let docker = docker.negotiate_version().await.map_err(unreachable)?;
        Ok(Self { docker, cluster: cluster.map(str::to_owned), labels })
    }

    /// The cluster whose tasks the engine shows; none if it shows all tasks.
    pub(crate) fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    pub(crate) async fn ping(&self) -> Result<(), EngineError> {
        self.docker.ping().await.map(|_| ()).map_err(|source| EngineError::Refused { what: "answer a ping", source })
    }

    /// The containers of all tasks, running or not.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        let labelled = HashMap::from([("label", self.labels.clone())]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&labelled).build();
        let listed = self.docker.list_containers(Some(options)).await;
        let listed = listed.map_err(|source| EngineError::Refused { what: "list containers", source })?;
        let listed = listed.into_iter().map(|container| Listed {
            id: container.id.unwrap_or_default(),
            labels: container.labels.unwrap_or_default().into_iter().collect(),
        });
        Ok(listed.collect())
    }

    /// Inspects a container; none if it has been removed.
    pub(crate) async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match self.docker.inspect_container(id, None).await {
            Ok(inspected) => Ok(Some(inspected)),
            Err(source) if is_gone(&source) => Ok(None),
            Err(source) => Err(EngineError::Refused { what: "inspect a container", source }),
        }
    }

    /// Starts a container. A running container stays as it is.
    pub(crate) async fn start(&self, id: &str) -> Result<(), EngineError> {
        match self.docker.start_container(id, None::<StartContainerOptions>).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 304, .. }) | Ok(()) => Ok(()),
            Err(source) => Err(EngineError::Refused { what: "start a container", source }),
        }
    }

    /// Sends a container its stop signal, and KILL if it has not exited after `timeout`. Returns when the container has exited
    /// or no longer exists.
    pub(crate) async fn stop(&self, id: &str, timeout: Duration) -> Result<(), EngineError> {
        let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let patient = self.docker.clone().with_timeout(timeout + 2 * TIMEOUT);
        match patient.stop_container(id, Some(options)).await {
            Err(source) if !is_gone(&source) => Err(EngineError::Refused { what: "stop a container", source }),
            _ => Ok(()),
        }
    }

    /// The events of the tasks' containers since this time: starts, exits, changes of health, removals.
    pub(crate) fn events(
        &self,
        since: OffsetDateTime,
    ) -> impl Stream<Item = Result<EventMessage, EngineError>> + use<> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", ["start", "die", "health_status", "destroy"].map(str::to_owned).to_vec()),
            ("label", self.labels.clone()),
        ]);
        let since = format!("{}.{:09}", since.unix_timestamp(), since.nanosecond());
        let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
        let refused = |source| EngineError::Refused { what: "go on with its events", source };
        self.docker.clone().events(Some(options)).map_err(refused)
    }
}

/// Whether the container has been removed, or is being removed.
fn is_gone(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404 | 409, .. })
}
