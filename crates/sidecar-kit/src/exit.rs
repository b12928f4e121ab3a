//! The start and end of a program: arguments, exit codes, and errors on one line.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, Parser};

use crate::stderr;

/// The work failed.
pub const FAILURE: u8 = 1;
/// The command line, or a variable for a flag, is wrong.
pub const USAGE: u8 = 2;

/// Parses the command line. A wrong one ends the process with [`USAGE`] and one line on standard error; `--help` and
/// `--version` print and exit with 0.
#[must_use]
pub fn parse_arguments<A: Parser>() -> A {
    let command = with_variables(A::command());
    let arguments = with_two_dashes(&command, std::env::args_os().collect::<Vec<_>>().into_iter());
    let parsed = command.try_get_matches_from(arguments.iter()).and_then(|matches| A::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        let program = A::command().get_name().to_owned();
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            fail(&program, "it needs arguments (see --help)", USAGE)
        }
        let text = error.to_string();
        // clap puts missing arguments on the lines below the first, up to an empty line.
        let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        let what = lines.collect::<Vec<_>>().join(" ");
        let what = what.strip_prefix("error: ").unwrap_or(&what);
        // clap quotes what it could not understand.
        let what = if what.contains("-----BEGIN ") { "an argument or its variable holds a PEM text" } else { what };
        let variable = variable_behind(&A::command(), &arguments, &error)
            .map_or(String::new(), |name| format!("the variable {name}; "));
        fail(&program, &format!("{what} ({variable}see --help)"), USAGE)
    })
}

/// Parses a flag's duration, such as `500ms`, `10s` or `2m`: more than 0, and at most a day. A longer one is a mistake.
///
/// # Errors
/// The error says what is valid.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_delay(text).and_then(|duration| if duration.is_zero() { Err(DURATION.to_owned()) } else { Ok(duration) })
}

/// Parses a delay, which may be `0s`.
///
/// # Errors
/// The error says what is valid.
pub fn parse_delay(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= DAY).ok_or_else(|| DURATION.to_owned())
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DURATION: &str = "expected a duration such as 500ms, 10s or 2m, at most 1day";

/// Adapts the variables of flags. An empty variable counts as not set. A switch's variable may be 1, 0, yes, no and so on, in upper or
/// lower case.
fn with_variables(command: Command) -> Command {
    command
        .mut_args(|argument| {
            // A variable may hold a secret, which `--help` would show.
            let argument = argument.hide_env_values(true);
            let empty = argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
            let argument = if empty { argument.env(None::<&str>) } else { argument };
            let switch = matches!(argument.get_action(), ArgAction::SetTrue);
            if switch { argument.value_parser(BoolishValueParser::new()) } else { argument }
        })
        .mut_subcommands(with_variables)
}

/// The arguments, with two dashes before each flag. The flags of a Go program, such as consul-ecs, may have one. After a subcommand, the
/// flags are the subcommand's. From the first argument that is neither a flag nor a subcommand, the arguments stay as they are: they may
/// be the command line of another program.
fn with_two_dashes(command: &Command, mut arguments: std::vec::IntoIter<OsString>) -> Vec<OsString> {
    let mut dashed = Vec::from_iter(arguments.next());
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let name = text.trim_start_matches('-');
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name));
        let Some(flag) = flag.filter(|_| text.starts_with('-')) else {
            if let Some(subcommand) = command.find_subcommand(&argument) {
                let rest = std::iter::once(argument).chain(arguments).collect::<Vec<_>>();
                dashed.extend(with_two_dashes(subcommand, rest.into_iter()));
                return dashed;
            }
            dashed.push(argument);
            break;
        };
        let takes_next = flag.get_action().takes_values() && value.is_none();
        dashed.push(if text.starts_with("--") { argument } else { format!("-{text}").into() });
        if takes_next {
            dashed.extend(arguments.next());
        }
    }
    dashed.extend(arguments);
    dashed
}

/// The variable with the wrong value, if the value did not come from the command line.
fn variable_behind(command: &Command, arguments: &[OsString], error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = named.split(' ').next()?.strip_prefix("--");
    let commands = std::iter::once(command).chain(command.get_subcommands());
    let mut variables = commands.flat_map(Command::get_arguments).filter(|one| one.get_long() == flag);
    let variable = variables.find_map(|one| one.get_env().filter(|name| is_set(name)));
    let variable = variable?.to_string_lossy().into_owned();
    let alone = without_variables(command.clone()).try_get_matches_from(arguments).err();
    let same = alone.is_some_and(|alone| alone.get(ContextKind::InvalidArg) == error.get(ContextKind::InvalidArg));
    (!same).then_some(variable)
}

fn is_set(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn without_variables(command: Command) -> Command {
    command.mut_args(|argument| argument.env(None::<&str>)).mut_subcommands(without_variables)
}

/// Runs the main future of a program that ends with [`FAILURE`] on any error: see [`run_with`].
#[must_use]
pub fn run<E: Error>(program: &str, work: impl Future<Output = Result<ExitCode, E>>) -> ExitCode {
    run_with(program, work, |_| FAILURE)
}

/// Runs the main future of a program. An error goes to standard error on one line, and `code` returns its exit code. The program then
/// ends without waiting for other threads, such as one that still resolves a host name.
#[must_use]
pub fn run_with<E: Error>(
    program: &str,
    work: impl Future<Output = Result<ExitCode, E>>,
    code: impl FnOnce(&E) -> u8,
) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => fail(program, &format!("cannot start: {}", one_line(&error)), FAILURE),
    };
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    let code = result.unwrap_or_else(|error| {
        stderr::line(format!("{program}: {}\n", one_line(&error)));
        code(&error).into()
    });
    stderr::flush();
    code
}

/// Ends the process with this exit code and one line on standard error.
pub fn fail(program: &str, what: &str, code: u8) -> ! {
    stderr::line(format!("{program}: {what}\n"));
    stderr::flush();
    std::process::exit(code.into())
}

/// The error and its causes on one line, joined by `: `. In this workspace, the text of an error does not repeat its [`Error::source`].
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
    fn a_duration_is_positive_and_at_most_a_day() {
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_delay("0s"), Ok(Duration::ZERO));
        for wrong in ["", "10", "0s", "25h", "18446744073709551615s", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_flag_may_have_one_dash_up_to_another_program() {
        let flag = |name: &'static str| clap::Arg::new(name).long(name);
        let command = Command::new("x").args([flag("delay"), flag("drain").action(ArgAction::SetTrue)]);
        let command = command.subcommand(Command::new("dial").arg(flag("timeout")));
        let rows: [(&[&str], &[&str]); 8] = [
            (&["-delay", "1s", "-drain", "app", "-delay"], &["--delay", "1s", "--drain", "app", "-delay"]),
            (&["-delay=1s", "app"], &["--delay=1s", "app"]),
            (&["--delay", "-drain", "-drain"], &["--delay", "-drain", "--drain"]),
            (&["--", "-delay"], &["--", "-delay"]),
            (&["-other", "-delay"], &["-other", "-delay"]),
            (&["run", "app", "-delay", "2"], &["run", "app", "-delay", "2"]),
            (&["-drain", "dial", "-timeout", "1s", "a:1"], &["--drain", "dial", "--timeout", "1s", "a:1"]),
            (&["dial", "-delay"], &["dial", "-delay"]),
        ];
        for (given, expected) in rows {
            let given = std::iter::once("x").chain(given.iter().copied()).map(OsString::from).collect::<Vec<_>>();
            assert_eq!(
                with_two_dashes(&command, given.into_iter())[1..],
                expected.iter().map(OsString::from).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_program_ends_without_waiting_for_other_threads() {
        let begun = std::time::Instant::now();
        let _ = run("x", async {
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(60)));
            Ok::<_, Outer>(ExitCode::SUCCESS)
        });
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }

    #[test]
    fn an_error_and_its_causes_are_on_one_line() {
        let error = Outer(std::io::Error::other("disk\nfull"));
        assert_eq!(one_line(&error), "cannot do it: disk full");
    }
}
