//! A DNS server for the task's apps. It sends each query to a server of Consul by gRPC.

use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consul_grpc::{Connection, DnsProtocol, Servers, State};
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use sidecar_kit::server::accept;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::message::{fits, is_query, limit, refusal};
use crate::status::{Metrics, Query};

/// How long the servers have for an answer. Resolvers ask again after 5 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A server that answers nothing for this long is left. One slow answer alone is no reason: Consul may itself be waiting for another DNS
/// server.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How many queries by UDP may wait for an answer. A server accepts 2048 calls on one connection. That is enough for these queries, for
/// Envoy's stream, and for one more call per query, which checks whether the server still answers.
const MOST: usize = 1000;
/// How many TCP connections may be open, and how long one may neither send nor receive.
const MOST_CONNECTIONS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);

/// Answers queries.
pub(crate) struct Dns {
    servers: Arc<Servers>,
    state: watch::Receiver<State>,
    metrics: Arc<Metrics>,
    waiting: Arc<Semaphore>,
    idle: Idle,
}

impl Dns {
    pub(crate) fn new(servers: Arc<Servers>, state: watch::Receiver<State>, metrics: Arc<Metrics>) -> Self {
        Self { servers, state, metrics, waiting: Arc::new(Semaphore::new(MOST)), idle: Idle::default() }
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
                self.metrics.queried(Query::Refused);
                if let Some(answer) = refusal(&query) {
                    // As for every answer, a failure is the client's loss only.
                    let _ = socket.try_send_to(&answer, client);
                }
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
            let stream = accept(|| listener.accept()).await;
            // The semaphore is never closed. If all connections are open, the one that has been idle the longest makes room (RFC 7766, 6.2.3).
            let permit = tokio::select! {
                biased;
                permit = open.clone().acquire_owned() => permit,
                () = self.idle.close_oldest() => open.clone().acquire_owned().await,
            };
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
        let close = Arc::new(Notify::new());
        loop {
            let read = async {
                let length = stream.read_u16().await?;
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await?;
                std::io::Result::Ok(query)
            };
            self.idle.add(close.clone());
            let query = tokio::select! {
                biased;
                query = timeout(IDLE, read) => Some(query),
                () = close.notified() => None,
            };
            self.idle.remove(&close);
            let Some(Ok(query)) = query else { return Ok(()) };
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
        if !is_query(query) {
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

/// The TCP connections that wait for a query. The first has waited the longest.
#[derive(Default)]
struct Idle {
    connections: Mutex<VecDeque<Arc<Notify>>>,
    added: Notify,
}

impl Idle {
    fn connections(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `close` will be notified if the connection has to close.
    fn add(&self, close: Arc<Notify>) {
        self.connections().push_back(close);
        self.added.notify_one();
    }

    fn remove(&self, close: &Arc<Notify>) {
        self.connections().retain(|other| !Arc::ptr_eq(other, close));
    }

    /// Lets the connection close that has waited the longest. Waits until there is one.
    async fn close_oldest(&self) {
        loop {
            if let Some(close) = self.connections().pop_front() {
                return close.notify_one();
            }
            self.added.notified().await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn query_beyond_the_bound_is_refused_at_once() {
        // No query gets an answer before there is a token.
        let (_state, searching) = watch::channel(State::Searching);
        let servers = Arc::new(Servers::new(Vec::new(), 1, None));
        let dns =
            Dns { waiting: Arc::new(Semaphore::new(0)), ..Dns::new(servers, searching, Arc::new(Metrics::new())) };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(socket.local_addr().unwrap()).await.unwrap();
        let server = tokio::spawn(Arc::new(dns).serve_udp(Arc::new(socket)));
        client.send(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01").await.unwrap();
        let mut answer = [0; 512];
        let length = timeout(Duration::from_secs(60), client.recv(&mut answer)).await.expect("in time").unwrap();
        assert_eq!((&answer[..4], length), (&b"\x12\x34\x81\x02"[..], 21));
        server.abort();
    }
}
