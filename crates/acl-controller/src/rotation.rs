//! Which of an owner's tokens its running tasks may have.
//!
//! A token's window is the time in which the secret held it: from its creation until it was replaced. A task reads its secret
//! between its own creation and the start of its containers. So a task may have a token if these two times overlap.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use consul_api::{AccessorId, TokenEntry, TokenGrants};

/// How the lines begin by which a token says that it was replaced.
pub(crate) const SUPERSEDED: &str = "consul.hashicorp.com/superseded-";
/// What a token says that rotation has replaced, before the accessor ID of the new one.
const SUPERSEDED_BY: &str = "consul.hashicorp.com/superseded-by: ";
/// What it says too, before the time at which the secret got the new one.
const SUPERSEDED_AT: &str = "consul.hashicorp.com/superseded-at: ";

/// How far apart the clocks of ECS, Consul and this controller may be, and how long Secrets Manager may give the value from before
/// a change.
pub const MARGIN: Duration = Duration::from_secs(30);

/// When a task reads its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// When the task was created; not before.
    pub created: SystemTime,
    /// When its containers had started; not after. None while they may still start.
    pub started: Option<SystemTime>,
}

/// The tasks of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// There may be others than those that are known, started at any time.
    Unknown,
    /// These and no others.
    These(Vec<Start>),
}

impl Running {
    /// Whether one of them may have read the secret between these two times; none stands for always.
    fn any_read_between(&self, from: Option<SystemTime>, to: Option<SystemTime>) -> bool {
        let Self::These(starts) = self else { return true };
        starts.iter().any(|start| {
            let before_its_end = to.is_none_or(|to| start.created < to + MARGIN);
            let started = start.started.zip(from);
            before_its_end && started.is_none_or(|(started, from)| from < started + MARGIN)
        })
    }
}

/// The same grants, said to be replaced by another token at this time.
#[must_use]
pub fn superseded(grants: &TokenGrants, by: &AccessorId, at: SystemTime) -> TokenGrants {
    let at = DateTime::from(at).fmt(Format::DateTime).unwrap_or_default();
    let lines = grants.description.lines();
    let others = lines.filter(|line| !line.trim().starts_with(SUPERSEDED));
    let mut description = others.map(|line| format!("{line}\n")).collect::<String>();
    description.push_str(&format!("{SUPERSEDED_BY}{by}\n{SUPERSEDED_AT}{at}"));
    TokenGrants { description, ..grants.clone() }
}

/// The accessor ID of the token that has replaced this one.
#[must_use]
pub fn successor(token: &TokenEntry) -> Option<&str> {
    line(token, SUPERSEDED_BY)
}

/// Whether another token has replaced this one.
#[must_use]
pub fn is_superseded(token: &TokenEntry) -> bool {
    successor(token).is_some()
}

/// When a token was made.
#[must_use]
pub fn made(token: &TokenEntry) -> Option<SystemTime> {
    time(&token.create_time)
}

/// The order in which tokens were made. Indexes are the same for all tokens that came to a datacenter at once.
#[must_use]
pub fn age_order(token: &TokenEntry) -> (Option<SystemTime>, u64, &str) {
    (made(token), token.create_index, token.accessor_id.as_str())
}

/// Whether a token is kept: the current one, and each that a running task may have. `stored_since` is when the secret got the
/// current one; none if it has another now.
#[must_use]
pub fn is_kept(
    token: &TokenEntry,
    current: Option<&TokenEntry>,
    stored_since: Option<SystemTime>,
    running: &Running,
) -> bool {
    let Some(current) = current else { return is_superseded(token) };
    if token.accessor_id == current.accessor_id {
        return true;
    }
    let to = match successor(token) {
        // The current one has yet to come to the secret.
        Some(by) if current.accessor_id == by && stored_since.is_none() => None,
        Some(_) => line(token, SUPERSEDED_AT).and_then(time).or(stored_since),
        // Not rotated, but older than the current one: the secret may have held it earlier.
        None if age_order(token) < age_order(current) => stored_since,
        // It was made after the one in the secret, so no task has it.
        None => return false,
    };
    running.any_read_between(made(token), to)
}

fn line<'a>(token: &'a TokenEntry, start: &str) -> Option<&'a str> {
    token.grants.description.lines().rev().find_map(|line| line.trim().strip_prefix(start))
}

fn time(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(DateTime::from_str(text, Format::DateTimeWithOffset).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minute)
    }

    /// Made in that minute, and replaced in another.
    fn token(accessor: &str, minute: u64, replaced: Option<(&str, u64)>) -> TokenEntry {
        let grants = TokenGrants { description: "Token for web service".into(), ..TokenGrants::default() };
        TokenEntry {
            accessor_id: accessor.into(),
            grants: match replaced {
                Some((by, minute)) => superseded(&grants, &by.into(), at(minute)),
                None => grants,
            },
            create_time: format!("1970-01-01T01:{minute:02}:00.000000000+01:00"),
            // As after a replication: all came at once.
            create_index: 7,
            modify_index: 7,
        }
    }

    fn kept(tokens: &[TokenEntry], stored_since: Option<u64>, tasks: &[(u64, Option<u64>)]) -> String {
        let running = tasks.iter().map(|(created, started)| Start { created: at(*created), started: started.map(at) });
        let running = Running::These(running.collect());
        let current = tokens.iter().find(|token| token.accessor_id.as_str().ends_with('*'));
        let kept = tokens.iter().filter(|token| is_kept(token, current, stored_since.map(at), &running));
        kept.map(|token| token.accessor_id.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// A token every ten minutes; each is in the secret for ten minutes.
    fn chain() -> [TokenEntry; 5] {
        [
            token("a", 0, Some(("b", 10))),
            token("b", 10, Some(("c", 20))),
            token("c", 20, Some(("d", 30))),
            token("d", 30, Some(("e*", 40))),
            token("e*", 40, None),
        ]
    }

    #[test]
    fn a_token_is_kept_while_a_task_runs_that_read_the_secret_in_its_window() {
        type Tasks<'a> = &'a [(u64, Option<u64>)];
        let rows: [(Tasks, &str); 10] = [
            (&[], "e*"),
            (&[(45, Some(46))], "e*"),
            (&[(5, Some(6))], "a e*"),
            (&[(15, Some(16))], "b e*"),
            (&[(5, Some(6)), (25, Some(26)), (45, Some(46))], "a c e*"),
            // It was created in one window and started in a later one.
            (&[(5, Some(25))], "a b c e*"),
            // At the edge clocks may differ.
            (&[(10, Some(10))], "a b e*"),
            (&[(9, Some(10))], "a b e*"),
            (&[(11, Some(12))], "b e*"),
            // It has not started.
            (&[(35, None)], "d e*"),
        ];
        for (tasks, expected) in rows {
            assert_eq!(kept(&chain(), Some(40), tasks), expected, "{tasks:?}");
        }
    }

    #[test]
    fn the_window_of_a_token_is_known_though_its_successor_is_deleted() {
        let [a, _, _, d, e] = chain();
        assert_eq!(kept(&[a.clone(), d.clone(), e.clone()], Some(40), &[(25, Some(26))]), "e*");
        assert_eq!(kept(&[a, d, e], Some(40), &[(5, Some(6))]), "a e*");
    }

    #[test]
    fn while_the_secret_does_not_hold_the_current_token_the_one_before_it_is_kept() {
        assert_eq!(kept(&chain(), None, &[(45, Some(46))]), "d e*");
        assert_eq!(kept(&chain(), None, &[]), "e*");
    }

    #[test]
    fn without_a_rotation_an_older_token_is_kept_for_tasks_from_before_the_current_one_and_a_newer_one_never() {
        let tokens = [token("a", 0, None), token("b*", 10, None), token("c", 20, None)];
        assert_eq!(kept(&tokens, Some(30), &[(25, Some(26))]), "a b*");
        assert_eq!(kept(&tokens, Some(30), &[(35, Some(36))]), "b*");
        assert_eq!(kept(&tokens, None, &[(35, Some(36))]), "a b*");
    }

    #[test]
    fn while_tasks_may_be_unknown_every_token_that_was_in_the_secret_is_kept() {
        let tokens = chain();
        assert!(tokens.iter().all(|token| is_kept(token, tokens.last(), Some(at(40)), &Running::Unknown)));
        let newer = token("f", 41, None);
        assert!(!is_kept(&newer, tokens.last(), Some(at(40)), &Running::Unknown));
    }

    #[test]
    fn a_token_that_is_replaced_again_says_so_once() {
        let once = token("a", 0, Some(("b", 10)));
        let twice = TokenEntry { grants: superseded(&once.grants, &"c".into(), at(20)), ..once };
        assert_eq!(
            twice.grants.description,
            "Token for web service\nconsul.hashicorp.com/superseded-by: c\nconsul.hashicorp.com/superseded-at: \
             1970-01-01T00:20:00Z"
        );
    }
}
