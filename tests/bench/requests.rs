//! The HTTP requests that a program sends to the agent, recorded and sent again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_fixture::{Pass, Relay};
use mesh_tests::consul::Agent;
use sidecar_kit::http::{Client, Limits, Request};

const LIMITS: Limits = Limits { time: Duration::from_secs(30), bytes: 16 << 20 };

/// A request: method, path, header fields and body.
pub type Sent = (String, String, Vec<(String, String)>, Vec<u8>);

/// A relay to the agent that records what is sent over it.
pub struct Recorder {
    /// The relay's address, `127.0.0.1:port`.
    pub address: String,
    /// The bytes that were sent, by the number of the connection.
    bytes: Arc<Mutex<BTreeMap<usize, Vec<u8>>>>,
}

impl Recorder {
    pub fn start(to: &str) -> Self {
        let bytes = Arc::<Mutex<BTreeMap<usize, Vec<u8>>>>::default();
        let record = bytes.clone();
        let keep = move |connection, bytes: &[u8]| {
            record.lock().expect("no other thread panics").entry(connection).or_default().extend_from_slice(bytes);
            Pass::On
        };
        Self { address: Relay::start(to, keep, |_, _| {}).address, bytes }
    }

    /// The requests until now.
    pub fn requests(&self) -> Vec<Sent> {
        let bytes = self.bytes.lock().expect("no other thread panics");
        bytes.values().flat_map(|connection| parse(connection)).collect()
    }
}

/// The requests of one connection. Bodies have a length.
fn parse(mut bytes: &[u8]) -> Vec<Sent> {
    let mut requests = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let (own, fields): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| name == "content-length" || name == "host");
        let length =
            own.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, length)| length.parse().unwrap_or(0));
        let body = bytes[end + 4..].get(..length).unwrap_or_default();
        requests.push((method, path, fields, body.to_vec()));
        bytes = bytes.get(end + 4 + length..).unwrap_or_default();
    }
    requests
}

/// The time that one request for the metadata and then these requests take, one after the other, with a client that does nothing else.
pub async fn time_alone(client: &Client, metadata: &str, agent: &Agent, requests: &[Sent]) -> Duration {
    let began = Instant::now();
    let task = hyper::Request::get(format!("{metadata}/task")).body(Default::default());
    client.send(task.expect("it is a URL"), LIMITS).await.expect("the metadata answers");
    for request in requests {
        client.send(again(request, agent, |body| body), LIMITS).await.expect("the agent answers");
    }
    began.elapsed()
}

/// A recorded request, for this agent and with a changed body.
pub fn again((method, path, headers, body): &Sent, agent: &Agent, changed: impl FnOnce(String) -> String) -> Request {
    let body = changed(String::from_utf8_lossy(body).into_owned());
    let mut request: Request = hyper::Request::new(body.into());
    *request.method_mut() = method.parse().expect("a method was recorded");
    *request.uri_mut() = agent.url(path).parse().expect("a path was recorded");
    for (name, value) in headers {
        let name = name.parse::<hyper::header::HeaderName>().expect("a name was recorded");
        request.headers_mut().insert(name, value.parse().expect("a value was recorded"));
    }
    request
}
