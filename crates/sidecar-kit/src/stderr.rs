//! Standard error. Writing never blocks the program; lines may be lost instead.
//!
//! Standard error may be a full pipe (`awslogs` in its blocking mode), and a write to it then blocks. Other programs share the pipe, so it
//! must stay in blocking mode. Therefore a thread of its own writes.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How many lines may wait. Further lines are lost.
const WAITING: usize = 256;

/// How long the program's end may be delayed by waiting lines.
const END: Duration = Duration::from_secs(1);

/// The pause before the next attempt, if another program made standard error non-blocking.
const AGAIN: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

static QUEUE: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();

/// Queues one or more lines for standard error.
pub fn line(text: impl Into<Vec<u8>>) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("stderr".to_owned()).spawn(move || write(&messages));
        thread.is_ok().then_some(queue)
    });
    if let Some(queue) = queue {
        // If the queue is full, the line is lost.
        let _ = queue.try_send(Message::Line(text.into()));
    }
}

/// Waits until all lines are written, for at most a second. Call it at the program's end.
pub fn flush() {
    let Some(Some(queue)) = QUEUE.get() else { return };
    let deadline = Instant::now() + END;
    let (done, written) = sync_channel(1);
    let mut message = Message::Flush(done);
    while let Err(TrySendError::Full(unsent)) = queue.try_send(message) {
        if Instant::now() >= deadline {
            return;
        }
        message = unsent;
        thread::sleep(AGAIN);
    }
    // It fails at the deadline.
    let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// Standard error as a writer that takes whole lines.
#[derive(Debug)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        line(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(messages: &Receiver<Message>) {
    // Writing through `std::io::stderr` would hold its lock while a write blocks.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    for message in messages {
        match (message, &stderr) {
            (Message::Line(text), Ok(stderr)) => write_all(stderr, &text),
            (Message::Line(_), Err(_)) => {}
            // The caller of flush may have given up.
            (Message::Flush(done), _) => drop(done.try_send(())),
        }
    }
}

/// Writes the whole text, or gives up if standard error is closed.
fn write_all(mut stderr: &File, mut text: &[u8]) {
    while !text.is_empty() {
        match stderr.write(text) {
            Ok(0) => return,
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(AGAIN),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
