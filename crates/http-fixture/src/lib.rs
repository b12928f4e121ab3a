#![doc = include_str!("../README.md")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// A request that the server got.
#[derive(Debug, Clone)]
pub struct Request {
    /// The address of the server that got it.
    pub to: String,
    /// Its number on its connection, counted from 0.
    pub number: usize,
    /// The method, such as `GET`.
    pub method: String,
    /// The path with its query.
    pub target: String,
    /// The header fields, by their names in lower case. If two have the same name, this has the last one.
    pub headers: BTreeMap<String, String>,
    /// The request line and the header fields, as they came.
    pub head: String,
    /// The body, as long as `content-length` says.
    pub body: String,
}

impl Request {
    /// The path without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A header field; empty if the request has none of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Reads one request; none if the connection ends before it is complete.
    fn read(from: &mut impl BufRead, to: &str, number: usize) -> Option<Self> {
        let mut head = String::new();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if line.trim_end().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':').filter(|_| !head.is_empty()) {
                headers.insert(name.to_lowercase(), value.trim().to_owned());
            }
            head.push_str(&line);
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        let mut words = head.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let body = String::from_utf8_lossy(&body).into_owned();
        Some(Self { to: to.to_owned(), number, method, target, headers, head, body })
    }
}

/// What the server sends for a request.
#[derive(Clone)]
pub struct Answer(Kind);

#[derive(Clone)]
enum Kind {
    /// A whole response; the connection is kept.
    Whole { status: String, headers: String, body: String },
    /// These bytes; then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes again and again, until the client closes the connection.
    Endless(Vec<u8>),
    /// These bytes; then nothing until the client closes the connection.
    Open(Vec<u8>),
}

impl Answer {
    /// A response with this status, such as `404 Not Found`, and this body.
    #[must_use]
    pub fn new(status: &str, body: impl ToString) -> Self {
        Self(Kind::Whole { status: status.to_owned(), headers: String::new(), body: body.to_string() })
    }

    /// A `200 OK` with this body.
    #[must_use]
    pub fn ok(body: impl ToString) -> Self {
        Self::new("200 OK", body)
    }

    /// The same response with one more header field.
    ///
    /// # Panics
    /// If the answer is not a whole response.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        let Kind::Whole { headers, .. } = &mut self.0 else { panic!("only a whole response has header fields") };
        headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// These bytes in the place of a response; the connection is closed after them.
    #[must_use]
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Raw(bytes.into()))
    }

    /// These bytes again and again, until the client closes the connection.
    #[must_use]
    pub fn endless(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Endless(bytes.into()))
    }

    /// These bytes in the place of a response; then nothing until the client closes the connection.
    #[must_use]
    pub fn raw_open(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Open(bytes.into()))
    }

    /// No answer: the connection stays open until the client closes it.
    #[must_use]
    pub fn silent() -> Self {
        Self::raw_open("")
    }

    /// Sends the answer. Returns whether the connection can take another request.
    fn send(self, stream: &mut (impl Read + Write)) -> bool {
        match self.0 {
            Kind::Whole { status, headers, body } => {
                let length = body.len();
                let text = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}");
                stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).is_ok()
            }
            Kind::Raw(bytes) => {
                // The client may have closed the connection before it read everything.
                let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                false
            }
            Kind::Endless(bytes) => {
                while stream.write_all(&bytes).is_ok() {}
                false
            }
            Kind::Open(bytes) => {
                let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
                false
            }
        }
    }
}

/// What one or several servers got and answered.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<(Vec<Request>, usize)>>);

impl Record {
    /// The requests until now, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.lock().0.clone()
    }

    /// How many requests have their whole answer.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.lock().1
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Request>, usize)> {
        self.0.lock().expect("nothing panics while it holds the record")
    }
}

/// A server on loopback. It runs until the test's process ends.
pub struct Server {
    /// `127.0.0.1:port`; for a unix socket its path.
    pub address: String,
    /// What the server got.
    pub record: Record,
}

impl Server {
    /// Starts a server that sends what `answer` returns for each request. Every connection has its own thread.
    ///
    /// # Panics
    /// If loopback has no free port.
    #[must_use]
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(&Record::default(), Some, answer)
    }

    /// Starts a server with a record that it shares with other servers. It passes each connection through `accept` first, for
    /// example for TLS; `accept` returns none for a connection that it refuses.
    ///
    /// # Panics
    /// If loopback has no free port.
    #[must_use]
    pub fn start_with<S: Read + Write>(
        record: &Record,
        accept: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let server = Self { address: address.clone(), record: record.clone() };
        let shared = Arc::new((accept, answer, address, record.clone()));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (accept, answer, address, record) = &*shared;
                    if let Some(stream) = accept(stream) {
                        serve(stream, address, answer, record);
                    }
                });
            }
        });
        server
    }

    /// Starts a server on a unix socket, which this call creates.
    ///
    /// # Panics
    /// If the socket cannot be created.
    #[must_use]
    pub fn start_at(socket: &Path, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(socket).expect("the socket can be created");
        let server = Self { address: socket.display().to_string(), record: Record::default() };
        let shared = Arc::new((answer, server.address.clone(), server.record.clone()));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || serve(stream, &shared.1, &shared.0, &shared.2));
            }
        });
        server
    }

    /// `http://` and the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests until now, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.record.requests()
    }
}

/// Answers one connection's requests, one after the other.
fn serve(stream: impl Read + Write, address: &str, answer: &impl Fn(&Request) -> Answer, record: &Record) {
    let mut reader = BufReader::new(stream);
    for number in 0.. {
        let Some(request) = Request::read(&mut reader, address, number) else { break };
        record.lock().0.push(request.clone());
        let more = answer(&request).send(reader.get_mut());
        record.lock().1 += 1;
        if !more {
            break;
        }
    }
}

/// What a relay does with the bytes that a client sends.
pub enum Pass {
    /// It passes them on to the server.
    On,
    /// It answers with these bytes itself, and the server gets nothing.
    Answer(Vec<u8>),
    /// It closes the connection.
    Cut,
}

/// A relay to a server. A test can record, delay, answer or cut what a client sends through it.
pub struct Relay {
    /// `127.0.0.1:port`.
    pub address: String,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// Starts a relay to the server at `to`. `look` gets each piece that a client sends, with the number of its connection, and the piece
    /// waits until `look` returns. `answers` gets each piece of the server's answers.
    ///
    /// # Panics
    /// If loopback has no free port.
    #[must_use]
    pub fn start(
        to: &str,
        look: impl Fn(usize, &[u8]) -> Pass + Send + Sync + 'static,
        answers: impl Fn(usize, &[u8]) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (to, kept, look) = (to.to_owned(), streams.clone(), Arc::new((look, answers)));
        thread::spawn(move || {
            for (number, near) in listener.incoming().flatten().enumerate() {
                let Ok(far) = TcpStream::connect(&to) else { continue };
                // A small piece must not wait for the acknowledgement of the one before.
                let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                let twice = |stream: &TcpStream| stream.try_clone().expect("a connection can be held twice");
                kept.lock().expect("nothing panics while it holds the connections").extend([twice(&near), twice(&far)]);
                let (asks, answered) = (look.clone(), look.clone());
                let (from, to, back) = (twice(&near), twice(&far), twice(&near));
                thread::spawn(move || {
                    carry(from, to, |bytes| match asks.0(number, bytes) {
                        Pass::On => true,
                        // The client may be gone.
                        Pass::Answer(answer) => (&back).write_all(&answer).is_err(),
                        Pass::Cut => back.shutdown(Shutdown::Both).is_err(),
                    });
                });
                thread::spawn(move || {
                    carry(far, near, |bytes| {
                        answered.1(number, bytes);
                        true
                    });
                });
            }
        });
        Self { address, streams }
    }

    /// How many connections clients have opened to the relay.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.streams().len() / 2
    }

    /// Cuts every connection that is open.
    pub fn cut(&self) {
        for stream in &*self.streams() {
            // The other end may have closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().expect("nothing panics while it holds the connections")
    }
}

/// Carries bytes one way until either end closes. `look` says whether a piece goes on.
fn carry(mut from: TcpStream, mut to: TcpStream, look: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if look(&buffer[..length]) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // The other end may have closed it.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a text and returns all that comes back until the server closes the connection.
    fn exchange(address: &str, text: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn each_request_on_a_connection_is_answered_and_recorded() {
        let server = Server::start(|request| Answer::ok(&request.body).with_header("x-path", request.path()));
        let two = "PUT /a?b HTTP/1.1\r\nX-A: 1\r\ncontent-length: 3\r\n\r\nabcGET /c HTTP/1.1\r\n\r\n";
        let answers = exchange(&server.address, two);
        let expected = "HTTP/1.1 200 OK\r\nx-path: /a\r\ncontent-length: 3\r\n\r\nabc\
                        HTTP/1.1 200 OK\r\nx-path: /c\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(answers, expected);
        let requests = server.requests();
        assert_eq!((requests[0].method.as_str(), requests[0].target.as_str()), ("PUT", "/a?b"));
        assert_eq!((requests[0].header("x-a"), requests[0].body.as_str()), ("1", "abc"));
        assert_eq!((requests.len(), requests[1].head.as_str()), (2, "GET /c HTTP/1.1\r\n"));
        assert_eq!((server.record.answered(), requests[1].to == server.address), (2, true));
        assert_eq!((requests[0].number, requests[1].number), (0, 1));
    }

    #[test]
    fn raw_bytes_end_the_connection() {
        let server = Server::start(|_| Answer::raw("half"));
        assert_eq!(exchange(&server.address, "GET / HTTP/1.1\r\n\r\n"), "half");
    }

    #[test]
    fn a_relay_records_passes_on_and_answers_itself() {
        let server = Server::start(|_| Answer::ok("from the server"));
        let seen = Arc::new(Mutex::new(String::new()));
        let record = seen.clone();
        let refuses = |_, bytes: &[u8]| if bytes.starts_with(b"PUT") { Pass::Answer(b"no".to_vec()) } else { Pass::On };
        let relay = Relay::start(&server.address, refuses, move |_, bytes| {
            record.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        });
        assert!(exchange(&relay.address, "GET / HTTP/1.1\r\n\r\n").ends_with("from the server"));
        assert_eq!(exchange(&relay.address, "PUT / HTTP/1.1\r\n\r\n"), "no");
        assert_eq!((relay.connections(), server.requests().len()), (2, 1));
        assert!(seen.lock().unwrap().ends_with("from the server"));
    }
}
