//! Runs one child, with the duties of a container's first process.
//!
//! The child gets its own process group and, if standard input is a terminal, the terminal. Every signal that can be blocked is
//! forwarded to the child, except those that the caller handles. Orphans are reaped, and the child's end becomes an exit code.

pub mod entrypoint;
#[cfg(feature = "envoy")]
pub mod envoy;
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
    /// The program exists, but cannot be run.
    #[error("cannot run {program}")]
    NotExecutable {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// Signals could not be blocked or read.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
}

impl StartError {
    /// The exit code that a shell gives: 127 if there is no such program, 126 if it cannot be run (POSIX, Shell Command Language,
    /// 2.8.2).
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
    /// The child exited with this code.
    Exited(u8),
    /// This signal ended the child.
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

/// What [`Supervised::next`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal that the caller handles.
    Signal(Signal),
    /// The child has ended.
    Ended(Ended),
}

/// The receiver of forwarded signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Only the child. A program with workers passes signals on to them itself.
    Child,
    /// The child's whole process group.
    Group,
}

/// The running child. Dropping this does not end the child.
#[must_use = "signals are forwarded and orphans are reaped only during `next`"]
pub struct Supervised {
    command: Vec<OsString>,
    target: Target,
    handled: Vec<Signal>,
    /// The variables that the child does not get.
    hidden: &'static [&'static str],
    /// None once the child has ended. Another process may then get its process ID.
    child: Option<Pid>,
    signals: Signals,
    held: HeldSignals,
}

impl Supervised {
    /// Starts `command` (program, then arguments) in its own process group. Signals in `handled` are not forwarded:
    /// [`Supervised::next`] returns them.
    ///
    /// # Errors
    /// If the program cannot run, or signals cannot be read.
    pub fn start(
        held: HeldSignals,
        command: &[OsString],
        target: Target,
        handled: &[Signal],
    ) -> Result<Self, StartError> {
        Self::start_without(&[], held, command, target, handled)
    }

    /// The same, but the child does not get these variables.
    ///
    /// # Errors
    /// As [`Supervised::start`].
    pub fn start_without(
        hidden: &'static [&'static str],
        held: HeldSignals,
        command: &[OsString],
        target: Target,
        handled: &[Signal],
    ) -> Result<Self, StartError> {
        // With a shared PID namespace (`pidMode`), this process is not PID 1. As a subreaper it gets the orphans all the same.
        set_child_subreaper(Some(getpid())).map_err(|error| StartError::Signals(error.into()))?;
        let signals = held.listen().map_err(StartError::Signals)?;
        let child = Some(spawn(command, hidden, &held)?);
        Ok(Self { command: command.to_vec(), target, handled: handled.to_vec(), hidden, child, signals, held })
    }

    /// Starts the command again, after the child's end. No signal is lost in between.
    ///
    /// # Errors
    /// If the program cannot run.
    pub fn restart(&mut self) -> Result<(), StartError> {
        self.child = Some(spawn(&self.command, self.hidden, &self.held)?);
        Ok(())
    }

    /// The next handled signal, or the child's end. Forwards the other signals and reaps orphans while it waits. Cancel-safe.
    /// After the child's end this returns only signals, until [`Supervised::restart`].
    pub async fn next(&mut self) -> Event {
        loop {
            let signal = self.signals.next().await;
            if signal == Signal::CHILD {
                if let Some(ended) = self.reap() {
                    return Event::Ended(ended);
                }
            } else if self.handled.contains(&signal) {
                return Event::Signal(signal);
            } else {
                self.send(signal);
            }
        }
    }

    /// Runs until the child's end. Drops handled signals.
    pub async fn run(mut self) -> Ended {
        loop {
            if let Event::Ended(ended) = self.next().await {
                return ended;
            }
        }
    }

    /// Sends a signal to the [`Target`].
    pub fn send(&self, signal: Signal) {
        let Some(child) = self.child else { return };
        let sent = match self.target {
            Target::Child => kill_process(child, signal),
            Target::Group => kill_process_group(child, signal),
        };
        // The child may have left its group, or have changed its user.
        if let Err(error) = sent {
            tracing::warn!("signal {} does not reach the child: {error}", signal.as_raw());
        }
    }

    /// Sends KILL to the child and to its whole process group.
    pub fn kill(&self) {
        let Some(child) = self.child else { return };
        // The first call fails if the child has left its group.
        let _ = kill_process_group(child, Signal::KILL);
        let _ = kill_process(child, Signal::KILL);
    }

    /// Reaps every process that has ended. If the child is among them, returns how it ended.
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

fn spawn(command: &[OsString], hidden: &[&str], held: &HeldSignals) -> Result<Pid, StartError> {
    let (program, arguments) = command.split_first().ok_or(StartError::Empty)?;
    let mut command = Command::new(program);
    for variable in hidden {
        command.env_remove(variable);
    }
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

/// Lets the child take the terminal, if there is one, and unblock signals before it becomes the program. The parent must not do this
/// after the start: the program may be another entry point that has already given the terminal to its own child.
#[allow(unsafe_code, reason = "nothing but a system call between fork and exec can do this")]
fn before_exec<'a>(command: &'a mut Command, held: &HeldSignals) -> &'a mut Command {
    let mask = held.mask_before();
    let prepare = move || {
        // It fails if standard input is not this session's terminal. A group in the background may do it only while TTOU is blocked.
        let _ = tcsetpgrp(stdin(), getpgrp());
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec, only functions that are safe in a signal handler may run. These are three system calls (ioctl,
    // getpgid and rt_sigprocmask). They allocate nothing and take no lock.
    unsafe { command.pre_exec(prepare) }
}
