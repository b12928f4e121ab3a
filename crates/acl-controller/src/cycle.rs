//! One cycle: list what is, and for each service do what is to be done, some at a time, each failing alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consul_api::{NewPolicy, Policy, TokenEntry, TokenGrants};
use futures_util::StreamExt;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;
use tokio::time::Instant;

use crate::aws::{self, Aws, Tasks};
use crate::consul::{self, Consul};
use crate::desired::Desired;
use crate::gateways::{self, Links};
use crate::leader::{NotLeader, Term};
use crate::metrics::{Change, Metrics};
use crate::reconcile::{Action, Names, Stored, Subject, Wanted, corrected, plan, superseded};

/// What a consul-client may do: join, register its node, read services.
pub const CLIENT_RULES: &str = r#"node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }"#;

const POLICY_DESCRIPTION: &str = "What every consul-client may do, kept by acl-controller";

/// After a failure a service is tried again after this long at first, and at least this often.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How many failures one cycle tells in full: a cause that all have would else be told a thousand times.
const TOLD: usize = 20;

/// Why a cycle, or one service in it, did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to AWS failed.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// A call to Consul failed.
    #[error(transparent)]
    Consul(#[from] consul::Error),
    /// There is no secret to store the token in.
    #[error("the secret {name} does not exist: create it, with the value {{}}, together with the service")]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// The secret holds what is not ours to overwrite.
    #[error(
        "the secret {name} does not hold a token: expected {{\"accessor_id\":\"…\",\"token\":\"…\"}} or {{}}; it is left as it is, \
         set it to {{}} to have it filled"
    )]
    NotOurs {
        /// Its name.
        name: String,
    },
    /// A token vanished between two calls.
    #[error("the token {accessor} has vanished meanwhile")]
    Vanished {
        /// Its accessor ID.
        accessor: String,
    },
    /// A task's service can't have a token.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn is_not_leader(&self) -> bool {
        matches!(self, Self::Aws(aws::Error::NotLeader(_)) | Self::Consul(consul::Error::NotLeader(_)))
    }
}

impl From<NotLeader> for Error {
    fn from(error: NotLeader) -> Self {
        Self::Consul(error.into())
    }
}

/// A secret's value. Both fields are empty before first use, where the value is `{}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    #[serde(default)]
    accessor_id: String,
    #[serde(default)]
    token: String,
}

/// What the flags say of the work.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a service without tasks keeps its token.
    pub grace: Duration,
    /// At what age a service's token is replaced.
    pub rotate_after: Option<Duration>,
    /// How many services are worked on at a time.
    pub concurrency: usize,
    /// Whether nodes of gone tasks are removed.
    pub deregister_nodes: bool,
}

/// What every cycle needs.
#[derive(Debug)]
pub struct Controller {
    /// ECS and Secrets Manager.
    pub aws: Aws,
    /// Consul.
    pub consul: Arc<Consul>,
    /// What things are called.
    pub names: Names,
    /// The flags.
    pub rules: Rules,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

/// What a controller remembers between the cycles of one term. A new leader begins with nothing: it reads every secret once, and
/// every grace begins anew.
#[derive(Debug, Default)]
pub struct Memory {
    known: HashMap<Subject, Known>,
    without_tasks: HashMap<Subject, Instant>,
    failures: HashMap<Subject, Failure>,
    /// What terminating gateways link and no token can be given, told already.
    unlinked: gateways::Unlinked,
    /// The client policy's modify index when its rules were right.
    policy: Option<u64>,
}

/// What was found when a secret and its token were last read.
#[derive(Debug, Clone)]
struct Known {
    /// The current version as the list had it then, which may be behind.
    listed: Option<String>,
    /// The version that was read or written; none where there is no secret.
    version: Option<String>,
    stored: Stored,
    /// The token's modify index; none where the secret's token isn't the subject's.
    index: Option<u64>,
}

impl Known {
    fn new(listed: Option<&String>, stored: Stored) -> Self {
        Self { listed: listed.cloned(), version: None, stored, index: None }
    }

    /// Whether the lists say nothing that isn't known.
    fn covers(&self, listed: Option<&String>, tokens: &[&TokenEntry]) -> bool {
        let Stored::Token { accessor, .. } = &self.stored else { return self.is_version(listed) };
        let index = tokens.iter().find(|token| token.accessor_id == *accessor).map(|token| token.modify_index);
        // A token that is gone needs no look.
        self.is_version(listed) && (index.is_none() || index == self.index)
    }

    fn is_version(&self, listed: Option<&String>) -> bool {
        listed == self.listed.as_ref() || listed == self.version.as_ref()
    }
}

/// A subject that failed.
#[derive(Debug)]
struct Failure {
    backoff: Backoff,
    again: Instant,
    /// What the list said of the secret then: what somebody has changed since is tried at once.
    listed: Option<String>,
}

impl Failure {
    fn new() -> Self {
        Self { backoff: Backoff::new(RETRY.0, RETRY.1), again: Instant::now(), listed: None }
    }
}

/// What the lists say.
struct Lists {
    tasks: Tasks,
    secrets: BTreeMap<String, Option<String>>,
    tokens: Vec<TokenEntry>,
    policies: Vec<Policy>,
    links: Links,
}

/// What is to be looked at in this cycle.
struct Work<'a> {
    subject: Subject,
    /// What its token is to have.
    grants: TokenGrants,
    wanted: Wanted,
    /// Why its name can't be a service's.
    refused: Option<String>,
    listed: Option<&'a String>,
    tokens: Vec<&'a TokenEntry>,
    known: Option<Known>,
    foreign: &'a HashSet<&'a str>,
}

impl Controller {
    /// Runs one cycle. Failures of single services are logged and counted.
    ///
    /// # Errors
    /// When the lists can't be had, or the lock is lost meanwhile: nothing is known then of any service.
    pub async fn cycle(&self, term: &Term, memory: &mut Memory) -> Result<bool, Error> {
        let (tasks, secrets, tokens, policies, gateways) = tokio::try_join!(
            async { self.aws.tasks().await.map_err(Error::from) },
            async { self.aws.secrets().await.map_err(Error::from) },
            async { self.consul.tokens().await.map_err(Error::from) },
            async { self.consul.policies().await.map_err(Error::from) },
            async { self.consul.terminating_gateways().await.map_err(Error::from) },
        )?;
        let links = gateways::links(&gateways, &mut memory.unlinked);
        let lists = Lists { tasks, secrets, tokens, policies, links };
        let desired = Desired::new(&lists.tasks.tasks);
        let wanted = self.wanted(memory, &lists, &desired);
        // A subject that is not wanted any more can't fail any more.
        memory.failures.retain(|subject, _| wanted.contains_key(subject));
        let foreign = lists.tokens.iter().filter(|token| !self.names.is_ours(&token.grants));
        let foreign = foreign.map(|token| token.accessor_id.as_str()).collect();
        let (work, waiting) = self.work(memory, &lists, &desired, wanted, &foreign);
        let policies = &lists.policies;
        let policy = &mut memory.policy;
        let mut failures = Vec::new();
        // The client token links the policy, which so comes first.
        let clients = work.iter().any(|work| work.subject == Subject::Clients);
        let policy = if clients { self.ensure_policy(term, policy, policies).await } else { Ok(()) };
        let clients = policy.is_ok();
        if let Err(error) = policy {
            let secret = self.names.secret(&Subject::Clients);
            failures.push((Subject::Clients, lists.secrets.get(&secret).cloned().flatten(), error));
        }
        let work = work.into_iter().filter(|work| clients || work.subject != Subject::Clients);
        let outcomes: Vec<_> = stream::iter(work)
            .map(|work| async {
                let (subject, listed) = (work.subject.clone(), work.listed.cloned());
                (subject, listed, self.settle(term, work).await)
            })
            .buffer_unordered(self.rules.concurrency)
            .collect()
            .await;
        for (subject, listed, outcome) in outcomes {
            match outcome {
                Ok(known) => {
                    if memory.failures.remove(&subject).is_some() {
                        tracing::info!("{subject}: all is well again");
                    }
                    match known {
                        Some(known) => memory.known.insert(subject, known),
                        None => {
                            memory.without_tasks.remove(&subject);
                            memory.known.remove(&subject)
                        }
                    };
                }
                Err(error) => failures.push((subject, listed, error)),
            }
        }
        if let Some(at) = failures.iter().position(|(.., error)| error.is_not_leader()) {
            return Err(failures.swap_remove(at).2);
        }
        for (subject, listed, _) in &failures {
            // Whatever was done in part is looked at anew.
            memory.known.remove(subject);
            let failure = memory.failures.entry(subject.clone()).or_insert_with(Failure::new);
            failure.again = Instant::now() + failure.backoff.delay();
            failure.listed.clone_from(listed);
        }
        for (subject, _, error) in failures.iter().take(TOLD) {
            tracing::error!("{subject}: {}; trying again", one_line(error));
        }
        if failures.len() > TOLD {
            tracing::error!("{} more services failed", failures.len() - TOLD);
        }
        let mut whole = failures.is_empty() && waiting == 0;
        if self.rules.deregister_nodes && lists.tasks.complete {
            match self.deregister_nodes(term, &lists.tasks.tasks).await {
                Ok(removed) => whole &= removed,
                Err(error) if error.is_not_leader() => return Err(error),
                Err(error) => {
                    tracing::error!("cannot remove the nodes of gone tasks: {}; trying again", one_line(&error));
                    whole = false;
                }
            }
        }
        self.metrics.services(desired.services.len(), failures.len() + waiting);
        Ok(whole)
    }

    /// Makes sure of the consul-clients' policy.
    async fn ensure_policy(&self, term: &Term, right: &mut Option<u64>, policies: &[Policy]) -> Result<(), Error> {
        let name = self.names.policy();
        let new = NewPolicy { name: &name, description: POLICY_DESCRIPTION, rules: CLIENT_RULES };
        let Some(found) = policies.iter().find(|policy| policy.name == name) else {
            let created = self.consul.create_policy(term, &new).await?;
            tracing::info!("policy {name}: created");
            *right = Some(created.modify_index);
            return Ok(());
        };
        if *right == Some(found.modify_index) {
            return Ok(());
        }
        let words = |rules: &str| rules.split_whitespace().collect::<Vec<_>>().join(" ");
        let policy = self.consul.policy(&found.id).await?;
        if words(&policy.rules) == words(CLIENT_RULES) && policy.datacenters.is_empty() {
            *right = Some(found.modify_index);
        } else {
            // The next cycle looks whether it is right now.
            self.consul.update_policy(term, &found.id, &new).await?;
            tracing::warn!("policy {name}: it was changed; repaired");
        }
        Ok(())
    }

    /// Whom to look at: all with tasks, those that had some or have a token, and the clients. Minds who has no tasks since when.
    fn wanted(&self, memory: &mut Memory, lists: &Lists, desired: &Desired) -> BTreeMap<Subject, Wanted> {
        let mut wanted = BTreeMap::from([(Subject::Clients, Wanted::Since(SystemTime::UNIX_EPOCH))]);
        wanted.extend(
            desired.services.iter().map(|(name, since)| (Subject::Service(name.clone()), Wanted::Since(*since))),
        );
        let refused =
            desired.refused.keys().map(|name| (Subject::Service(name.clone()), Wanted::Since(SystemTime::now())));
        wanted.extend(refused);
        // Also those whose token somebody has deleted: their secrets hold it still.
        let mut without = memory.known.keys().chain(memory.without_tasks.keys()).cloned().collect::<BTreeSet<_>>();
        without.extend(lists.tokens.iter().filter_map(|token| self.names.subject(&token.grants)));
        without.retain(|subject| !wanted.contains_key(subject));
        memory.without_tasks.retain(|subject, _| without.contains(subject));
        if !lists.tasks.complete {
            // What was not told may be a task, and an old one.
            memory.without_tasks.values_mut().for_each(|since| *since = Instant::now());
            for wanted in wanted.values_mut() {
                *wanted = Wanted::Since(SystemTime::UNIX_EPOCH);
            }
            wanted.extend(without.into_iter().map(|subject| (subject, Wanted::Idle)));
            return wanted;
        }
        for subject in without {
            let since = memory.without_tasks.entry(subject.clone()).or_insert_with(|| {
                let grace = humantime::format_duration(self.rules.grace);
                tracing::info!("{subject}: has no tasks; its token goes in {grace}");
                Instant::now()
            });
            let over = since.elapsed() >= self.rules.grace;
            wanted.insert(subject, if over { Wanted::Gone } else { Wanted::Idle });
        }
        wanted
    }

    /// What there is to look at now, and how many wait for their next try.
    fn work<'a>(
        &self,
        memory: &mut Memory,
        lists: &'a Lists,
        desired: &Desired,
        wanted: BTreeMap<Subject, Wanted>,
        foreign: &'a HashSet<&'a str>,
    ) -> (Vec<Work<'a>>, usize) {
        let mut tokens = BTreeMap::<Subject, Vec<&TokenEntry>>::new();
        for token in &lists.tokens {
            if let Some(subject) = self.names.subject(&token.grants) {
                tokens.entry(subject).or_default().push(token);
            }
        }
        let (mut work, mut waiting) = (Vec::new(), 0);
        for (subject, wanted) in wanted {
            let listed = lists.secrets.get(&self.names.secret(&subject)).and_then(Option::as_ref);
            let failure = memory.failures.get(&subject);
            if failure.is_some_and(|failure| failure.listed.as_ref() == listed && Instant::now() < failure.again) {
                waiting += 1;
                continue;
            }
            let refused = match &subject {
                Subject::Service(service) => desired.refused.get(service).cloned(),
                Subject::Clients => None,
            };
            let known = memory.known.get(&subject).cloned();
            let tokens = tokens.remove(&subject).unwrap_or_default();
            let links = match &subject {
                Subject::Service(service) => lists.links.get(service),
                Subject::Clients => None,
            };
            let grants = self.names.grants(&subject, links.unwrap_or(&BTreeSet::new()));
            work.push(Work { subject, grants, wanted, refused, listed, tokens, known, foreign });
        }
        (work, waiting)
    }

    /// Reads what isn't known, and does what is to be done. Gives what is known now; nothing of a subject that is gone.
    async fn settle(&self, term: &Term, work: Work<'_>) -> Result<Option<Known>, Error> {
        self.metrics.alive(Duration::ZERO);
        let Work { subject, grants, wanted, refused, listed, tokens, known, foreign } = work;
        if let Some(why) = refused {
            return Err(Error::Refused(why));
        }
        let name = self.names.secret(&subject);
        let mut unusable = None;
        let mut known = match known {
            Some(known) if known.covers(listed, &tokens) => known,
            _ => match self.look(&name, listed, &tokens).await {
                Ok(known) => known,
                // It won't pass by itself, and what the tokens may do is kept right all the same.
                Err(error @ (Error::NotOurs { .. } | Error::Aws(aws::Error::Denied { .. }))) => {
                    unusable = Some(error);
                    Known::new(listed, Stored::Unusable)
                }
                Err(error) => return Err(error),
            },
        };
        // The list has caught up: what it says from now on is news again.
        if listed == known.version.as_ref() {
            known.listed = listed.cloned();
        }
        if let Stored::Token { accessor, foreign: is_foreign, .. } = &mut known.stored {
            *is_foreign = foreign.contains(accessor.as_str());
        }
        if known.stored == Stored::Missing && matches!(wanted, Wanted::Since(_)) {
            known.stored = Stored::Unusable;
            unusable = Some(Error::NoSecret { name: name.clone() });
        }
        let now = SystemTime::now();
        let rotate_after = self.rules.rotate_after.filter(|_| subject != Subject::Clients);
        for action in plan(&grants, wanted, &known.stored, &tokens, rotate_after, now) {
            self.carry_out(term, (&subject, &grants), &name, action, &tokens, &mut known).await?;
        }
        match unusable {
            // Nobody needs the secret any more.
            Some(error) if wanted == Wanted::Gone => {
                tracing::warn!("{subject}: its tokens are gone; {}", one_line(&error));
                Ok(None)
            }
            Some(error) => Err(error),
            None => Ok((wanted != Wanted::Gone).then_some(known)),
        }
    }

    /// Reads a secret, and the token that it names.
    async fn look(&self, name: &str, listed: Option<&String>, tokens: &[&TokenEntry]) -> Result<Known, Error> {
        let mut known = Known::new(listed, Stored::Missing);
        let secret = match self.aws.secret_value(name).await {
            Ok(secret) => secret,
            Err(aws::Error::NotFound { .. }) => return Ok(known),
            Err(error) => return Err(error.into()),
        };
        let not_ours = || Error::NotOurs { name: name.to_owned() };
        let text = secret.text.ok_or_else(not_ours)?;
        // The parser's own message would show a part of the text.
        let value: Value = serde_json::from_str(text.expose()).map_err(|_| not_ours())?;
        known.version = Some(secret.version);
        match (value.accessor_id.is_empty(), value.token.is_empty()) {
            (true, true) => {
                known.stored = Stored::Nothing;
                return Ok(known);
            }
            (false, false) => {}
            _ => return Err(not_ours()),
        }
        let mut agrees = false;
        if let Some(entry) = tokens.iter().find(|token| token.accessor_id == value.accessor_id) {
            let token = self.consul.token(&entry.accessor_id).await?;
            agrees = token.is_some_and(|token| token.secret_id == Secret::new(&value.token));
            known.index = Some(entry.modify_index);
        }
        known.stored = Stored::Token { accessor: value.accessor_id, agrees, since: secret.created, foreign: false };
        Ok(known)
    }

    async fn carry_out(
        &self,
        term: &Term,
        (subject, grants): (&Subject, &TokenGrants),
        name: &str,
        action: Action,
        tokens: &[&TokenEntry],
        known: &mut Known,
    ) -> Result<(), Error> {
        let vanished = |accessor: &str| Error::Vanished { accessor: accessor.to_owned() };
        let entry = |accessor: &str| {
            tokens.iter().find(|token| token.accessor_id == accessor).ok_or_else(|| vanished(accessor))
        };
        match action {
            Action::Correct(accessor) => {
                let grants = corrected(grants, &entry(&accessor)?.grants);
                self.consul.update_token(term, &accessor, &grants).await?;
                tracing::warn!("{subject}: token {accessor} could do something else than it should; repaired");
                self.metrics.changed(Change::Repaired);
            }
            Action::Create => {
                let token = self.consul.create_token(term, grants).await?;
                tracing::info!("{subject}: token {} created", token.entry.accessor_id);
                self.metrics.changed(Change::Created);
                self.store(term, name, &token, known).await?;
            }
            Action::Store(accessor) => {
                let token = self.consul.token(&accessor).await?.ok_or_else(|| vanished(&accessor))?;
                self.store(term, name, &token, known).await?;
                tracing::warn!("{subject}: the secret {name} did not hold token {accessor}; repaired");
                self.metrics.changed(Change::Repaired);
            }
            Action::Rotate(accessor) => {
                let old = entry(&accessor)?;
                let token = self.consul.create_token(term, grants).await?;
                let by = &token.entry.accessor_id;
                // Said before the new one is handed out: what nothing explains would be deleted while tasks use it.
                self.consul.update_token(term, &accessor, &superseded(&old.grants, by)).await?;
                self.store(term, name, &token, known).await?;
                tracing::info!(
                    "{subject}: token {accessor} replaced by {by}; it lives while tasks from before the change do"
                );
                self.metrics.changed(Change::Rotated);
            }
            Action::Clear => {
                known.version = Some(self.aws.put_secret_value(term, name, &Secret::new("{}")).await?);
                known.stored = Stored::Nothing;
                tracing::info!("{subject}: the secret {name} set back to {{}}");
            }
            Action::Delete(accessor) => {
                self.consul.delete_token(term, &accessor).await?;
                tracing::info!("{subject}: token {accessor} deleted");
                self.metrics.changed(Change::Deleted);
            }
        }
        Ok(())
    }

    /// Puts a token that Consul has into the secret.
    async fn store(&self, term: &Term, name: &str, token: &consul_api::Token, known: &mut Known) -> Result<(), Error> {
        let accessor = token.entry.accessor_id.clone();
        let value = Value { accessor_id: accessor.clone(), token: token.secret_id.expose().to_owned() };
        let text = Secret::new(serde_json::to_string(&value).expect("two strings are JSON"));
        known.version = Some(self.aws.put_secret_value(term, name, &text).await?);
        known.stored = Stored::Token { accessor, agrees: true, since: SystemTime::now(), foreign: false };
        known.index = Some(token.entry.modify_index);
        Ok(())
    }
}
