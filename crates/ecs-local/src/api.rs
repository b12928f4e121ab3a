//! A part of the ECS API: `ListTasks`, `DescribeTasks`, `StopTask` ("Amazon ECS API Reference"; AWS JSON 1.1).

mod describe_tasks;
mod list_tasks;
mod stop_task;
mod task;

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidecar_kit::exit::one_line;
use sidecar_kit::server::Response;

use crate::engine::EngineError;
use crate::monitor::{Cluster, TaskMonitor, short_name};
use crate::server::answer;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "AmazonEC2ContainerServiceV20141113.";
const MAX_BODY: usize = 1 << 20;

/// An error of the ECS API ("Common Errors", and the errors of each action).
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl ApiError {
    fn client(kind: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, message: message.into() }
    }

    fn parameter(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterException", message)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, kind: "ServerException", message: one_line(&error) }
    }
}

/// Answers a request to the API.
pub(crate) async fn respond(monitor: Arc<TaskMonitor>, request: Request<Incoming>) -> Response {
    match act(&monitor, request).await {
        Ok(value) => answer(StatusCode::OK, CONTENT_TYPE, &value),
        Err(ApiError { status, kind, message }) => {
            answer(status, CONTENT_TYPE, &json!({ "__type": kind, "message": message }))
        }
    }
}

async fn act(monitor: &Arc<TaskMonitor>, request: Request<Incoming>) -> Result<Value, ApiError> {
    let unknown = |what: &str| ApiError::client("UnknownOperationException", format!("ecs-local has no {what}"));
    if request.method() != Method::POST || request.uri().path() != "/" {
        return Err(unknown(&format!("{} {}", request.method(), request.uri().path())));
    }
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (target, order) = (header("x-amz-target"), header(stop_task::ORDER));
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| ApiError::client("SerializationException", error.to_string()))?.to_bytes();
    match target.strip_prefix(TARGET) {
        Some("ListTasks") => list_tasks::list_tasks(monitor, input(&body)?).await,
        Some("DescribeTasks") => describe_tasks::describe_tasks(monitor, input(&body)?).await,
        Some("StopTask") => stop_task::stop_task(monitor, input(&body)?, &order).await,
        _ => Err(unknown(&format!("action {target:?}"))),
    }
}

fn input<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::client("SerializationException", error.to_string()))
}

/// The cluster of a request, from its name or ARN. Without a name ECS takes `default`.
async fn cluster(monitor: &TaskMonitor, named: Option<&str>) -> Result<Cluster, ApiError> {
    let cluster = monitor.cluster(named.map_or("default", short_name)).await?;
    cluster.ok_or_else(|| ApiError::client("ClusterNotFoundException", "Cluster not found."))
}
