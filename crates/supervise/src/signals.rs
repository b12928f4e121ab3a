//! The signals of this process, held back from the first line of `main` on and read one by one.
//!
//! Nothing is installed that a signal would run: a signal that comes before the child has started waits, and one that comes after
//! the last was read changes nothing.

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

/// The signals of a fault in this process. Held back, they would be lost or repeat without end.
const FAULTS: [Named; 4] = [Named::SIGILL, Named::SIGBUS, Named::SIGFPE, Named::SIGSEGV];

/// Every signal of this process waits until it is read, to the end of the process: one that comes after the child's end would
/// otherwise take the place of its exit code.
#[derive(Debug)]
#[must_use = "nothing else reads the signals that are held back"]
pub struct HeldSignals {
    held: SigSet,
    before: SigSet,
}

impl HeldSignals {
    /// Holds back every signal that can be, but those of a fault. Call it first in `main`: threads that start later hold them back
    /// too, and a signal that one thread lets through would end the process. A system that refuses it ends the process, on one line.
    pub fn hold(program: &str) -> Self {
        let mut held = SigSet::all();
        for fault in FAULTS {
            held.remove(fault);
        }
        match held.thread_swap_mask(SigmaskHow::SIG_SETMASK) {
            Ok(before) => Self { held, before },
            Err(error) => exit::fail(program, &format!("cannot hold signals back: {error}"), exit::FAILURE),
        }
    }

    /// Lets them through again, in a program that runs no child.
    pub fn release(self) {
        // It fails only for a wrong argument.
        let _ = self.before.thread_set_mask();
    }

    /// What this process held back before.
    pub(crate) fn mask_before(&self) -> SigSet {
        self.before
    }

    /// A descriptor to read them from.
    pub(crate) fn listen(&self) -> io::Result<Signals> {
        // Our parent may have set SIGCHLD to be ignored; then the kernel would keep from us how a child ended. Being held back, the
        // handler never runs.
        signal_hook::flag::register(SIGCHLD, Arc::new(AtomicBool::new(false)))?;
        let descriptor = SignalFd::with_flags(&self.held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // SAFETY: a SignalFd owns its descriptor, which stays open and the same until it is dropped.
        #[allow(unsafe_code, reason = "tokio can't know this of every type")]
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Signals(descriptor.map_err(io::Error::from)?))
    }
}

/// The signals that were held back.
#[derive(Debug)]
pub(crate) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// The next signal that somebody else sent. May be cancelled and called again.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            let mut ready = self.0.readable().await.expect("a runtime with I/O");
            let read = ready.try_io(|descriptor| {
                descriptor.get_ref().read_signal()?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            let Ok(read) = read else { continue };
            let signal = read.expect("a descriptor of signals can be read");
            // Writing to a pipe that nobody reads raises PIPE on ourselves.
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
