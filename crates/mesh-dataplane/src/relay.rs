//! Passes Envoy's xDS stream on to a server of Consul, byte by byte. The relay adds the token, and decodes nothing.
//!
//! If the server or the token changes, the relay ends Envoy's stream. Envoy opens a new one after some milliseconds, and tells which
//! versions it has. So nothing is lost, and the relay needs to know nothing of xDS.
//!
//! With Consul 1.8 in the local mesh, Envoy also asks whether it may accept a connection. The relay passes this call on, too.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use consul_grpc::{Code, Error, Ready, Servers, State, XDS, innermost, shown};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use sidecar_kit::server::accept;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::status::{Metrics, StreamEnd};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The question whether Envoy may accept a connection. Later versions of Consul put the answer into the listener.
const AUTHORIZE: &str = "/envoy.service.auth.v3.Authorization/Check";
/// For this long after the start, a refusal for missing rights may be temporary: a server may learn of a new token a moment before it learns
/// of the token's rights.
const RIGHTS_WITHIN: Duration = Duration::from_secs(3);

/// What the relay knows.
pub(crate) struct Relay {
    servers: Arc<Servers>,
    state: watch::Receiver<State>,
    metrics: Arc<Metrics>,
    /// Whether Envoy has got something from Consul.
    configured: AtomicBool,
    /// The refusal of a proxy that has no configuration yet.
    refused: watch::Sender<Option<String>>,
    started: Instant,
}

/// How a stream has ended.
enum End {
    /// Envoy has ended it, or is gone.
    Envoy,
    /// The server or the token has changed.
    Moved,
    /// The server has ended it with this status.
    Status(Code, String),
    /// The connection to the server broke.
    Broken(String),
}

impl Relay {
    pub(crate) fn new(servers: Arc<Servers>, state: watch::Receiver<State>, metrics: Arc<Metrics>) -> Self {
        let configured = AtomicBool::new(false);
        Self { servers, state, metrics, configured, refused: watch::Sender::new(None), started: Instant::now() }
    }

    /// Waits until Consul refuses a proxy that has no configuration yet, and returns the reason. Never returns after that.
    pub(crate) async fn refused(&self) -> String {
        let mut refused = self.refused.subscribe();
        let reason = refused.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.expect("the sender is ours")
    }

    /// Serves Envoy on the socket. Never returns.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let stream = accept(|| listener.accept()).await;
            let relay = self.clone();
            let service = service_fn(move |request| {
                let response = relay.clone().answer(request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = http2::Builder::new(TokioExecutor::new());
            let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // An error means that Envoy is gone.
            tokio::spawn(async move { drop(connection.await) });
        }
    }

    fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Piped> {
        let (to_envoy, piped) = mpsc::channel(1);
        let mut response = Response::new(Piped(piped));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        match request.uri().path() {
            XDS => drop(tokio::spawn(async move { self.relay(request.into_body(), to_envoy).await })),
            AUTHORIZE => drop(tokio::spawn(async move { self.authorize(request.into_body(), to_envoy).await })),
            _ => drop(response.headers_mut().insert(STATUS, (Code::Unimplemented as i32).into())),
        }
        response
    }

    /// Passes one question on, and the answer back.
    async fn authorize(&self, from_envoy: Incoming, to_envoy: mpsc::Sender<Frame<Bytes>>) {
        let state = self.state.borrow().clone();
        let end = match state {
            State::Ready(ready) => self.pass_on(AUTHORIZE, &ready, from_envoy, &to_envoy).await,
            _ => End::Broken("no server of Consul answers".to_owned()),
        };
        let (code, message) = match end {
            End::Status(code, message) => (code, message),
            End::Broken(reason) => (Code::Unavailable, reason),
            End::Envoy | End::Moved => return,
        };
        let _ = to_envoy.send(Frame::trailers(trailers(code, &message))).await;
    }

    /// Relays one stream, and ends it with a status.
    async fn relay(&self, from_envoy: Incoming, to_envoy: mpsc::Sender<Frame<Bytes>>) {
        let mut state = self.state.clone();
        // Envoy waits here while no server works. An error means that this program ends.
        let ready = tokio::select! {
            ready = state.wait_for(|state| matches!(state, State::Ready(_))) => match ready.as_deref() {
                Ok(State::Ready(ready)) => ready.clone(),
                _ => return,
            },
            () = to_envoy.closed() => return,
        };
        let server = ready.connection.server();
        tracing::debug!("Envoy's stream goes to Consul's server at {server}");
        let end = tokio::select! {
            end = self.pass_on(XDS, &ready, from_envoy, &to_envoy) => end,
            _ = state.wait_for(|state| is_other(state, &ready)) => End::Moved,
            () = to_envoy.closed() => End::Envoy,
        };
        let (code, message) = match end {
            End::Envoy => {
                tracing::debug!("Envoy has ended its stream");
                return self.metrics.stream_ended(StreamEnd::Envoy);
            }
            End::Moved => {
                self.metrics.stream_ended(StreamEnd::Moved);
                (Code::Unavailable, "the server or the token changes".to_owned())
            }
            End::Broken(reason) => {
                self.metrics.stream_ended(StreamEnd::Broken);
                tracing::info!("the stream to Consul's server at {server} broke: {reason}");
                self.servers.leave(server);
                (Code::Unavailable, "the connection to Consul's server broke".to_owned())
            }
            End::Status(code, message) => {
                self.metrics.stream_ended(StreamEnd::Server);
                tracing::info!("Consul's server at {server} ended the stream with {code:?}: {message}");
                self.judge(&ready, code, &message);
                (code, message)
            }
        };
        let _ = to_envoy.send(Frame::trailers(trailers(code, &message))).await;
    }

    /// Leaves the server if another one may be better. Reports a refusal before Envoy's first configuration.
    fn judge(&self, ready: &Ready, code: Code, message: &str) {
        match code {
            Code::ResourceExhausted | Code::Aborted | Code::Unavailable | Code::Unauthenticated => {
                self.servers.leave(ready.connection.server());
            }
            Code::PermissionDenied
                if !self.configured.load(Ordering::Relaxed) && self.started.elapsed() >= RIGHTS_WITHIN =>
            {
                self.refused.send_replace(Some(message.to_owned()));
            }
            _ => {}
        }
    }

    /// Passes on the bytes of both directions, until one side ends.
    async fn pass_on(
        &self,
        call: &'static str,
        ready: &Ready,
        mut from_envoy: Incoming,
        to_envoy: &mpsc::Sender<Frame<Bytes>>,
    ) -> End {
        let (to_consul, requests) = mpsc::channel(1);
        let up = async move {
            while let Some(frame) = from_envoy.frame().await {
                let Ok(frame) = frame else { return End::Envoy };
                if let Ok(data) = frame.into_data()
                    && to_consul.send(Frame::data(data)).await.is_err()
                {
                    break;
                }
            }
            // Nothing more goes to Consul: Envoy has ended its side, or Consul takes no more. The other direction returns the reason.
            drop(to_consul);
            std::future::pending().await
        };
        let down = async {
            let response = match ready.connection.pass_on(call, ready.token.as_ref(), Piped(requests)).await {
                Ok(response) => response,
                Err(Error::Broken { reason, .. }) => return End::Broken(reason),
                Err(error) => return End::Broken(one_line(&error)),
            };
            let status = |fields: &HeaderMap| status(fields, ready.token.as_ref());
            if let Some(end) = status(response.headers()) {
                return end;
            }
            let mut body = response.into_body();
            loop {
                match body.frame().await {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            self.configured.store(true, Ordering::Relaxed);
                            if to_envoy.send(Frame::data(data)).await.is_err() {
                                return End::Envoy;
                            }
                        }
                        Err(frame) => {
                            let end = frame.trailers_ref().and_then(status);
                            return end.unwrap_or_else(|| End::Broken("the server's answer has no status".to_owned()));
                        }
                    },
                    Some(Err(status)) => return End::Broken(innermost(&status)),
                    None => return End::Broken("the server's answer has no status".to_owned()),
                }
            }
        };
        tokio::select! {
            end = down => end,
            end = up => end,
        }
    }
}

/// Whether Envoy's stream should go to another server, or have another token.
fn is_other(state: &State, ready: &Ready) -> bool {
    let State::Ready(now) = state else { return false };
    now.connection.server() != ready.connection.server() || now.token != ready.token
}

/// The status in trailers, or in the header fields of an answer without a body. Its text does not hold the token.
fn status(fields: &HeaderMap, token: Option<&Secret>) -> Option<End> {
    let text =
        |name| fields.get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let code = text(STATUS)?.parse().map_or(Code::Unknown, Code::from_i32);
    let message = text(MESSAGE).unwrap_or_default();
    Some(End::Status(code, shown(&message, &token.into_iter().collect::<Vec<_>>())))
}

fn trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(STATUS, (code as i32).into());
    // Consul's own message is already encoded.
    if let Ok(message) = HeaderValue::from_str(message) {
        trailers.insert(MESSAGE, message);
    }
    trailers
}

/// A body whose frames come through a channel.
struct Piped(mpsc::Receiver<Frame<Bytes>>);

impl Body for Piped {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// Listens on the socket. Only this user may connect: who can connect gets the keys of the proxy's certificates.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    // An earlier run may have left its socket.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Until the mode is set, the directory keeps strangers out.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_shows_no_token() {
        let fields = trailers(Code::PermissionDenied, "no: 5ec3e7 is not for you");
        let Some(End::Status(code, message)) = status(&fields, Some(&Secret::new("5ec3e7"))) else {
            panic!("a status")
        };
        assert_eq!((code, message.as_str()), (Code::PermissionDenied, "no: <token> is not for you"));
    }
}
