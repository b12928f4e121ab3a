//! The plan for one owner: a pure function from what exists to the actions that are needed.

use std::time::{Duration, SystemTime};

use consul_api::{AccessorId, AclLink, ServiceIdentity, TokenEntry, TokenGrants};

use crate::owner::{described, is_described};
use crate::rotation::{Running, age_order, is_kept, is_superseded, made};

/// Whether an owner needs its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// The owner has tasks.
    Needed(Running),
    /// The controller knows no task of the owner, but there may be one, or one may start soon. Its token and secret are repaired, and
    /// nothing is created.
    Idle,
    /// The owner has had no tasks for the whole grace.
    Gone,
}

/// The content of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// There is no such secret.
    Missing,
    /// The secret cannot be read, must not be overwritten, or is missing although a task needs it. So the plan
    /// assumes that running tasks may have any of the tokens.
    Unusable,
    /// The secret is empty.
    Nothing,
    /// A token.
    Token {
        /// The accessor ID in the secret.
        accessor: AccessorId,
        /// Whether Consul has the same secret ID under this accessor ID.
        agrees: bool,
        /// When the secret got its current value.
        since: SystemTime,
        /// Whether another controller made it, for example for a service of another cluster.
        foreign: bool,
    },
}

/// A change. The plan lists changes in the order in which they are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give this token the right grants.
    Correct(AccessorId),
    /// Create a token and store it.
    Create,
    /// Create the token of the secret again, with the same IDs.
    Remake(AccessorId),
    /// Store this token.
    Store(AccessorId),
    /// Create a token, mark this one as superseded, and store the new one.
    Rotate(AccessorId),
    /// Store `{}`.
    Clear,
    /// Delete this token.
    Delete(AccessorId),
}

/// The changes for an owner with these `tokens`, which should have these `grants`. `kept_in_secret` is the accessor ID of a token that
/// the controller deleted while the secret kept it. `rotate_after` is the age at which a token is replaced.
#[must_use]
pub fn plan(
    grants: &TokenGrants,
    demand: &Demand,
    stored: &Stored,
    tokens: &[&TokenEntry],
    kept_in_secret: Option<&AccessorId>,
    rotate_after: Option<Duration>,
    now: SystemTime,
) -> Vec<Action> {
    // Another controller's token stays if no task here needs the secret.
    let clear = matches!(stored, Stored::Token { foreign: false, .. }).then_some(Action::Clear);
    let (running, idle) = match demand {
        Demand::Needed(running) => (running, false),
        Demand::Idle if tokens.is_empty() => return clear.into_iter().collect(),
        Demand::Idle => (&Running::Unknown, true),
        Demand::Gone => {
            // The secret first, so that no task gets a token that is about to be deleted.
            return clear
                .into_iter()
                .chain(tokens.iter().map(|token| Action::Delete(token.accessor_id.clone())))
                .collect();
        }
    };
    let mut actions = Vec::new();
    let in_secret = match stored {
        Stored::Token { accessor, .. } => tokens.iter().find(|token| token.accessor_id == *accessor),
        Stored::Missing | Stored::Unusable | Stored::Nothing => None,
    };
    let newest = tokens.iter().filter(|token| !is_superseded(token)).max_by_key(|token| age_order(token));
    // If the secret holds a superseded token, a rotation was interrupted before it stored the new one.
    let current = in_secret.filter(|token| !is_superseded(token)).or(newest);
    let stored_since = match (stored, current) {
        (Stored::Token { accessor, agrees: true, since, .. }, Some(token)) if *accessor == token.accessor_id => {
            Some(*since)
        }
        _ => None,
    };
    let kept = |token: &&&TokenEntry| is_kept(token, current.copied(), stored_since, running);
    for token in tokens.iter().filter(kept) {
        if !as_it_should_be(grants, &token.grants) {
            actions.push(Action::Correct(token.accessor_id.clone()));
        }
    }
    match current {
        _ if *stored == Stored::Unusable => {}
        None if idle => actions.extend(clear),
        None => actions.push(match stored {
            Stored::Token { accessor, .. } if kept_in_secret == Some(accessor) => Action::Remake(accessor.clone()),
            _ => Action::Create,
        }),
        Some(_) if idle && matches!(stored, Stored::Missing | Stored::Token { foreign: true, .. }) => {}
        Some(token) if stored_since.is_none() => actions.push(Action::Store(token.accessor_id.clone())),
        Some(token) => {
            let due = |age: &Duration| made(token).is_some_and(|made| now >= made + *age);
            if actions.is_empty() && !idle && rotate_after.as_ref().is_some_and(due) {
                actions.push(Action::Rotate(token.accessor_id.clone()));
            }
        }
    }
    let unneeded = tokens.iter().filter(|token| !kept(token));
    actions.extend(unneeded.map(|token| Action::Delete(token.accessor_id.clone())));
    actions
}

/// Whether `--keep-secrets` applies to this secret: its token exists, or the controller itself deleted it. A token that somebody else
/// deleted is not created again, so the secret is cleared.
#[must_use]
pub fn may_be_kept(stored: &Stored, tokens: &[&TokenEntry], kept_in_secret: Option<&AccessorId>) -> bool {
    let Stored::Token { accessor, .. } = stored else { return false };
    kept_in_secret == Some(accessor) || tokens.iter().any(|token| token.accessor_id == *accessor)
}

/// Whether a token has exactly these grants and this description.
fn as_it_should_be(wanted: &TokenGrants, found: &TokenGrants) -> bool {
    let names = |links: &[AclLink]| links.iter().map(|link| link.name.clone()).collect::<Vec<_>>();
    // Consul may list them in another order.
    let sorted = |identities: &[ServiceIdentity]| {
        let mut identities = identities.to_vec();
        identities.sort_by(|a, b| a.service_name.cmp(&b.service_name));
        identities
    };
    is_described(wanted, found)
        && names(&wanted.policies) == names(&found.policies)
        && sorted(&wanted.service_identities) == sorted(&found.service_identities)
        && found.roles.is_empty()
        && found.node_identities.is_empty()
        && found.templated_policies.is_empty()
}

/// The grants for a token that is repaired. The other lines of its description stay.
#[must_use]
pub fn corrected(wanted: &TokenGrants, found: &TokenGrants) -> TokenGrants {
    TokenGrants { description: described(wanted, found), local: found.local, ..wanted.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::owner::{Names, TokenOwner};
    use crate::rotation::{Start, superseded};

    const HOUR: Duration = Duration::from_secs(3600);

    fn names() -> Names {
        Names { cluster: "arn:aws:ecs:eu-north-1:210987654321:cluster/blue".parse().unwrap(), prefix: "p".into() }
    }

    fn grants() -> TokenGrants {
        names().grants(&web(), &BTreeSet::new())
    }

    fn web() -> TokenOwner {
        TokenOwner::Service("web".into())
    }

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * u32::try_from(hours).unwrap()
    }

    /// Created at this hour.
    fn token(accessor: &str, hour: u64) -> TokenEntry {
        TokenEntry {
            accessor_id: accessor.into(),
            grants: grants(),
            create_time: format!("1970-01-01T{:02}:00:00.000000000+01:00", hour + 1),
            create_index: hour,
            modify_index: hour,
        }
    }

    fn replaced(accessor: &str, hour: u64, by: &str, until: u64) -> TokenEntry {
        let token = token(accessor, hour);
        TokenEntry { grants: superseded(&token.grants, &by.into(), at(until)), ..token }
    }

    fn stored(accessor: &str, hour: u64) -> Stored {
        Stored::Token { accessor: accessor.into(), agrees: true, since: at(hour), foreign: false }
    }

    /// A token of another controller.
    fn foreign(accessor: &str) -> Stored {
        Stored::Token { accessor: accessor.into(), agrees: false, since: at(1), foreign: true }
    }

    /// One task, created and started at this hour.
    fn needed(hour: u64) -> Demand {
        Demand::Needed(Running::These(vec![Start { created: at(hour), started: Some(at(hour)) }]))
    }

    /// The plan for one task of this hour. Tokens are replaced when they are ten hours old.
    fn planned(task: u64, stored: &Stored, tokens: &[TokenEntry], now: u64) -> Vec<Action> {
        let tokens = tokens.iter().collect::<Vec<_>>();
        plan(&grants(), &needed(task), stored, &tokens, None, Some(HOUR * 10), at(now))
    }

    fn delete(accessor: &str) -> Action {
        Action::Delete(accessor.into())
    }

    fn store(accessor: &str) -> Action {
        Action::Store(accessor.into())
    }

    #[test]
    fn a_correct_token_needs_no_action() {
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 2), []);
    }

    #[test]
    fn a_token_is_created_only_if_there_is_none() {
        assert_eq!(planned(1, &Stored::Nothing, &[], 2), [Action::Create]);
        assert_eq!(planned(1, &stored("deleted", 1), &[], 2), [Action::Create]);
        // The controller crashed before it stored the token.
        assert_eq!(planned(1, &Stored::Nothing, &[token("a", 1)], 2), [store("a")]);
        assert_eq!(planned(1, &stored("foreign", 1), &[token("a", 1)], 2), [store("a")]);
    }

    #[test]
    fn only_a_token_kept_in_its_secret_is_created_again() {
        let planned = |stored: &Stored, kept: Option<&str>, tokens: &[&TokenEntry]| {
            let kept = kept.map(AccessorId::from);
            plan(&grants(), &needed(1), stored, tokens, kept.as_ref(), Some(HOUR * 10), at(2))
        };
        assert_eq!(planned(&stored("a", 1), Some("a"), &[]), [Action::Remake("a".into())]);
        assert_eq!(planned(&stored("a", 1), Some("b"), &[]), [Action::Create]);
        assert_eq!(planned(&stored("a", 1), None, &[]), [Action::Create]);
        assert_eq!(planned(&Stored::Nothing, Some("a"), &[]), [Action::Create]);
        assert_eq!(planned(&stored("a", 1), Some("a"), &[&token("a", 1)]), []);
    }

    #[test]
    fn a_secret_keeps_no_token_that_somebody_else_deleted() {
        let a = token("a", 1);
        assert!(may_be_kept(&stored("a", 1), &[&a], None));
        assert!(may_be_kept(&stored("a", 1), &[], Some(&"a".into())));
        assert!(!may_be_kept(&stored("a", 1), &[], None));
        assert!(!may_be_kept(&stored("a", 1), &[&token("b", 2)], Some(&"c".into())));
    }

    #[test]
    fn a_secret_with_a_wrong_secret_id_is_stored_again() {
        let stored = Stored::Token { accessor: "a".into(), agrees: false, since: at(1), foreign: false };
        assert_eq!(planned(1, &stored, &[token("a", 1)], 2), [store("a")]);
    }

    #[test]
    fn an_older_duplicate_stays_while_a_task_may_have_it() {
        let tokens = [token("a", 1), token("b", 2), token("c", 3)];
        assert_eq!(planned(1, &stored("b", 2), &tokens, 5), [delete("c")]);
        assert_eq!(planned(4, &stored("b", 2), &tokens, 5), [delete("a"), delete("c")]);
    }

    #[test]
    fn the_duplicate_in_the_secret_stays_or_else_the_newest() {
        let tokens = [token("a", 1), token("b", 2), token("c", 3)];
        assert_eq!(planned(4, &stored("a", 1), &tokens, 5), [delete("b"), delete("c")]);
        assert_eq!(planned(4, &stored("c", 1), &tokens, 5), [delete("a"), delete("b")]);
        assert_eq!(planned(4, &Stored::Nothing, &tokens, 5), [store("c")]);
    }

    #[test]
    fn a_token_with_other_rights_is_corrected() {
        let wrong: [fn(&mut TokenGrants); 6] = [
            |grants| grants.service_identities[0].service_name = "api".into(),
            |grants| grants.service_identities.push(ServiceIdentity::default()),
            |grants| grants.policies.push(AclLink { id: "1".into(), name: "global-management".into() }),
            |grants| grants.roles.push(AclLink { id: "1".into(), name: "admin".into() }),
            |grants| grants.node_identities.push("a node".into()),
            |grants| grants.templated_policies.push("a template".into()),
        ];
        for change in wrong {
            let mut token = token("a", 1);
            change(&mut token.grants);
            assert_eq!(planned(1, &stored("a", 1), std::slice::from_ref(&token), 2), [Action::Correct("a".into())]);
            let corrected = corrected(&grants(), &token.grants);
            assert_eq!(corrected, grants());
        }
    }

    #[test]
    fn a_terminating_gateway_has_the_identities_of_its_links() {
        let names = names();
        let linked = |links: &[&str]| names.grants(&web(), &links.iter().map(|&link| link.to_owned()).collect());
        let planned = |wanted: &TokenGrants, found: &TokenGrants| {
            let token = TokenEntry { grants: found.clone(), ..token("a", 1) };
            plan(wanted, &needed(1), &stored("a", 1), &[&token], None, None, at(2))
        };
        let both = linked(&["billing", "legacy", "web"]);
        let services = both.service_identities.iter().map(|identity| identity.service_name.as_str());
        assert_eq!(services.collect::<Vec<_>>(), ["web", "billing", "legacy"]);
        let mut reversed = both.clone();
        reversed.service_identities.reverse();
        assert_eq!(planned(&both, &reversed), []);
        for (wanted, found) in [(&both, &linked(&["legacy"])), (&linked(&[]), &both), (&both, &linked(&[]))] {
            assert_eq!(planned(wanted, found), [Action::Correct("a".into())]);
        }
    }

    #[test]
    fn a_superseded_token_stays_while_older_tasks_run() {
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 10), []);
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 11), [Action::Rotate("a".into())]);
        let both = [replaced("a", 1, "b", 11), token("b", 11)];
        assert_eq!(planned(1, &stored("b", 11), &both, 12), []);
        assert_eq!(planned(11, &stored("b", 11), &both, 12), [], "within the margin");
        assert_eq!(planned(12, &stored("b", 11), &both, 12), [delete("a")]);
    }

    #[test]
    fn a_superseded_token_is_kept_by_its_own_window() {
        let tokens = [replaced("a", 1, "b", 5), replaced("b", 5, "c", 9), replaced("c", 9, "d", 13), token("d", 13)];
        assert_eq!(planned(3, &stored("d", 13), &tokens, 14), [delete("b"), delete("c")]);
        assert_eq!(planned(7, &stored("d", 13), &tokens, 14), [delete("a"), delete("c")]);
        assert_eq!(planned(14, &stored("d", 13), &tokens, 14), [delete("a"), delete("b"), delete("c")]);
    }

    #[test]
    fn an_interrupted_rotation_ends_with_one_new_token() {
        // Interrupted before the old token was marked: the new one is deleted, and the rotation starts again.
        let both = [token("a", 1), token("b", 11)];
        assert_eq!(planned(1, &stored("a", 1), &both, 11), [Action::Rotate("a".into()), delete("b")]);
        // Interrupted before the new token was stored.
        let both = [replaced("a", 1, "b", 11), token("b", 11)];
        assert_eq!(planned(1, &stored("a", 1), &both, 11), [store("b")]);
        // The same, and the new token was deleted.
        assert_eq!(planned(1, &stored("a", 1), &[replaced("a", 1, "b", 11)], 11), [Action::Create]);
    }

    #[test]
    fn a_gone_service_loses_its_secret_before_its_tokens() {
        let token = token("a", 1);
        let gone = |stored: &Stored| plan(&grants(), &Demand::Gone, stored, &[&token], None, None, at(2));
        assert_eq!(gone(&stored("a", 1)), [Action::Clear, delete("a")]);
        assert_eq!(gone(&Stored::Nothing), [delete("a")]);
        assert_eq!(gone(&Stored::Missing), [delete("a")]);
        assert_eq!(gone(&foreign("b")), [delete("a")], "a live token of another cluster stays");
    }

    #[test]
    fn an_idle_service_is_repaired_and_gets_no_new_token() {
        let idle = |stored: &Stored, tokens: &[TokenEntry]| {
            let tokens = tokens.iter().collect::<Vec<_>>();
            plan(&grants(), &Demand::Idle, stored, &tokens, None, Some(HOUR * 10), at(20))
        };
        let a = [token("a", 1)];
        assert_eq!(idle(&stored("a", 1), &a), [], "an idle token is not rotated");
        assert_eq!(idle(&Stored::Nothing, &a), [store("a")]);
        assert_eq!(idle(&stored("deleted", 1), &a), [store("a")]);
        assert_eq!(idle(&Stored::Missing, &a), []);
        assert_eq!(idle(&foreign("b"), &a), []);
        assert_eq!(idle(&stored("deleted", 1), &[]), [Action::Clear]);
        assert_eq!(idle(&stored("deleted", 1), &[replaced("a", 1, "deleted", 2)]), [Action::Clear]);
        assert_eq!(idle(&Stored::Nothing, &[]), []);
        assert_eq!(idle(&foreign("b"), &[]), []);
        assert_eq!(idle(&stored("b", 2), &[replaced("a", 1, "b", 2), token("b", 2), token("c", 3)]), [delete("c")]);
    }

    #[test]
    fn an_unusable_secret_s_tokens_are_repaired_or_deleted() {
        let planned = |demand: &Demand, tokens: &[TokenEntry]| {
            let tokens = tokens.iter().collect::<Vec<_>>();
            plan(&grants(), demand, &Stored::Unusable, &tokens, None, Some(HOUR), at(20))
        };
        let mut wrong = token("b", 2);
        wrong.grants.policies.push(AclLink { id: "1".into(), name: "global-management".into() });
        let both = [token("a", 1), wrong];
        for wanted in [needed(3), Demand::Idle] {
            assert_eq!(planned(&wanted, &[]), []);
            assert_eq!(planned(&wanted, &both), [Action::Correct("b".into())], "the secret may hold either token");
        }
        assert_eq!(planned(&Demand::Gone, &both), [delete("a"), delete("b")]);
    }
}
