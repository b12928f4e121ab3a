//! One cycle: list everything, then plan and apply the changes for each token owner. Several owners are processed at the same time,
//! and a failure of one does not stop the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consul_api::{NewPolicy, Policy, TokenEntry, TokenGrants};
use futures_util::StreamExt;
use futures_util::stream;
use sidecar_kit::exit::one_line;
use tokio::time::Instant;

use crate::aws::Tasks;
use crate::controller::Controller;
use crate::demand::demands;
use crate::error::Error;
use crate::memory::{Failure, Known, Memory};
use crate::observe::Lists;
use crate::owner::{Maker, TokenOwner};
use crate::plan::{Action, Demand, Stored, may_be_kept, plan};
use crate::record::{Note, Record};
use crate::tasks::Desired;
use crate::term::Term;

/// How many failures of one cycle are logged in full. One cause may make a thousand services fail.
const LOGGED: usize = 20;

/// The work on one owner in this cycle.
struct Work<'a> {
    owner: TokenOwner,
    /// The grants that its token should have.
    grants: TokenGrants,
    demand: Demand,
    /// The reason why its name cannot be a service's.
    refused: Option<String>,
    /// The namespace and admin partition of its tasks.
    scope: String,
    listed: Option<&'a String>,
    tokens: Vec<&'a TokenEntry>,
    known: Option<Known>,
    /// The record of the owner.
    note: Option<&'a Note>,
}

/// The outcome of the work on one owner.
enum Outcome {
    /// Secret and token are right.
    Known(Known),
    /// The owner is gone, and so are its tokens.
    Gone,
    /// The owner and its tokens are gone, but the secret cannot be used and may still hold a token.
    GoneButStored,
    /// The owner has no secret and needs none.
    WithoutSecret,
}

impl Controller {
    /// Runs one cycle. True if nothing in it failed. Failures of single services are logged and counted.
    ///
    /// # Errors
    /// When a list fails, or the lock is lost.
    pub async fn cycle(&self, term: &Term, memory: &mut Memory) -> Result<bool, Error> {
        let node = match &self.agentless {
            Some(agentless) => Some(self.keep_node(term, agentless).await?),
            None => None,
        };
        let (tasks, lists) = self.lists(memory).await?;
        let served = match &node {
            Some(node) => {
                let tokens = lists.as_ref().ok().map(|lists| &*lists.tokens);
                self.sweep_agentless(term, node, &mut memory.registered, &tasks, tokens).await?
            }
            None => true,
        };
        let mut lists = match lists {
            // Without ACLs, tasks without an agent still need their node.
            Err(error) if error.is_without_acls() && self.needs_no_acls() => return Ok(served),
            lists => lists?,
        };
        let mut whole = served;
        if let Some(options) = self.agentless.as_ref().and_then(|agentless| agentless.auth_method.as_ref()) {
            let kept = self.keep_auth_method(term, options, &mut memory.policies, &lists).await;
            whole &= self.went_on(&format!("set up the auth method {}", options.name), kept)?;
        }
        if self.rules.secrets {
            let mut record = match memory.record.take() {
                Some(record) => record,
                None => Record::read(&self.consul, &self.names).await?,
            };
            let kept = self.keep_tokens(term, memory, &mut record, &tasks, &mut lists).await;
            memory.record = Some(record);
            whole &= kept?;
        }
        if self.rules.deregister_nodes && tasks.complete {
            let removed = self.deregister_nodes(term, &tasks.tasks).await;
            whole &= self.went_on("remove the nodes of gone tasks", removed)?;
        }
        Ok(whole)
    }

    /// Makes sure that each owner has its token, and that the secret holds it. False if something failed.
    async fn keep_tokens(
        &self,
        term: &Term,
        memory: &mut Memory,
        record: &mut Record,
        tasks: &Tasks,
        lists: &mut Lists,
    ) -> Result<bool, Error> {
        self.report_colliding_prefixes(&mut memory.colliding, &lists.policies);
        let not_taken_over = self.take_over(term, &mut memory.former, lists).await?;
        let lists = &*lists;
        let desired = Desired::new(&tasks.tasks);
        let mut demands = demands(&self.rules, &self.names, memory, record, tasks, lists, &desired);
        memory.failures.retain(|owner, _| demands.contains_key(owner));
        memory.without_secret.retain(|owner| demands.contains_key(owner));
        // The secret may hold a token that is not taken over yet, and must not be overwritten.
        let mut failures = Vec::new();
        for (owner, error) in not_taken_over {
            demands.remove(&owner);
            let listed = lists.version(&self.names.secret(&owner)).cloned();
            failures.push((owner, listed, error));
        }
        let (mut work, waiting) = self.work(memory, record, lists, &desired, demands);
        let listed_tokens = lists.tokens.iter().map(|token| (token.accessor_id.as_str(), &token.grants)).collect();
        // A token links a policy by its name, so the policy must exist first.
        for (name, description, rules) in self.own_policies() {
            let links = |work: &Work<'_>| work.grants.policies.iter().any(|policy| policy.name == name);
            if !work.iter().any(links) {
                continue;
            }
            let new = NewPolicy { name: &name, description, rules };
            if let Err(error) = self.ensure_policy(term, &new, &mut memory.policies, &lists.policies).await {
                let error = Arc::new(error);
                let (with, without) = work.into_iter().partition::<Vec<_>, _>(links);
                let failed = |work: Work<'_>| (work.owner, work.listed.cloned(), Error::Policy(error.clone()));
                failures.extend(with.into_iter().map(failed));
                work = without;
            }
        }
        let outcomes: Vec<_> = stream::iter(work)
            .map(|work| async {
                let (owner, listed) = (work.owner.clone(), work.listed.cloned());
                let is_needed = matches!(work.demand, Demand::Needed(_));
                (owner, listed, is_needed, self.reconcile(term, work, lists, &listed_tokens).await)
            })
            .buffer_unordered(self.rules.concurrency)
            .collect()
            .await;
        for (owner, listed, is_needed, outcome) in outcomes {
            match outcome {
                Ok(outcome) => {
                    if memory.failures.remove(&owner).is_some() {
                        tracing::info!("{owner}: works again");
                    }
                    if let Outcome::Known(known) = outcome {
                        if let Stored::Token { accessor, foreign: false, .. } = &known.stored {
                            record.stored(&owner, accessor);
                            if is_needed {
                                record.exists_again(&owner, accessor);
                            }
                        }
                        memory.known.insert(owner, known);
                        continue;
                    }
                    memory.known.remove(&owner);
                    if matches!(outcome, Outcome::WithoutSecret) {
                        memory.without_secret.insert(owner);
                        continue;
                    }
                    if matches!(outcome, Outcome::Gone) && !self.rules.keep_secrets {
                        record.remove(&owner);
                    }
                    record.set_without_tasks_since(&owner, None);
                }
                Err(error) => failures.push((owner, listed, error)),
            }
        }
        if let Some(at) = failures.iter().position(|(.., error)| error.is_not_leader()) {
            return Err(failures.swap_remove(at).2);
        }
        for (owner, listed, _) in &failures {
            // The work may be half done, so the next attempt reads the secret again.
            memory.known.remove(owner);
            let failure = memory.failures.entry(owner.clone()).or_insert_with(Failure::new);
            failure.again = Instant::now() + failure.backoff.delay();
            failure.listed.clone_from(listed);
        }
        for (owner, _, error) in failures.iter().take(LOGGED) {
            tracing::error!("{owner}: {}; trying again", one_line(error));
        }
        if failures.len() > LOGGED {
            tracing::error!("{} more services failed", failures.len() - LOGGED);
        }
        let mut whole = failures.is_empty() && waiting == 0;
        let recorded = record.write(&self.consul, term, &self.names).await;
        whole &= self.went_on("record the stored tokens", recorded.map(|()| true))?;
        let removed = self.remove_policies(term, &mut memory.former, lists).await;
        whole &= self.went_on("remove policies of consul-ecs", removed.map(|()| true))?;
        self.metrics.services(desired.services.len(), failures.len() + waiting);
        Ok(whole)
    }

    /// Reports other controllers whose prefix begins with this one's, or the other way round. Two services of the two clusters may then
    /// have the same secret.
    fn report_colliding_prefixes(&self, reported: &mut BTreeSet<String>, policies: &[Policy]) {
        let others = policies.iter().filter_map(|policy| policy.name.strip_suffix("-consul-client-policy"));
        let colliding = others.filter(|other| self.names.collides(other)).map(str::to_owned).collect::<BTreeSet<_>>();
        for other in colliding.difference(reported) {
            tracing::warn!(
                "the secrets of another controller have the prefix {other:?}, those of this one {:?}: both may write the \
                 same secret, because one prefix begins with the other; give one of the clusters another prefix",
                self.names.prefix
            );
        }
        *reported = colliding;
    }

    /// The work that is due now, and the number of owners that wait for their next attempt.
    fn work<'a>(
        &self,
        memory: &Memory,
        record: &'a Record,
        lists: &'a Lists,
        desired: &Desired,
        demands: BTreeMap<TokenOwner, Demand>,
    ) -> (Vec<Work<'a>>, usize) {
        let mut tokens = BTreeMap::<TokenOwner, Vec<&TokenEntry>>::new();
        for token in &lists.tokens {
            if let Some(owner) = self.names.owner(&token.grants) {
                tokens.entry(owner).or_default().push(token);
            }
        }
        let (mut work, mut waiting) = (Vec::new(), 0);
        for (owner, demand) in demands {
            let secret = self.names.secret(&owner);
            let of_owner = tokens.remove(&owner).unwrap_or_default();
            let is_known = owner == TokenOwner::Clients || memory.without_secret.contains(&owner);
            if is_known && self.has_no_use(&secret, lists, &of_owner) {
                continue;
            }
            let listed = lists.version(&secret);
            let failure = memory.failures.get(&owner);
            if failure.is_some_and(|failure| failure.listed.as_ref() == listed && Instant::now() < failure.again) {
                waiting += 1;
                continue;
            }
            let (refused, scope) = match &owner {
                TokenOwner::Service(name) => (desired.refused.get(name).cloned(), desired.scopes.get(name)),
                TokenOwner::Clients => (None, None),
            };
            let scope = scope.cloned().unwrap_or_default();
            let known = memory.known.get(&owner).cloned();
            let tokens = of_owner;
            let grants = self.grants(&owner, lists);
            let is_mesh_gateway = match (&owner, &demand) {
                (TokenOwner::Service(service), Demand::Needed(_)) => desired.mesh_gateways.contains(service),
                // Only the tags of its tasks say whether a service is a gateway. Without tasks the token keeps its rights.
                _ => tokens.iter().any(|token| self.names.is_of_mesh_gateway(&token.grants)),
            };
            let grants = if is_mesh_gateway { self.names.of_mesh_gateway(grants) } else { grants };
            let note = record.of(&owner);
            work.push(Work { owner, grants, demand, refused, scope, listed, tokens, known, note });
        }
        (work, waiting)
    }

    /// Whether this controller makes no ACL calls: it fills no secrets and sets up no auth method.
    fn needs_no_acls(&self) -> bool {
        !self.rules.secrets && self.agentless.as_ref().is_some_and(|agentless| agentless.auth_method.is_none())
    }

    /// Whether an owner uses no secret: tasks without an agent may log in instead.
    fn has_no_use(&self, secret: &str, lists: &Lists, tokens: &[&TokenEntry]) -> bool {
        self.agentless.is_some() && !lists.secrets.contains_key(secret) && tokens.is_empty()
    }

    /// Reads the secret if needed, plans the changes and applies them.
    async fn reconcile(
        &self,
        term: &Term,
        work: Work<'_>,
        lists: &Lists,
        listed_tokens: &HashMap<&str, &TokenGrants>,
    ) -> Result<Outcome, Error> {
        self.metrics.alive(Duration::ZERO);
        let Work { owner, grants, demand, refused, scope, listed, tokens, known, note } = work;
        if let Some(why) = refused {
            return Err(Error::Refused(why));
        }
        let name = self.names.secret(&owner);
        let kept = note.and_then(|note| note.kept.as_ref());
        let mut unusable = None;
        let mut known = match known {
            Some(known) if known.covers(listed, &tokens) => known,
            _ => match self.read(&name, lists, &tokens).await {
                Ok(known) => known,
                // Without the secret, the controller still repairs the tokens' rights. But if the owner is gone and a later attempt may
                // read the secret, this attempt fails, so that no token is deleted yet.
                Err(error @ (Error::Aws(_) | Error::NotOurs { .. }))
                    if !error.is_not_leader() && (error.is_lasting() || demand != Demand::Gone) =>
                {
                    unusable = Some(error);
                    Known::new(listed, Stored::Unusable)
                }
                Err(error) => return Err(error),
            },
        };
        // The list has caught up with the last read or write. From now on, a different version means that somebody changed the secret.
        if listed == known.version.as_ref() {
            known.listed = listed.cloned();
        }
        if let Stored::Token { accessor, foreign, .. } = &mut known.stored {
            let token = listed_tokens.get(accessor.as_str()).copied();
            let maker = self.names.maker(&owner, token, note.is_some_and(|note| note.accessors.contains(accessor)));
            *foreign = maker != Maker::Ourselves;
            if matches!(demand, Demand::Needed(_)) {
                let (name, accessor) = (name.clone(), accessor.clone());
                let description = token.map(|token| token.description.replace('\n', ", ")).unwrap_or_default();
                unusable = match maker {
                    Maker::Ourselves | Maker::SameService => None,
                    Maker::Another => Some(Error::AnothersToken { name, accessor, description }),
                    Maker::Unknown => Some(Error::UnknownToken { name, accessor }),
                };
            }
        }
        if known.stored == Stored::Missing && self.has_no_use(&name, lists, &tokens) {
            tracing::info!("{owner}: gets no token, because there is no secret {name}; its tasks must log in");
            return Ok(Outcome::WithoutSecret);
        }
        if known.stored == Stored::Missing && matches!(demand, Demand::Needed(_)) {
            let found = format!("{name}-{scope}");
            let name = name.clone();
            unusable = Some(match lists.secrets.contains_key(&found) {
                true => Error::OldSecret { name, found },
                false => Error::NoSecret { name },
            });
        }
        if unusable.is_some() {
            known.stored = Stored::Unusable;
        }
        let now = SystemTime::now();
        let rotate_after = self.rules.rotate_after.filter(|_| owner != TokenOwner::Clients);
        for action in plan(&grants, &demand, &known.stored, &tokens, kept, rotate_after, now) {
            let clears = action == Action::Clear;
            if clears && self.rules.keep_secrets && may_be_kept(&known.stored, &tokens, kept) {
                continue;
            }
            match self.apply(term, (&owner, &grants), lists, action, &tokens, &mut known).await {
                // The controller cannot clear the secret, and never will. It still deletes the tokens.
                Err(error) if clears && demand == Demand::Gone && error.is_lasting() => unusable = Some(error),
                applied => applied?,
            }
        }
        match unusable {
            Some(error) if demand == Demand::Gone => {
                tracing::warn!(
                    "{owner}: its tokens are deleted, but the secret cannot be cleared; {}",
                    one_line(&error)
                );
                Ok(Outcome::GoneButStored)
            }
            Some(error) => Err(error),
            None if demand == Demand::Gone => Ok(Outcome::Gone),
            None => Ok(Outcome::Known(known)),
        }
    }
}
