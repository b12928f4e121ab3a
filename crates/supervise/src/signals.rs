//! The signals of this process: blocked from the first line of `main` on, and read one by one.
//!
//! No signal handler runs. A signal that comes before the child has started waits, and a signal that comes after the last read has no
//! effect.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Named};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt;
use sidecar_kit::exit;
use signal_hook::consts::SIGCHLD;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The signals of a fault in this process. If they were blocked, they would be lost or repeat without end.
const FAULTS: [Named; 4] = [Named::SIGILL, Named::SIGBUS, Named::SIGFPE, Named::SIGSEGV];

/// The blocked signals of this process. They stay blocked to its end: a signal that comes after the child's end would otherwise
/// replace the child's exit code.
#[derive(Debug)]
#[must_use = "nothing else reads the blocked signals"]
pub struct HeldSignals {
    held: SigSet,
    before: SigSet,
}

impl HeldSignals {
    /// Blocks every signal that can be blocked, except those of a fault. Call it first in `main`, so that all later threads block them
    /// too: a signal that one thread doesn't block would end the process. If blocking fails, the process ends with one line.
    pub fn hold(program: &str) -> Self {
        let mut held = SigSet::all();
        for fault in FAULTS {
            held.remove(fault);
        }
        match held.thread_swap_mask(SigmaskHow::SIG_SETMASK) {
            Ok(before) => Self { held, before },
            Err(error) => exit::fail(program, &format!("cannot block signals: {error}"), exit::FAILURE),
        }
    }

    /// Unblocks the signals, for a program that runs no child.
    pub fn release(self) {
        // It fails only for a wrong argument.
        let _ = self.before.thread_set_mask();
    }

    /// Waits for TERM, INT or QUIT. They end a program whose child has not started yet. All other signals stay for the child.
    ///
    /// # Errors
    /// If the signals cannot be read.
    pub async fn stop(&self) -> io::Result<()> {
        let stops = SigSet::from_iter([Named::SIGTERM, Named::SIGINT, Named::SIGQUIT]);
        Signals::of(&stops)?.next().await;
        Ok(())
    }

    /// The signals that were blocked before.
    pub(crate) fn mask_before(&self) -> SigSet {
        self.before
    }

    /// Opens a descriptor that gives the signals.
    pub(crate) fn listen(&self) -> io::Result<Signals> {
        // If the parent process has set SIGCHLD to be ignored, the kernel doesn't report how a child ended. Any handler changes that.
        // This one never runs, because the signal is blocked.
        signal_hook::flag::register(SIGCHLD, Arc::new(AtomicBool::new(false)))?;
        Signals::of(&self.held)
    }
}

/// Reads the blocked signals.
#[derive(Debug)]
pub(crate) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    fn of(signals: &SigSet) -> io::Result<Self> {
        let descriptor = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a SignalFd owns its descriptor, which stays open and the same until it is dropped.
        #[allow(unsafe_code, reason = "tokio can't know this of every type")]
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(descriptor.map_err(io::Error::from)?))
    }

    /// The next signal that another process sent. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            let mut ready = self.0.readable().await.expect("a runtime with I/O");
            let read = ready.try_io(|descriptor| {
                descriptor.get_ref().read_signal()?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            let Ok(read) = read else { continue };
            let signal = read.expect("a descriptor of signals can be read");
            // This process gets PIPE from itself when it writes to a pipe that nobody reads.
            if signal.ssi_pid == std::process::id() {
                continue;
            }
            let number = i32::try_from(signal.ssi_signo).expect("a signal's number is small");
            if let Some(signal) = Signal::from_raw(number) {
                return signal;
            }
        }
    }
}
