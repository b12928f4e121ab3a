//! Envoy's side: a server of xDS v3 (delta ADS) and ext_authz v3. It tells the two methods apart by their paths.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use sidecar_kit::server::accept;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use crate::codec::Raw;
use crate::consul::{Consul, Token};
use crate::relay;

/// The methods that Envoy calls.
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The server pings an idle connection this often, and closes it if no answer comes within the time-out.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves Envoys on `listener` with the configuration from `consul`. Ends only if the server fails.
pub async fn serve(listener: TcpListener, consul: Consul) -> Result<(), tonic::transport::Error> {
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let stream = accept(|| listener.accept()).await;
        // The messages are small and each side waits for the other's, so they must be sent at once.
        let _ = stream.set_nodelay(true);
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .serve_with_incoming(Bridge { consul }, incoming)
        .await
}

#[derive(Clone)]
struct Bridge {
    consul: Consul,
}

impl Service<hyper::Request<Body>> for Bridge {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        let consul = self.consul.clone();
        let mut server = tonic::server::Grpc::new(Raw);
        Box::pin(async move {
            Ok(match request.uri().path() {
                DELTA => server.streaming(Delta { consul }, request).await,
                CHECK => server.unary(Check { consul }, request).await,
                _ => Status::unimplemented("xds-bridge serves v3 delta ADS and ext_authz").into_http(),
            })
        })
    }
}

struct Delta {
    consul: Consul,
}

impl tonic::server::StreamingService<Bytes> for Delta {
    type Response = Bytes;
    type ResponseStream = relay::Responses;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let token = Token::of(request.metadata());
        ready(Ok(Response::new(relay::start(self.consul.clone(), token, request.into_inner()))))
    }
}

struct Check {
    consul: Consul,
}

impl tonic::server::UnaryService<Bytes> for Check {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let consul = self.consul.clone();
        Box::pin(async move {
            let token = Token::of(request.metadata());
            Ok(Response::new(consul.check(&token, request.into_inner()).await?))
        })
    }
}
