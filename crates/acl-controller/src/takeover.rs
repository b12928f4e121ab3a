//! What the controllers of consul-ecs 0.2 to 0.4 left: tokens that are taken over, and policies that nothing needs any more.

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

/// What is remembered of it during a term.
#[derive(Debug, Default)]
pub(crate) struct Former {
    /// Tokens that no secret held when it had this version, by accessor ID.
    not_held: HashMap<AccessorId, Option<String>>,
    /// Policies that nothing links, by ID, and since when.
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
    /// Takes over the tokens that name the cluster only by its name, or not at all, where a secret of this account holds them. In
    /// another account or region there may be a cluster of the same name, whose tokens look the same. Gives the owners for which
    /// that failed and is to be tried again.
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
                // The secret is read again for its owner, which fails as loudly as it has to.
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

    /// The token as it is after it was taken over; none if the owner's secret doesn't hold it.
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

    /// Removes the policies that consul-ecs 0.4 made for this cluster's services once nothing has linked them for the grace: as
    /// long as its controller runs too, it makes them again.
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
            tracing::info!("policy {} deleted: consul-ecs made it, and nothing links it any more", policy.name);
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
    fn a_token_that_is_no_longer_listed_is_forgotten() {
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
