//! envoy-entrypoint and `supervise`, tested from outside like tini: exit codes, signals, orphans.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;

const BOUND: Duration = Duration::from_secs(20);

fn entrypoint(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("envoy-entrypoint"));
    command.args(arguments);
    command
}

#[tokio::test]
async fn every_exit_code_is_passed_on() {
    for code in 0..=255 {
        let exit = format!("exit {code}");
        let verb: &[&str] = if code % 2 == 0 { &["run", "sh", "-c", &exit] } else { &["sh", "-c", &exit] };
        assert_eq!(run(&mut entrypoint(verb), BOUND).await.code, code);
    }
}

#[tokio::test]
async fn child_ended_by_a_signal_gives_128_and_its_number() {
    for signal in [1, 2, 3, 6, 9, 11, 13, 15] {
        let kill = format!("kill -{signal} $$");
        assert_eq!(run(&mut entrypoint(&["sh", "-c", &kill]), BOUND).await.code, 128 + signal);
    }
}

#[tokio::test]
async fn every_signal_reaches_the_child() {
    const STOPS: [Signal; 3] = [Signal::TSTP, Signal::TTIN, Signal::TTOU];
    let forwarded = [
        (Signal::CONT, "CONT"),
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::TRAP, "TRAP"),
        (Signal::ABORT, "ABRT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::PIPE, "PIPE"),
        (Signal::ALARM, "ALRM"),
        (Signal::TSTP, "TSTP"),
        (Signal::TTIN, "TTIN"),
        (Signal::TTOU, "TTOU"),
        (Signal::URG, "URG"),
        (Signal::XCPU, "XCPU"),
        (Signal::XFSZ, "XFSZ"),
        (Signal::VTALARM, "VTALRM"),
        (Signal::PROF, "PROF"),
        (Signal::IO, "IO"),
        (Signal::POWER, "PWR"),
        (Signal::SYS, "SYS"),
        (Signal::WINCH, "WINCH"),
        // TERM begins the end of Envoy.
        (Signal::TERM, "TERM"),
    ];
    let traps = forwarded.map(|(_, name)| format!("trap 'echo got {name}' {name}; ")).concat();
    let script = format!("{traps} echo ready; while :; do sleep 0.05; done");
    let process = Process::spawn(&mut entrypoint(&["sh", "-c", &script]));
    process.says("ready", BOUND).await;
    for (signal, name) in forwarded {
        process.signal(signal);
        eventually(&format!("{name} reaches the child"), BOUND, async || {
            // CONT discards pending stop signals.
            if STOPS.contains(&signal) {
                process.signal(Signal::CONT);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let output = process.output();
            if output.contains(&format!("got {name}")) {
                return Ok(());
            }
            if STOPS.contains(&signal) {
                process.signal(signal);
            }
            Err(output)
        })
        .await;
    }
}

#[tokio::test]
async fn term_right_after_the_start_is_not_lost() {
    for _ in 0..20 {
        let mut process = Process::spawn(&mut entrypoint(&["sleep", "60"]));
        // It sends TERM as soon as signals are blocked, which is before the child starts.
        eventually("signals are blocked", BOUND, async || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
            let held = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
            let term = u64::from_str_radix(held, 16).unwrap() >> (Signal::TERM.as_raw() - 1) & 1;
            if term == 1 { Ok(()) } else { Err(held.to_owned()) }
        })
        .await;
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(BOUND).await, 128 + 15);
    }
}

#[tokio::test]
async fn orphans_are_reaped() {
    // Each inner shell leaves a child behind, which ends after 2 s.
    let script = "for i in 1 2 3 4 5; do sh -c 'sleep 2 &'; done; echo left; sleep 60";
    let process = Process::spawn(&mut entrypoint(&["sh", "-c", script]));
    process.says("left", BOUND).await;
    let children = format!("/proc/{0}/task/{0}/children", process.id());
    eventually("the orphans have come", BOUND, async || {
        let children = std::fs::read_to_string(&children).unwrap();
        if children.split_whitespace().count() == 6 { Ok(()) } else { Err(children) }
    })
    .await;
    eventually("only the child is left", BOUND, async || {
        let children = std::fs::read_to_string(&children).unwrap();
        if children.split_whitespace().count() == 1 { Ok(()) } else { Err(children) }
    })
    .await;
}

#[tokio::test]
async fn command_that_cannot_run_gives_one_line_and_126_or_127() {
    let missing = run(&mut entrypoint(&["no-such-program"]), BOUND).await;
    assert_eq!((missing.code, missing.stderr.lines().count()), (127, 1));
    assert_eq!(missing.stderr, "envoy-entrypoint: cannot run no-such-program: no such program\n");
    let directory = run(&mut entrypoint(&["/tmp"]), BOUND).await;
    assert_eq!((directory.code, directory.stderr.lines().count()), (126, 1));
    let nothing = run(&mut entrypoint(&[]), BOUND).await;
    assert_eq!((nothing.code, nothing.stderr.as_str()), (2, "envoy-entrypoint: it needs arguments (see --help)\n"));
}

#[tokio::test]
async fn wrong_value_error_names_its_variable() {
    let finished = run(entrypoint(&["true"]).env("ENVOY_ENTRYPOINT_GRACE", "soon"), BOUND).await;
    assert_eq!((finished.code, finished.stderr.lines().count()), (2, 1));
    assert!(finished.stderr.contains("'soon' for '--grace <DURATION>'"), "{}", finished.stderr);
    assert!(finished.stderr.ends_with(" (the variable ENVOY_ENTRYPOINT_GRACE; see --help)\n"), "{}", finished.stderr);
    let finished = run(entrypoint(&["--grace", "never", "true"]).env("ENVOY_ENTRYPOINT_GRACE", "soon"), BOUND).await;
    assert!(finished.stderr.contains("'never'") && !finished.stderr.contains("variable"), "{}", finished.stderr);
    // A flag with one dash, an empty variable, a flag of the command, a flag of a verb.
    for (arguments, variable, named) in [
        (&["-grace", "never", "true"][..], ("ENVOY_ENTRYPOINT_GRACE", "soon"), false),
        (&["-grace", "never", "true"], ("ENVOY_ENTRYPOINT_GRACE", ""), false),
        (&["app", "--grace", "1s"], ("ENVOY_ENTRYPOINT_GRACE", "soon"), true),
        (&["dial", "--timeout", "never", "a:1"], ("ENVOY_ENTRYPOINT_DIAL_TIMEOUT", "soon"), false),
        (&["dial", "a:1"], ("ENVOY_ENTRYPOINT_DIAL_TIMEOUT", "soon"), true),
    ] {
        let finished = run(entrypoint(arguments).env(variable.0, variable.1), BOUND).await;
        assert_eq!((finished.code, finished.stderr.lines().count()), (2, 1));
        assert_eq!(finished.stderr.contains("the variable"), named, "{arguments:?}: {}", finished.stderr);
    }
}

#[tokio::test]
async fn install_copies_a_binary_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("envoy-entrypoint");
    for _ in 0..2 {
        let installed = run(&mut entrypoint(&["install", dir.path().to_str().unwrap()]), BOUND).await;
        assert_eq!((installed.code, installed.stderr.as_str()), (0, ""));
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(run(Command::new(&path).args(["sh", "-c", "exit 9"]), BOUND).await.code, 9);
    let failed = run(&mut entrypoint(&["install", "/no/such/directory"]), BOUND).await;
    assert_eq!((failed.code, failed.stderr.lines().count()), (1, 1));
}

#[tokio::test]
async fn dial_says_whether_a_program_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    assert_eq!(run(&mut entrypoint(&["dial", &address]), BOUND).await.code, 0);
    for host in ["127.0.0.1", "localhost"] {
        let closed = format!("{host}:{}", free_port());
        let refused = run(&mut entrypoint(&["dial", &closed]), BOUND).await;
        assert_eq!(refused.code, 1);
        let expected = format!("cannot connect to {closed}: Connection refused");
        assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    }
}

#[tokio::test]
async fn dial_of_localhost_finds_a_program_that_listens_on_one_family_of_addresses() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let localhost = format!("localhost:{}", listener.local_addr().unwrap().port());
        let dialled = run(&mut entrypoint(&["dial", &localhost]), BOUND).await;
        assert_eq!((dialled.code, dialled.stderr.as_str()), (0, ""), "{address}");
    }
}

#[tokio::test]
async fn envoy_gets_the_hard_limit_of_open_files() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 64; exec \"$0\" sh -c 'ulimit -Sn; ulimit -Hn'"]).arg(binary("envoy-entrypoint"));
    let finished = run(&mut command, BOUND).await;
    let (soft, hard) = finished.stdout.trim().split_once('\n').unwrap();
    assert_eq!(soft, hard);
    assert_ne!(soft, "64");
}

#[tokio::test]
async fn variable_sets_the_number_of_workers_of_envoy() {
    let command = ["echo", "envoy", "--concurrency", "2", "-l", "info"];
    let unchanged = run(&mut entrypoint(&command), BOUND).await.stdout;
    assert_eq!(unchanged, "envoy --concurrency 2 -l info\n");
    let changed = run(entrypoint(&command).env("ENVOY_ENTRYPOINT_CONCURRENCY", "3"), BOUND).await.stdout;
    assert_eq!(changed, "envoy -l info --concurrency 3\n");
    let wrong = run(entrypoint(&command).env("ENVOY_ENTRYPOINT_CONCURRENCY", "0"), BOUND).await;
    assert_eq!((wrong.code, wrong.stderr.lines().count()), (2, 1), "{}", wrong.stderr);
}
