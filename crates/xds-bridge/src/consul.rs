//! Consul's side: a client of its xDS v2 and ext_authz v2.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use consul_grpc::messages::TOKEN;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use sidecar_kit::secret::Secret;
use sidecar_kit::tls::{TlsOptions, TlsOptionsError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tower_service::Service;

use crate::codec::Raw;

/// The methods that Consul 1.8.7 serves.
const STREAM: &str = "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources";
const CHECK: &str = "/envoy.service.auth.v2.Authorization/Check";

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
    ///
    /// `tls`: Consul uses TLS on the socket. Its certificate is not checked, because only Consul can have the socket.
    ///
    /// # Errors
    /// If the TLS configuration cannot be made.
    pub fn new(path: PathBuf, tls: bool) -> Result<Self, TlsOptionsError> {
        let options = TlsOptions { insecure: true, ..TlsOptions::default() };
        let tls = if tls { Some(TlsConnector::from(Arc::new(options.client_config()?))) } else { None };
        let endpoint = Endpoint::from_static("http://consul");
        Ok(Self { channel: endpoint.connect_with_connector_lazy(Socket { path, tls }) })
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
#[derive(Clone, Default, PartialEq)]
pub struct Token(Option<tonic::metadata::AsciiMetadataValue>);

impl Token {
    /// Reads the token from the metadata of a request. A request may have none.
    #[must_use]
    pub fn of(metadata: &MetadataMap) -> Self {
        Self(metadata.get(TOKEN).cloned())
    }

    /// The token in a message. None if it has characters that gRPC metadata cannot have: Consul has no such token.
    pub(crate) fn from_text(text: &str) -> Self {
        Self(text.parse().ok())
    }

    /// The token as text; none if it is empty.
    pub(crate) fn secret(&self) -> Option<Secret> {
        let token = self.0.as_ref()?.to_str().ok()?;
        Some(Secret::new(token)).filter(|token| !token.expose().is_empty())
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
struct Socket {
    path: PathBuf,
    tls: Option<TlsConnector>,
}

impl Service<Uri> for Socket {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { path, tls } = self.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(&path).await?;
            let stream: Box<dyn Stream> = match tls {
                Some(tls) => {
                    let name = ServerName::try_from("consul").map_err(std::io::Error::other)?;
                    Box::new(tls.connect(name, stream).await?)
                }
                None => Box::new(stream),
            };
            Ok(TokioIo::new(stream))
        })
    }
}

/// The bytes of a connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
