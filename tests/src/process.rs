//! Programs under test. Each runs in its own process group, and the test can read its output.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::eventually;

/// A running program. Dropping it kills its process group and every process below it.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    /// Starts the program. [`Self::output`] has its standard output and standard error.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        let output = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take().expect("stdout is piped"), output.clone());
        keep(child.stderr.take().expect("stderr is piped"), output.clone());
        Self { name, child, output }
    }

    /// Its standard output and standard error until now, together.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().expect("no writer panics").clone()
    }

    /// Its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program, and not to its children.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits until the program ends. Returns the exit code, or 128 + n for signal n.
    ///
    /// # Panics
    /// When it still runs after `bound`.
    pub async fn exit_code(&mut self, bound: Duration) -> i32 {
        let Self { name, child, output } = self;
        let status: ExitStatus = eventually(&format!("{name} ends"), bound, async || {
            child.try_wait().expect("a child can be waited for").ok_or_else(|| output.lock().unwrap().clone())
        })
        .await;
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// Waits until its output contains `text`.
    ///
    /// # Panics
    /// When it doesn't within `bound`.
    pub async fn says(&self, text: &str, bound: Duration) {
        eventually(&format!("{} says {text:?}", self.name), bound, async || {
            let output = self.output();
            if output.contains(text) { Ok(()) } else { Err(output) }
        })
        .await;
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child may have its own process group. Any process may have ended already.
        let below = descendants(self.pid());
        let _ = kill_process_group(self.pid(), Signal::KILL);
        for process in below {
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, self.output());
        }
    }
}

/// The processes below one.
fn descendants(process: Pid) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).into_iter().flatten().flatten();
    // A child belongs to the thread that started it.
    let children = threads.flat_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect::<Vec<_>>()
    });
    children.flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

fn keep(stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            output.lock().expect("no writer panics").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}

/// How a program ended, and what it printed.
pub struct Finished {
    /// The exit code, or 128 + n for signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started or still runs after `bound`.
pub async fn run(command: &mut Command, bound: Duration) -> Finished {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
    let pid = Pid::from_child(&child);
    let finished = tokio::task::spawn_blocking(move || child.wait_with_output());
    match tokio::time::timeout(bound, finished).await {
        Ok(output) => {
            let output = output.expect("waiting does not panic").expect("a child can be waited for");
            Finished {
                code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        }
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            panic!("{name} still runs after {bound:?}")
        }
    }
}
