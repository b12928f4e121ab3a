//! The login of a task for its whole life, at the servers' HTTP API.

use std::sync::Arc;
use std::time::Duration;

use ecs_meta::Task;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use tokio::time::{Instant, sleep};

use crate::issued::Issued;
use crate::keep::{Held, Source, expiry};
use crate::login::{LOGOUT_BOUND, Login, LoginError};

/// How long the servers may take to learn a new token.
const KNOWN: Duration = Duration::from_secs(5);
/// How soon a server that does not know the token yet is asked again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long one server may take to answer.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A [`Login`] of one task. A [`Keeper`](crate::Keeper) renews it.
#[derive(Debug)]
pub struct TaskLogin {
    login: Arc<Login>,
    task: Arc<Task>,
    issued: Issued,
}

impl TaskLogin {
    /// The login of this task. `login` must have no file.
    #[must_use]
    pub fn new(login: Login, task: Arc<Task>) -> Self {
        Self { login: Arc::new(login), task, issued: Issued::default() }
    }

    /// The login.
    #[must_use]
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// The tokens of its logins.
    #[must_use]
    pub fn issued(&self) -> &Issued {
        &self.issued
    }
}

impl TaskLogin {
    /// How long the token is still valid. This waits at most [`KNOWN`] until the server at each address knows the token. After that, one
    /// server that knows it is enough. A server that gives no answer does not count.
    async fn known(&self, token: &Secret) -> Result<Option<Duration>, LoginError> {
        let deadline = Instant::now() + KNOWN;
        let mut answer = None;
        for server in self.login.servers().each().await? {
            let server = server.no_longer_than(ATTEMPT);
            let left = loop {
                match expiry(&server, token).await {
                    Err(error) if error.is_unknown_token() && Instant::now() < deadline => sleep(AGAIN).await,
                    left => break left,
                }
            };
            match left {
                Ok(left) => answer = Some(Ok(left)),
                Err(error) => {
                    if error.is_unknown_token() {
                        tracing::warn!(
                            "the server at {} does not know the token of this login",
                            server.config().address()
                        );
                    }
                    answer = answer.or(Some(Err(error)));
                }
            }
        }
        Ok(answer.unwrap_or(Ok(None))?)
    }
}

impl Source for TaskLogin {
    async fn log_in(&self) -> Result<Held, LoginError> {
        let (login, task) = (self.login.clone(), self.task.clone());
        let secret = self.issued.log_in(async move { login.once(&task).await }).await?;
        match self.known(&secret).await {
            Ok(left) => Ok(Held { secret, left }),
            Err(error) => {
                self.log_out(&secret).await;
                Err(error)
            }
        }
    }

    async fn log_out(&self, token: &Secret) {
        match self.login.servers().logout(token, LOGOUT_BOUND).await {
            Ok(()) => self.issued.deleted(token),
            Err(error) => tracing::warn!("a token of this login stays until it expires: {}", one_line(&error)),
        }
    }
}
