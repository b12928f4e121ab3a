//! Envoy's side: a server of xDS v3 (delta ADS) and ext_authz v3, and of the calls of tasks without an agent. It tells the methods apart
//! by their paths.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use consul_grpc::XDS;
use consul_grpc::messages::WATCH;
use futures_util::stream::{self, BoxStream, StreamExt};
use sidecar_kit::server::accept;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use crate::codec::Raw;
use crate::consul::{Consul, Token};
use crate::copies::Copies;
use crate::{relay, services, tls};

/// Consul 1.8 lets Envoy ask for the authorisation of each inbound connection.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The server pings an idle connection this often, and closes it if no answer comes within the time-out.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves Envoys with the configuration from `consul`, and tasks without an agent. Ends only if the server fails.
pub async fn serve<S>(incoming: Incoming<S>, consul: Consul, copies: Copies) -> Result<(), tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .serve_with_incoming(Bridge { consul, copies }, incoming)
        .await
}

/// Connections.
pub type Incoming<S> = BoxStream<'static, std::io::Result<S>>;

/// Connections without TLS.
#[must_use]
pub fn plain(listener: TcpListener) -> Incoming<TcpStream> {
    let incoming = stream::unfold(listener, |listener| async {
        let stream = accept(|| listener.accept()).await;
        // The messages are small and each side waits for the other's, so they must be sent at once.
        let _ = stream.set_nodelay(true);
        Some((Ok(stream), listener))
    });
    incoming.boxed()
}

/// Connections with TLS.
#[must_use]
pub fn secure(listener: TcpListener, acceptor: TlsAcceptor) -> Incoming<DuplexStream> {
    relay::received(tls::incoming(listener, acceptor)).map(Ok).boxed()
}

#[derive(Clone)]
struct Bridge {
    consul: Consul,
    copies: Copies,
}

impl Service<hyper::Request<Body>> for Bridge {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let bridge = self.clone();
        let mut server = tonic::server::Grpc::new(Raw);
        Box::pin(async move {
            Ok(match request.uri().path() {
                XDS => server.streaming(Delta(bridge), request).await,
                WATCH => server.server_streaming(Watch(bridge), request).await,
                path => server.unary(Unary(bridge, path.to_owned()), request).await,
            })
        })
    }
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

struct Delta(Bridge);

impl tonic::server::StreamingService<Bytes> for Delta {
    type Response = Bytes;
    type ResponseStream = relay::Responses;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let token = Token::of(request.metadata());
        let Bridge { consul, copies } = self.0.clone();
        ready(Ok(Response::new(relay::start(consul, copies, token, request.into_inner()))))
    }
}

struct Watch(Bridge);

impl tonic::server::ServerStreamingService<Bytes> for Watch {
    type Response = Bytes;
    type ResponseStream = relay::Responses;
    type Future = Answer<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let local = self.0.copies.local().clone();
        Box::pin(async move {
            let token = Token::of(request.metadata());
            local.authenticate(&token).await?;
            Ok(Response::new(services::watch(local, token)))
        })
    }
}

struct Unary(Bridge, String);

impl tonic::server::UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = Answer<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (Bridge { consul, copies }, path) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            let token = Token::of(request.metadata());
            let message = request.into_inner();
            if path == CHECK {
                return Ok(Response::new(consul.check(&token, message).await?));
            }
            let answer = services::unary(&copies, &path, &token, message).await;
            Ok(Response::new(
                answer.unwrap_or_else(|| Err(Status::unimplemented("xds-bridge does not have this call")))?,
            ))
        })
    }
}
