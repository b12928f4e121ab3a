//! Takeover from consul-ecs 0.2 to 0.4: its tokens are taken over, and its policies are deleted when no token links them.

use std::collections::{BTreeMap, HashMap, HashSet};

use consul_api::{AccessorId, AclLink, Policy, TokenEntry};
use futures_util::stream::{self, StreamExt};
use sidecar_kit::secret::Secret;
use tokio::time::Instant;

use crate::controller::Controller;
use crate::error::Error;
use crate::observe::Lists;
use crate::owner::{TokenOwner, described};
use crate::term::Term;

/// What the controller remembers of consul-ecs during a term.
#[derive(Debug, Default)]
pub(crate) struct Former {
    /// Accessor IDs of tokens that the owner's secret did not hold, each with the secret's version then.
    not_held: HashMap<AccessorId, Option<String>>,
    /// IDs of policies that nothing links, each with the time when this was first seen.
    unlinked: HashMap<String, Instant>,
}

impl Former {
    /// Forgets the tokens that Consul no longer lists.
    fn forget_unlisted(&mut self, tokens: &[TokenEntry]) {
        if self.not_held.is_empty() {
            return;
        }
        let listed = tokens.iter().map(|token| token.accessor_id.as_str()).collect::<HashSet<_>>();
        self.not_held.retain(|accessor, _| listed.contains(accessor.as_str()));
    }
}

impl Controller {
    /// Takes over tokens with the cluster's name or no cluster, if a secret of this account holds them. A cluster of the same name in
    /// another account or region may have tokens that look the same. Returns the owners whose takeover failed.
    ///
    /// # Errors
    /// When the lock is lost.
    pub(crate) async fn take_over(
        &self,
        term: &Term,
        former: &mut Former,
        lists: &mut Lists,
    ) -> Result<BTreeMap<TokenOwner, Error>, Error> {
        former.forget_unlisted(&lists.tokens);
        let candidates = lists.tokens.iter().enumerate().filter_map(|(at, token)| {
            let owner = self.names.former_owner(&token.grants)?;
            let version = lists.secrets.get(&self.names.secret(&owner))?;
            (former.not_held.get(&token.accessor_id) != Some(version)).then(|| (at, owner, version.clone()))
        });
        let candidates = candidates.collect::<Vec<_>>();
        let outcomes: Vec<_> = stream::iter(candidates)
            .map(|(at, owner, version)| {
                let lists = &*lists;
                async move { (at, version, self.take_over_one(term, &owner, &lists.tokens[at], lists).await, owner) }
            })
            .buffer_unordered(self.rules.concurrency)
            .collect()
            .await;
        let mut failed = BTreeMap::new();
        for (at, version, outcome, owner) in outcomes {
            match outcome {
                Ok(Some(token)) => lists.tokens[at] = token,
                Ok(None) => {
                    former.not_held.insert(lists.tokens[at].accessor_id.clone(), version);
                }
                Err(error) if error.is_not_leader() => return Err(error),
                // The work on this owner reads the secret again and reports the failure.
                Err(error) if error.is_lasting() => {
                    former.not_held.insert(lists.tokens[at].accessor_id.clone(), version);
                }
                Err(error) => {
                    failed.insert(owner, error);
                }
            }
        }
        Ok(failed)
    }

    /// Takes over one token and returns it; none if the owner's secret does not hold it.
    async fn take_over_one(
        &self,
        term: &Term,
        owner: &TokenOwner,
        token: &TokenEntry,
        lists: &Lists,
    ) -> Result<Option<TokenEntry>, Error> {
        let name = self.names.secret(owner);
        let value = self.value(&name, lists).await?;
        let Some((_, value)) = value.filter(|(_, value)| value.accessor_id == token.accessor_id) else {
            return Ok(None);
        };
        let found = self.consul.token(&token.accessor_id).await?;
        if found.is_none_or(|found| found.secret_id != Secret::new(&value.token)) {
            return Ok(None);
        }
        let mut grants = self.grants(owner, lists);
        grants.description = described(&grants, &token.grants);
        grants.local = token.grants.local;
        let updated = self.consul.update_token(term, &token.accessor_id, &grants).await?;
        tracing::info!("{owner}: token {} taken over from consul-ecs", token.accessor_id);
        Ok(Some(updated.entry))
    }

    /// Deletes the policies that consul-ecs 0.4 made for this cluster's services when nothing has linked them for the grace. As
    /// long as the controller of consul-ecs runs, it would create them again.
    pub(crate) async fn remove_policies(&self, term: &Term, former: &mut Former, lists: &Lists) -> Result<(), Error> {
        let unlinked = unlinked(&lists.policies, lists.tokens.iter().flat_map(|token| &token.grants.policies));
        let unlinked = unlinked.filter(|policy| self.names.policy_of_consul_ecs(policy).is_some()).collect::<Vec<_>>();
        former.unlinked.retain(|id, _| unlinked.iter().any(|policy| policy.id == *id));
        let now = Instant::now();
        let due = unlinked.into_iter().filter(|policy| {
            let since = *former.unlinked.entry(policy.id.clone()).or_insert(now);
            since.elapsed() >= self.rules.grace
        });
        let due = due.cloned().collect::<Vec<_>>();
        if due.is_empty() {
            return Ok(());
        }
        let (tokens, roles) = tokio::try_join!(self.consul.tokens(), self.consul.roles())?;
        let links = tokens.iter().map(|token| &token.grants.policies).chain(roles.iter().map(|role| &role.policies));
        for policy in self::unlinked(&due, links.flatten()) {
            self.consul.delete_policy(term, &policy.id).await?;
            tracing::info!("policy {} deleted: consul-ecs made it, and no token or role links it", policy.name);
        }
        Ok(())
    }
}

/// The policies that none of these links names.
fn unlinked<'a>(
    policies: &'a [Policy],
    links: impl Iterator<Item = &'a AclLink>,
) -> impl Iterator<Item = &'a Policy> + 'a {
    let linked = links.flat_map(|link| [link.id.as_str(), link.name.as_str()]).collect::<HashSet<_>>();
    policies.iter().filter(move |policy| !linked.contains(policy.id.as_str()) && !linked.contains(policy.name.as_str()))
}

#[cfg(test)]
mod tests {
    use consul_api::TokenGrants;

    use super::*;

    #[test]
    fn an_unlisted_token_is_forgotten() {
        let mut former = Former::default();
        former.not_held.extend(["a", "b"].map(|accessor| (accessor.into(), None)));
        let listed = TokenEntry {
            accessor_id: "b".into(),
            grants: TokenGrants::default(),
            create_time: String::new(),
            create_index: 1,
            modify_index: 1,
        };
        former.forget_unlisted(&[listed]);
        assert_eq!(former.not_held.into_keys().collect::<Vec<_>>(), ["b"]);
    }
}
