//! The HTTP client of all programs: HTTP/1.1 over TCP, TLS or a unix socket. Every answer is bounded in time and size, and every failure
//! has a type.
//! The feature `tls` adds [`Client::with_tls`].

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tower_service::Service;

use crate::secret::Secret;
#[cfg(feature = "tls")]
use crate::tls::is_tls_error;

/// A request, as hyper has it, with its whole body.
pub type Request = hyper::Request<Full<Bytes>>;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status. Any status is an answer.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// The start of the body for an error message: at most 200 characters, on one line.
    #[must_use]
    pub fn excerpt(&self) -> String {
        self.excerpt_without(&[])
    }

    /// The same excerpt, but with `…` in place of these secrets of the request: a server may repeat them in its answer.
    #[must_use]
    pub fn excerpt_without(&self, secrets: &[&Secret]) -> String {
        let mut text = String::from_utf8_lossy(&self.body[..self.body.len().min(64 << 10)]).into_owned();
        for secret in secrets.iter().map(|secret| secret.expose()).filter(|secret| !secret.is_empty()) {
            // The secret as it is in a header field, and as it is in a JSON body.
            let quoted = serde_json::Value::from(secret).to_string();
            text = text.replace(secret, "…").replace(quoted.trim_matches('"'), "…");
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
    }
}

/// The limits of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start of the connection to the last byte of the body.
    pub time: Duration,
    /// The body's size in bytes.
    pub bytes: usize,
}

/// Why there is no answer. `server` is scheme, host and port. Paths and headers may hold secrets and are never shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: refused, no route, no such name.
    #[error("cannot reach {server}")]
    Unreachable {
        /// Scheme, host and port.
        server: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The TLS handshake failed: an unknown authority, a wrong name, or no TLS at the other end.
    #[error("TLS with {server} failed")]
    Tls {
        /// Scheme, host and port.
        server: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The answer was not complete in time.
    #[error("no complete answer from {server} within {}", humantime::format_duration(*limit))]
    TimedOut {
        /// Scheme, host and port.
        server: String,
        /// The limit that was reached.
        limit: Duration,
    },
    /// The answer is larger than its limit.
    #[error("the answer from {server} is larger than {limit} bytes")]
    TooLarge {
        /// Scheme, host and port.
        server: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer is not HTTP: another kind of server listens there.
    #[error("the answer from {server} is not HTTP")]
    NotHttp {
        /// Scheme, host and port.
        server: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The connection broke.
    #[error("the answer from {server} broke off")]
    Broken {
        /// Scheme, host and port.
        server: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
}

type Answer = Result<hyper::Response<Incoming>, hyper_util::client::legacy::Error>;

/// A pool of one kind of connection.
trait Transport: Send + Sync {
    fn send(&self, request: Request) -> Pin<Box<dyn Future<Output = Answer> + Send>>;
}

impl<C: Connect + Clone + Send + Sync + 'static> Transport for Pool<C, Full<Bytes>> {
    fn send(&self, request: Request) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(self.request(request))
    }
}

/// A client with a pool of connections. Cheap to make, shared by reference.
pub struct Client {
    transport: Box<dyn Transport>,
    /// The server's name in messages, if it is not in the URL.
    socket: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Connects to a unix socket.
#[derive(Clone)]
struct Socket(PathBuf);

impl Service<Uri> for Socket {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// How long connecting may take. The addresses of a name share this time, so that a dead one leaves time for the next.
const CONNECT: Duration = Duration::from_secs(3);

/// How long connecting to one address of a name may take, if the caller goes on with the next one.
const CONNECT_ONE: Duration = Duration::from_secs(1);

/// Finds the addresses of a name.
#[derive(Clone)]
pub(crate) enum Resolver {
    /// All that the system knows.
    System(GaiResolver),
    /// This one, whatever the name is.
    Given(SocketAddr),
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Self::Given(address) => Box::pin(std::future::ready(Ok(vec![*address].into_iter()))),
            Self::System(system) => {
                let addresses = system.call(name);
                Box::pin(async { Ok(addresses.await?.collect::<Vec<_>>().into_iter()) })
            }
        }
    }
}

pub(crate) type Tcp = HttpConnector<Resolver>;

/// Connects to the addresses of the URL's host, or to the given one.
pub(crate) fn tcp(to: Option<SocketAddr>) -> Tcp {
    let (resolver, within) = match to {
        Some(address) => (Resolver::Given(address), CONNECT_ONE),
        None => (Resolver::System(GaiResolver::new()), CONNECT),
    };
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_connect_timeout(Some(within));
    tcp
}

fn pool<C: Connect + Clone>(connector: C) -> Pool<C, Full<Bytes>> {
    Pool::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        // The pool's idle limit is shorter than those of the servers, so that no server closes a connection during a request.
        .pool_idle_timeout(Duration::from_secs(20))
        .build(connector)
}

impl Client {
    /// A client for `http://` only.
    #[must_use]
    pub fn plain() -> Self {
        Self::plain_to(None)
    }

    /// The same. If the host of the URL is a name, this connects to the given address, and not to those of the name.
    #[must_use]
    pub fn plain_to(address: Option<SocketAddr>) -> Self {
        Self::over(tcp(address))
    }

    pub(crate) fn over<C: Connect + Clone + Send + Sync + 'static>(connector: C) -> Self {
        Self { transport: Box::new(pool(connector)), socket: None }
    }

    /// A client whose every request goes to this unix socket, whatever host the URL names.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { socket: Some(format!("unix://{}", path.display())), ..Self::over(Socket(path)) }
    }

    /// Sends a request and reads the answer to its end. Any status is an answer.
    ///
    /// # Errors
    /// See [`enum@Error`].
    pub async fn send(&self, request: Request, limits: Limits) -> Result<Response, Error> {
        let server = self.socket.clone().unwrap_or_else(|| server_of(request.uri()));
        let exchange = async {
            let answer = self.transport.send(request).await.map_err(|error| classify(&server, error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, limits.bytes).collect().await.map_err(|source| {
                if source.is::<LengthLimitError>() {
                    Error::TooLarge { server: server.clone(), limit: limits.bytes }
                } else {
                    Error::Broken { server: server.clone(), source }
                }
            })?;
            Ok(Response { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        match tokio::time::timeout(limits.time, exchange).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut { server: server.clone(), limit: limits.time }),
        }
    }
}

/// The server of a URL for a message: without path and user information, which may be secrets.
#[must_use]
pub fn server_of(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
}

/// Classifies an error by its innermost cause, which says what happened.
fn classify(server: &str, error: hyper_util::client::legacy::Error) -> Error {
    let server = server.to_owned();
    let connecting = error.is_connect();
    let mut innermost: &(dyn StdError + 'static) = &error;
    let (mut tls, mut not_http) = (false, false);
    loop {
        tls |= is_tls_error(innermost);
        not_http |=
            innermost.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_parse() || spoke_first(error));
        let held = innermost.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match held.map(|held| held as &(dyn StdError + 'static)).or(innermost.source()) {
            Some(next) => innermost = next,
            None => break,
        }
    }
    let source: Box<dyn StdError + Send + Sync> = innermost.to_string().into();
    if tls {
        Error::Tls { server, source }
    } else if connecting {
        Error::Unreachable { server, source }
    } else if not_http {
        Error::NotHttp { server, source }
    } else {
        Error::Broken { server, source }
    }
}

#[cfg(not(feature = "tls"))]
fn is_tls_error(_: &(dyn StdError + 'static)) -> bool {
    false
}

/// Whether the server sent data before the request, as an HTTP/2 server does. hyper has no method for this
/// kind of error, so this function excludes all other kinds.
fn spoke_first(error: &hyper::Error) -> bool {
    let ended = error.is_closed() || error.is_canceled() || error.is_incomplete_message() || error.is_timeout();
    !ended && !error.is_user() && error.source().is_none()
}
