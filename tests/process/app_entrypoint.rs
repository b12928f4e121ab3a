//! app-entrypoint from outside.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_tests::binary;
use mesh_tests::process::{Process, run};
use rustix::process::{Pid, Signal, kill_process};

const BOUND: Duration = Duration::from_secs(20);

/// A script that prints a line when it gets TERM, and exits with 7.
const APP: &str = "trap 'echo app got TERM; exit 7' TERM; echo ready; while :; do sleep 0.05; done";

fn entrypoint(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("app-entrypoint"));
    command.args(arguments);
    command
}

#[tokio::test]
async fn app_gets_term_after_the_delay() {
    let mut process = Process::spawn(&mut entrypoint(&["--shutdown-delay", "1s", "sh", "-c", APP]));
    process.says("ready", BOUND).await;
    let told = Instant::now();
    process.signal(Signal::TERM);
    process.says("TERM: the app runs on for 1s", BOUND).await;
    assert_eq!(process.exit_code(BOUND).await, 7);
    assert!(told.elapsed() >= Duration::from_secs(1), "{:?}", told.elapsed());
    process.says("app got TERM", BOUND).await;
}

#[tokio::test]
async fn second_term_ends_the_delay() {
    let mut process = Process::spawn(&mut entrypoint(&["--shutdown-delay", "1h", "sh", "-c", APP]));
    process.says("ready", BOUND).await;
    process.signal(Signal::TERM);
    process.says("the app runs on", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
}

#[tokio::test]
async fn without_delay_term_is_passed_on_at_once() {
    let mut process = Process::spawn(&mut entrypoint(&["sh", "-c", APP]));
    process.says("ready", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 7);
    let script = "trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done";
    let process = Process::spawn(&mut entrypoint(&["--shutdown-delay", "1h", "sh", "-c", script]));
    process.says("ready", BOUND).await;
    process.signal(Signal::USR1);
    process.says("got USR1", BOUND).await;
}

#[tokio::test]
async fn stop_signal_of_the_image_is_delayed_and_passed_on() {
    let script = "trap 'exit 8' QUIT; echo ready; while :; do sleep 0.05; done";
    let flags = ["--stop-signal", "SIGQUIT", "--shutdown-delay", "1s", "sh", "-c", script];
    let mut process = Process::spawn(&mut entrypoint(&flags));
    process.says("ready", BOUND).await;
    let told = Instant::now();
    process.signal(Signal::QUIT);
    assert_eq!(process.exit_code(BOUND).await, 8);
    assert!(told.elapsed() >= Duration::from_secs(1), "{:?}", told.elapsed());
    let wrong = run(&mut entrypoint(&["--stop-signal", "KILL", "true"]), BOUND).await;
    assert_eq!((wrong.code, wrong.stderr.lines().count()), (2, 1), "{}", wrong.stderr);
}

#[tokio::test]
async fn app_that_exits_during_the_delay_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("end");
    let script = format!("echo ready; while [ ! -e {} ]; do sleep 0.05; done; exit 3", file.display());
    let mut process = Process::spawn(&mut entrypoint(&["--shutdown-delay", "1h", "sh", "-c", &script]));
    process.says("ready", BOUND).await;
    process.signal(Signal::TERM);
    process.says("the app runs on", BOUND).await;
    std::fs::write(file, "").unwrap();
    assert_eq!(process.exit_code(BOUND).await, 3);
}

#[tokio::test]
async fn delay_as_long_as_the_stop_timeout_gives_a_warning() {
    let warned = run(&mut entrypoint(&["--shutdown-delay", "30s", "--stop-timeout", "30s", "true"]), BOUND).await;
    assert_eq!(warned.code, 0);
    assert!(
        warned.stderr.contains("the shutdown delay of 30s is not shorter than the stop timeout of 30s"),
        "{}",
        warned.stderr
    );
    let fine = run(&mut entrypoint(&["--shutdown-delay", "29s", "--stop-timeout", "30s", "true"]), BOUND).await;
    assert_eq!((fine.code, fine.stderr.as_str()), (0, ""));
}

#[tokio::test]
async fn variables_of_the_app_never_prevent_its_start() {
    for name in ["app-entrypoint", "envoy-entrypoint"] {
        for (variable, value) in [("LOG_LEVEL", "WARNING"), ("LOG_FORMAT", "logfmt")] {
            let mut command = Command::new(binary(name));
            let finished = run(command.args(["sh", "-c", "exit 42"]).env(variable, value), BOUND).await;
            assert_eq!(finished.code, 42);
            assert!(finished.stderr.contains(&format!("{variable} is {value:?}")), "{}", finished.stderr);
        }
        // The other variable is used.
        let mut command = Command::new(binary(name));
        command.args(["sh", "-c", "exit 42"]).env("LOG_LEVEL", "WARNING").env("LOG_FORMAT", "json");
        let finished = run(&mut command, BOUND).await;
        assert!(finished.stderr.starts_with('{') && finished.stderr.contains("LOG_LEVEL is"), "{}", finished.stderr);
        let mut command = Command::new(binary(name));
        command.args(["sh", "-c", "exit 42"]).env("LOG_LEVEL", "error").env("LOG_FORMAT", "logfmt");
        let finished = run(&mut command, BOUND).await;
        assert_eq!((finished.code, finished.stderr.as_str()), (42, ""));
    }
    let mut command = entrypoint(&["sh", "-c", "exit 42"]);
    command.envs(["SHUTDOWN_DELAY", "STOP_TIMEOUT", "STOP_SIGNAL", "SIGNAL_GROUP"].map(|name| (name, "the app's")));
    let finished = run(&mut command, BOUND).await;
    assert_eq!((finished.code, finished.stderr.as_str()), (42, ""));
}

#[tokio::test]
async fn variables_work_like_flags_also_with_one_dash() {
    for (flags, variables) in [
        (&[][..], &[("APP_ENTRYPOINT_SHUTDOWN_DELAY", "30s"), ("APP_ENTRYPOINT_STOP_TIMEOUT", "30s")][..]),
        (&["-shutdown-delay", "30s", "-stop-timeout=30s"], &[]),
    ] {
        let mut command = entrypoint(&[flags, &["sh", "-c", "exit 42"]].concat());
        let finished = run(command.envs(variables.iter().copied()), BOUND).await;
        assert_eq!(finished.code, 42);
        assert!(
            finished.stderr.contains("the shutdown delay of 30s is not shorter than the stop timeout"),
            "{}",
            finished.stderr
        );
    }
    // If the switch is on, TERM goes to the whole group, and the app's child ends too.
    for (value, code) in [("1", 143), ("Yes", 143), ("TRUE", 143), ("0", 5), ("no", 5), ("False", 5)] {
        let script = "sh -c 'trap \"exit 5\" USR1; echo ready; while :; do sleep 0.05; done' & wait $!; exit $?";
        let script = format!("trap 'kill -USR1 $!; wait $!; exit $?' TERM; {script}");
        let mut process = Process::spawn(entrypoint(&["sh", "-c", &script]).env("APP_ENTRYPOINT_SIGNAL_GROUP", value));
        process.says("ready", BOUND).await;
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(BOUND).await, code, "{value}");
    }
}

/// An app that shares its standard error with app-entrypoint may set it non-blocking.
#[test]
fn full_standard_error_does_not_end_the_app() {
    let (_reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    // Without a signal it ends after a while.
    let app = APP.replace("while :; do", "for i in $(seq 100); do");
    let mut command = entrypoint(&["--shutdown-delay", "300ms", "sh", "-c", &app]);
    let mut process = command.stderr(writer).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "app got TERM");
    assert_eq!(process.wait().unwrap().code(), Some(7));
}

#[tokio::test]
async fn exit_code_is_that_of_the_app_or_of_a_shell() {
    assert_eq!(run(&mut entrypoint(&["sh", "-c", "exit 42"]), BOUND).await.code, 42);
    assert_eq!(run(&mut entrypoint(&["run", "sh", "-c", "kill -9 $$"]), BOUND).await.code, 137);
    assert_eq!(run(&mut entrypoint(&["no-such-program"]), BOUND).await.code, 127);
    let wrong = run(&mut entrypoint(&["--shutdown-delay", "soon", "true"]), BOUND).await;
    assert_eq!((wrong.code, wrong.stderr.lines().count()), (2, 1), "{}", wrong.stderr);
    let dir = tempfile::tempdir().unwrap();
    // A link in the volume is replaced. What it names stays.
    let (installed, elsewhere) = (dir.path().join("app-entrypoint"), dir.path().join("elsewhere"));
    std::fs::write(&elsewhere, "another's").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &installed).unwrap();
    assert_eq!(run(&mut entrypoint(&["install", dir.path().to_str().unwrap()]), BOUND).await.code, 0);
    assert!(installed.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_to_string(elsewhere).unwrap(), "another's");
}
