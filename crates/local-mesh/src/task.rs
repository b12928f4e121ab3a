//! One task: stopped as ECS stops it, and started as ECS would, with a new task ID.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::Docker;
use consul_api::{CheckStatus, Client as Consul, Config, HealthCheck};
pub use ecs_local::StopOrder;
use ecs_local::labels::CONTAINER_NAME;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::http::{self, Client, Limits, Response};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::compose::{self, Compose};
use crate::docker::{self, PROJECT, PROJECT_LABEL, Task, containers, is_running, label};
use crate::mesh::{MeshError, compose_up};
use crate::probe::Probe;
use crate::secrets;

/// The ECS API, as ecs-local answers it.
const ECS: &str = "http://127.0.0.1:51678/";

/// Consul's HTTP API, a server's.
pub const CONSUL: &str = "http://127.0.0.1:8500";

/// Stop timeouts of an app and, after it, a proxy, and some.
const STOP_BOUND: Duration = Duration::from_secs(90);

/// How long ecs-local may take to answer after its start.
const API_BOUND: Duration = Duration::from_secs(20);

/// How long a task whose containers have started may take to be healthy in Consul.
const READY_BOUND: Duration = Duration::from_secs(90);

/// A task that doesn't do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// There is no such task that runs.
    #[error("there is no running task {task:?}: {known}")]
    NotRunning {
        /// What was asked for.
        task: String,
        /// What there is.
        known: String,
    },
    /// It runs, and was to be started.
    #[error("task {0} runs: `cargo xtask stop {0}` first")]
    Running(String),
    /// The ECS API doesn't do what was asked.
    #[error(transparent)]
    Api(WaitError<ApiError>),
    /// It runs, but ECS doesn't say that it is healthy.
    #[error(transparent)]
    NotHealthyInEcs(WaitError<NotHealthyInEcs>),
    /// It goes on running.
    #[error(transparent)]
    NotStopped(WaitError<StillRuns>),
    /// It runs, but Consul doesn't say that it is healthy.
    #[error(transparent)]
    NotReady(WaitError<NotHealthy>),
    /// It is healthy, but web's Envoy doesn't know it.
    #[error(transparent)]
    NotInRotation(WaitError<NotKnown>),
    /// Consul's address in the environment is none.
    #[error(transparent)]
    Consul(#[from] consul_api::ConfigError),
}

/// What web's Envoy knows.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint} is not among {known:?}")]
pub struct NotKnown {
    endpoint: String,
    known: BTreeSet<String>,
}

/// What ECS says of a task.
#[derive(Debug, thiserror::Error)]
pub enum NotHealthyInEcs {
    /// It gives no answer.
    #[error("ecs-local does not answer")]
    Unanswered(#[source] http::Error),
    /// Its answer is another.
    #[error("ecs-local says {0}")]
    Says(String),
}

/// Why ecs-local doesn't stop a task.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It doesn't answer.
    #[error("ecs-local does not answer")]
    Unanswered(#[source] http::Error),
    /// It refuses.
    #[error("ecs-local refuses to stop {task}: {said}")]
    Refused {
        /// The task's ID.
        task: String,
        /// Its answer.
        said: String,
    },
}

/// What of a task still runs.
#[derive(Debug, thiserror::Error)]
#[error("{} of {task} still run", .containers.join(", "))]
pub struct StillRuns {
    task: String,
    containers: Vec<String>,
}

/// What Consul says of a task.
#[derive(Debug, thiserror::Error)]
pub enum NotHealthy {
    /// It gives no answer.
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    /// A check isn't passing, or the node isn't there yet.
    #[error("{node}: {said}")]
    Checks {
        /// The node.
        node: String,
        /// What is wrong.
        said: String,
    },
}

/// A task that runs.
///
/// # Errors
/// See [`MeshError`].
pub async fn running(docker: &Docker, task: &str) -> Result<Task, MeshError> {
    let mut tasks = docker::tasks(docker).await?;
    tasks.retain(|_, task| task.running);
    let known = tasks.keys().cloned().collect::<Vec<_>>().join(", ");
    tasks.remove(task).ok_or_else(|| {
        let known = if known.is_empty() {
            "none runs; `cargo xtask up` starts them".to_owned()
        } else {
            format!("there are {known}")
        };
        TaskError::NotRunning { task: task.to_owned(), known }.into()
    })
}

/// Stops a task through `StopTask`, as the AWS CLI would, and waits until none of its containers runs.
///
/// # Errors
/// See [`MeshError`].
pub async fn stop(docker: &Docker, task: &str, order: StopOrder) -> Result<(), MeshError> {
    let id = running(docker, task).await?.id;
    stop_task(&id, order).await?;
    stopped(docker, task).await
}

/// Sends `StopTask` and returns when ecs-local has taken it.
///
/// # Errors
/// See [`TaskError`].
pub async fn stop_task(id: &str, order: StopOrder) -> Result<(), TaskError> {
    let input = json!({ "cluster": PROJECT, "task": id, "reason": "cargo xtask stop" });
    // It may have been started a moment ago.
    until("ecs-local", API_BOUND, Backoff::default(), async || match ecs("StopTask", order, &input).await {
        Ok(answer) if answer.status.is_success() => Attempt::Done(()),
        Ok(answer) => Attempt::Final(ApiError::Refused { task: id.to_owned(), said: answer.excerpt() }),
        Err(error) => Attempt::Again(ApiError::Unanswered(error)),
    })
    .await
    .map_err(TaskError::Api)
}

/// What ecs-local answers to an action of the ECS API.
async fn ecs(action: &str, order: StopOrder, input: &Value) -> Result<Response, http::Error> {
    let request = hyper::Request::post(ECS)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("AmazonEC2ContainerServiceV20141113.{action}"))
        .header("x-ecs-local-stop-order", order.as_str())
        .body(input.to_string().into())
        .expect("the URL is one");
    Client::plain().send(request, Limits { time: Duration::from_secs(10), bytes: 1 << 20 }).await
}

/// Waits until none of a task's containers runs.
///
/// # Errors
/// See [`MeshError`].
pub async fn stopped(docker: &Docker, task: &str) -> Result<(), MeshError> {
    // It stops within seconds, and the end is to be seen when it comes.
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
    Ok(stopped.await.map_err(TaskError::NotStopped)??)
}

/// Starts a task that has stopped, with a new task ID, and waits until Consul says that it is healthy. `settings` are
/// variables that docker-compose.yml reads.
///
/// # Errors
/// See [`MeshError`].
pub async fn start(docker: &Docker, task: &str, settings: &[(&str, &str)]) -> Result<(), MeshError> {
    launch(docker, task, settings).await?;
    ready(docker, task).await
}

/// Starts a task that has stopped, as [`start`] does, and waits only until its containers run.
///
/// # Errors
/// See [`MeshError`].
pub async fn launch(docker: &Docker, task: &str, settings: &[(&str, &str)]) -> Result<(), MeshError> {
    let services = compose::services(task).await?;
    if docker::tasks(docker).await?.get(task).is_some_and(|task| task.running) {
        return Err(TaskError::Running(task.to_owned()).into());
    }
    let services = services.iter().map(String::as_str).collect::<Vec<_>>();
    compose_up(docker, Compose { settings, over: None }, &services).await
}

/// Waits until ECS says that a running task is healthy.
///
/// # Errors
/// See [`MeshError`].
pub async fn healthy_in_ecs(docker: &Docker, task: &str) -> Result<(), MeshError> {
    let input = json!({ "cluster": PROJECT, "tasks": [running(docker, task).await?.id] });
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(100));
    let what = format!("{task} to be healthy in ECS");
    let healthy = until(&what, READY_BOUND, backoff, async || {
        let answer = match ecs("DescribeTasks", StopOrder::default(), &input).await {
            Ok(answer) => answer,
            Err(error) => return Attempt::Again(NotHealthyInEcs::Unanswered(error)),
        };
        let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        match said["tasks"][0]["healthStatus"].as_str() {
            Some("HEALTHY") => Attempt::Done(()),
            Some(health) => Attempt::Again(NotHealthyInEcs::Says(health.to_owned())),
            None => Attempt::Final(NotHealthyInEcs::Says(answer.excerpt())),
        }
    });
    Ok(healthy.await.map_err(TaskError::NotHealthyInEcs)?)
}

/// Waits until all checks of a task's node pass in Consul, those of service and proxy among them.
///
/// # Errors
/// See [`MeshError`].
pub async fn ready(docker: &Docker, task: &str) -> Result<(), MeshError> {
    let node = running(docker, task).await?.node();
    let consul = consul().await?;
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
    let what = format!("the checks of {task}");
    let ready = until(&what, READY_BOUND, backoff, async || {
        let not_yet = |said: String| Attempt::Again(NotHealthy::Checks { node: node.clone(), said });
        match consul.node_health(&node, None, Duration::ZERO).await {
            Err(error) => Attempt::Again(error.into()),
            Ok(health) if !health.value.iter().any(is_proxy_s) => not_yet("its proxy is not registered".to_owned()),
            Ok(health) => match health.value.iter().find(|check| check.status != CheckStatus::Passing) {
                Some(check) => not_yet(format!("check {} is {}", check.name, check.status.as_str())),
                None => Attempt::Done(()),
            },
        }
    });
    Ok(ready.await.map_err(TaskError::NotReady)?)
}

/// Whether it is a check of a sidecar proxy or of a gateway.
fn is_proxy_s(check: &HealthCheck) -> bool {
    check.service_id.as_str().ends_with("-sidecar-proxy") || check.name.ends_with("-gateway listener")
}

/// Waits until web's Envoy sends to a task of another service.
///
/// # Errors
/// See [`MeshError`].
pub async fn in_rotation(docker: &Docker, task: &str) -> Result<(), MeshError> {
    let endpoint = endpoint(docker, task).await?;
    let probe = Probe::start(&running(docker, "web").await?.holder).await?;
    let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(50));
    let known = until(&format!("{task} in web's Envoy"), READY_BOUND, backoff, async || match probe.last() {
        Some(seen) if seen.endpoints.contains(&endpoint) => Attempt::Done(()),
        seen => Attempt::Again(NotKnown { endpoint: endpoint.clone(), known: seen.unwrap_or_default().endpoints }),
    })
    .await;
    probe.end().await;
    Ok(known.map_err(TaskError::NotInRotation)?)
}

/// The public listener of a running task, `address:port`.
///
/// # Errors
/// See [`MeshError`].
pub async fn endpoint(docker: &Docker, task: &str) -> Result<String, MeshError> {
    let holder = docker::inspect(docker, &running(docker, task).await?.holder).await?;
    let networks = holder.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mesh = networks.iter().find(|(name, _)| name.ends_with("_mesh")).map(|(_, network)| network);
    Ok(format!("{}:20000", mesh.and_then(|network| network.ip_address.as_deref()).unwrap_or_default()))
}

/// A client of the servers that may see and do everything, whatever the caller's environment says of Consul.
///
/// # Errors
/// See [`MeshError`].
pub async fn consul() -> Result<Consul, MeshError> {
    let token = secrets::bootstrap_token().await?;
    let variables = [("CONSUL_HTTP_ADDR", CONSUL), ("CONSUL_HTTP_TOKEN", token.expose())];
    let config = Config::from_env(&Env::from_iter(variables)).map_err(TaskError::Consul)?;
    Ok(Consul::new(config).map_err(TaskError::Consul)?)
}

/// Stops every running task of which a container's image or definition has changed, so that Compose finds it stopped and
/// makes it anew. ECS replaces a task as a whole; Compose would replace container by container, and the first essential one
/// that it stops ends the task under the others.
pub(crate) async fn stop_outdated(docker: &Docker) -> Result<(), MeshError> {
    let outdated = compose::outdated_tasks(docker).await?;
    if outdated.is_empty() {
        return Ok(());
    }
    // The one that runs may be gone, or be outdated itself.
    compose_up(docker, Compose::default(), &["ecs-local"]).await?;
    let stops = outdated.iter().map(async |name| stop(docker, name, StopOrder::AllAtOnce).await);
    join_all(stops).await.into_iter().collect()
}
