//! The tests that need another Consul than the given one, or the option `--peer`, from `tests/needs.txt`.

use local_mesh::version::Version;

/// What the tests need of a Consul.
const NEEDS: &str = include_str!("../../../tests/needs.txt");

/// A line of `tests/needs.txt` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NeedsError {
    #[error(
        "tests/needs.txt: {line:?}: expected `SUITE TEST VERSIONS REASON`, with versions such as `<1.10` or `>=1.16`, or `--peer`"
    )]
    Malformed { line: String },
    #[error("tests/needs.txt: {line:?}: the suite has no such test")]
    NoTest { line: String },
}

/// Tests that are left out for the same reason.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub reason: String,
    pub tests: Vec<String>,
}

/// What a run of the tests has.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The version of Consul.
    pub version: Version,
    /// Whether `--peer` names the programs of consul-ecs.
    pub peer: bool,
}

/// The tests of a suite that cannot run with what is given. `list` is the suite's output for `--list --format=terse`.
pub fn left_out(suite: &str, list: &str, given: Given) -> Result<Vec<LeftOut>, NeedsError> {
    let names = list.lines().filter_map(|line| line.strip_suffix(": test")).collect::<Vec<_>>();
    select(NEEDS, suite, &names, given)
}

fn select(needs: &str, suite: &str, names: &[&str], given: Given) -> Result<Vec<LeftOut>, NeedsError> {
    let mut left_out: Vec<LeftOut> = Vec::new();
    for line in needs.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let malformed = || NeedsError::Malformed { line: line.to_owned() };
        let mut words = line.split_whitespace();
        let (of, test, versions) = (words.next(), words.next(), words.next());
        let (Some(of), Some(test), Some(versions)) = (of, test, versions) else { return Err(malformed()) };
        let reason = words.collect::<Vec<_>>().join(" ");
        let runs = runs(versions, given).filter(|_| !reason.is_empty()).ok_or_else(malformed)?;
        if of != suite {
            continue;
        }
        // `module::*` is for all tests of a module.
        let matches = |name: &&&str| match test.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => **name == test,
        };
        let tests = names.iter().filter(matches).map(|name| (*name).to_owned()).collect::<Vec<_>>();
        if tests.is_empty() {
            return Err(NeedsError::NoTest { line: line.to_owned() });
        }
        if runs {
            continue;
        }
        let listed = |test: &String| left_out.iter().any(|group| group.tests.contains(test));
        let new = tests.into_iter().filter(|test| !listed(test)).collect::<Vec<_>>();
        match left_out.iter_mut().find(|group| group.reason == reason) {
            Some(group) => group.tests.extend(new),
            None => left_out.push(LeftOut { reason, tests: new }),
        }
    }
    left_out.retain(|group| !group.tests.is_empty());
    Ok(left_out)
}

/// Whether what is given is in a range: conditions such as `<1.10`, `>=1.16` and `--peer`, separated by commas, or by `|` for
/// alternatives.
fn runs(range: &str, Given { version, peer }: Given) -> Option<bool> {
    let holds = |condition: &str| {
        if condition == "--peer" {
            return Some(peer);
        }
        let (at_least, bound) = match condition.strip_prefix(">=") {
            Some(bound) => (true, bound),
            None => (false, condition.strip_prefix('<')?),
        };
        let (major, minor) = bound.split_once('.')?;
        Some(version.at_least(major.parse().ok()?, minor.parse().ok()?) == at_least)
    };
    let all = |conditions: &str| {
        conditions.split(',').map(holds).collect::<Option<Vec<_>>>().map(|all| !all.contains(&false))
    };
    range.split('|').map(all).collect::<Option<Vec<_>>>().map(|any| any.contains(&true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(minor: u16) -> Given {
        Given { version: Version::parse(&format!("Consul v1.{minor}.3")).unwrap(), peer: false }
    }

    #[test]
    fn ranges_of_versions_are_read() {
        for (range, minor, expected) in [
            ("<1.10", 8, Some(true)),
            ("<1.10", 10, Some(false)),
            (">=1.16", 16, Some(true)),
            ("<1.10|>=1.16", 13, Some(false)),
            ("<1.10|>=1.16", 21, Some(true)),
            (">=1.9,<1.12", 12, Some(false)),
            ("--peer,>=1.16", 21, Some(false)),
            ("1.9", 9, None),
            (">=one", 9, None),
        ] {
            assert_eq!(runs(range, version(minor)), expected, "{range} and 1.{minor}");
        }
        let with_peer = |minor| Given { peer: true, ..version(minor) };
        assert_eq!(runs("--peer,>=1.16", with_peer(21)), Some(true));
        assert_eq!(runs("--peer,>=1.16", with_peer(8)), Some(false));
    }

    #[test]
    fn tests_for_another_consul_are_left_out_with_the_reason() {
        let needs = "# comment\n\nprocess bridge::* <1.10 the bridge is for 1.8\nprocess acl::one >=1.14 new field\nmesh x <1.10 y\n";
        let names = ["bridge::a", "bridge::b", "acl::one", "acl::two"];
        let group = |reason: &str, tests: &[&str]| LeftOut {
            reason: reason.to_owned(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        };
        let selected = select(needs, "process", &names, version(21)).unwrap();
        assert_eq!(selected, [group("the bridge is for 1.8", &["bridge::a", "bridge::b"])]);
        let selected = select(needs, "process", &names, version(8)).unwrap();
        assert_eq!(selected, [group("new field", &["acl::one"])]);
    }

    #[test]
    fn a_need_of_a_missing_test_is_an_error() {
        for needs in ["process gone <1.10 reason", "process a <1.10", "process a 1.10 reason"] {
            assert!(select(needs, "process", &["a"], version(8)).is_err(), "{needs}");
        }
    }
}
