//! Stays with a server, and reports when the server or the token is no longer good.

use std::sync::Arc;
use std::time::Duration;

use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::secret::Secret;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::connection::{Connection, Features};
use crate::error::Error;
use crate::servers::Servers;

/// How often the follower asks the server if there is no stream of the servers' addresses.
const POLL: Duration = Duration::from_secs(20);
/// How long a server must work after it was chosen. If each server fails sooner, the follower waits before the next attempt.
const WORKS_AFTER: Duration = Duration::from_secs(1);
/// How often the follower asks a server whether it knows a new token. A server may need some 80 ms to learn it; meanwhile the old token
/// stays in use.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);
/// After this many refusals, the new token counts as refused.
const MOST_UNCONFIRMED: u32 = 20;

/// A server that works, with a token that it knows.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The connection.
    pub connection: Connection,
    /// What the server supports.
    pub features: Features,
    /// The token.
    pub token: Option<Secret>,
}

/// The state of the connection to the servers.
#[derive(Debug, Clone)]
pub enum State {
    /// No server works now. The follower tries again.
    Searching,
    /// The server works.
    Ready(Ready),
    /// No server knows the token any more, or the one in use says that the token has ended. So the caller should give another one. Meanwhile
    /// the follower tries the same token again, because a new token may not have reached the servers yet.
    Refused,
}

/// Keeps a connection to a server that works. It runs in a tokio task of its own, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    state: watch::Receiver<State>,
    token: watch::Sender<Option<Secret>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to follow the servers with this token.
    #[must_use]
    pub fn start(servers: Arc<Servers>, token: Option<Secret>) -> Self {
        let (token, given) = watch::channel(token);
        let (publish, state) = watch::channel(State::Searching);
        let task = tokio::spawn(Loop { servers, token: given, publish }.run());
        Self { state, token, task }
    }

    /// The state now, and a way to wait for changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Gives another token. [`State::Ready`] has it once the server has confirmed it.
    pub fn set_token(&self, token: Option<Secret>) {
        self.token.send_replace(token);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Loop {
    servers: Arc<Servers>,
    token: watch::Receiver<Option<Secret>>,
    publish: watch::Sender<State>,
}

/// Why [`Loop::stay`] has ended.
enum End {
    /// Another token was given. The old one stays in use until the server confirms the new one.
    NewToken,
    /// The server failed, or [`Servers::leave`] was called.
    Server(Option<Error>),
    /// The server no longer knows the token.
    Token,
}

impl Loop {
    async fn run(mut self) {
        let new_backoff = || Backoff::growing(Duration::from_millis(500), 1.5, Duration::from_secs(60));
        let mut backoff = new_backoff();
        let mut failure = LastFailure::default();
        // How many times a server has refused the new token. None once the token is not new.
        let mut unconfirmed = Some(0);
        // How many servers were left soon after they were chosen.
        let mut left_soon = 0;
        // Whether a token has been refused after the last time that a server worked for a while.
        let mut refused_before = false;
        loop {
            if self.token.has_changed().is_ok_and(|changed| changed) {
                unconfirmed = Some(0);
            }
            let token = self.token.borrow_and_update().clone();
            let asked = token.as_ref();
            let features = |server: Connection| async move {
                let features = server.features(asked).await?;
                Ok((server, features))
            };
            let state = match self.servers.call(true, features).await {
                Ok((connection, features)) => {
                    tracing::debug!("using Consul's server at {}", connection.server());
                    failure.end();
                    let ready = Ready { connection, features, token };
                    self.publish.send_replace(State::Ready(ready.clone()));
                    let since = Instant::now();
                    let end = self.stay(&ready).await;
                    let stayed = since.elapsed() >= WORKS_AFTER;
                    if stayed {
                        backoff = new_backoff();
                        left_soon = 0;
                        refused_before = false;
                    }
                    unconfirmed = matches!(end, End::NewToken).then_some(0);
                    match end {
                        End::NewToken => continue,
                        End::Token => State::Refused,
                        End::Server(error) => {
                            let why = error.as_ref().map_or_else(|| "it was left".to_owned(), |error| one_line(error));
                            tracing::info!("leaving Consul's server at {}: {why}", ready.connection.server());
                            self.servers.leave(ready.connection.server());
                            self.publish.send_replace(State::Searching);
                            left_soon += 1;
                            // Another server may be better. There is a delay once each of them was left.
                            if stayed || left_soon < self.servers.known() {
                                continue;
                            }
                            left_soon = 0;
                            State::Searching
                        }
                    }
                }
                Err(error)
                    if error.is_unauthenticated() && unconfirmed.is_some_and(|times| times < MOST_UNCONFIRMED) =>
                {
                    unconfirmed = unconfirmed.map(|times| times + 1);
                    sleep(CONFIRM_EVERY).await;
                    continue;
                }
                Err(error) => {
                    unconfirmed = None;
                    let reason = one_line(&error);
                    if failure.is_new(&reason) {
                        tracing::warn!("no server of Consul can be used: {reason}");
                    }
                    match error {
                        Error::Status { server, .. } if error.is_unauthenticated() => {
                            // This server may lag behind the others.
                            self.servers.leave(server);
                            if self.servers.has_another().await {
                                continue;
                            }
                            State::Refused
                        }
                        _ => State::Searching,
                    }
                }
            };
            let refused = matches!(state, State::Refused);
            // The first refusal shows at once. Another one shows after the delay, because each may lead to a new login.
            let late = refused && refused_before;
            refused_before |= refused;
            if !late {
                self.publish.send_replace(state);
            }
            tokio::select! {
                () = sleep(backoff.delay()) => if late {
                    self.publish.send_replace(State::Refused);
                },
                changed = self.token.changed() => match changed {
                    Ok(()) => unconfirmed = Some(0),
                    Err(_) => return,
                },
            }
        }
    }

    /// Stays with a server that works, until one of the reasons of [`End`].
    async fn stay(&mut self, ready: &Ready) -> End {
        let watching = async {
            if ready.features.watch_servers && self.servers.watches() {
                watch_servers(&self.servers, ready).await
            } else {
                poll(ready).await
            }
        };
        tokio::select! {
            error = watching => if error.is_unauthenticated() { End::Token } else { End::Server(Some(error)) },
            () = self.servers.was_left(&ready.connection) => End::Server(None),
            changed = self.token.changed() => match changed {
                Ok(()) => End::NewToken,
                // The follower is being dropped.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

async fn watch_servers(servers: &Servers, ready: &Ready) -> Error {
    let mut stream = match ready.connection.watch_servers(ready.token.as_ref()).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        match stream.next().await {
            Ok(reported) => {
                servers.report(&reported);
                servers.works();
            }
            Err(error) => return error,
        }
    }
}

async fn poll(ready: &Ready) -> Error {
    loop {
        sleep(POLL).await;
        if let Err(error) = ready.connection.features(ready.token.as_ref()).await {
            return error;
        }
    }
}
