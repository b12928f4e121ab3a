//! What is to be done for one secret: a function from what is to what should be, without a call to anything.

use std::time::{Duration, SystemTime};

use consul_api::{AccessorId, AclLink, ServiceIdentity, TokenEntry, TokenGrants};

use crate::owner::{described, is_described};
use crate::rotation::{Running, age_order, is_kept, is_superseded, made};

/// Whether an owner's tokens are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// It has tasks.
    Needed(Running),
    /// It has none that are known, but may have some, or soon get some: what there is, is kept right, and nothing is made.
    Idle,
    /// It has none, and had none for the whole grace.
    Gone,
}

/// What a secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// There is no such secret.
    Missing,
    /// What can't be read or isn't ours to overwrite, or nothing where a secret is needed: nothing can be stored, and any of the
    /// tokens may be in it.
    Unusable,
    /// Nothing yet, or nothing any more.
    Nothing,
    /// A token.
    Token {
        /// Its accessor ID, as the secret has it.
        accessor: AccessorId,
        /// Whether the secret's token is the one that Consul has under that accessor ID.
        agrees: bool,
        /// When the secret got its present value.
        since: SystemTime,
        /// Whether it is one that Consul knows and that isn't ours, such as that of a service of another cluster.
        foreign: bool,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give this token the grants it is to have.
    Correct(AccessorId),
    /// Make a token, then store it.
    Create,
    /// Make the token again that the secret holds.
    Remake(AccessorId),
    /// Store this token.
    Store(AccessorId),
    /// Make a token, say of this one that it is replaced, then store the new one.
    Rotate(AccessorId),
    /// Store `{}`.
    Clear,
    /// Remove this token.
    Delete(AccessorId),
}

/// What is to be done for an owner. `grants` is what its tokens are to have, `tokens` are all of them, `kept_in_secret` is the
/// accessor ID of the one that was deleted while the secret kept it, `rotate_after` the age at which one is replaced.
#[must_use]
pub fn plan(
    grants: &TokenGrants,
    wanted: &Demand,
    stored: &Stored,
    tokens: &[&TokenEntry],
    kept_in_secret: Option<&AccessorId>,
    rotate_after: Option<Duration>,
    now: SystemTime,
) -> Vec<Action> {
    // Somebody else's token is let be where nothing of ours needs the secret.
    let clear = matches!(stored, Stored::Token { foreign: false, .. }).then_some(Action::Clear);
    let (running, idle) = match wanted {
        Demand::Needed(running) => (running, false),
        Demand::Idle if tokens.is_empty() => return clear.into_iter().collect(),
        Demand::Idle => (&Running::Unknown, true),
        Demand::Gone => {
            // The secret first: nobody is handed a token that is about to go.
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
    // A superseded token in the secret: a rotation was cut off before it stored the new one.
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

/// Whether a secret that keeps its value may keep this one: its token is there, or was deleted while the secret keeps it. A token
/// that somebody else deleted is of no use to a task.
#[must_use]
pub fn may_be_kept(stored: &Stored, tokens: &[&TokenEntry], kept_in_secret: Option<&AccessorId>) -> bool {
    let Stored::Token { accessor, .. } = stored else { return false };
    kept_in_secret == Some(accessor) || tokens.iter().any(|token| token.accessor_id == *accessor)
}

/// Whether a token may do just what it is to, and says whose it is.
fn as_it_should_be(wanted: &TokenGrants, found: &TokenGrants) -> bool {
    let names = |links: &[AclLink]| links.iter().map(|link| link.name.clone()).collect::<Vec<_>>();
    // Consul may give them in another order.
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

/// The grants of a token that is put right: what it is to have, with what else its description says.
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

    /// Made at that hour.
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

    /// One that Consul knows and that isn't ours.
    fn foreign(accessor: &str) -> Stored {
        Stored::Token { accessor: accessor.into(), agrees: false, since: at(1), foreign: true }
    }

    /// With a task that was created and started at an hour.
    fn needed(hour: u64) -> Demand {
        Demand::Needed(Running::These(vec![Start { created: at(hour), started: Some(at(hour)) }]))
    }

    /// With a task from an hour, and tokens that are replaced when they are ten hours old.
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
    fn nothing_is_done_where_all_is_well() {
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 2), []);
    }

    #[test]
    fn a_token_is_made_only_where_there_is_none() {
        assert_eq!(planned(1, &Stored::Nothing, &[], 2), [Action::Create]);
        assert_eq!(planned(1, &stored("deleted", 1), &[], 2), [Action::Create]);
        // A crash between token and secret.
        assert_eq!(planned(1, &Stored::Nothing, &[token("a", 1)], 2), [store("a")]);
        assert_eq!(planned(1, &stored("foreign", 1), &[token("a", 1)], 2), [store("a")]);
    }

    #[test]
    fn a_token_that_its_secret_kept_is_made_again_and_one_that_somebody_deleted_is_not() {
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
    fn a_secret_that_keeps_its_value_does_not_keep_a_token_that_somebody_else_deleted() {
        let a = token("a", 1);
        assert!(may_be_kept(&stored("a", 1), &[&a], None));
        assert!(may_be_kept(&stored("a", 1), &[], Some(&"a".into())));
        assert!(!may_be_kept(&stored("a", 1), &[], None));
        assert!(!may_be_kept(&stored("a", 1), &[&token("b", 2)], Some(&"c".into())));
    }

    #[test]
    fn a_secret_that_disagrees_with_its_token_is_stored_anew() {
        let stored = Stored::Token { accessor: "a".into(), agrees: false, since: at(1), foreign: false };
        assert_eq!(planned(1, &stored, &[token("a", 1)], 2), [store("a")]);
    }

    #[test]
    fn a_token_made_before_the_one_in_the_secret_lives_while_tasks_may_have_it() {
        let tokens = [token("a", 1), token("b", 2), token("c", 3)];
        assert_eq!(planned(1, &stored("b", 2), &tokens, 5), [delete("c")]);
        assert_eq!(planned(4, &stored("b", 2), &tokens, 5), [delete("a"), delete("c")]);
    }

    #[test]
    fn a_duplicate_goes_and_the_one_in_the_secret_stays_or_else_the_newest() {
        let tokens = [token("a", 1), token("b", 2), token("c", 3)];
        assert_eq!(planned(4, &stored("a", 1), &tokens, 5), [delete("b"), delete("c")]);
        assert_eq!(planned(4, &stored("c", 1), &tokens, 5), [delete("a"), delete("b")]);
        assert_eq!(planned(4, &Stored::Nothing, &tokens, 5), [store("c")]);
    }

    #[test]
    fn whatever_a_token_may_besides_or_instead_is_taken_back() {
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
    fn a_terminating_gateway_speaks_for_what_it_links_and_no_longer_for_what_it_linked() {
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
    fn a_token_is_rotated_at_its_age_and_a_replaced_one_lives_until_the_tasks_before_the_change_are_gone() {
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 10), []);
        assert_eq!(planned(1, &stored("a", 1), &[token("a", 1)], 11), [Action::Rotate("a".into())]);
        let both = [replaced("a", 1, "b", 11), token("b", 11)];
        assert_eq!(planned(1, &stored("b", 11), &both, 12), []);
        assert_eq!(planned(11, &stored("b", 11), &both, 12), [], "within the margin");
        assert_eq!(planned(12, &stored("b", 11), &both, 12), [delete("a")]);
    }

    #[test]
    fn a_replaced_token_goes_by_its_own_window_and_not_by_the_last_change() {
        let tokens = [replaced("a", 1, "b", 5), replaced("b", 5, "c", 9), replaced("c", 9, "d", 13), token("d", 13)];
        assert_eq!(planned(3, &stored("d", 13), &tokens, 14), [delete("b"), delete("c")]);
        assert_eq!(planned(7, &stored("d", 13), &tokens, 14), [delete("a"), delete("c")]);
        assert_eq!(planned(14, &stored("d", 13), &tokens, 14), [delete("a"), delete("b"), delete("c")]);
    }

    #[test]
    fn a_rotation_that_was_cut_off_anywhere_goes_on_without_a_second_new_token_in_use() {
        // Before the old one was said to be replaced: the new one goes, and the rotation begins anew.
        let both = [token("a", 1), token("b", 11)];
        assert_eq!(planned(1, &stored("a", 1), &both, 11), [Action::Rotate("a".into()), delete("b")]);
        // Before the new one was stored.
        let both = [replaced("a", 1, "b", 11), token("b", 11)];
        assert_eq!(planned(1, &stored("a", 1), &both, 11), [store("b")]);
        // And the new one was deleted.
        assert_eq!(planned(1, &stored("a", 1), &[replaced("a", 1, "b", 11)], 11), [Action::Create]);
    }

    #[test]
    fn a_service_that_is_gone_has_its_secret_emptied_before_its_tokens_go() {
        let token = token("a", 1);
        let gone = |stored: &Stored| plan(&grants(), &Demand::Gone, stored, &[&token], None, None, at(2));
        assert_eq!(gone(&stored("a", 1)), [Action::Clear, delete("a")]);
        assert_eq!(gone(&Stored::Nothing), [delete("a")]);
        assert_eq!(gone(&Stored::Missing), [delete("a")]);
        assert_eq!(gone(&foreign("b")), [delete("a")], "a live token of another cluster stays");
    }

    #[test]
    fn without_tasks_and_within_the_grace_drift_is_repaired_but_nothing_is_made() {
        let idle = |stored: &Stored, tokens: &[TokenEntry]| {
            let tokens = tokens.iter().collect::<Vec<_>>();
            plan(&grants(), &Demand::Idle, stored, &tokens, None, Some(HOUR * 10), at(20))
        };
        let a = [token("a", 1)];
        assert_eq!(idle(&stored("a", 1), &a), [], "not even for its age");
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
    fn with_a_secret_that_cannot_be_used_tokens_are_kept_right_and_taken_back_and_nothing_is_made_or_stored() {
        let planned = |wanted: &Demand, tokens: &[TokenEntry]| {
            let tokens = tokens.iter().collect::<Vec<_>>();
            plan(&grants(), wanted, &Stored::Unusable, &tokens, None, Some(HOUR), at(20))
        };
        let mut wrong = token("b", 2);
        wrong.grants.policies.push(AclLink { id: "1".into(), name: "global-management".into() });
        let both = [token("a", 1), wrong];
        for wanted in [needed(3), Demand::Idle] {
            assert_eq!(planned(&wanted, &[]), []);
            assert_eq!(planned(&wanted, &both), [Action::Correct("b".into())], "either may be in it");
        }
        assert_eq!(planned(&Demand::Gone, &both), [delete("a"), delete("b")]);
    }
}
