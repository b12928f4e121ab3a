//! The list of the servers, and the one that is in use.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::connection::{Connection, Server};
use crate::error::Error;
use crate::tls::Tls;

/// How long a server has for an answer, unless the caller says otherwise.
const WITHIN: Duration = Duration::from_secs(5);

/// Consul's servers. It uses one of them until that one fails.
#[derive(Debug)]
pub struct Servers {
    /// The names and IP addresses that were given.
    hosts: Vec<String>,
    port: u16,
    tls: Option<Tls>,
    watches: bool,
    within: Duration,
    state: Mutex<State>,
    /// Only one caller connects at a time, so that all use the same server.
    connecting: AsyncMutex<()>,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The addresses that a server reported.
    reported: BTreeSet<SocketAddr>,
    /// The servers that have failed since one worked.
    failed: BTreeSet<SocketAddr>,
    /// The server that failed last. All others are chosen before it.
    left: Option<SocketAddr>,
    current: Option<Connection>,
    /// How many servers there were when one was chosen.
    known: usize,
}

impl Servers {
    /// The servers at these names and IP addresses. Names are resolved each time that a server is chosen.
    #[must_use]
    pub fn new(hosts: Vec<String>, port: u16, tls: Option<Tls>) -> Self {
        let (state, connecting, left) = (Mutex::default(), AsyncMutex::default(), Notify::new());
        Self { hosts, port, tls, watches: true, within: WITHIN, state, connecting, left }
    }

    /// The same, for servers behind a load balancer: no server is asked for the addresses of the others.
    #[must_use]
    pub fn without_watch(self) -> Self {
        Self { watches: false, ..self }
    }

    /// The same, with another limit for an answer. After this time, the next server is asked.
    #[must_use]
    pub fn answering_within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    pub(crate) fn watches(&self) -> bool {
        self.watches
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the addresses that a server reported. They are used together with the given ones.
    pub(crate) fn report(&self, servers: &[Server]) {
        let ip = |server: &Server| server.address.parse::<IpAddr>().ok();
        let addresses = servers.iter().filter_map(ip).map(|ip| SocketAddr::new(ip, self.port));
        self.state().reported = addresses.collect();
    }

    /// Makes a call at the server in use. If the server fails, it makes the call at the next one, and so on until each server was asked
    /// once. A call that may have arrived is made again only if `repeats` says so.
    ///
    /// # Errors
    /// The call's error if it would be the same at every server; otherwise that of the last server.
    pub async fn call<T, A>(&self, repeats: bool, call: impl Fn(Connection) -> A) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Error>>,
    {
        self.call_at_each(repeats, false, &call).await
    }

    /// The same for a call beside a stream. A server that has too much to do for this call may still serve the stream, so this asks the
    /// others without leaving that server.
    ///
    /// # Errors
    /// As [`Servers::call`].
    pub async fn call_beside_stream<T, A>(&self, repeats: bool, call: impl Fn(Connection) -> A) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Error>>,
    {
        self.call_at_each(repeats, true, &call).await
    }

    async fn call_at_each<T, A>(
        &self,
        repeats: bool,
        beside_stream: bool,
        call: &impl Fn(Connection) -> A,
    ) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Error>>,
    {
        loop {
            let connection = self.connection().await?;
            match call(connection.clone()).await {
                Ok(value) => {
                    self.state().failed.clear();
                    return Ok(value);
                }
                Err(error) if !error.is_of_the_server() => return Err(error),
                Err(error) if beside_stream && error.is_exhausted() => {
                    return self.call_elsewhere(connection.server(), error, repeats, call).await;
                }
                Err(error) => {
                    self.leave(connection.server());
                    if error.may_have_arrived() && !repeats || !self.has_another().await {
                        return Err(error);
                    }
                    tracing::debug!("asking the next server: {}", sidecar_kit::exit::one_line(&error));
                }
            }
        }
    }

    /// Makes a call at each server except this one until one answers, each time with a connection of its own. The server in use stays.
    async fn call_elsewhere<T, A>(
        &self,
        exhausted: SocketAddr,
        error: Error,
        repeats: bool,
        call: &impl Fn(Connection) -> A,
    ) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Error>>,
    {
        let mut last = error;
        let mut others = self.candidates().await?;
        others.retain(|(server, _)| *server != exhausted);
        fastrand::shuffle(&mut others);
        for (server, host) in others {
            let asked = async { call(Connection::open(server, &host, self.tls.as_ref(), self.within).await?).await };
            match asked.await {
                Err(error) if error.is_of_the_server() && (repeats || !error.may_have_arrived()) => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    /// Stops using this server. It is not chosen again before the others have failed too.
    pub fn leave(&self, server: SocketAddr) {
        let mut state = self.state();
        state.failed.insert(server);
        state.left = Some(server);
        if state.current.as_ref().is_some_and(|current| current.server() == server) {
            state.current = None;
        }
        self.left.notify_waiters();
    }

    /// Waits until this connection is no longer the one in use.
    pub(crate) async fn was_left(&self, connection: &Connection) {
        loop {
            let left = self.left.notified();
            if self.state().current.as_ref().is_none_or(|current| !current.is(connection)) {
                return;
            }
            left.await;
        }
    }

    /// How many servers there were when one was chosen.
    pub(crate) fn known(&self) -> usize {
        self.state().known
    }

    /// Notes that the server in use works.
    pub(crate) fn works(&self) {
        self.state().failed.clear();
    }

    /// The connection to the server in use. If there is none, this connects to a random server, and to another one if that fails.
    ///
    /// # Errors
    /// That of the last server, if none can be reached. The next call then tries all of them again.
    pub async fn connection(&self) -> Result<Connection, Error> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _connecting = self.connecting.lock().await;
        // Another caller may have connected meanwhile.
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let mut last = None;
        loop {
            let candidates = self.candidates().await;
            let candidates = match (candidates, last) {
                (Ok(candidates), _) if !candidates.is_empty() => candidates,
                (Ok(_), Some(last)) | (Err(last), _) => {
                    self.state().failed.clear();
                    return Err(last);
                }
                // All servers failed in earlier calls, so a new round begins.
                (Ok(_), None) => {
                    self.state().failed.clear();
                    last = None;
                    continue;
                }
            };
            let (server, host) = &candidates[fastrand::usize(..candidates.len())];
            match Connection::open(*server, host, self.tls.as_ref(), self.within).await {
                Ok(connection) => {
                    self.state().current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) if error.is_of_the_server() => {
                    self.leave(*server);
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn current(&self) -> Option<Connection> {
        self.state().current.clone()
    }

    /// Whether there is a server that has not failed.
    pub(crate) async fn has_another(&self) -> bool {
        self.candidates().await.is_ok_and(|candidates| !candidates.is_empty())
    }

    /// The servers that have not failed, each with the name that its certificate must have.
    async fn candidates(&self) -> Result<Vec<(SocketAddr, String)>, Error> {
        let mut all = Vec::new();
        let mut unresolved = None;
        for host in &self.hosts {
            match lookup_host((host.as_str(), self.port)).await {
                Ok(addresses) => all.extend(addresses.map(|address| (address, host.clone()))),
                Err(source) => unresolved = Some(Error::Resolve { host: host.clone(), source }),
            }
        }
        // A reported address has no name. Its certificate must have the first given name, otherwise the address.
        let name = self.hosts.iter().find(|host| host.parse::<IpAddr>().is_err());
        let mut state = self.state();
        for address in &state.reported {
            if all.iter().all(|(known, _)| known != address) {
                all.push((*address, name.cloned().unwrap_or_else(|| address.ip().to_string())));
            }
        }
        match unresolved {
            Some(error) if all.is_empty() => return Err(error),
            _ => {}
        }
        state.known = all.len();
        all.retain(|(address, _)| !state.failed.contains(address));
        if all.iter().any(|(address, _)| Some(*address) != state.left) {
            all.retain(|(address, _)| Some(*address) != state.left);
        }
        Ok(all)
    }
}
