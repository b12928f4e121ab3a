//! TERM and INT, the two signals that ask a program to end.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::StreamExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook_tokio::Signals;

/// TERM and INT cannot be caught.
#[derive(Debug, thiserror::Error)]
#[error("cannot catch TERM and INT")]
pub struct SignalsError(#[from] io::Error);

/// A signal that asks the program to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// TERM, which ECS and Docker send.
    Term,
    /// INT, which a terminal sends for Ctrl-C.
    Interrupt,
}

/// TERM and INT, which no longer end the process once they are caught.
pub struct StopSignals(Signals);

impl StopSignals {
    /// Catches both from now on. Call it first: a signal that comes while the program starts is then not lost.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn catch() -> Result<Self, SignalsError> {
        Ok(Self(Signals::new([SIGTERM, SIGINT])?))
    }

    /// The next of the two signals. The future can be dropped without losing one.
    pub async fn next(&mut self) -> Stop {
        match self.0.next().await {
            Some(SIGINT) => Stop::Interrupt,
            Some(_) => Stop::Term,
            None => pending().await,
        }
    }
}

/// Lets TERM end the process with 143 and INT with 130, also as PID 1. For PID 1 the kernel drops a signal without a handler, and
/// the container would end only by KILL.
///
/// # Errors
/// When the system refuses.
pub fn end_on_signals() -> Result<(), SignalsError> {
    for signal in [SIGTERM, SIGINT] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::new(AtomicBool::new(true)))?;
    }
    Ok(())
}
