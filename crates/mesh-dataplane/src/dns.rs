//! A DNS server for the task's apps. It sends each query to a server of Consul by gRPC.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consul_grpc::{Connection, DnsProtocol, Servers, State};
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use sidecar_kit::server::accept;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::message::{SMALLEST, fits, limit, refusal};
use crate::status::{Metrics, Query};

/// How long the servers have for an answer. Resolvers ask again after 5 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A server that answers nothing for this long is left. A long wait for an answer alone is no reason: it may come from another DNS server.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How many queries may wait for an answer.
const MOST: usize = 128;
/// How many TCP connections may be open, and how long one may neither send nor receive.
const MOST_CONNECTIONS: usize = 32;
const IDLE: Duration = Duration::from_secs(10);

/// Answers queries.
pub(crate) struct Dns {
    servers: Arc<Servers>,
    state: watch::Receiver<State>,
    metrics: Arc<Metrics>,
    waiting: Arc<Semaphore>,
}

impl Dns {
    pub(crate) fn new(servers: Arc<Servers>, state: watch::Receiver<State>, metrics: Arc<Metrics>) -> Self {
        Self { servers, state, metrics, waiting: Arc::new(Semaphore::new(MOST)) }
    }

    /// Serves both protocols. Never returns.
    pub(crate) async fn serve(self, udp: UdpSocket, tcp: TcpListener) {
        let dns = Arc::new(self);
        tokio::join!(dns.clone().serve_udp(Arc::new(udp)), dns.serve_tcp(tcp));
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        loop {
            // An error belongs to an earlier answer, whose client is gone.
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let query = buffer[..length].to_vec();
            let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
                self.metrics.queried(Query::Dropped);
                continue;
            };
            let (dns, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                dns.answer_udp(&socket, client, query).await;
                drop(permit);
            });
        }
    }

    async fn answer_udp(&self, socket: &UdpSocket, client: SocketAddr, query: Vec<u8>) {
        if let Some(answer) = self.answer(&query, DnsProtocol::Udp).await {
            let answer = fits(answer, &query, limit(&query));
            let _ = socket.send_to(&answer, client).await;
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let open = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let permit = open.clone().acquire_owned().await;
            let stream = accept(|| listener.accept()).await;
            let dns = self.clone();
            tokio::spawn(async move {
                // An error means that the client is gone.
                let _ = dns.serve_connection(stream).await;
                drop(permit);
            });
        }
    }

    /// Each message has its length before it ("Domain Names", RFC 1035, 4.2.2).
    async fn serve_connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let read = async {
                let length = stream.read_u16().await?;
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await?;
                std::io::Result::Ok(query)
            };
            let Ok(query) = timeout(IDLE, read).await else { return Ok(()) };
            let query = query?;
            let Some(answer) = self.answer(&query, DnsProtocol::Tcp).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let message = [&length.to_be_bytes()[..], &answer].concat();
            let Ok(written) = timeout(IDLE, stream.write_all(&message)).await else { return Ok(()) };
            written?;
        }
    }

    /// The answer of a server, or SERVFAIL if none answers. None if this is no query.
    async fn answer(&self, query: &[u8], protocol: DnsProtocol) -> Option<Vec<u8>> {
        if query.len() < SMALLEST {
            return None;
        }
        let failed = match timeout(ANSWER_WITHIN, self.ask(query, protocol)).await {
            Ok(Ok(answer)) => {
                self.metrics.queried(Query::Answered);
                return Some(answer);
            }
            Ok(Err(error)) => one_line(&error),
            Err(_) => format!("no answer within {ANSWER_WITHIN:?}"),
        };
        self.metrics.queried(Query::Failed);
        tracing::debug!("a DNS query fails: {failed}");
        refusal(query)
    }

    async fn ask(&self, query: &[u8], protocol: DnsProtocol) -> Result<Vec<u8>, consul_grpc::Error> {
        // Without a token, Consul would answer that there is no such service, and the app would remember it.
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| matches!(state, State::Ready(_))).await.map(|state| state.clone());
        let token = match ready {
            Ok(State::Ready(ready)) => ready.token,
            // This program ends.
            _ => return pending().await,
        };
        let token = token.as_ref();
        let ask = |server: Connection| async move {
            tokio::select! {
                answer = server.dns_query(query.to_vec(), protocol, token) => answer,
                error = silence(server.clone(), token) => Err(error),
            }
        };
        self.servers.call_beside_stream(true, ask).await
    }
}

/// Waits until the server no longer answers.
async fn silence(server: Connection, token: Option<&Secret>) -> consul_grpc::Error {
    let server = server.answering_within(SILENT_AFTER / 2);
    loop {
        sleep(SILENT_AFTER / 2).await;
        match server.features(token).await {
            Err(error) if error.is_of_the_server() => return error,
            _ => {}
        }
    }
}
