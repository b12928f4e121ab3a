//! Accepting connections, and an HTTP/1.1 server on them.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// How long a server pauses when it cannot accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A response with its whole body.
pub type Response = hyper::Response<Full<Bytes>>;

/// The next connection, by a listener's `accept`. A failure is logged, and the next attempt follows after 100 ms: the process is
/// most likely out of file descriptors, and gets some back when connections close.
pub async fn accept<S, A, F>(accept: impl Fn() -> F) -> S
where
    F: Future<Output = io::Result<(S, A)>>,
{
    loop {
        match accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers each request with `respond`, without end. Each connection is a task of its own.
pub async fn serve<F>(listener: TcpListener, respond: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static)
where
    F: Future<Output = Response> + Send + 'static,
{
    loop {
        let stream = accept(|| listener.accept()).await;
        let respond = respond.clone();
        let service = service_fn(move |request| {
            let response = respond(request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let mut http = http1::Builder::new();
        let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        // An error means that the client has hung up.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// A response of this type, such as `application/json`.
#[must_use]
pub fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn accept_tries_again_after_a_failure() {
        let attempts = Cell::new(0);
        let accepted = accept(|| {
            attempts.set(attempts.get() + 1);
            ready(if attempts.get() < 3 { Err(io::Error::other("too many open files")) } else { Ok(("stream", ())) })
        });
        assert_eq!(accepted.await, "stream");
        assert_eq!(attempts.get(), 3);
    }
}
