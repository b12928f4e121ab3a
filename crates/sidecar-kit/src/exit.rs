//! How a program begins and ends: arguments, exit codes, and errors on one line.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, Parser};

/// The work failed.
pub const FAILURE: u8 = 1;
/// The command line or a variable that stands for a flag could not be understood.
pub const USAGE: u8 = 2;

/// Parses the command line. A wrong one ends the process with [`USAGE`] and one line on standard error; `--help` and
/// `--version` print and exit with 0.
#[must_use]
pub fn parse_arguments<A: Parser>() -> A {
    let command = without_empty_variables(A::command());
    let parsed = command.try_get_matches().and_then(|matches| A::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            eprintln!("{}: it needs arguments (see --help)", A::command().get_name());
            std::process::exit(USAGE.into())
        }
        let text = error.to_string();
        // clap puts missing arguments on the lines below the first, up to an empty line.
        let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        let what = lines.collect::<Vec<_>>().join(" ");
        let what = what.strip_prefix("error: ").unwrap_or(&what);
        let variable =
            variable_behind(&A::command(), &error).map_or(String::new(), |name| format!("the variable {name}; "));
        eprintln!("{}: {what} ({variable}see --help)", A::command().get_name());
        std::process::exit(USAGE.into())
    })
}

/// Parses a flag's duration (`500ms`, `10s`, `2m`): more than none, and at most a day, since a longer one is a slip of the
/// pen and would not fit a clock.
///
/// # Errors
/// With what would do.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_delay(text).and_then(|duration| if duration.is_zero() { Err(DURATION.to_owned()) } else { Ok(duration) })
}

/// The same for a delay, which may be none: `0s`.
///
/// # Errors
/// With what would do.
pub fn parse_delay(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= DAY).ok_or_else(|| DURATION.to_owned())
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DURATION: &str = "expected a duration such as 500ms, 10s or 2m, at most 1day";

/// An empty variable counts as not set, for flags as everywhere else; clap would take it for a value.
fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|argument| {
            let empty = argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
            if empty { argument.env(None::<&str>) } else { argument }
        })
        .mut_subcommands(without_empty_variables)
}

/// The variable that a refused value came from: the one that stands for the flag, where the flag was not given.
fn variable_behind(command: &Command, error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = named.split(' ').next()?;
    if std::env::args().any(|word| word.split('=').next() == Some(flag)) {
        return None;
    }
    let commands = std::iter::once(command).chain(command.get_subcommands());
    let argument = commands.flat_map(Command::get_arguments).find(|one| one.get_long() == flag.strip_prefix("--"))?;
    argument.get_env().map(|name| name.to_string_lossy().into_owned())
}

/// Turns the result of a program's one library call into its exit code, with the error on one line of standard error.
#[must_use]
pub fn finish<E: Error>(program: &str, result: Result<ExitCode, E>) -> ExitCode {
    finish_with(program, result, FAILURE)
}

/// The same, with another exit code for the error.
#[must_use]
pub fn finish_with<E: Error>(program: &str, result: Result<ExitCode, E>, code: u8) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("{program}: {}", one_line(&error));
        code.into()
    })
}

/// The error and its causes, joined by `: `, on one line. Errors here say only their own part and name their cause as
/// [`Error::source`].
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do\nit")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_duration_is_more_than_none_and_at_most_a_day() {
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_delay("0s"), Ok(Duration::ZERO));
        for wrong in ["", "10", "0s", "25h", "18446744073709551615s", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_and_its_causes_stand_on_one_line() {
        let error = Outer(std::io::Error::other("disk\nfull"));
        assert_eq!(one_line(&error), "cannot do it: disk full");
    }
}
