//! The HTTP API and the DNS of the Consul that the bridge runs. Each request carries the caller's token.

use std::net::SocketAddr;
use std::time::Duration;

use consul_api::{Client, Config, ConfigError, Error};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::{Secret, SecretSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::consul::Token;

/// How long Consul may take to answer a DNS query.
const DNS_TIME: Duration = Duration::from_secs(5);

/// Consul on this host.
#[derive(Debug, Clone)]
pub struct Local {
    http: String,
    dns: SocketAddr,
}

impl Local {
    /// Consul with its HTTP API and its DNS at these addresses.
    ///
    /// # Errors
    /// If the HTTP address cannot be used.
    pub fn new(http: String, dns: SocketAddr) -> Result<Self, ConfigError> {
        let local = Self { http, dns };
        local.config(None)?;
        Ok(local)
    }

    fn config(&self, token: Option<Secret>) -> Result<Config, ConfigError> {
        let env = Env::from_iter::<[(&str, &str); 0]>([]);
        let config = Config::builder(&env).address("--http", Some(&self.http));
        match token {
            Some(token) => config.token(SecretSource::Value(token)).build(),
            None => config.build(),
        }
    }

    /// A client with this token.
    pub(crate) fn client(&self, token: &Token) -> Result<Client, Status> {
        let client = self.config(token.secret()).and_then(Client::new);
        client.map_err(|error| Status::internal(one_line(&error)))
    }

    /// A client without a token, for a login or logout in this datacenter; in Consul's own if it is empty.
    pub(crate) fn client_in(&self, datacenter: &str) -> Result<Client, Status> {
        let config = self.config(None).map(|config| match datacenter {
            "" => config,
            datacenter => config.in_datacenter(datacenter),
        });
        config.and_then(Client::new).map_err(|error| Status::internal(one_line(&error)))
    }

    /// Whether Consul knows the token. Without ACLs, a call needs none.
    pub(crate) async fn authenticate(&self, token: &Token) -> Result<(), Status> {
        let secret = token.secret();
        let known = self.client(token)?.knows_token(secret.as_ref().unwrap_or(&Secret::new(""))).await;
        match known {
            Ok(()) if secret.is_some() => Ok(()),
            Err(Error::Refused { status, .. }) if status.as_u16() == 401 => Ok(()),
            Err(error) if secret.is_some() => Err(status(&error)),
            Ok(()) | Err(_) => {
                Err(Status::unauthenticated("this call needs an ACL token in the metadata x-consul-token"))
            }
        }
    }

    /// Passes a DNS query on. This Consul answers with the rights of its agent, whatever token the caller has.
    pub(crate) async fn dns(&self, query: &[u8], tcp: bool) -> Result<Vec<u8>, Status> {
        const HEADER: usize = 12;
        if query.len() < HEADER {
            return Err(Status::internal("the message is no DNS query"));
        }
        let answer = async { if tcp { self.dns_by_tcp(query).await } else { self.dns_by_udp(query).await } };
        let answer = timeout(DNS_TIME, answer).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        answer.map_err(|error| Status::internal(format!("no answer from Consul's DNS: {error}")))
    }

    async fn dns_by_udp(&self, query: &[u8]) -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(SocketAddr::new(self.dns.ip(), 0)).await?;
        socket.connect(self.dns).await?;
        socket.send(query).await?;
        let mut answer = vec![0; usize::from(u16::MAX)];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    }

    async fn dns_by_tcp(&self, query: &[u8]) -> std::io::Result<Vec<u8>> {
        let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
        let mut stream = TcpStream::connect(self.dns).await?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// The gRPC status for an error of the HTTP API.
pub(crate) fn status(error: &Error) -> Status {
    let code = match error {
        error if error.is_unknown_token() => Code::Unauthenticated,
        Error::PermissionDenied { .. } => Code::PermissionDenied,
        Error::NotFound { .. } => Code::NotFound,
        Error::Unreachable { .. } | Error::TimedOut { .. } | Error::NotJoined { .. } => Code::Unavailable,
        Error::Refused { body, .. } if body.contains("No path to datacenter") => Code::Unavailable,
        Error::Refused { status, .. } if status.as_u16() == 400 => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Status::new(code, one_line(error))
}
