//! Runs one child the way PID 1 has to.
//!
//! The child gets a process group of its own and, where standard input is a terminal, the terminal. It forwards every signal that
//! can be held back, except those the caller keeps. Orphans are reaped, and the child's end becomes an exit code.

pub mod entrypoint;
mod signals;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, getpid, kill_process, kill_process_group, set_child_subreaper, wait,
};
use rustix::stdio::stdin;
use rustix::termios::tcsetpgrp;

pub use signals::HeldSignals;
use signals::Signals;

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
    /// Signals could not be held back or read.
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

/// Who gets the signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The child alone: a program with workers tells them itself.
    Child,
    /// The child's whole process group.
    Group,
}

/// The running child. Dropping it leaves the child alone.
#[must_use = "signals are forwarded and orphans reaped only while it is asked for events"]
pub struct Supervised {
    command: Vec<OsString>,
    target: Target,
    kept: Vec<Signal>,
    /// None once it has ended: its process ID may then be another's.
    child: Option<Pid>,
    signals: Signals,
    held: HeldSignals,
}

impl Supervised {
    /// Starts `command` (program, then arguments) in a process group of its own. Signals in `kept` are not forwarded but
    /// come as [`Event::Signal`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(held: HeldSignals, command: &[OsString], target: Target, kept: &[Signal]) -> Result<Self, StartError> {
        // Orphans come to us also where we aren't PID 1 (a task that shares its PID namespace).
        set_child_subreaper(Some(getpid())).map_err(|error| StartError::Signals(error.into()))?;
        let signals = held.listen().map_err(StartError::Signals)?;
        let child = Some(spawn(command, &held)?);
        Ok(Self { command: command.to_vec(), target, kept: kept.to_vec(), child, signals, held })
    }

    /// Starts the command again, after the child's end. No signal is lost in between.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.child = Some(spawn(&self.command, &self.held)?);
        Ok(())
    }

    /// The next kept signal or the child's end; forwards and reaps meanwhile. May be cancelled and called again. After
    /// the end only signals come, until the child is started again.
    pub async fn next(&mut self) -> Event {
        loop {
            let signal = self.signals.next().await;
            if signal == Signal::CHILD {
                if let Some(ended) = self.reap() {
                    return Event::Ended(ended);
                }
            } else if self.kept.contains(&signal) {
                return Event::Signal(signal);
            } else {
                self.send(signal);
            }
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

    /// Sends a signal to the child, or to its whole process group: as [`Supervised::start`] was told.
    pub fn send(&self, signal: Signal) {
        let Some(child) = self.child else { return };
        let sent = match self.target {
            Target::Child => kill_process(child, signal),
            Target::Group => kill_process_group(child, signal),
        };
        // It may have left its group, or be another user's by now.
        if let Err(error) = sent {
            tracing::warn!("signal {} does not reach the child: {error}", signal.as_raw());
        }
    }

    /// Sends KILL to the child and to all of its process group.
    pub fn kill(&self) {
        let Some(child) = self.child else { return };
        // The group is empty where the child has left it.
        let _ = kill_process_group(child, Signal::KILL);
        let _ = kill_process(child, Signal::KILL);
    }

    /// Reaps every process that has ended; the child's end if it is among them.
    fn reap(&mut self) -> Option<Ended> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.child {
                self.child = None;
                ended = status
                    .exit_status()
                    .map(|code| Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX)))
                    .or(status.terminating_signal().map(|n| Ended::Killed(u8::try_from(n).unwrap_or(u8::MAX))));
            }
        }
        ended
    }
}

fn spawn(command: &[OsString], held: &HeldSignals) -> Result<Pid, StartError> {
    let (program, arguments) = command.split_first().ok_or(StartError::Empty)?;
    let mut command = Command::new(program);
    let started = before_exec(command.args(arguments).process_group(0), held).spawn();
    let child = Pid::from_child(&started.map_err(|source| {
        let program = program.to_string_lossy().into_owned();
        match source.kind() {
            io::ErrorKind::NotFound => StartError::NotFound { program },
            _ => StartError::NotExecutable { program, source },
        }
    })?);
    tracing::debug!(pid = child.as_raw_nonzero().get(), program = %program.to_string_lossy(), "started");
    Ok(child)
}

/// What the child does in its own process group before it becomes the program: it takes the terminal, if it has one, and lets signals
/// through. Only the child can take the terminal in the right order, where the program does the same for a child of its own.
#[allow(unsafe_code, reason = "nothing but a system call between fork and exec can do this")]
fn before_exec<'a>(command: &'a mut Command, held: &HeldSignals) -> &'a mut Command {
    let mask = held.mask_before();
    let prepare = move || {
        // It fails where standard input is no terminal, or not this session's. A group in the background may do it only while TTOU is
        // held back.
        let _ = tcsetpgrp(stdin(), getpgrp());
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec only functions may be called that are safe in a signal handler. These are three system calls:
    // ioctl, getpgid and rt_sigprocmask; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) }
}
