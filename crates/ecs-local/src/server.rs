//! The task metadata endpoint, and what both endpoints share.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use sidecar_kit::exit::one_line;
use tokio::net::TcpListener;

use crate::live::{Found, Live};

/// Where `ready` asks.
pub(crate) const READY: &str = "/ready";

/// Answers without end, each request by `respond`.
pub(crate) async fn serve<F>(listener: TcpListener, live: Arc<Live>, respond: fn(Arc<Live>, Request<Incoming>) -> F)
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some come back when connections close.
                tracing::warn!("cannot accept a connection: {}", one_line(&error));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let live = live.clone();
        let service = service_fn(move |request| {
            let answer = respond(live.clone(), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut http = http1::Builder::new();
        let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        // A client that hangs up is no concern of ours.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// Answers a request to the metadata endpoint.
pub(crate) async fn metadata(live: Arc<Live>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &"the metadata endpoint answers GET alone");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let path = request.uri().path();
    if path == READY {
        return match live.ping().await {
            Ok(()) => json(StatusCode::OK, &"ready"),
            Err(error) => failed(&error),
        };
    }
    let Some((id, rest)) = path.strip_prefix("/v4/").map(|path| path.split_once('/').unwrap_or((path, ""))) else {
        return json(StatusCode::NOT_FOUND, &format!("no such path: {path}"));
    };
    let show: fn(&Found) -> Response<Full<Bytes>> = match rest {
        "" => |found| match found.task.metadata_of(&found.name, found.stopping) {
            Some(container) => json(StatusCode::OK, &container),
            None => json(StatusCode::NOT_FOUND, &format!("container {} has been removed", found.name)),
        },
        "task" => |found| json(StatusCode::OK, &found.task.metadata(found.stopping, false)),
        "taskWithTags" => |found| json(StatusCode::OK, &found.task.metadata(found.stopping, found.has_tags)),
        _ => return json(StatusCode::NOT_FOUND, &format!("no such path: {path}")),
    };
    match live.find(id).await {
        Ok(Some(found)) => show(&found),
        Ok(None) => json(StatusCode::NOT_FOUND, &format!("no container of a task has the ID {id}")),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Response<Full<Bytes>> {
    json(StatusCode::INTERNAL_SERVER_ERROR, &one_line(error))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    answer(status, "application/json", value)
}

/// An answer with a value as JSON.
pub(crate) fn answer<T: Serialize>(status: StatusCode, content_type: &'static str, value: &T) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
