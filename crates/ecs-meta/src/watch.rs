//! The task metadata, fetched again and again.
//!
//! A sidecar fetches it twice a second for as long as its task runs, and nearly every answer is the same as the one before. So a
//! thread of its own fetches it, with blocking reads and writes, and wakes the program only when an answer differs.
//!
//! This file has its own HTTP client, because `cargo xtask bench` limits the processor time that health-sync uses in a minute in which
//! nothing changes. In the same run, a request took 95 µs of processor time here, and 142 µs with the client of `sidecar_kit::http` in
//! the same thread. `ureq` starts a thread for each request that has a time limit, to resolve the host's name. ECS's endpoint is plain
//! HTTP/1.1 on the same host, and `httparse` parses it.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::{StatusCode, Uri};
use sidecar_kit::exit::one_line;
use sidecar_kit::http::{self, server_of};
use tokio::sync::watch;

use crate::client::{Error, LIMITS, TASK, decode};
use crate::metadata::Task;

/// The last answer, or the reason why there is none.
pub type Answer = Result<Arc<Task>, Arc<Error>>;

/// The answers of the endpoint, from the start of the watch.
#[derive(Debug, Clone)]
pub struct Watch {
    answers: watch::Receiver<Option<Answer>>,
    last_fetch: Arc<Mutex<Instant>>,
}

impl Watch {
    /// Fetches at this interval until the watch is dropped.
    pub(crate) fn start(uri: &str, interval: Duration) -> Self {
        let (sender, answers) = watch::channel(None);
        let last_fetch = Arc::new(Mutex::new(Instant::now()));
        let (mut endpoint, fetched) = (Endpoint::new(uri), last_fetch.clone());
        std::thread::spawn(move || {
            let mut last: Option<Result<Vec<u8>, String>> = None;
            while !sender.is_closed() {
                let answer = endpoint.fetch();
                *fetched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                let kept = answer.as_ref().map(Vec::clone).map_err(|error| one_line(error));
                if last.as_ref() != Some(&kept) {
                    let answer = answer.and_then(|body| decode::<Task>(&body, TASK));
                    // It fails only if the watch has been dropped.
                    let _ = sender.send(Some(answer.map(Arc::new).map_err(Arc::new)));
                    last = Some(kept);
                }
                std::thread::sleep(interval);
            }
        });
        Self { answers, last_fetch }
    }

    /// The next answer that differs from the one before.
    pub async fn changed(&mut self) -> Answer {
        loop {
            // The thread cannot end before the watch is dropped.
            if self.answers.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(answer) = self.answers.borrow_and_update().clone() {
                return answer;
            }
        }
    }

    /// The last answer; none before the first.
    #[must_use]
    pub fn latest(&self) -> Option<Answer> {
        self.answers.borrow().clone()
    }

    /// The time of the last fetch. If it does not move, the thread hangs.
    #[must_use]
    pub fn last_fetch(&self) -> Arc<Mutex<Instant>> {
        self.last_fetch.clone()
    }
}

/// The endpoint, with the connection of the last request.
struct Endpoint {
    server: String,
    address: (String, u16),
    request: Vec<u8>,
    connection: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Endpoint {
    /// `uri` is that of a [`MetadataClient`](crate::MetadataClient), which has checked it.
    fn new(uri: &str) -> Self {
        let parsed = uri.parse::<Uri>().expect("the client has checked it");
        let authority = parsed.authority().map_or("", |authority| authority.as_str());
        let host = parsed.host().unwrap_or_default();
        Self {
            server: server_of(&parsed),
            address: (host.trim_matches(['[', ']']).to_owned(), parsed.port_u16().unwrap_or(80)),
            request: format!("GET {}/task HTTP/1.1\r\nhost: {authority}\r\n\r\n", parsed.path()).into_bytes(),
            connection: None,
            buffer: Vec::new(),
        }
    }

    /// Fetches the task. If the endpoint has closed the connection since the last request, it connects again.
    fn fetch(&mut self) -> Result<Vec<u8>, Error> {
        let reused = self.connection.is_some();
        let first = self.exchange();
        match first {
            Err(Failure::Http(http::Error::Broken { .. })) if reused && self.buffer.is_empty() => self.exchange(),
            other => other,
        }
        .map_err(|failure| match failure {
            Failure::Http(source) => Error::Http { what: TASK, source },
            Failure::Status(status, excerpt) => Error::Status { what: TASK, status, excerpt },
        })
    }

    fn exchange(&mut self) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + LIMITS.time;
        self.buffer.clear();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.write_all(&self.request).map_err(|error| self.broken(&error))?;
        loop {
            let read = self.read(&mut connection, deadline)?;
            match answer(&self.buffer, read == 0) {
                Ok(Some(Head { status, body, reusable })) => {
                    if reusable {
                        self.connection = Some(connection);
                    }
                    return if status == StatusCode::OK { Ok(body) } else { Err(excerpt(status, body)) };
                }
                Ok(None) if read == 0 => return Err(self.broken(&"the connection was closed")),
                Ok(None) => {}
                Err(source) => return Err(http::Error::NotHttp { server: self.server.clone(), source }.into()),
            }
        }
    }

    fn connect(&self) -> Result<TcpStream, Failure> {
        let unreachable =
            |error: std::io::Error| http::Error::Unreachable { server: self.server.clone(), source: error.into() };
        let (host, port) = &self.address;
        let mut last = std::io::Error::other("no address");
        for address in (host.as_str(), *port).to_socket_addrs().map_err(unreachable)? {
            match TcpStream::connect_timeout(&address, LIMITS.time) {
                Ok(connection) => {
                    let bounded = connection
                        .set_read_timeout(Some(LIMITS.time))
                        .and_then(|()| connection.set_write_timeout(Some(LIMITS.time)));
                    bounded.map_err(unreachable)?;
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last).into())
    }

    /// Reads more of the answer; 0 if the endpoint has closed the connection.
    fn read(&mut self, connection: &mut TcpStream, deadline: Instant) -> Result<usize, Failure> {
        let before = self.buffer.len();
        if before > LIMITS.bytes {
            return Err(http::Error::TooLarge { server: self.server.clone(), limit: LIMITS.bytes }.into());
        }
        self.buffer.resize(before + (16 << 10), 0);
        let read = loop {
            match connection.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(_) if Instant::now() > deadline => Err(self.timed_out()),
            Ok(read) => Ok(read),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Err(self.timed_out())
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn timed_out(&self) -> Failure {
        http::Error::TimedOut { server: self.server.clone(), limit: LIMITS.time }.into()
    }

    fn broken(&self, cause: &dyn std::fmt::Display) -> Failure {
        http::Error::Broken { server: self.server.clone(), source: cause.to_string().into() }.into()
    }
}

/// The reason why there is no body.
enum Failure {
    Http(http::Error),
    Status(StatusCode, String),
}

impl From<http::Error> for Failure {
    fn from(error: http::Error) -> Self {
        Self::Http(error)
    }
}

fn excerpt(status: StatusCode, body: Vec<u8>) -> Failure {
    let answer = http::Response { status, headers: hyper::HeaderMap::new(), body: body.into() };
    Failure::Status(status, answer.excerpt())
}

/// A complete answer.
struct Head {
    status: StatusCode,
    body: Vec<u8>,
    /// Whether the connection can carry another request.
    reusable: bool,
}

type NotHttp = Box<dyn std::error::Error + Send + Sync>;

/// Parses these bytes (RFC 9112). None if the answer is not complete yet. `ended`: the connection is closed.
fn answer(bytes: &[u8], ended: bool) -> Result<Option<Head>, NotHttp> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(bytes)? else { return Ok(None) };
    let status = StatusCode::from_u16(head.code.unwrap_or_default())?;
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).to_ascii_lowercase())
    };
    let rest = &bytes[length..];
    let (body, bounded) = if header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        let Some(body) = unchunked(rest)? else { return Ok(None) };
        (body, true)
    } else if let Some(length) = header("content-length") {
        let Some(body) = rest.get(..length.trim().parse()?) else { return Ok(None) };
        (body.to_vec(), true)
    } else if ended {
        (rest.to_vec(), false)
    } else {
        return Ok(None);
    };
    let closes = header("connection").is_some_and(|connection| connection.contains("close"));
    Ok(Some(Head { status, body, reusable: bounded && !closes && head.version == Some(1) }))
}

/// Joins the chunks. None if the last one has not arrived yet.
fn unchunked(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, NotHttp> {
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(bytes).map_err(|_| "a chunk without a size")?;
        let httparse::Status::Complete((start, size)) = size else { return Ok(None) };
        let size = usize::try_from(size)?;
        if size == 0 {
            // Trailers may follow, up to an empty line.
            let rest = &bytes[start..];
            let complete = rest.starts_with(b"\r\n") || rest.windows(4).any(|end| end == b"\r\n\r\n");
            return Ok(complete.then_some(body));
        }
        let Some(chunk) = start.checked_add(size).and_then(|end| bytes.get(start..end)) else { return Ok(None) };
        body.extend_from_slice(chunk);
        let Some(rest) = bytes.get(start + size + 2..) else { return Ok(None) };
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn body(text: &str) -> Option<(u16, String, bool)> {
        let head = answer(text.as_bytes(), false).unwrap()?;
        Some((head.status.as_u16(), String::from_utf8(head.body).unwrap(), head.reusable))
    }

    #[test]
    fn an_answer_is_parsed_only_when_it_is_complete() {
        let whole = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", true)),
            ("HTTP/1.1 500 No\r\ncontent-length: 2\r\nConnection: close\r\n\r\nno", (500, "no", false)),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, "ok", false)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, there\r\n0\r\n\r\n",
                (200, "hello, there", true),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", (200, "", true)),
        ];
        for (text, (status, expected, reusable)) in whole {
            assert_eq!(body(text), Some((status, expected.to_owned(), reusable)), "{text:?}");
            for end in 0..text.len() {
                assert_eq!(body(&text[..end]), None, "{:?}", &text[..end]);
            }
        }
        let unbounded = b"HTTP/1.1 200 OK\r\n\r\nhello";
        assert!(answer(unbounded, false).unwrap().is_none());
        assert_eq!(answer(unbounded, true).unwrap().unwrap().body, b"hello");
        for wrong in ["SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"] {
            assert!(answer(wrong.as_bytes(), false).is_err(), "{wrong}");
        }
    }

    /// An endpoint that sends these answers: each list on one connection.
    fn endpoint(connections: Vec<Vec<String>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/v4/abc", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for answers in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut request = [0; 1024];
                    let length = stream.read(&mut request).unwrap();
                    assert!(request[..length].starts_with(b"GET /v4/abc/task HTTP/1.1\r\nhost: 127.0.0.1:"));
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        uri
    }

    fn task(id: &str) -> String {
        let body =
            format!(r#"{{"Cluster":"b","TaskARN":"arn:aws:ecs:eu-north-1:210987654321:task/b/{id}","Family":"f"}}"#);
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_watch_shows_each_change_and_connects_again() {
        let failed = "HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\ngone".to_owned();
        let uri = endpoint(vec![vec![task("1"), task("1"), task("2")], vec![failed.clone(), failed, task("2")]]);
        let mut watch = Watch::start(&uri, Duration::from_millis(5));
        assert_eq!(watch.changed().await.unwrap().task_id(), "1");
        assert_eq!(watch.changed().await.unwrap().task_id(), "2");
        let error = watch.changed().await.unwrap_err();
        assert_eq!(
            one_line(&*error),
            "the endpoint answered 500 No for the task metadata: gone".replace(" No", " Internal Server Error")
        );
        assert_eq!(watch.changed().await.unwrap().task_id(), "2");
        // The endpoint is gone.
        let error = watch.changed().await.unwrap_err();
        assert!(one_line(&*error).starts_with("cannot fetch the task metadata: "), "{error}");
    }
}
