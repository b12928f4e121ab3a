//! `health-sync healthy`: the container's health check asks the running health-sync over an abstract unix socket, which needs no
//! file and no volume. The running health-sync answers from its event loop, so no answer comes if it is dead or hangs.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use sidecar_kit::env::Env;
use sidecar_kit::server::accept;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

/// How long `healthy` waits for an answer. ECS ends a health check after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long one answer may take. The next question waits for it.
const ANSWER: Duration = Duration::from_secs(3);

const HEALTHY: &str = "healthy";

/// The longest abstract name, in bytes (unix(7)).
const NAME_MAX: usize = 107;

/// What `healthy` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether health-sync works.
    Alive = b'a' as isize,
    /// Whether health-sync works and the task has been in the mesh.
    InMesh = b'm' as isize,
}

/// Why the container is not healthy.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NotHealthy {
    #[error(transparent)]
    Metadata(#[from] ecs_meta::Error),
    #[error("health-sync does not run in this container")]
    NotRunning(#[source] io::Error),
    #[error("health-sync hangs: no answer within {}", humantime::format_duration(PATIENCE))]
    NoAnswer(#[source] io::Error),
    #[error("health-sync gave no answer: it ended, or needed more than {}", humantime::format_duration(ANSWER))]
    Closed,
    #[error("{0}")]
    Answer(String),
}

/// The socket's name. It contains the metadata endpoint, which is different for each container.
fn address(env: &Env) -> Result<SocketAddr, ecs_meta::Error> {
    let name = format!("health-sync {}", env.get(ecs_meta::VARIABLE).ok_or(ecs_meta::Error::MissingVariable)?);
    // Keep the end of a long name: that is where endpoints differ.
    let name = &name.as_bytes()[name.len().saturating_sub(NAME_MAX)..];
    Ok(SocketAddr::from_abstract_name(name).expect("a name of at most 107 bytes"))
}

/// Asks the health-sync that runs in this container.
///
/// # Errors
/// Why the container is not healthy.
pub fn ask(env: &Env, question: Question) -> Result<ExitCode, NotHealthy> {
    let mut stream = UnixStream::connect_addr(&address(env)?).map_err(NotHealthy::NotRunning)?;
    let mut answer = String::new();
    let mut exchange = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[question as u8])?;
        stream.read_to_string(&mut answer)
    };
    match exchange() {
        // This is how a read that takes too long ends (socket(7)).
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(NotHealthy::NoAnswer(error)),
        Err(_) | Ok(0) => Err(NotHealthy::Closed),
        Ok(_) if answer == HEALTHY => Ok(ExitCode::SUCCESS),
        Ok(_) => Err(NotHealthy::Answer(answer)),
    }
}

/// The socket on which the running health-sync answers.
#[derive(Debug)]
pub struct Probe(UnixListener);

impl Probe {
    /// Opens the socket.
    ///
    /// # Errors
    /// If another process has the socket open, or the variable is not set.
    pub fn open(env: &Env) -> io::Result<Self> {
        let listener = StdListener::bind_addr(&address(env).map_err(io::Error::other)?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }

    /// Answers one question after the other, without end. `healthy` gives the answers.
    pub async fn serve(&self, healthy: impl AsyncFn(Question) -> Result<(), String>) {
        loop {
            let mut stream = accept(|| self.0.accept()).await;
            // The other side may have closed the connection.
            let _ = timeout(ANSWER, async {
                let question = match stream.read_u8().await? {
                    b'm' => Question::InMesh,
                    _ => Question::Alive,
                };
                let answer = healthy(question).await.err().unwrap_or_else(|| HEALTHY.to_owned());
                stream.write_all(answer.as_bytes()).await
            })
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_closed_connection_without_an_answer_gives_a_reason() {
        for reads_the_question in [true, false] {
            let env =
                Env::from_iter([(ecs_meta::VARIABLE, format!("test {} {reads_the_question}", std::process::id()))]);
            let listener = StdListener::bind_addr(&address(&env).unwrap()).unwrap();
            let closing = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                if reads_the_question {
                    stream.read_exact(&mut [0]).unwrap();
                }
            });
            let error = ask(&env, Question::Alive).unwrap_err();
            assert_eq!(error.to_string(), "health-sync gave no answer: it ended, or needed more than 3s");
            closing.join().unwrap();
        }
    }
}
