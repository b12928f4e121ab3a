//! Both entry points as a container's first process, tested from outside: they end, and signals reach the right processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};

const BOUND: Duration = Duration::from_secs(20);

const ENTRY_POINTS: [&str; 2] = ["app-entrypoint", "envoy-entrypoint"];

/// An entry point outside of ECS. It passes TERM on at once.
fn entry_point(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(name));
    command.env_remove("ECS_CONTAINER_METADATA_URI_V4").env("LOG_LEVEL", "error").args(arguments);
    command
}

/// One way for a command to end, and how often it is tried.
struct End {
    script: &'static str,
    signals: Signals,
    code: i32,
}

/// The signals that come before the end.
#[derive(Clone, Copy)]
enum Signals {
    None,
    /// TERM to the child, or to its group.
    Term {
        group: bool,
    },
    /// TERM, then these again and again until the entry point has ended.
    More(&'static [Signal]),
}

const TIMES: usize = 24;

const ENDS: [End; 7] = [
    End {
        script: "sleep 60 & sleep 60 & sleep 60 & sleep 60 & echo ready; wait",
        signals: Signals::Term { group: true },
        code: 143,
    },
    End {
        script: "for i in 1 2 3 4; do (exec sleep 0.$i) & done; echo ready; exec sleep 60",
        signals: Signals::More(&[Signal::WINCH, Signal::CONT, Signal::URG]),
        code: 143,
    },
    End {
        script: "trap 'kill $!; exit 3' TERM; sleep 60 & echo ready; wait",
        signals: Signals::More(&[Signal::TERM]),
        code: 3,
    },
    End { script: "yes | cat | cat > /dev/null & echo ready; wait", signals: Signals::Term { group: true }, code: 143 },
    End { script: "exec sh -c 'echo ready; exec sleep 60'", signals: Signals::Term { group: false }, code: 143 },
    End {
        script: "sleep 60 & sleep 60 & sleep 60 & echo ready; kill -9 $(jobs -p); exit 3",
        signals: Signals::None,
        code: 3,
    },
    End { script: "for i in 1 2 3 4 5 6 7 8; do true & done; echo ready; exit 3", signals: Signals::None, code: 3 },
];

/// A signal between the last event and the exit is rare. So the test has hundreds of ends, many at a time.
#[tokio::test]
async fn entry_point_ends_whenever_its_command_ends() {
    let ends = ENTRY_POINTS.iter().flat_map(|name| ENDS.iter().map(move |end| (*name, end)));
    let ends = ends.flat_map(|end| std::iter::repeat_n(end, TIMES));
    stream::iter(ends)
        .for_each_concurrent(16, |(name, End { script, signals, code })| async move {
            let mut command = entry_point(name, &["sh", "-c", script]);
            if matches!(signals, Signals::Term { group: true }) {
                command.envs(["APP_ENTRYPOINT_SIGNAL_GROUP", "ENVOY_ENTRYPOINT_SIGNAL_GROUP"].map(|name| (name, "1")));
            }
            let mut process = Process::spawn(&mut command);
            process.says("ready", BOUND).await;
            match signals {
                Signals::None => {}
                Signals::Term { .. } => process.signal(Signal::TERM),
                Signals::More(others) => {
                    process.signal(Signal::TERM);
                    // A process that has ended still takes signals until its parent waits for it.
                    for _ in 0..200 {
                        for signal in *others {
                            process.signal(*signal);
                        }
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
            }
            assert_eq!(process.exit_code(BOUND).await, *code, "{name}: {script}");
        })
        .await;
}

#[tokio::test]
async fn signal_goes_to_the_command_or_to_its_group() {
    // A worker without a trap, like that of a prefork server. TERM to the group would end it in the middle of its work.
    let script =
        "sh -c 'echo working; sleep 0.5; echo worker done' & trap 'wait; exit 5' TERM; echo ready; wait; exit 6";
    for name in ENTRY_POINTS {
        for (flags, whole) in [(&[][..], false), (&["--signal-group"], true)] {
            let mut process = Process::spawn(&mut entry_point(name, &[flags, &["sh", "-c", script]].concat()));
            process.says("ready", BOUND).await;
            process.says("working", BOUND).await;
            process.signal(Signal::TERM);
            assert_eq!(process.exit_code(BOUND).await, 5);
            if whole {
                assert!(!process.output().contains("worker done"), "{name}: {}", process.output());
            } else {
                process.says("worker done", BOUND).await;
            }
        }
    }
}

#[tokio::test]
async fn real_time_signals_reach_the_command() {
    // SIGRTMIN+3, the stop signal of images with systemd.
    let script = "trap 'exit 5' 37; echo ready; while :; do sleep 0.05; done";
    let mut process = Process::spawn(&mut entry_point("app-entrypoint", &["sh", "-c", script]));
    process.says("ready", BOUND).await;
    let sent = Command::new("sh").args(["-c", &format!("kill -37 {}", process.id())]).status().unwrap();
    assert!(sent.success());
    assert_eq!(process.exit_code(BOUND).await, 5);
}

#[tokio::test]
async fn command_inherits_the_signal_settings() {
    let show = ["sh", "-c", "grep -E '^Sig(Blk|Ign):' /proc/self/status"];
    for program in ["", "trap '' HUP; "] {
        let shell = |command: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{program}exec \"$0\" \"$@\"")]).args(command.split_whitespace()).args(show);
            shell
        };
        let alone = run(&mut shell("env"), BOUND).await.stdout;
        let under = run(&mut shell(binary("app-entrypoint").to_str().unwrap()), BOUND).await.stdout;
        assert_eq!(under, alone);
    }
}

#[tokio::test]
async fn exit_code_survives_a_parent_that_ignores_sigchld() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' CHLD; exec \"$0\" sh -c 'exit 42'"]).arg(binary("app-entrypoint"));
    assert_eq!(run(&mut command, BOUND).await.code, 42);
}

/// A full pipe as standard error, like that of the log driver `awslogs` in its blocking mode.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    for size in [4096, 1] {
        while writer.write(&vec![0; size]).is_ok() {}
    }
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// Waits for the end of a program that `Process` didn't start.
async fn exit_code(mut process: Child) -> Option<i32> {
    let begun = Instant::now();
    loop {
        match process.try_wait().unwrap() {
            Some(status) => return status.code(),
            None if begun.elapsed() < BOUND => tokio::time::sleep(Duration::from_millis(50)).await,
            None => {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("it still runs after {BOUND:?}")
            }
        }
    }
}

/// Prints a line when it gets TERM, and exits with 7. Without TERM it ends after a while.
const APP: &str = "trap 'echo app got TERM; exit 7' TERM; echo ready; for i in $(seq 300); do sleep 0.1; done";

#[tokio::test]
async fn unread_standard_error_delays_nothing() {
    for (name, flags) in [
        ("app-entrypoint", &["--shutdown-delay", "300ms"][..]),
        ("app-entrypoint", &[]),
        ("envoy-entrypoint", &["--gateway-delay", "300ms"]),
    ] {
        let (reader, writer) = full_pipe();
        let mut command = Command::new(binary(name));
        command.args(flags).args(["sh", "-c", APP]).stderr(writer).stdout(Stdio::piped());
        let mut process = command.env_remove("ECS_CONTAINER_METADATA_URI_V4").spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "ready");
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        assert_eq!(exit_code(process).await, Some(7), "{name} {flags:?}");
        assert_eq!(said.next().unwrap().unwrap(), "app got TERM");
        drop(reader);
    }
}

#[tokio::test]
async fn error_at_the_end_does_not_wait_for_standard_error() {
    for open in [true, false] {
        let (reader, writer) = full_pipe();
        let reader = open.then_some(reader);
        let process = entry_point("app-entrypoint", &["no-such-program"]).stderr(writer).spawn().unwrap();
        assert_eq!(exit_code(process).await, Some(127));
        drop(reader);
    }
}

#[tokio::test]
async fn closed_standard_error_sends_the_command_no_signal() {
    // PIPE would end the command.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(binary("app-entrypoint"));
    command
        .args(["--shutdown-delay", "1s", "sh", "-c", "echo ready; exec sleep 60"])
        .stderr(writer)
        .stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    drop((reader, command));
    let begun = Instant::now();
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(exit_code(process).await, Some(143));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A program with its own terminal, which util-linux's `script` provides. Bytes written to `script` are typed at the terminal.
struct Terminal {
    script: Child,
    output: std::sync::mpsc::Receiver<String>,
    seen: String,
}

impl Terminal {
    fn open(entry_points: &str, command: &str) -> Self {
        let path = binary("app-entrypoint");
        let path = path.parent().unwrap().display();
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", &format!("PATH={path}:$PATH exec {entry_points} {command}"), "/dev/null"]);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = script.stdout.take().unwrap();
        let (sender, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                let _ = sender.send(String::from_utf8_lossy(&buffer[..read]).into_owned());
            }
        });
        Self { script, output, seen: String::new() }
    }

    async fn says(&mut self, text: &str) {
        eventually(&format!("the terminal shows {text:?}"), BOUND, async || {
            self.seen.extend(self.output.try_iter());
            if self.seen.contains(text) { Ok(()) } else { Err(self.seen.clone()) }
        })
        .await;
    }

    fn types(&mut self, text: &str) {
        self.script.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    async fn exit_code(mut self) -> i32 {
        eventually("the program ends", BOUND, async || {
            self.script.try_wait().unwrap().and_then(|status| status.code()).ok_or_else(|| "it runs".to_owned())
        })
        .await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // In a test that passed, it has ended. The end of the terminal also ends the programs in it.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

#[tokio::test]
async fn command_reads_from_its_terminal_and_sets_it() {
    for entry_points in ["app-entrypoint", "envoy-entrypoint", "app-entrypoint app-entrypoint"] {
        let mut terminal = Terminal::open(entry_points, "sh -c 'stty -echo; echo ready; read x; echo got:$x; exit 4'");
        terminal.says("ready").await;
        terminal.types("hello\n");
        terminal.says("got:hello").await;
        assert_eq!(terminal.exit_code().await, 4, "{entry_points}");
    }
}

#[tokio::test]
async fn terminal_signals_reach_the_command() {
    // With tostop, the terminal stops a background process that writes to it. The entry point is such a process, and logs.
    let command = "--shutdown-delay 1s sh -c 'stty tostop; trap \"echo got INT\" INT; echo ready $PPID; sleep 1; while :; do sleep 0.1; done'";
    let mut terminal = Terminal::open("app-entrypoint", command);
    terminal.says("ready").await;
    terminal.types("\x03");
    terminal.says("got INT").await;
    let (_, rest) = terminal.seen.split_once("ready ").unwrap();
    let entry_point = rest.lines().next().unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(entry_point).unwrap(), Signal::TERM).unwrap();
    terminal.says("the app runs on for 1s").await;
    assert_eq!(terminal.exit_code().await, 143);
}
