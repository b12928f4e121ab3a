//! The calls to ECS and Secrets Manager. Each call is counted. The error of a refused call names the missing IAM statement.

mod http;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_ecs::config::Region;
use aws_sdk_ecs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecs::types::{DesiredStatus, TaskField};
use aws_sdk_secretsmanager::operation::list_secrets::ListSecretsOutput;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType};
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use ecs_meta::ClusterArn;
use futures_util::stream::{self, Stream, TryStreamExt};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::tasks::{Mesh, Task};
use crate::term::{NotLeader, Term};

/// The largest page of ListTasks and ListSecrets, and the most tasks for one DescribeTasks.
const PAGE: i32 = 100;

/// A task needs at least this long to start, run and stop. So no task is missed between two listings that are closer together.
pub(crate) const FRESH: Duration = Duration::from_secs(60);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// IAM forbids the call.
    #[error("{call}: {said}; the task role's policy must have {policy}")]
    Denied {
        /// The action, as IAM names it.
        call: &'static str,
        /// What AWS said.
        said: String,
        /// The statement that would allow it.
        policy: String,
    },
    /// There is no such task or secret.
    #[error("{call}: {said}")]
    NotFound {
        /// The action.
        call: &'static str,
        /// What AWS said.
        said: String,
    },
    /// The secret has no value yet.
    #[error("{call}: {said}")]
    NoValue {
        /// The action.
        call: &'static str,
        /// What AWS said.
        said: String,
    },
    /// Any other refusal.
    #[error("{call}: {code}: {said}")]
    Refused {
        /// The action.
        call: &'static str,
        /// AWS's error code.
        code: String,
        /// What AWS said.
        said: String,
        /// Whether the same call may succeed later: AWS limited the rate, or had an error of its own.
        may_pass: bool,
    },
    /// AWS did not answer in time, or the call could not be sent, for example without credentials or a connection.
    #[error("{call}: no answer: {reason}")]
    NoAnswer {
        /// The action.
        call: &'static str,
        /// Why, on one line.
        reason: String,
    },
    /// The answer lacks a documented field.
    #[error("{call}: the answer has no {field}")]
    Incomplete {
        /// The action.
        call: &'static str,
        /// The missing field.
        field: &'static str,
    },
    /// This controller does not hold the lock.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

impl Error {
    /// Whether the same call will be refused again until somebody has changed something.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::NotFound { .. } | Self::NoValue { .. } => true,
            Self::Refused { may_pass, .. } => !may_pass,
            Self::NoAnswer { .. } | Self::Incomplete { .. } | Self::NotLeader(_) => false,
        }
    }
}

/// The parts of the ARNs that a message shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The partition, `aws` if unknown.
    pub partition: String,
    /// The region.
    pub region: String,
    /// The account, `*` if unknown.
    pub account: String,
}

impl Place {
    /// The parts of a cluster's ARN.
    #[must_use]
    pub fn of(cluster: &ClusterArn) -> Self {
        let [partition, region, account] =
            [cluster.partition(), cluster.region(), cluster.account()].map(str::to_owned);
        Self { partition, region, account }
    }

    /// The parts in this region, without an account.
    #[must_use]
    pub fn in_region(region: &str) -> Self {
        let partition = match region.split('-').next() {
            Some("cn") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        };
        Self { partition: partition.to_owned(), region: region.to_owned(), account: "*".to_owned() }
    }
}

/// The tasks of the last listing.
#[derive(Debug, Default)]
pub struct Followed {
    listed: Option<Instant>,
    /// The ARNs of the tasks that had not stopped at that time.
    tasks: HashSet<Arc<str>>,
}

/// Listed tasks with their descriptions.
#[derive(Debug, Default)]
struct Described {
    arns: HashSet<Arc<str>>,
    /// The tags of all tasks. The tasks of a service have the same.
    meshes: HashSet<Arc<Mesh>>,
    found: Tasks,
    ended: Ended,
}

impl Described {
    /// Room for this many tasks. A list that grows step by step leaves gaps in memory that stay resident.
    fn with_room_for(tasks: usize) -> Self {
        let found = Tasks { tasks: Vec::with_capacity(tasks), ..Tasks::default() };
        Self { arns: HashSet::with_capacity(tasks), found, ..Self::default() }
    }

    /// Adds a page. Keeps each ARN once, and takes it from `known` if it is there. Keeps the same tags once.
    fn add(&mut self, known: &HashSet<Arc<str>>, arns: Vec<String>, mut found: Tasks, ended: Ended) {
        let arns = arns.into_iter().map(|arn| known.get(&*arn).cloned().unwrap_or_else(|| arn.into()));
        self.arns.extend(arns);
        for Task { arn, mesh, .. } in &mut found.tasks {
            if let Some(same) = self.arns.get(arn) {
                *arn = same.clone();
            }
            if let Some(mesh) = mesh {
                match self.meshes.get(mesh) {
                    Some(same) => *mesh = same.clone(),
                    None => drop(self.meshes.insert(mesh.clone())),
                }
            }
        }
        self.ended.extend(ended);
        self.found.add(found);
    }
}

/// How ECS says that a task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The task has stopped. ECS says this for about an hour.
    Stopped,
    /// ECS does not know the task. It stopped long ago, or it has just been created and ECS does not show it yet.
    Missing,
}

/// The tasks that have ended, by their ARN.
pub type Ended = HashMap<String, End>;

/// The running tasks of the cluster.
#[derive(Debug)]
pub struct Tasks {
    /// All tasks that have not stopped, including those that ECS is stopping.
    pub tasks: Vec<Task>,
    /// Whether the list is complete. If not, a task that is not in it may still run.
    pub complete: bool,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { tasks: Vec::new(), complete: true }
    }
}

impl Tasks {
    fn add(&mut self, page: Self) {
        self.tasks.extend(page.tasks);
        self.complete &= page.complete;
    }
}

/// A secret's current value.
pub struct SecretValue {
    /// The version's ID.
    pub version: String,
    /// When this version was stored.
    pub created: SystemTime,
    /// The text; none if it is binary.
    pub text: Option<Secret>,
}

/// ECS and Secrets Manager.
#[derive(Debug)]
pub struct Aws {
    ecs: aws_sdk_ecs::Client,
    secrets: aws_sdk_secretsmanager::Client,
    place: Place,
    cluster: String,
    /// The start of the secrets' names; empty if the controller uses no secrets.
    prefix: String,
    concurrency: usize,
    metrics: Arc<Metrics>,
}

impl Aws {
    /// Creates the clients. The credentials come from the environment, otherwise from ECS. The endpoints come from the AWS SDK's
    /// variables.
    ///
    /// # Errors
    /// When the public CA certificates cannot be read.
    pub async fn new(
        place: Place,
        cluster: String,
        prefix: String,
        concurrency: usize,
        metrics: Arc<Metrics>,
        env: &Env,
    ) -> Result<Self, sidecar_kit::tls::TlsOptionsError> {
        let client = http::client(env)?;
        let sleep = SharedAsyncSleep::new(TokioSleep::new());
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(client.clone())
            .sleep_impl(sleep.clone())
            .region(Region::new(place.region.clone()))
            .credentials_provider(credentials(client, sleep))
            .load()
            .await;
        Ok(Self {
            ecs: aws_sdk_ecs::Client::new(&config),
            secrets: aws_sdk_secretsmanager::Client::new(&config),
            place,
            cluster,
            prefix,
            concurrency,
            metrics,
        })
    }

    /// Sets the cluster of all further calls, once its ARN is known.
    pub fn set_cluster(&mut self, cluster: &ClusterArn) {
        self.place = Place::of(cluster);
        self.cluster = cluster.to_string();
    }

    /// The ARN of any task or secret, because it has the cluster's account and partition. None if there are no tasks and secrets.
    pub async fn any_arn(&self) -> Result<Option<String>, Error> {
        let list = self.ecs.list_tasks().cluster(&self.cluster).max_results(1);
        let tasks = self.judge("ecs:ListTasks", list.send().await)?;
        if let Some(arn) = tasks.task_arns.unwrap_or_default().pop() {
            return Ok(Some(arn));
        }
        if self.prefix.is_empty() {
            return Ok(None);
        }
        let page = self.list_secrets(None).await?;
        Ok(page.secret_list.unwrap_or_default().into_iter().find_map(|secret| secret.arn))
    }

    /// Counts a call, and converts its failure into [`Error`].
    fn judge<T, E>(&self, call: &'static str, answer: Result<T, SdkError<E, HttpResponse>>) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (service, name) = call.split_once(':').unwrap_or(("aws", call));
        let error = match answer {
            Ok(value) => {
                self.metrics.called(service, name, "ok");
                return Ok(value);
            }
            Err(error) => error,
        };
        let error = match error.as_service_error() {
            Some(refused) => {
                let status = error.raw_response().map_or(0, |response| response.status().as_u16());
                let code = refused.code().map_or_else(|| format!("status {status}"), str::to_owned);
                let said = refused.message().unwrap_or("no reason given").to_owned();
                match code.as_str() {
                    "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
                        let policy = if said.contains("KMS") { self.key_statement(call) } else { self.statement(call) };
                        Error::Denied { call, said, policy }
                    }
                    // "…can't find the specified secret value for staging label: AWSCURRENT"
                    "ResourceNotFoundException" if said.contains("staging label") => Error::NoValue { call, said },
                    "ResourceNotFoundException" => Error::NotFound { call, said },
                    _ => {
                        let passing = ["Throttl", "TooManyRequests", "Internal", "Unavailable", "Timeout"];
                        let may_pass = status >= 500 || passing.iter().any(|passing| code.contains(passing));
                        Error::Refused { call, code, said, may_pass }
                    }
                }
            }
            None => {
                let shown = error.to_string();
                let reason = error.into_source().map_or(shown, |source| one_line(&*source));
                Error::NoAnswer { call, reason }
            }
        };
        let result = match &error {
            Error::Denied { .. } => "denied",
            Error::NoAnswer { .. } => "unreachable",
            Error::Refused { code, .. } if code.contains("Throttl") || code.contains("TooManyRequests") => "throttled",
            _ => "error",
        };
        self.metrics.called(service, name, result);
        Err(error)
    }

    /// The statement of an IAM policy that allows a call.
    fn statement(&self, call: &str) -> String {
        let Place { partition, region, account, .. } = &self.place;
        let cluster = self.cluster.rsplit('/').next().unwrap_or_default();
        let resource = match call {
            "ecs:DescribeTasks" => format!("arn:{partition}:ecs:{region}:{account}:task/{cluster}/*"),
            "secretsmanager:GetSecretValue" | "secretsmanager:PutSecretValue" => {
                format!("arn:{partition}:secretsmanager:{region}:{account}:secret:{}-*", self.prefix)
            }
            _ => "*".to_owned(),
        };
        format!(r#"{{"Effect":"Allow","Action":"{call}","Resource":"{resource}"}}"#)
    }

    /// The statement that allows a call to use the KMS key of the secret, if this is not AWS's default key.
    fn key_statement(&self, call: &str) -> String {
        let Place { partition, region, account, .. } = &self.place;
        let action = match call {
            "secretsmanager:PutSecretValue" => r#"["kms:Decrypt","kms:GenerateDataKey"]"#,
            _ => r#""kms:Decrypt""#,
        };
        format!(r#"{{"Effect":"Allow","Action":{action},"Resource":"arn:{partition}:kms:{region}:{account}:key/KEY"}}"#)
    }

    /// All tasks that have not stopped, including those that ECS is stopping. Lists page by page, and describes each page while it lists
    /// the next one.
    ///
    /// ECS keeps a task in the list with desired status STOPPED for an hour after the task has stopped. So this list is read only
    /// if the last listing is older than `FRESH`. Otherwise only the tasks that have left the RUNNING list are described.
    pub async fn tasks(&self, followed: &mut Followed) -> Result<Tasks, Error> {
        let began = Instant::now();
        // There are about as many tasks as in the last listing.
        let room = Described::with_room_for(followed.tasks.len());
        let mut running = self.described(room, &followed.tasks, self.pages(DesiredStatus::Running)).await?;
        // The RUNNING list is read completely first: a task moves only from RUNNING to STOPPED, so none is missed.
        let to_stop = if followed.listed.is_some_and(|listed| listed.elapsed() < FRESH) {
            let left = followed.tasks.difference(&running.arns).map(ToString::to_string).collect::<Vec<_>>();
            let pages = left.chunks(PAGE as usize).map(|batch| Ok(batch.to_vec()));
            self.described(Described::default(), &followed.tasks, stream::iter(pages)).await?
        } else {
            self.described(Described::default(), &followed.tasks, self.pages(DesiredStatus::Stopped)).await?
        };
        followed.listed = Some(began);
        running.arns.extend(to_stop.arns);
        running.arns.retain(|arn| !to_stop.ended.contains_key(&**arn));
        followed.tasks = running.arns;
        running.found.add(to_stop.found);
        Ok(running.found)
    }

    /// The pages of one list of tasks.
    fn pages(&self, desired: DesiredStatus) -> impl Stream<Item = Result<Vec<String>, Error>> {
        stream::try_unfold(Some(None), move |at: Option<Option<String>>| {
            let desired = desired.clone();
            async move {
                let Some(token) = at else { return Ok(None) };
                let list = self.ecs.list_tasks().cluster(&self.cluster).desired_status(desired).max_results(PAGE);
                let page = self.judge("ecs:ListTasks", list.set_next_token(token).send().await)?;
                Ok(Some((page.task_arns.unwrap_or_default(), page.next_token.map(Some))))
            }
        })
    }

    /// Adds the tasks of these pages to `all`. `known`: the ARNs that are already in memory.
    async fn described(
        &self,
        all: Described,
        known: &HashSet<Arc<str>>,
        pages: impl Stream<Item = Result<Vec<String>, Error>>,
    ) -> Result<Described, Error> {
        let described = pages.map_ok(async |arns: Vec<String>| {
            let (found, ended) = self.describe(arns.clone()).await?;
            Ok((arns, found, ended))
        });
        described
            .try_buffer_unordered(self.concurrency)
            .try_fold(all, async |mut all, (arns, found, ended)| {
                all.add(known, arns, found, ended);
                Ok(all)
            })
            .await
    }

    /// Describes tasks. Returns those that have not stopped, and those that have stopped or that ECS does not know.
    pub async fn describe(&self, arns: Vec<String>) -> Result<(Tasks, Ended), Error> {
        let mut found = Tasks::default();
        let mut ended = Ended::new();
        for batch in arns.chunks(PAGE as usize) {
            let describe = self.ecs.describe_tasks().cluster(&self.cluster).set_tasks(Some(batch.to_vec()));
            let answer = self.judge("ecs:DescribeTasks", describe.include(TaskField::Tags).send().await)?;
            for failure in answer.failures() {
                // MISSING: the task has vanished since the listing.
                if failure.reason() == Some("MISSING") {
                    ended.extend(failure.arn().map(|arn| (arn.to_owned(), End::Missing)));
                } else {
                    let (arn, reason) = (failure.arn().unwrap_or_default(), failure.reason().unwrap_or_default());
                    tracing::warn!(
                        "ecs:DescribeTasks: {arn}: {reason}; this cycle removes nothing that the task may use"
                    );
                    found.complete = false;
                }
            }
            for task in answer.tasks() {
                match Task::new(task) {
                    Some(task) => found.tasks.push(task),
                    None => ended.extend(task.task_arn().map(|arn| (arn.to_owned(), End::Stopped))),
                }
            }
        }
        Ok((found, ended))
    }

    /// The names of all secrets that begin with the prefix, with the ID of each one's current version. This list may be
    /// up to five minutes late. Without a prefix there are none.
    pub async fn secrets(&self) -> Result<BTreeMap<String, Option<String>>, Error> {
        let mut secrets = BTreeMap::new();
        if self.prefix.is_empty() {
            return Ok(secrets);
        }
        let mut token = None;
        loop {
            let page = self.list_secrets(token).await?;
            for secret in page.secret_list.unwrap_or_default() {
                let stages = secret.secret_versions_to_stages.unwrap_or_default();
                let current = |stages: &Vec<String>| stages.iter().any(|stage| stage == "AWSCURRENT");
                let version = stages.into_iter().find(|(_, stages)| current(stages)).map(|(version, _)| version);
                secrets.extend(secret.name.map(|name| (name, version)));
            }
            token = page.next_token;
            if token.is_none() {
                return Ok(secrets);
            }
        }
    }

    async fn list_secrets(&self, token: Option<String>) -> Result<ListSecretsOutput, Error> {
        let begins = Filter::builder().key(FilterNameStringType::Name).values(format!("{}-", self.prefix)).build();
        let list = self.secrets.list_secrets().filters(begins).max_results(PAGE).set_next_token(token);
        self.judge("secretsmanager:ListSecrets", list.send().await)
    }

    /// A secret's current value.
    pub async fn secret_value(&self, name: &str) -> Result<SecretValue, Error> {
        let call = "secretsmanager:GetSecretValue";
        let value = self.judge(call, self.secrets.get_secret_value().secret_id(name).send().await)?;
        Ok(SecretValue {
            version: value.version_id.ok_or(Error::Incomplete { call, field: "VersionId" })?,
            // If there is no date, assume now: this keeps a rotated token longest.
            created: value.created_date.and_then(|date| date.try_into().ok()).unwrap_or_else(SystemTime::now),
            text: value.secret_string.map(Secret::new),
        })
    }

    /// Stores a new current version of a secret, and returns the version's ID.
    pub async fn put_secret_value(&self, term: &Term, name: &str, text: &Secret) -> Result<String, Error> {
        let call = "secretsmanager:PutSecretValue";
        let put = self.secrets.put_secret_value().secret_id(name).secret_string(text.expose());
        let put = self.judge(call, term.hold(put.send()).await?)?;
        put.version_id.ok_or(Error::Incomplete { call, field: "VersionId" })
    }
}

/// The AWS credentials: from the environment, otherwise from the task role.
fn credentials(client: SharedHttpClient, sleep: SharedAsyncSleep) -> CredentialsProviderChain {
    let provider = ProviderConfig::without_region().with_http_client(client).with_sleep_impl(sleep);
    CredentialsProviderChain::first_try("environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("ECS", EcsCredentialsProvider::builder().configure(&provider).build())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use aws_sdk_ecs::config::ProvideCredentials;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use aws_smithy_types::body::SdkBody;
    use serde_json::json;

    use super::*;

    /// Answers each request with credentials whose key ID is the request's URI.
    #[derive(Debug)]
    struct Echo;

    impl HttpConnector for Echo {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let body = json!({
                "AccessKeyId": request.uri(), "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"
            });
            let answer = hyper::Response::new(SdkBody::from(body.to_string()));
            HttpConnectorFuture::ready(Ok(answer.try_into().expect("an answer without headers")))
        }
    }

    #[tokio::test]
    async fn task_role_credentials_come_from_ecs() {
        const VARIABLE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        const OF_THIS_TEST: &str = "/of-this-test";
        if std::env::var(VARIABLE).as_deref() != Ok(OF_THIS_TEST) {
            // The SDK reads the variables of its process. So this test runs itself in a second process with only this variable.
            let name = format!("{}::task_role_credentials_come_from_ecs", module_path!());
            let name = name.split_once("::").expect("a path in this crate").1;
            let mut again = Command::new(std::env::current_exe().unwrap());
            let ended = again.env_clear().env(VARIABLE, OF_THIS_TEST).args(["--exact", name]).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let connector = SharedHttpConnector::new(Echo);
        let client = http_client_fn(move |_, _| connector.clone());
        let credentials = credentials(client, SharedAsyncSleep::new(TokioSleep::new()));
        let credentials = credentials.provide_credentials().await.unwrap();
        assert_eq!(credentials.access_key_id(), "http://169.254.170.2/of-this-test");
    }
}
