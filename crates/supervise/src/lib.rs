//! Runs one child the way PID 1 has to.
//!
//! The child gets a process group of its own, every signal that can be caught is forwarded to that group but those a
//! caller keeps, orphans are reaped, and the child's end becomes an exit code. Handlers stand before the child starts, so
//! no signal is lost in between.

pub mod entrypoint;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use futures_util::StreamExt;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, set_child_subreaper, wait};
use signal_hook::consts::SIGCHLD;
use signal_hook_tokio::Signals;

/// A program that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No program was named.
    #[error("no command to run: name a program and its arguments")]
    Empty,
    /// There is no such program.
    #[error("cannot run {program}: no such program")]
    NotFound {
        /// The program.
        program: String,
    },
    /// It is there, but cannot be run.
    #[error("cannot run {program}")]
    NotExecutable {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The signal handlers could not be set.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
}

impl StartError {
    /// The exit code that shells give for this: 127 for a program that isn't there, 126 for one that cannot be run
    /// (POSIX, Shell Command Language, 2.8.2).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::Empty | Self::NotExecutable { .. } | Self::Signals(_) => 126,
        }
    }
}

/// How the child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl Ended {
    /// The child's exit code, or 128 + n for signal n.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        ended.code().into()
    }
}

/// What a caller hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal that the caller keeps has come.
    Signal(Signal),
    /// The child has ended.
    Ended(Ended),
}

/// The running child. Dropping it leaves the child alone.
#[must_use = "signals are forwarded and orphans reaped only while it is asked for events"]
pub struct Supervised {
    command: Vec<OsString>,
    child: Pid,
    signals: Signals,
    kept: Vec<Signal>,
}

impl Supervised {
    /// Starts `command` (program, then arguments) in a process group of its own. Signals in `kept` are not forwarded but
    /// come as [`Event::Signal`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(command: &[OsString], kept: &[Signal]) -> Result<Self, StartError> {
        // Orphans come to us also where we aren't PID 1 (a task that shares its PID namespace).
        set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| StartError::Signals(error.into()))?;
        let signals = Signals::new(catchable().chain([SIGCHLD])).map_err(StartError::Signals)?;
        Ok(Self { command: command.to_vec(), child: spawn(command)?, signals, kept: kept.to_vec() })
    }

    /// Starts the command again, after the child's end. No signal is lost in between.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.child = spawn(&self.command)?;
        Ok(())
    }

    /// The next kept signal or the child's end; forwards and reaps meanwhile. May be cancelled and called again. After
    /// the end only signals come, until the child is started again.
    pub async fn next(&mut self) -> Event {
        loop {
            let number = self.signals.next().await.expect("the stream of signals ends only when it is closed");
            if number == SIGCHLD {
                if let Some(ended) = self.reap() {
                    return Event::Ended(ended);
                }
                continue;
            }
            let Some(signal) = Signal::from_named_raw(number) else { continue };
            if self.kept.contains(&signal) {
                return Event::Signal(signal);
            }
            self.send(signal);
        }
    }

    /// Runs until the child's end. Kept signals are dropped.
    pub async fn run(mut self) -> Ended {
        loop {
            if let Event::Ended(ended) = self.next().await {
                return ended;
            }
        }
    }

    /// Sends a signal to the child's process group.
    pub fn send(&self, signal: Signal) {
        // The group is empty when all in it have ended: then there is nobody left to tell.
        if let Err(error) = kill_process_group(self.child, signal) {
            tracing::debug!(signal = signal.as_raw(), %error, "signal not delivered");
        }
    }

    /// Takes leave of every process that has ended; the child's end if it is among them.
    fn reap(&self) -> Option<Ended> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.child {
                ended = status
                    .exit_status()
                    .map(|code| Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX)))
                    .or(status.terminating_signal().map(|n| Ended::Killed(u8::try_from(n).unwrap_or(u8::MAX))));
            }
        }
        ended
    }
}

fn spawn(command: &[OsString]) -> Result<Pid, StartError> {
    let (program, arguments) = command.split_first().ok_or(StartError::Empty)?;
    let child = Command::new(program).args(arguments).process_group(0).spawn().map_err(|source| {
        let program = program.to_string_lossy().into_owned();
        match source.kind() {
            io::ErrorKind::NotFound => StartError::NotFound { program },
            _ => StartError::NotExecutable { program, source },
        }
    })?;
    let child = Pid::from_child(&child);
    tracing::debug!(pid = child.as_raw_nonzero().get(), program = %program.to_string_lossy(), "started");
    Ok(child)
}

/// Every standard signal (1 to 31; real-time signals have no use in ECS) but those that cannot be caught, those of a fault of
/// our own, to which a handler would return without end, and SIGCHLD, which tells of children.
fn catchable() -> impl Iterator<Item = i32> {
    const FAULTS: [Signal; 4] = [Signal::ILL, Signal::BUS, Signal::FPE, Signal::SEGV];
    let never = [Signal::KILL, Signal::STOP, Signal::CHILD].into_iter().chain(FAULTS).map(Signal::as_raw);
    let never = never.collect::<Vec<_>>();
    (1..32).filter(move |number| !never.contains(number))
}
