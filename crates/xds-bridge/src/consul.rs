//! Consul's side: a client of its xDS v2 and ext_authz v2.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tower_service::Service;

use crate::codec::Raw;

/// The methods that Consul 1.8.7 serves.
const STREAM: &str = "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources";
const CHECK: &str = "/envoy.service.auth.v2.Authorization/Check";

/// The metadata with the ACL token.
const TOKEN: &str = "x-consul-token";

/// A client of Consul's gRPC on its unix socket.
#[derive(Debug, Clone)]
pub struct Consul {
    channel: Channel,
}

impl Consul {
    /// A client that connects at its first call, and again after a lost connection.
    ///
    /// The client sends no keepalive. Linux closes the socket when Consul ends, and Consul's gRPC server drops clients that
    /// ping more often than every five minutes (<https://github.com/grpc/grpc/blob/master/doc/keepalive.md>).
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        let endpoint = Endpoint::from_static("http://consul");
        Self { channel: endpoint.connect_with_connector_lazy(Socket(Arc::new(socket))) }
    }

    fn client(&self) -> tonic::client::Grpc<Channel> {
        // Consul sends the state of the world: one message has all resources of a kind.
        tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Opens an ADS v2 stream. Returns after Consul's first message, for which there is no time limit. The error is Consul's
    /// status, or UNAVAILABLE if Consul cannot be reached.
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

    /// Asks Consul to authorise a connection.
    pub(crate) async fn check(&self, token: &Token, message: Bytes) -> Result<Bytes, Status> {
        let mut client = self.client();
        ready_client(&mut client).await?;
        let request = token.on(Request::new(message));
        Ok(client.unary(request, CHECK.parse().expect("a path"), Raw).await?.into_inner())
    }
}

async fn ready_client(client: &mut tonic::client::Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|_| Status::unavailable("cannot reach Consul's gRPC"))
}

/// The ACL token of a request. Its `Debug` does not show it.
#[derive(Clone, Default)]
pub struct Token(Option<tonic::metadata::AsciiMetadataValue>);

impl Token {
    /// Reads the token from the metadata of a request. A request may have none.
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

    /// Replaces every occurrence of the token in `text`.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
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
