//! One task: stopped as ECS stops it, started as ECS starts it, and waited for.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::Docker;
use consul_api::{CheckStatus, HealthCheck};
pub use ecs_local::StopOrder;
use ecs_local::labels::CONTAINER_NAME;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::http::{self, Client, Limits, Response};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::command::CommandError;
use crate::compose::{self, Compose, ComposeError};
use crate::consul::{self, ConsulError};
use crate::docker::{self, DockerError, PROJECT, PROJECT_LABEL, Task, containers, is_running, label};
use crate::probe::Probe;
use crate::registered::Registered;

/// ecs-local's ECS API, on the host.
const ECS: &str = "http://127.0.0.1:51678/";

/// How long a task may take to stop: the stop timeouts of the app and then of the proxy, and some more.
const STOP_BOUND: Duration = Duration::from_secs(90);

/// How long ecs-local may take to answer after its start.
const API_BOUND: Duration = Duration::from_secs(20);

/// How long a task may take to be healthy in Consul after its containers have started.
const READY_BOUND: Duration = Duration::from_secs(90);

/// Why a task did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// docker-compose failed.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The probe did not start.
    #[error(transparent)]
    Probe(#[from] CommandError),
    /// Consul could not be asked.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// No task runs.
    #[error("the mesh is not running: `cargo xtask up` starts it")]
    NoMesh,
    /// No such task runs.
    #[error("there is no running task {task:?}: there are {known}")]
    NotRunning {
        /// The name that was given.
        task: String,
        /// The running tasks.
        known: String,
    },
    /// A task to be started runs already.
    #[error("task {0} runs: `cargo xtask stop {0}` first")]
    Running(String),
    /// ecs-local did not stop a task.
    #[error(transparent)]
    Api(Box<WaitError<ApiError>>),
    /// ECS did not report a running task as healthy.
    #[error(transparent)]
    NotHealthyInEcs(Box<WaitError<NotHealthyInEcs>>),
    /// A container of a stopping task still runs.
    #[error(transparent)]
    NotStopped(Box<WaitError<StillRuns>>),
    /// Consul did not report a running task as healthy.
    #[error(transparent)]
    NotReady(Box<WaitError<NotHealthy>>),
    /// web's Envoy did not get the endpoint of a healthy task.
    #[error(transparent)]
    NotInRotation(Box<WaitError<NotKnown>>),
}

/// web's Envoy does not have an endpoint.
#[derive(Debug, thiserror::Error)]
#[error("web's Envoy does not have {endpoint}: it has {known:?}")]
pub struct NotKnown {
    endpoint: String,
    known: BTreeSet<String>,
}

/// Why a task is not healthy in ECS.
#[derive(Debug, thiserror::Error)]
pub enum NotHealthyInEcs {
    /// ecs-local did not answer.
    #[error("ecs-local does not answer")]
    Unanswered(#[source] http::Error),
    /// ecs-local reported another status.
    #[error("ecs-local reports {0}")]
    Status(String),
}

/// Why ecs-local did not stop a task.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// ecs-local did not answer.
    #[error("ecs-local does not answer")]
    Unanswered(#[source] http::Error),
    /// ecs-local refused.
    #[error("ecs-local refuses to stop {task}: {answer}")]
    Refused {
        /// The task's ID.
        task: String,
        /// The answer's body.
        answer: String,
    },
}

/// Containers of a stopping task that still run.
#[derive(Debug, thiserror::Error)]
#[error("{} of {task} still run", .containers.join(", "))]
pub struct StillRuns {
    task: String,
    containers: Vec<String>,
}

/// Why a task is not healthy in Consul.
#[derive(Debug, thiserror::Error)]
pub enum NotHealthy {
    /// Consul did not answer, or refused.
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    /// A check is not passing, or is missing.
    #[error("{node}: {reason}")]
    Checks {
        /// The task's node in Consul.
        node: String,
        /// The check and its status.
        reason: String,
    },
}

/// A running task, by its name in docker-compose.yml.
pub async fn running(docker: &Docker, task: &str) -> Result<Task, TaskError> {
    let mut tasks = docker::tasks(docker).await?;
    tasks.retain(|_, task| task.running);
    if tasks.is_empty() {
        return Err(TaskError::NoMesh);
    }
    let known = tasks.keys().cloned().collect::<Vec<_>>().join(", ");
    tasks.remove(task).ok_or_else(|| TaskError::NotRunning { task: task.to_owned(), known })
}

/// Stops a task through `StopTask`, as the AWS CLI does, and waits until all its containers have exited.
pub async fn stop(docker: &Docker, task: &str, order: StopOrder) -> Result<(), TaskError> {
    let id = running(docker, task).await?.id;
    stop_task(&id, order).await?;
    stopped(docker, task).await
}

/// Sends `StopTask`. Returns when ecs-local has accepted it.
pub(crate) async fn stop_task(id: &str, order: StopOrder) -> Result<(), TaskError> {
    let input = json!({ "cluster": PROJECT, "task": id, "reason": "cargo xtask stop" });
    // ecs-local may have been started a moment ago.
    until("ecs-local", API_BOUND, Backoff::default(), async || match ecs("StopTask", order, &input).await {
        Ok(answer) if answer.status.is_success() => Attempt::Done(()),
        Ok(answer) => Attempt::Final(ApiError::Refused { task: id.to_owned(), answer: answer.excerpt() }),
        Err(error) => Attempt::Again(ApiError::Unanswered(error)),
    })
    .await
    .map_err(|error| TaskError::Api(error.into()))
}

/// Calls an action of the ECS API.
async fn ecs(action: &str, order: StopOrder, input: &Value) -> Result<Response, http::Error> {
    let request = hyper::Request::post(ECS)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("AmazonEC2ContainerServiceV20141113.{action}"))
        .header("x-ecs-local-stop-order", order.as_str())
        .body(input.to_string().into())
        .expect("the URL is valid");
    Client::plain().send(request, Limits { time: Duration::from_secs(10), bytes: 1 << 20 }).await
}

/// Waits until all containers of a task have exited.
pub async fn stopped(docker: &Docker, task: &str) -> Result<(), TaskError> {
    // A short delay: the callers measure when the task has ended.
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(200));
    let what = format!("the end of {task}");
    let stopped = until(&what, STOP_BOUND, backoff, async || {
        match containers(docker, &[PROJECT_LABEL, &format!("{}={task}", docker::TASK)]).await {
            Err(error) => Attempt::Done(Err(error)),
            Ok(all) => {
                let running = all.iter().filter(|container| is_running(container));
                let names = running.filter_map(|container| label(container, CONTAINER_NAME).map(str::to_owned));
                let containers = names.collect::<Vec<_>>();
                if containers.is_empty() {
                    Attempt::Done(Ok(()))
                } else {
                    Attempt::Again(StillRuns { task: task.to_owned(), containers })
                }
            }
        }
    });
    Ok(stopped.await.map_err(|error| TaskError::NotStopped(error.into()))??)
}

/// Starts a stopped task with a new task ID and waits until Consul reports it as healthy. `settings` are variables that
/// docker-compose.yml reads.
pub async fn start(docker: &Docker, task: &str, settings: &[(&str, &str)]) -> Result<(), TaskError> {
    launch(docker, task, settings).await?;
    ready(docker, task).await
}

/// Starts a stopped task, as [`start`] does, but waits only until its containers run.
pub async fn launch(docker: &Docker, task: &str, settings: &[(&str, &str)]) -> Result<(), TaskError> {
    let services = compose::services(task)?;
    let tasks = docker::tasks(docker).await?;
    if tasks.is_empty() {
        return Err(TaskError::NoMesh);
    }
    if tasks.get(task).is_some_and(|task| task.running) {
        return Err(TaskError::Running(task.to_owned()));
    }
    let services = services.iter().map(String::as_str).collect::<Vec<_>>();
    Ok(Compose { settings, over: None }.up(docker, &services).await?)
}

/// Waits until ECS reports a running task as healthy.
pub async fn healthy_in_ecs(docker: &Docker, task: &str) -> Result<(), TaskError> {
    let input = json!({ "cluster": PROJECT, "tasks": [running(docker, task).await?.id] });
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(100));
    let what = format!("{task} to be healthy in ECS");
    let healthy = until(&what, READY_BOUND, backoff, async || {
        let answer = match ecs("DescribeTasks", StopOrder::default(), &input).await {
            Ok(answer) => answer,
            Err(error) => return Attempt::Again(NotHealthyInEcs::Unanswered(error)),
        };
        let described = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        match described["tasks"][0]["healthStatus"].as_str() {
            Some("HEALTHY") => Attempt::Done(()),
            Some(health) => Attempt::Again(NotHealthyInEcs::Status(health.to_owned())),
            None => Attempt::Final(NotHealthyInEcs::Status(answer.excerpt())),
        }
    });
    healthy.await.map_err(|error| TaskError::NotHealthyInEcs(error.into()))
}

/// Waits until all checks of a task pass in Consul: those of the service and of the proxy, and that of its agent's node.
pub async fn ready(docker: &Docker, task: &str) -> Result<(), TaskError> {
    let registered = Registered::of(docker, task).await?;
    let consul = consul::client().await?;
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
    let what = format!("the checks of {task}");
    let ready = until(&what, READY_BOUND, backoff, async || {
        let not_yet = |reason: String| Attempt::Again(NotHealthy::Checks { node: registered.node.clone(), reason });
        match registered.checks(&consul, None, Duration::ZERO).await {
            Err(error) => Attempt::Again(error.into()),
            Ok(health) if !health.value.iter().any(is_of_proxy) => not_yet("its proxy is not registered".to_owned()),
            Ok(health) => match health.value.iter().find(|check| check.status != CheckStatus::Passing) {
                Some(check) => not_yet(format!("check {} is {}", check.name, check.status.as_str())),
                None => Attempt::Done(()),
            },
        }
    });
    ready.await.map_err(|error| TaskError::NotReady(error.into()))
}

/// Whether a check belongs to a sidecar proxy or a gateway.
fn is_of_proxy(check: &HealthCheck) -> bool {
    check.service_id.as_str().ends_with("-sidecar-proxy")
        || check.name.ends_with("-gateway listener")
        || check.name == "Consul dataplane readiness"
}

/// Waits until web's Envoy has the endpoint of a task.
pub async fn in_rotation(docker: &Docker, task: &str) -> Result<(), TaskError> {
    let endpoint = endpoint(docker, task).await?;
    let probe = Probe::start(&running(docker, "web").await?.holder).await?;
    let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(50));
    let known = until(&format!("{task} in web's Envoy"), READY_BOUND, backoff, async || match probe.last() {
        Some(seen) if seen.endpoints.contains(&endpoint) => Attempt::Done(()),
        seen => Attempt::Again(NotKnown { endpoint: endpoint.clone(), known: seen.unwrap_or_default().endpoints }),
    })
    .await;
    probe.end().await;
    known.map_err(|error| TaskError::NotInRotation(error.into()))
}

/// The public listener of a running task, `address:port`.
pub async fn endpoint(docker: &Docker, task: &str) -> Result<String, TaskError> {
    let holder = docker::inspect(docker, &running(docker, task).await?.holder).await?;
    let networks = holder.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mesh = networks.iter().find(|(name, _)| name.ends_with("_mesh")).map(|(_, network)| network);
    Ok(format!("{}:20000", mesh.and_then(|network| network.ip_address.as_deref()).unwrap_or_default()))
}

/// Stops every running task of which a container's image or definition has changed, so that Compose makes the whole task anew.
/// ECS too replaces a task as a whole. Compose alone would replace one container after the other, and the first essential
/// container that it stops would end the task.
pub(crate) async fn stop_outdated(docker: &Docker) -> Result<(), TaskError> {
    let outdated = compose::outdated_tasks(docker).await?;
    if outdated.is_empty() {
        return Ok(());
    }
    // ecs-local may have ended, or may be outdated itself.
    Compose::default().up(docker, &["ecs-local"]).await?;
    let stops = outdated.iter().map(async |name| stop(docker, name, StopOrder::AllAtOnce).await);
    join_all(stops).await.into_iter().collect()
}
