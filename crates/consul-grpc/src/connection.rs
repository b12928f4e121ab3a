//! A connection to one server, and the calls.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Map, Value};
use sidecar_kit::secret::Secret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::connector::Once;
use crate::error::Error;
use crate::messages::{
    self, BOOTSTRAP, BootstrapRequest, DNS, DnsRequest, DnsResponse, Empty, FEATURES, LOGIN, LOGOUT, LoginResponse,
    LogoutRequest, TOKEN, WATCH, WATCH_SERVERS, WatchServersRequest, WatchServersResponse,
};
pub use crate::messages::{LoginRequest, Server};
use crate::tls::Tls;

/// How long connecting may take, including the TLS handshake.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Consul's servers drop a client that pings more often than every 15 s.
const PING_EVERY: Duration = Duration::from_secs(16);
/// If a server does not answer a ping within this time, the connection counts as broken. That is at most 24 s after the server fell silent.
const PONG_WITHIN: Duration = Duration::from_secs(8);

/// A connection to one server. Once it is broken, every call fails.
#[derive(Debug, Clone)]
pub struct Connection {
    server: SocketAddr,
    channel: Channel,
    within: Duration,
    /// Clones share it.
    identity: Arc<()>,
}

/// What a server supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Whether the server can report the addresses of all servers: [`Connection::watch_servers`].
    pub watch_servers: bool,
}

/// A proxy, and the configuration for its bootstrap. `Debug` does not show the configuration.
#[derive(Clone, PartialEq)]
#[expect(missing_docs, reason = "Consul's own names")]
pub struct BootstrapParams {
    /// The name of the service whose proxy it is, or of the gateway.
    pub service: String,
    pub namespace: String,
    pub partition: String,
    pub datacenter: String,
    pub node_name: String,
    /// The proxy's configuration, with that of `proxy-defaults` and `service-defaults`.
    pub config: Map<String, Value>,
    /// Envoy's access logs in JSON, one by one.
    pub access_logs: Vec<String>,
}

impl std::fmt::Debug for BootstrapParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { service, datacenter, node_name, .. } = self;
        f.debug_struct("BootstrapParams")
            .field("service", service)
            .field("datacenter", datacenter)
            .field("node_name", node_name)
            .finish_non_exhaustive()
    }
}

/// The token of a login.
#[derive(Debug, Clone)]
pub struct LoginToken {
    /// Its accessor ID, which gives no access.
    pub accessor_id: String,
    /// The secret that a call sends.
    pub secret_id: Secret,
}

/// The protocol by which a DNS query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DnsProtocol {
    Tcp = 1,
    Udp = 2,
}

/// The stream of the servers' addresses.
#[derive(Debug)]
pub struct WatchServers {
    server: SocketAddr,
    token: Option<Secret>,
    stream: Streaming<WatchServersResponse>,
}

impl WatchServers {
    /// The servers' addresses: the first call returns them at once, each further call after a change. It waits without a limit.
    ///
    /// # Errors
    /// [`Error::is_unauthenticated`] within a second of the token's end. [`Error::Broken`] if the connection breaks, or if the
    /// server ends the stream.
    pub async fn next(&mut self) -> Result<Vec<Server>, Error> {
        match self.stream.message().await {
            Ok(Some(WatchServersResponse { servers })) => Ok(servers),
            Ok(None) => {
                let reason = "the server ended the stream".to_owned();
                Err(Error::Broken { call: WATCH, server: self.server, reason })
            }
            Err(status) => Err(Error::of(WATCH, self.server, &status, &self.token.iter().collect::<Vec<_>>())),
        }
    }
}

/// The stream by which Envoy gets its configuration (incremental xDS, aggregated).
pub const XDS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

impl Connection {
    /// Connects to a server, by TLS if `tls` is given. The certificate must have the name `host`, unless `tls` has another name. Each call
    /// must be answered within `within`.
    ///
    /// # Errors
    /// [`Error::Connect`] if there is no connection within 5 s. Other errors if the CA certificates or the name cannot be used.
    pub async fn open(server: SocketAddr, host: &str, tls: Option<&Tls>, within: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Connect { server, source };
        let secure = match tls {
            Some(tls) => {
                let name = tls.server_name.as_deref().unwrap_or(host);
                let name = ServerName::try_from(name.to_owned()).map_err(|_| Error::ServerName(name.to_owned()))?;
                Some((TlsConnector::from(tls.config()?), name))
            }
            None => None,
        };
        let connect = async {
            let tcp = TcpStream::connect(server).await?;
            tcp.set_nodelay(true)?;
            let stream: Box<dyn Stream> = match secure {
                Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
                None => Box::new(tcp),
            };
            io::Result::Ok(stream)
        };
        let stream = timeout(CONNECT_TIME, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(failed)?;
        // The name goes into the pseudo-header `:authority`, which Consul does not look at.
        let endpoint = Endpoint::from_static("http://consul")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        let channel = endpoint.connect_with_connector(Once::new(TokioIo::new(stream))).await;
        let channel = channel.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { server, channel, within, identity: Arc::default() })
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Whether this is the same connection, not only one to the same server.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identity, &other.identity)
    }

    /// The same connection, with another limit for an answer.
    #[must_use]
    pub fn answering_within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Asks what the server supports. Every known token may ask, so this confirms that the server knows the token.
    ///
    /// # Errors
    /// [`Error::is_unauthenticated`] if it does not.
    pub async fn features(&self, token: Option<&Secret>) -> Result<Features, Error> {
        let answer: messages::Features = self.unary(FEATURES, Empty {}, token, &[]).await?;
        let watches = |feature: &messages::Feature| feature.name == WATCH_SERVERS && feature.supported;
        Ok(Features { watch_servers: answer.features.iter().any(watches) })
    }

    /// Asks for the bootstrap configuration of a proxy or gateway on a node.
    ///
    /// # Errors
    /// The code NOT_FOUND if the server does not know the node or the proxy.
    pub async fn bootstrap_params(
        &self,
        node_name: &str,
        proxy_id: &str,
        (namespace, partition): (Option<&str>, Option<&str>),
        token: Option<&Secret>,
    ) -> Result<BootstrapParams, Error> {
        let request = BootstrapRequest {
            node_name: node_name.to_owned(),
            service_id: proxy_id.to_owned(),
            proxy_id: proxy_id.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            partition: partition.unwrap_or_default().to_owned(),
        };
        let answer: messages::BootstrapParams = self.unary(BOOTSTRAP, request, token, &[]).await?;
        let messages::BootstrapParams {
            service,
            namespace,
            partition,
            datacenter,
            config,
            node_name,
            access_logs,
            identity,
        } = answer;
        // Consul 1.16 has the name in `service`.
        let service = if identity.is_empty() { service } else { identity };
        let config = config.map(Map::from).unwrap_or_default();
        Ok(BootstrapParams { service, namespace, partition, datacenter, node_name, config, access_logs })
    }

    /// Logs in. A login must not be repeated if it may have arrived ([`Error::may_have_arrived`]), because each one creates a token.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the auth method does not exist, UNAUTHENTICATED if the proof is refused.
    pub async fn login(&self, request: LoginRequest) -> Result<LoginToken, Error> {
        let proof = Secret::new(&request.bearer_token);
        let answer: LoginResponse = self.unary(LOGIN, request, None, &[&proof]).await?;
        let messages::LoginToken { accessor_id, secret_id } = answer.token.unwrap_or_default();
        Ok(LoginToken { accessor_id, secret_id: Secret::new(secret_id) })
    }

    /// Deletes the token of a login. A token that no longer exists is no error.
    ///
    /// # Errors
    /// PERMISSION_DENIED if the token is not from a login.
    pub async fn logout(&self, token: &Secret, datacenter: Option<&str>) -> Result<(), Error> {
        let datacenter = datacenter.unwrap_or_default().to_owned();
        let request = LogoutRequest { token: token.expose().to_owned(), datacenter };
        let _: Empty = self.unary(LOGOUT, request, None, &[token]).await?;
        Ok(())
    }

    /// Begins to watch the servers of this datacenter.
    ///
    /// # Errors
    /// [`Error::is_unauthenticated`] if the server does not know the token.
    pub async fn watch_servers(&self, token: Option<&Secret>) -> Result<WatchServers, Error> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let failed = |status| Error::of(WATCH, self.server, &status, &token.iter().copied().collect::<Vec<_>>());
        let begun = async {
            client.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
            let request = with_token(Request::new(WatchServersRequest { wan: false }), token)
                .ok_or_else(|| tonic::Status::unauthenticated("the token has characters that are not valid"))?;
            let codec = ProstCodec::<WatchServersRequest, WatchServersResponse>::default();
            client.server_streaming(request, WATCH.parse().expect("a path"), codec).await
        };
        let timed_out = || Error::TimedOut { call: WATCH, server: self.server, within: self.within };
        let stream = timeout(self.within, begun).await.map_err(|_| timed_out())?.map_err(failed)?.into_inner();
        Ok(WatchServers { server: self.server, token: token.cloned(), stream })
    }

    /// Sends a DNS query, and returns the server's answer.
    ///
    /// # Errors
    /// INTERNAL if it is not a DNS query.
    pub async fn dns_query(
        &self,
        query: Vec<u8>,
        protocol: DnsProtocol,
        token: Option<&Secret>,
    ) -> Result<Vec<u8>, Error> {
        let request = DnsRequest { message: query, protocol: protocol as i32 };
        let answer: DnsResponse = self.unary(DNS, request, token, &[]).await?;
        Ok(answer.message)
    }

    /// Makes a call for Envoy, such as [`XDS`]. The bodies of the request and of the answer pass through unchanged. There is no time limit,
    /// because a server sends nothing before its first message. `grpc-status` is in the answer's trailers, or in its header fields if it
    /// has no body.
    ///
    /// # Errors
    /// [`Error::Broken`] if the connection breaks before the answer.
    pub async fn pass_on<B>(
        &self,
        call: &'static str,
        token: Option<&Secret>,
        requests: B,
    ) -> Result<hyper::Response<tonic::body::Body>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let mut request = hyper::Request::post(call).body(tonic::body::Body::new(requests)).expect("a path is a URI");
        let fields = request.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|_| Error::Token)?;
            value.set_sensitive(true);
            fields.insert(HeaderName::from_static(TOKEN), value);
        }
        let mut channel = self.channel.clone();
        let broken = |error: tonic::transport::Error| Error::broken(call, self.server, &error);
        poll_fn(|context| channel.poll_ready(context)).await.map_err(broken)?;
        channel.call(request).await.map_err(broken)
    }

    /// Sends a message and waits for the answer. An error does not hold the token or one of `secrets`.
    async fn unary<Q, A>(
        &self,
        call: &'static str,
        message: Q,
        token: Option<&Secret>,
        secrets: &[&Secret],
    ) -> Result<A, Error>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let request = with_token(Request::new(message), token).ok_or(Error::Token)?;
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let answered = async {
            client.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
            client.unary(request, call.parse().expect("a path"), ProstCodec::<Q, A>::default()).await
        };
        match timeout(self.within, answered).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                let secrets: Vec<_> = secrets.iter().copied().chain(token).collect();
                Err(Error::of(call, self.server, &status, &secrets))
            }
            Err(_) => Err(Error::TimedOut { call, server: self.server, within: self.within }),
        }
    }
}

/// Puts the token into the metadata. None if it has characters that metadata cannot have.
fn with_token<T>(mut request: Request<T>, token: Option<&Secret>) -> Option<Request<T>> {
    if let Some(token) = token {
        let mut value = AsciiMetadataValue::try_from(token.expose()).ok()?;
        value.set_sensitive(true);
        request.metadata_mut().insert(TOKEN, value);
    }
    Some(request)
}

/// The bytes of a connection, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
