//! A fake of ECS's task metadata endpoint, the one part that cannot be real outside of ECS: it answers `/task` as AWS
//! documents it, with what the test says.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// The endpoint of one task.
pub struct Metadata {
    /// For `ECS_CONTAINER_METADATA_URI_V4`.
    pub uri: String,
    task: Arc<Mutex<Value>>,
    answered: Arc<AtomicU64>,
}

impl Metadata {
    /// Starts answering for task `f1a2` of a family, with these containers.
    ///
    /// # Panics
    /// When loopback has no port left.
    #[must_use]
    pub fn start(family: &str, containers: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let uri = format!("http://{}/v4/f1a2-test", listener.local_addr().expect("a bound listener has an address"));
        let task = Arc::new(Mutex::new(json!({
            "Cluster": "blue", "Family": family, "Revision": "1", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2", "Containers": containers
        })));
        let answered = Arc::new(AtomicU64::new(0));
        let (shared, counter) = (task.clone(), answered.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, counter) = (shared.clone(), counter.clone());
                std::thread::spawn(move || serve(&stream, &shared, &counter));
            }
        });
        Self { uri, task, answered }
    }

    /// The containers from now on.
    ///
    /// # Panics
    /// Never, unless another test's thread did.
    pub fn set_containers(&self, containers: Value) {
        self.task.lock().expect("no reader panics")["Containers"] = containers;
    }

    /// How many questions were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

/// Answers one connection's requests, one after the other.
fn serve(stream: &TcpStream, task: &Mutex<Value>, answered: &AtomicU64) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(request)) = lines.next() {
        // The head ends with an empty line; a GET has no body.
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let found = request.split(' ').nth(1).is_some_and(|path| path.ends_with("/task"));
        let body = if found { task.lock().expect("no writer panics").to_string() } else { String::new() };
        let status = if found { "200 OK" } else { "404 Not Found" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if (&*stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
        answered.fetch_add(1, Ordering::SeqCst);
    }
}
