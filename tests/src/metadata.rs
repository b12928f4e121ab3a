//! A fake of ECS's task metadata endpoint, the one part that cannot be real outside of ECS: it answers for a task and one
//! container of it as AWS documents it, with what the test says.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// The endpoint of one task.
pub struct Metadata {
    /// For `ECS_CONTAINER_METADATA_URI_V4`.
    pub uri: String,
    state: Arc<State>,
}

struct State {
    task: Mutex<Value>,
    answered: AtomicU64,
    failing: AtomicBool,
}

/// Docker's ID of the container whose endpoint this is.
pub const OWN_DOCKER_ID: &str = "0f1e2d3c";

impl Metadata {
    /// Starts answering for task `f1a2` of a family, with these containers and the one whose endpoint this is.
    ///
    /// # Panics
    /// When loopback has no port left.
    #[must_use]
    pub fn start(family: &str, containers: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let uri = format!("http://{}/v4/f1a2-test", listener.local_addr().expect("a bound listener has an address"));
        let task = Mutex::new(json!({
            "Cluster": "blue", "Family": family, "Revision": "1", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2", "Containers": with_own(containers)
        }));
        let state = Arc::new(State { task, answered: AtomicU64::new(0), failing: AtomicBool::new(false) });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(&stream));
            }
        });
        Self { uri, state }
    }

    /// The containers from now on, and the one whose endpoint this is.
    ///
    /// # Panics
    /// Never, unless another test's thread did.
    pub fn set_containers(&self, containers: Value) {
        self.state.task.lock().expect("no reader panics")["Containers"] = with_own(containers);
    }

    /// A field of the task from now on, as it is.
    ///
    /// # Panics
    /// Never, unless another test's thread did.
    pub fn set_field(&self, name: &str, value: Value) {
        self.state.task.lock().expect("no reader panics")[name] = value;
    }

    /// The task's desired status from now on.
    ///
    /// # Panics
    /// Never, unless another test's thread did.
    pub fn set_desired_status(&self, status: &str) {
        self.state.task.lock().expect("no reader panics")["DesiredStatus"] = status.into();
    }

    /// Whether it answers 500 from now on.
    pub fn set_failing(&self, failing: bool) {
        self.state.failing.store(failing, Ordering::SeqCst);
    }

    /// How many questions were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.state.answered.load(Ordering::SeqCst)
    }
}

/// ECS lists the container that asks, too.
fn with_own(mut containers: Value) -> Value {
    if let Some(containers) = containers.as_array_mut()
        && containers.iter().all(|container| container["DockerId"] != OWN_DOCKER_ID)
    {
        containers.push(json!({ "DockerId": OWN_DOCKER_ID, "Name": "envoy", "KnownStatus": "RUNNING" }));
    }
    containers
}

impl State {
    /// Answers one connection's requests, one after the other.
    fn serve(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream).lines();
        while let Some(Ok(request)) = lines.next() {
            // The head ends with an empty line; a GET has no body.
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let (status, body) = match request.split(' ').nth(1).unwrap_or_default() {
                _ if self.failing.load(Ordering::SeqCst) => ("500 Internal Server Error", String::new()),
                path if path.ends_with("/task") => ("200 OK", self.task.lock().expect("no writer panics").to_string()),
                path if path.ends_with("-test") => {
                    let task = self.task.lock().expect("no writer panics");
                    let mut containers = task["Containers"].as_array().into_iter().flatten();
                    let own = containers.find(|container| container["DockerId"] == OWN_DOCKER_ID).cloned();
                    let own = own.unwrap_or_else(|| json!({ "DockerId": OWN_DOCKER_ID, "Name": "envoy" }));
                    ("200 OK", own.to_string())
                }
                _ => ("404 Not Found", String::new()),
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if (&*stream).write_all(answer.as_bytes()).is_err() {
                return;
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}
