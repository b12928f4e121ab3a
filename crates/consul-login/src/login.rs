//! A login at the servers' HTTP API: log in, write the token to a file, and wait until the servers and the agent know it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consul_api::{Builder, Client, ConfigError};
use ecs_meta::Task;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::file::{WriteError, write_atomically};
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource};
use sidecar_kit::tls::{PublicAuthoritiesError, TlsOptionsError};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::aws::AwsError;
use crate::credentials::CredentialsError;
use crate::proof::{BEARER_TOKEN, Prover, Settings};

/// Its owner and the volume's group may read it.
const MODE: u32 = 0o640;
/// The end of a log line about a login without an answer.
pub(crate) const UNANSWERED: &str = "if it made a token, the token stays until the auth method's MaxTokenTTL";
/// How long one server may take to delete the token of a task that ends. A server that hangs must leave time for the next one.
pub const LOGOUT_AT_ONE: Duration = Duration::from_secs(1);
/// How long a logout may delay the report of an error.
pub(crate) const LOGOUT_BOUND: Duration = Duration::from_secs(5);

/// There is no token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LoginError {
    #[error("cannot use the address of Consul's servers")]
    Servers(#[from] ConfigError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error("cannot use TLS for AWS")]
    Tls(#[from] TlsOptionsError),
    #[error("cannot read the public CA certificates, which are needed for AWS")]
    PublicAuthorities(#[from] PublicAuthoritiesError),
    #[error("{BEARER_TOKEN}_FILE")]
    BearerToken(#[from] SecretFileError),
    #[error("there is no auth method {method:?} at {address}: check its name{needs}")]
    NoMethod { method: String, address: String, needs: &'static str, source: Box<consul_api::Error> },
    #[error(
        "the auth method {method:?} refuses this task: check its binding rules and that it trusts the task's role or issuer"
    )]
    Denied { method: String, source: Box<consul_api::Error> },
    #[error("the auth method {method:?} refuses this task: {cure}")]
    Refused { method: String, cure: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    #[cfg(feature = "grpc")]
    #[error(transparent)]
    Grpc(#[from] consul_grpc::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot log in")]
    Waited(#[source] Box<WaitError<LoginError>>),
    #[error("not all servers know the token of this login")]
    Unknown(#[source] Box<WaitError<consul_api::Error>>),
}

/// What to change if Consul's AWS IAM auth method refuses a login for good. Its servers answer 500 then (by gRPC: UNAUTHENTICATED), as
/// they do if they cannot reach STS. Only the text tells the two apart.
pub(crate) fn cure(body: &str) -> Option<&'static str> {
    const CURES: [(&str, &str); 7] = [
        ("is not trusted", "add its IAM role to the auth method's BoundIAMPrincipalARNs"),
        (
            "missing header \"X-Consul-IAM-GetEntity",
            "set includeEntity (CONSUL_LOGIN_INCLUDE_ENTITY) to true, because the auth method has EnableIAMEntityDetails",
        ),
        (
            "missing header \"",
            "set serverIdHeaderValue (CONSUL_LOGIN_SERVER_ID) to the auth method's ServerIDHeaderValue",
        ),
        ("but got \"", "set serverIdHeaderValue (CONSUL_LOGIN_SERVER_ID) to the auth method's ServerIDHeaderValue"),
        ("invalid STS hostname", "set stsEndpoint to the auth method's STSEndpoint"),
        ("invalid GetCallerIdentity URL", "set stsEndpoint to the auth method's STSEndpoint"),
        ("unique id mismatch", "the signed requests are of two roles: check the task's credentials"),
    ];
    CURES.iter().find(|(text, _)| body.contains(text)).map(|(_, cure)| *cure)
}

impl LoginError {
    /// Whether another attempt may succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Credentials(error) => error.may_pass(),
            Self::Aws(error) => error.may_pass(),
            Self::NoMethod { .. } | Self::Denied { .. } => true,
            Self::Consul(error) => error.may_pass_at_start(),
            #[cfg(feature = "grpc")]
            Self::Grpc(error) => error.may_pass_at_start(),
            // The platform may write the file after the start.
            Self::BearerToken(_) => true,
            _ => false,
        }
    }
}

/// A login at Consul's servers.
#[derive(Debug)]
pub struct Login {
    prover: Prover,
    servers: Client,
    file: Option<PathBuf>,
    bound: Duration,
}

/// The token of a login, in its file if it has one.
#[derive(Debug)]
pub struct LoginToken {
    secret: Secret,
    /// Whether this run logged in. Otherwise an earlier run did, and the task may still run with the token.
    is_new: bool,
}

impl LoginToken {
    /// The token itself.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// How far the attempts to log in have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// No request waits for its answer.
    Idle,
    /// A login waits for its answer.
    Waiting,
    /// A login had no answer, and the log says so.
    Reported,
}

/// Notes whether a login got no answer and so may have created a token. This is logged once.
#[derive(Debug)]
struct Attempts(Mutex<Progress>);

impl Attempts {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the progress from `from` to `to`. False, and no change, if the progress is not `from`.
    fn moves(&self, from: Progress, to: Progress) -> bool {
        let mut progress = self.progress();
        let moves = *progress == from;
        if moves {
            *progress = to;
        }
        moves
    }

    fn begin(&self) {
        self.moves(Progress::Idle, Progress::Waiting);
    }

    fn answered(&self) {
        self.moves(Progress::Waiting, Progress::Idle);
    }

    fn unanswered(&self, why: &str) {
        if std::mem::replace(&mut *self.progress(), Progress::Reported) != Progress::Reported {
            tracing::warn!("a login had no answer ({why}): {UNANSWERED}");
        }
    }

    fn cut_off(&self) {
        if *self.progress() == Progress::Waiting {
            self.unanswered("cut off at the timeout");
        }
    }
}

/// A client for the servers at which a task logs in. It sends neither the agent's token nor a namespace, because auth methods
/// are in the default namespace of a partition.
///
/// # Errors
/// When a variable or a value of the builder cannot be used.
pub fn servers(config: Builder<'_>, partition: Option<&str>) -> Result<Client, ConfigError> {
    Client::new(config.for_login().build()?.within(None, partition))
}

impl Login {
    /// Checks everything that is given, without a request. The token goes to `file`, if there is one. Each wait takes at most `bound`.
    ///
    /// # Errors
    /// When credentials are missing or a variable cannot be used.
    pub fn new(
        settings: Settings,
        servers: Client,
        file: Option<PathBuf>,
        bound: Duration,
        env: &Env,
    ) -> Result<Self, LoginError> {
        Ok(Self { prover: Prover::new(settings, env)?, servers, file, bound })
    }

    /// The file that holds the token, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The servers at which it logs in.
    #[must_use]
    pub fn servers(&self) -> &Client {
        &self.servers
    }

    /// Returns the token in the file if the servers still know it. Otherwise this logs in and writes the new token to the file. It returns
    /// only when all servers know the token, and the agent too, if there is one.
    ///
    /// # Errors
    /// See [`LoginError`]. After a failure, a new token is logged out.
    pub async fn token(&self, task: &Task, agent: Option<&Client>) -> Result<LoginToken, LoginError> {
        let what = format!("a login at Consul's servers at {}", self.servers.config().address());
        let attempts = Attempts(Mutex::new(Progress::Idle));
        let token =
            until(&what, self.bound, Backoff::default(), async || match self.reused_or_new(task, &attempts).await {
                Ok(token) => Attempt::Done(token),
                Err(error) if error.may_pass() => Attempt::Again(error),
                Err(error) => Attempt::Final(error),
            });
        let token = token.await.map_err(|error| match error {
            WaitError::Final(error) => error,
            waited => {
                attempts.cut_off();
                LoginError::Waited(Box::new(waited))
            }
        })?;
        let known = self.known_everywhere(token.secret(), agent).await;
        if known.is_err() {
            self.log_out(&token).await;
        }
        known.map(|()| token)
    }

    /// One attempt to log in, for a caller that tries again. There is no file.
    pub(crate) async fn once(&self, task: &Task) -> Result<Secret, LoginError> {
        let token = self.reused_or_new(task, &Attempts(Mutex::new(Progress::Idle))).await?;
        Ok(token.secret)
    }

    async fn reused_or_new(&self, task: &Task, attempts: &Attempts) -> Result<LoginToken, LoginError> {
        let file = self.file.as_ref();
        if let Some(file) = file
            && let Ok(secret) = SecretSource::File(file.clone()).read()
        {
            match self.servers.knows_token(&secret).await {
                Ok(()) => {
                    tracing::info!("the token in {} still works: not logging in again", file.display());
                    return Ok(LoginToken { secret, is_new: false });
                }
                Err(error) if error.is_unknown_token() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let bearer_token = self.prover.bearer_token(task).await?;
        let meta = self.prover.meta(task);
        let method = self.prover.method();
        let login = consul_api::Login { method, bearer_token: &bearer_token, meta: &meta };
        attempts.begin();
        let answer = self.servers.login(login).await;
        match &answer {
            Err(error) if error.may_have_arrived() => attempts.unanswered(&one_line(error)),
            _ => attempts.answered(),
        }
        let answer = answer.map_err(|source| self.judge(source))?;
        let token = LoginToken { secret: answer.secret_id, is_new: true };
        let accessor = &answer.entry.accessor_id;
        if let Some(file) = file {
            if let Err(error) = write_atomically(file, token.secret.expose().as_bytes(), MODE) {
                self.log_out(&token).await;
                return Err(error.into());
            }
            tracing::info!("logged in with {method}: token with accessor ID {accessor}, in {}", file.display());
        } else {
            tracing::info!("logged in with {method}: token with accessor ID {accessor}");
        }
        Ok(token)
    }

    fn judge(&self, source: consul_api::Error) -> LoginError {
        let method = self.prover.method().to_owned();
        match &source {
            error if error.is_unknown_token() => {
                let address = self.servers.config().address().to_owned();
                let needs = if self.prover.is_aws() { "; one of type aws-iam needs Consul 1.12 or later" } else { "" };
                LoginError::NoMethod { method, address, needs, source: source.into() }
            }
            consul_api::Error::PermissionDenied { .. } => LoginError::Denied { method, source: source.into() },
            consul_api::Error::Refused { body, .. } if let Some(cure) = cure(body) => {
                LoginError::Refused { method, cure, source: source.into() }
            }
            _ => LoginError::Consul(source),
        }
    }

    /// Waits until each server knows the token, then the agent's server. If the agent gets the token before its server knows it, the agent
    /// refuses the token for half a minute.
    async fn known_everywhere(&self, token: &Secret, agent: Option<&Client>) -> Result<(), LoginError> {
        for server in self.servers.each().await? {
            until("the token at the servers", self.bound, Backoff::default(), async || {
                match server.knows_token(token).await {
                    Ok(()) => Attempt::Done(()),
                    Err(error) if error.is_unknown_token() => Attempt::Again(error),
                    // A server that fails now took no part in the login, and the agent will choose another.
                    Err(error) => {
                        tracing::debug!("a server does not say whether it knows the token: {}", one_line(&error));
                        Attempt::Done(())
                    }
                }
            })
            .await
            .map_err(|error| LoginError::Unknown(Box::new(error)))?;
        }
        let Some(agent) = agent else { return Ok(()) };
        let what = format!("the token at Consul's agent at {}", agent.config().address());
        consul_api::at_start(&what, self.bound, async || agent.knows_token(token).await)
            .await
            .map_err(|error| LoginError::Unknown(Box::new(error)))
    }

    /// Logs out and removes the file, for a task that cannot start or no longer needs the token. It leaves a token of an earlier run alone, because the task
    /// may still run with that token.
    pub async fn log_out(&self, token: &LoginToken) {
        if !token.is_new {
            return;
        }
        match self.servers.logout(&token.secret, LOGOUT_BOUND).await {
            Ok(()) => {
                // The file may not exist: writing it may be what failed.
                let _ = self.file.as_ref().map(fs::remove_file);
            }
            Err(error) => tracing::warn!("a token of this login stays until it expires: {}", one_line(&error)),
        }
    }
}
