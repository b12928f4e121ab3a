//! Standard error: a line may be lost, but none is waited for.
//!
//! Standard error may be a pipe that nobody empties (`awslogs` in its blocking mode), and then a write lasts until somebody does. The
//! pipe is shared with other programs, so it can't be made non-blocking either. So a thread of its own writes.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How many lines wait to be written; one more is lost.
const WAITING: usize = 256;

/// How long the program's end is held up for lines that are not written yet.
const END: Duration = Duration::from_secs(1);

/// How long to wait before a write is tried again where another program made standard error non-blocking.
const AGAIN: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

static QUEUE: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();

/// Writes a line, or more than one, to standard error soon.
pub fn line(text: impl Into<Vec<u8>>) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("stderr".to_owned()).spawn(move || write(&messages));
        thread.is_ok().then_some(queue)
    });
    if let Some(queue) = queue {
        // It is full: the line is lost.
        let _ = queue.try_send(Message::Line(text.into()));
    }
}

/// Waits until all lines are written, for a second at most. For the program's end.
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
    // It fails when the time is over.
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
    // Not through `std::io::stderr`: this thread would hold its lock for as long as a write lasts.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    for message in messages {
        match (message, &stderr) {
            (Message::Line(text), Ok(stderr)) => write_all(stderr, &text),
            (Message::Line(_), Err(_)) => {}
            // Nobody may wait for it any more.
            (Message::Flush(done), _) => drop(done.try_send(())),
        }
    }
}

/// Writes all of the text, or gives it up where standard error is closed.
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
