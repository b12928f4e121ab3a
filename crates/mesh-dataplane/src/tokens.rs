//! The token for Consul's servers: a given one, or that of a login, which is replaced before it expires.

use std::future::pending;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use consul_api::ConfigError;
use consul_grpc::{Follower, Servers, State};
use consul_login::{GrpcLogin, Held, Issued, Keeper, LoginError, Prover, Source};
use ecs_meta::{MetadataClient, Task};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource};
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::time::{sleep, timeout};

use crate::settings::{self, Settings};

/// The variable with the token.
pub(crate) const TOKEN: &str = "CONSUL_HTTP_TOKEN";
/// For how long mesh-dataplane asks for the time at which a new token expires. A server may not know the token for some 80 ms, and may be
/// down.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How often the file of a refused token is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long logging out may delay the end.
const LOG_OUT_WITHIN: Duration = Duration::from_secs(3);

/// There is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{TOKEN}_FILE")]
    File(#[from] SecretFileError),
    #[error("cannot log in at Consul's servers")]
    Login(#[source] Box<LoginError>),
    #[error("cannot log in at Consul's servers")]
    Waited(#[source] Box<WaitError<LoginError>>),
    #[error("cannot log in without the task metadata")]
    Metadata(#[source] Box<ecs_meta::Error>),
    #[error("cannot log in without the task metadata")]
    MetadataWaited(#[source] Box<WaitError<ecs_meta::Error>>),
    #[error("cannot use the HTTP API of Consul's servers")]
    Http(#[source] Box<ConfigError>),
}

macro_rules! boxed {
    ($($source:ty => $variant:ident),+ $(,)?) => {
        $(impl From<$source> for TokenError {
            fn from(error: $source) -> Self {
                Self::$variant(Box::new(error))
            }
        })+
    };
}
boxed! {
    LoginError => Login,
    WaitError<LoginError> => Waited,
    ecs_meta::Error => Metadata,
    WaitError<ecs_meta::Error> => MetadataWaited,
    ConfigError => Http,
}

/// Where the token comes from.
pub(crate) enum Tokens {
    /// There are no ACLs, or the anonymous token is enough.
    None,
    /// A token that does not change, or one in a file.
    Given(SecretSource),
    /// A login that was not made yet.
    Login(Box<Login>),
    /// A login, with its first token once there is one.
    LoggedIn(Arc<LoginSource>, Option<Held>),
}

/// A login that was not made yet.
pub(crate) struct Login {
    prover: Prover,
    partition: Option<String>,
    datacenter: Option<String>,
    http: Option<consul_api::Client>,
}

impl Tokens {
    /// As in consul-ecs, a token that is given makes a login unnecessary.
    pub(crate) fn of(settings: &Settings, env: &Env) -> Result<Self, TokenError> {
        let credentials = &settings.consul.credentials;
        let given = env.secret(TOKEN).or_else(|| credentials.given.token.clone().map(SecretSource::Value));
        match (given, &credentials.login) {
            (Some(source), _) => Ok(Self::Given(source)),
            (None, Some(login)) => Ok(Self::Login(Box::new(Login::of(settings, login, env)?))),
            (None, None) => Ok(Self::None),
        }
    }

    /// The first token. Logs in, if the token comes from a login.
    pub(crate) async fn first(
        &mut self,
        servers: &Arc<Servers>,
        bound: Duration,
        env: &Env,
    ) -> Result<Option<Secret>, TokenError> {
        match std::mem::replace(self, Self::None) {
            Self::Login(login) => {
                let task = MetadataClient::from_env(env)?.task_within(bound).await?;
                let Login { prover, partition, datacenter, http } = *login;
                let login = GrpcLogin::new(prover, servers.clone(), partition, datacenter);
                // TERM may come during the login. `give_back` then finds here what to log out.
                let (login, task) = (Arc::new(login), Arc::new(task));
                *self = Self::LoggedIn(Arc::new(LoginSource { login, task, http, issued: Issued::default() }), None);
            }
            other => *self = other,
        }
        match self {
            Self::None | Self::Login(_) => Ok(None),
            Self::Given(source) => Ok(Some(source.read()?)),
            Self::LoggedIn(source, held) => {
                let first = until("a login at Consul's servers", bound, Backoff::default(), async || {
                    match source.log_in().await {
                        Ok(held) => Attempt::Done(held),
                        Err(error) if error.may_pass() => Attempt::Again(error),
                        Err(error) => Attempt::Final(error),
                    }
                });
                Ok(Some(held.insert(first.await?).secret.clone()))
            }
        }
    }

    /// Keeps the follower's token good. Never returns.
    pub(crate) async fn keep(&self, follower: &Follower) {
        match self {
            Self::None | Self::Login(_) | Self::LoggedIn(_, None) => pending().await,
            Self::Given(source) => keep_given(source, follower).await,
            Self::LoggedIn(source, Some(first)) => keep_login(source, first.clone(), follower).await,
        }
    }

    /// Logs out, for the end of the task. A failure is only logged: acl-controller with --agentless deletes the tokens of stopped
    /// tasks.
    pub(crate) async fn give_back(&self) {
        let Self::LoggedIn(source, _) = self else { return };
        let log_out = async {
            for token in source.issued.end().await {
                source.log_out(&token).await;
            }
        };
        if timeout(LOG_OUT_WITHIN, log_out).await.is_err() {
            tracing::warn!("a token of the login stays until it expires: no server of Consul answered in time");
        }
    }
}

impl Login {
    fn of(settings: &Settings, login: &settings::Login, env: &Env) -> Result<Self, TokenError> {
        let name = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let prover = Prover::new(
            consul_login::Settings {
                method: login.auth_method.clone(),
                include_entity: login.aws.include_entity,
                meta: login.meta.clone(),
                region: login.aws.region.clone(),
                sts_endpoint: login.aws.sts_endpoint.clone(),
                server_id: login.aws.server_id_header_value.clone(),
            },
            env,
        )?;
        let http = settings.consul.http.as_ref().map(|http| client(&settings.consul, http, env)).transpose()?;
        Ok(Self { prover, partition: name(&login.partition), datacenter: name(&login.datacenter), http })
    }
}

/// A client of the servers' HTTP API, which says when a token expires.
fn client(consul: &settings::Consul, http: &settings::Http, env: &Env) -> Result<consul_api::Client, ConfigError> {
    let scheme = if http.tls.disabled { "http" } else { "https" };
    let address = |host: &str| match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("{scheme}://[{ip}]:{}", http.port),
        Err(_) => format!("{scheme}://{host}:{}", http.port),
    };
    let address = consul.hosts().map(address).collect::<Vec<_>>().join(",");
    let config = consul_api::Config::builder(env)
        .address("consul.addresses", Some(&address))
        .ca_file("consul.http.tls.caCertsPath", http.tls.ca_certs_path.as_deref())
        .server_name(http.tls.server_name.as_deref());
    consul_api::Client::new(config.for_login().build()?)
}

/// Reads the file again while the servers refuse the token.
async fn keep_given(source: &SecretSource, follower: &Follower) {
    let mut state = follower.state();
    let mut last = source.read().ok();
    loop {
        // This fails only when the follower has ended.
        if state.wait_for(|state| matches!(state, State::Refused)).await.is_err() {
            return pending().await;
        }
        match source.read() {
            Ok(token) if last.as_ref() != Some(&token) => {
                tracing::info!("Consul's servers refuse the token: its file has another one, which is used now");
                last = Some(token.clone());
                follower.set_token(Some(token));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{TOKEN}_FILE: {}", one_line(&error)),
        }
        sleep(READ_AGAIN).await;
    }
}

/// Replaces the token before it expires, and when the servers refuse it.
async fn keep_login(source: &Arc<LoginSource>, first: Held, follower: &Follower) {
    let mut refused = None;
    let mut used = first.secret.clone();
    let keeper = Keeper::start(source.clone(), first);
    let (mut state, mut token) = (follower.state(), keeper.token());
    loop {
        tokio::select! {
            changed = token.changed() => if changed.is_ok() {
                used = token.borrow_and_update().clone();
                follower.set_token(Some(used.clone()));
            },
            changed = state.changed() => {
                let is_refused = changed.is_ok() && matches!(*state.borrow_and_update(), State::Refused);
                // The follower asks with the same token again, and may be refused again before the next login is done.
                if is_refused && refused.as_ref() != Some(&used) {
                    tracing::warn!("Consul's servers no longer know the token of the login: logging in again");
                    refused = Some(used.clone());
                    keeper.refused(used.clone());
                }
            }
        }
    }
}

/// Logs in and out by gRPC, and remembers the tokens that it has to give back.
pub(crate) struct LoginSource {
    login: Arc<GrpcLogin>,
    task: Arc<Task>,
    http: Option<consul_api::Client>,
    issued: Issued,
}

impl LoginSource {
    /// How long a new token is valid. None if it does not expire, or if the servers do not say: then WatchServers shows its end.
    async fn expiry(&self, token: &Secret) -> Option<Duration> {
        let http = self.http.as_ref()?;
        let mut backoff = Backoff::default();
        let asked = async {
            loop {
                match consul_login::expiry(http, token).await {
                    Ok(left) => return left,
                    Err(error) => tracing::debug!("the expiry of the token is not known yet: {}", one_line(&error)),
                }
                sleep(backoff.delay()).await;
            }
        };
        timeout(KNOWN_WITHIN, asked).await.unwrap_or_else(|_| {
            tracing::warn!(
                "no server's HTTP API says when the token expires: mesh-dataplane replaces it only after it has expired"
            );
            None
        })
    }
}

impl Source for LoginSource {
    async fn log_in(&self) -> Result<Held, LoginError> {
        let (login, task) = (self.login.clone(), self.task.clone());
        let secret = self.issued.log_in(async move { login.log_in(&task).await }).await?;
        let left = self.expiry(&secret).await;
        Ok(Held { secret, left })
    }

    async fn log_out(&self, token: &Secret) {
        match self.login.log_out(token).await {
            Ok(()) => self.issued.deleted(token),
            Err(error) => tracing::warn!("a token of the login stays until it expires: {}", one_line(&error)),
        }
    }
}
