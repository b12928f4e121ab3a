//! The task metadata endpoint, and the code that both endpoints share.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use sidecar_kit::exit::one_line;
use sidecar_kit::server::{self, Response};
use tokio::net::TcpListener;

use crate::monitor::{Found, TaskMonitor};

/// The path for `ecs-local ready`.
pub(crate) const READY: &str = "/ready";

/// Answers each request with `respond`. Never returns.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    monitor: Arc<TaskMonitor>,
    respond: fn(Arc<TaskMonitor>, Request<Incoming>) -> F,
) where
    F: Future<Output = Response> + Send + 'static,
{
    server::serve(listener, move |request| respond(monitor.clone(), request)).await;
}

/// Answers a request to the metadata endpoint.
pub(crate) async fn metadata(monitor: Arc<TaskMonitor>, request: Request<Incoming>) -> Response {
    if request.method() != Method::GET {
        let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &"the metadata endpoint answers only GET");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let path = request.uri().path();
    if path == READY {
        return match monitor.ping().await {
            Ok(()) => json(StatusCode::OK, &"ready"),
            Err(error) => failed(&error),
        };
    }
    let Some((id, rest)) = path.strip_prefix("/v4/").map(|path| path.split_once('/').unwrap_or((path, ""))) else {
        return json(StatusCode::NOT_FOUND, &format!("no such path: {path}"));
    };
    let show: fn(&Found) -> Response = match rest {
        "" => |found| match found.task.metadata_of(&found.name, found.stopping) {
            Some(container) => json(StatusCode::OK, &container),
            None => json(StatusCode::NOT_FOUND, &format!("container {} has been removed", found.name)),
        },
        "task" => |found| json(StatusCode::OK, &found.task.metadata(found.stopping, false)),
        "taskWithTags" => |found| json(StatusCode::OK, &found.task.metadata(found.stopping, found.has_tags)),
        _ => return json(StatusCode::NOT_FOUND, &format!("no such path: {path}")),
    };
    match monitor.find(id).await {
        Ok(Some(found)) => show(&found),
        Ok(None) => json(StatusCode::NOT_FOUND, &format!("no container of a task has the ID {id}")),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    json(StatusCode::INTERNAL_SERVER_ERROR, &one_line(error))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    answer(status, "application/json", value)
}

/// An answer with this value as JSON.
pub(crate) fn answer<T: Serialize>(status: StatusCode, content_type: &'static str, value: &T) -> Response {
    server::response(status, content_type, serde_json::to_vec(value).unwrap_or_default())
}
