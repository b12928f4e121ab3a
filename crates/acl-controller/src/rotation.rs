//! Rotation: which of an owner's tokens its running tasks may have.
//!
//! A token's window is the time in which the secret held it: from its creation until another token replaced it. A task reads its secret
//! between its own creation and the start of its containers. The task may have the token if these two times overlap.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use consul_api::{AccessorId, TokenEntry, TokenGrants};

/// The start of the lines that mark a superseded token.
pub(crate) const SUPERSEDED: &str = "consul.hashicorp.com/superseded-";
/// The line with the accessor ID of the new token.
const SUPERSEDED_BY: &str = "consul.hashicorp.com/superseded-by: ";
/// The line with the time at which the secret got the new token.
const SUPERSEDED_AT: &str = "consul.hashicorp.com/superseded-at: ";

/// The clocks of ECS, Consul and this controller may differ by this much. Secrets Manager may return an old value for this long.
pub const MARGIN: Duration = Duration::from_secs(30);

/// When a task reads its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// When the task was created. It reads the secret later.
    pub created: SystemTime,
    /// When its containers had started. It read the secret earlier. None if they have not started yet.
    pub started: Option<SystemTime>,
}

/// The running tasks of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// There may be unknown tasks, started at any time.
    Unknown,
    /// Exactly these.
    These(Vec<Start>),
}

impl Running {
    /// Whether one of the tasks may have read the secret between these two times. None means no limit.
    fn any_read_between(&self, from: Option<SystemTime>, to: Option<SystemTime>) -> bool {
        let Self::These(starts) = self else { return true };
        starts.iter().any(|start| {
            let before_its_end = to.is_none_or(|to| start.created < to + MARGIN);
            let started = start.started.zip(from);
            before_its_end && started.is_none_or(|(started, from)| from < started + MARGIN)
        })
    }
}

/// The grants with a description that marks the token as superseded at this time.
#[must_use]
pub fn superseded(grants: &TokenGrants, by: &AccessorId, at: SystemTime) -> TokenGrants {
    let at = DateTime::from(at).fmt(Format::DateTime).unwrap_or_default();
    let lines = grants.description.lines();
    let others = lines.filter(|line| !line.trim().starts_with(SUPERSEDED));
    let mut description = others.map(|line| format!("{line}\n")).collect::<String>();
    description.push_str(&format!("{SUPERSEDED_BY}{by}\n{SUPERSEDED_AT}{at}"));
    TokenGrants { description, ..grants.clone() }
}

/// The accessor ID of the token that superseded this one.
#[must_use]
pub fn successor(token: &TokenEntry) -> Option<&str> {
    line(token, SUPERSEDED_BY)
}

/// Whether a token is superseded.
#[must_use]
pub fn is_superseded(token: &TokenEntry) -> bool {
    successor(token).is_some()
}

/// When a token was created.
#[must_use]
pub fn made(token: &TokenEntry) -> Option<SystemTime> {
    time(&token.create_time)
}

/// The order in which tokens were created. Replicated tokens may share one index, so the time comes first.
#[must_use]
pub fn age_order(token: &TokenEntry) -> (Option<SystemTime>, u64, &str) {
    (made(token), token.create_index, token.accessor_id.as_str())
}

/// Whether a token is kept: the current one, and each that a running task may have. `stored_since` is the time at which the secret got
/// the current token; none if the secret holds a different token.
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
        // The secret does not hold the current token yet.
        Some(by) if current.accessor_id == by && stored_since.is_none() => None,
        Some(_) => line(token, SUPERSEDED_AT).and_then(time).or(stored_since),
        // It is older than the current token, so the secret may have held it earlier.
        None if age_order(token) < age_order(current) => stored_since,
        // It is newer than the token in the secret, so no task has it.
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

    /// Created in this minute, and superseded in another.
    fn token(accessor: &str, minute: u64, replaced: Option<(&str, u64)>) -> TokenEntry {
        let grants = TokenGrants { description: "Token for web service".into(), ..TokenGrants::default() };
        TokenEntry {
            accessor_id: accessor.into(),
            grants: match replaced {
                Some((by, minute)) => superseded(&grants, &by.into(), at(minute)),
                None => grants,
            },
            create_time: format!("1970-01-01T01:{minute:02}:00.000000000+01:00"),
            // Replicated tokens share one index.
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

    /// Each token is in the secret for ten minutes.
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
    fn a_token_is_kept_for_tasks_that_started_in_its_window() {
        type Tasks<'a> = &'a [(u64, Option<u64>)];
        let rows: [(Tasks, &str); 10] = [
            (&[], "e*"),
            (&[(45, Some(46))], "e*"),
            (&[(5, Some(6))], "a e*"),
            (&[(15, Some(16))], "b e*"),
            (&[(5, Some(6)), (25, Some(26)), (45, Some(46))], "a c e*"),
            // Created in one window, started in a later one.
            (&[(5, Some(25))], "a b c e*"),
            // Within the margin.
            (&[(10, Some(10))], "a b e*"),
            (&[(9, Some(10))], "a b e*"),
            (&[(11, Some(12))], "b e*"),
            // Not started yet.
            (&[(35, None)], "d e*"),
        ];
        for (tasks, expected) in rows {
            assert_eq!(kept(&chain(), Some(40), tasks), expected, "{tasks:?}");
        }
    }

    #[test]
    fn a_window_is_known_after_its_successor_is_deleted() {
        let [a, _, _, d, e] = chain();
        assert_eq!(kept(&[a.clone(), d.clone(), e.clone()], Some(40), &[(25, Some(26))]), "e*");
        assert_eq!(kept(&[a, d, e], Some(40), &[(5, Some(6))]), "a e*");
    }

    #[test]
    fn the_old_token_is_kept_until_the_new_one_is_stored() {
        assert_eq!(kept(&chain(), None, &[(45, Some(46))]), "d e*");
        assert_eq!(kept(&chain(), None, &[]), "e*");
    }

    #[test]
    fn only_an_older_duplicate_is_kept_for_older_tasks() {
        let tokens = [token("a", 0, None), token("b*", 10, None), token("c", 20, None)];
        assert_eq!(kept(&tokens, Some(30), &[(25, Some(26))]), "a b*");
        assert_eq!(kept(&tokens, Some(30), &[(35, Some(36))]), "b*");
        assert_eq!(kept(&tokens, None, &[(35, Some(36))]), "a b*");
    }

    #[test]
    fn unknown_tasks_keep_every_older_token() {
        let tokens = chain();
        assert!(tokens.iter().all(|token| is_kept(token, tokens.last(), Some(at(40)), &Running::Unknown)));
        let newer = token("f", 41, None);
        assert!(!is_kept(&newer, tokens.last(), Some(at(40)), &Running::Unknown));
    }

    #[test]
    fn a_token_has_the_superseded_lines_once() {
        let once = token("a", 0, Some(("b", 10)));
        let twice = TokenEntry { grants: superseded(&once.grants, &"c".into(), at(20)), ..once };
        assert_eq!(
            twice.grants.description,
            "Token for web service\nconsul.hashicorp.com/superseded-by: c\nconsul.hashicorp.com/superseded-at: \
             1970-01-01T00:20:00Z"
        );
    }
}
