//! gRPC without generated code: messages are bytes, and two methods are told apart by their path.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use crate::relay;

/// What Envoy calls.
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// What Consul 1.8.7 serves.
const STREAM: &str = "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources";
const CHECK_V2: &str = "/envoy.service.auth.v2.Authorization/Check";

/// Where Envoy and Consul put the ACL token.
const TOKEN: &str = "x-consul-token";

/// How often an idle connection of Envoy's is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A codec that leaves messages as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// Consul's gRPC, on its unix socket.
#[derive(Debug, Clone)]
pub struct Consul {
    channel: Channel,
}

impl Consul {
    /// Connects when it is first used, and again whenever the connection is gone.
    ///
    /// There is no keepalive: the socket of a process that is gone is closed, and Consul's gRPC server hangs up on
    /// clients that ping more often than every five minutes
    /// (<https://github.com/grpc/grpc/blob/master/doc/keepalive.md>).
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        let endpoint = Endpoint::from_static("http://consul");
        Self { channel: endpoint.connect_with_connector_lazy(Socket(Arc::new(socket))) }
    }

    fn client(&self) -> tonic::client::Grpc<Channel> {
        // State of the world: one message holds all of a kind.
        tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Opens an ADS v2 stream. Returns when Consul first says something, which may be never.
    ///
    /// # Errors
    /// Consul's status, or UNAVAILABLE when it can't be reached.
    pub async fn stream(
        &self,
        token: &Token,
        requests: impl futures_util::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut client = self.client();
        ready_client(&mut client).await?;
        let request = token.on(Request::new(requests));
        Ok(client.streaming(request, STREAM.parse().expect("a path"), Raw).await?.into_inner())
    }

    async fn check(&self, token: &Token, message: Bytes) -> Result<Bytes, Status> {
        let mut client = self.client();
        ready_client(&mut client).await?;
        let request = token.on(Request::new(message));
        Ok(client.unary(request, CHECK_V2.parse().expect("a path"), Raw).await?.into_inner())
    }
}

async fn ready_client(client: &mut tonic::client::Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|_| Status::unavailable("Consul's gRPC can't be reached"))
}

/// The ACL token of a request, as it came. Doesn't print.
#[derive(Clone, Default)]
pub struct Token(Option<tonic::metadata::AsciiMetadataValue>);

impl Token {
    /// The token in the metadata of a request, if there is one.
    #[must_use]
    pub fn of(metadata: &MetadataMap) -> Self {
        Self(metadata.get(TOKEN).cloned())
    }

    fn on<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Some(token) = &self.0 {
            let mut token = token.clone();
            token.set_sensitive(true);
            request.metadata_mut().insert(TOKEN, token);
        }
        request
    }

    /// `text` with every occurrence of the token blotted out.
    #[must_use]
    pub fn blot(&self, text: &str) -> String {
        match self.0.as_ref().and_then(|token| token.to_str().ok()) {
            Some(token) if !token.is_empty() => text.replace(token, "<token>"),
            _ => text.to_owned(),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[derive(Clone)]
struct Socket(Arc<PathBuf>);

impl Service<Uri> for Socket {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(&*path).await.map(TokioIo::new) })
    }
}

/// Serves Envoys on `listener` from `consul`, for ever.
///
/// # Errors
/// When the server itself fails.
pub async fn serve(listener: TcpListener, consul: Consul) -> Result<(), tonic::transport::Error> {
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| {
            // Small messages that wait for one another.
            let _ = stream.set_nodelay(true);
            stream
        });
        if accepted.is_err() {
            // Out of file descriptors: don't spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((accepted, listener))
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
