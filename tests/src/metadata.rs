//! A fake of ECS's task metadata endpoint, which exists only in ECS. It serves a task and one of its containers as AWS documents
//! them, with the values that the test sets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use http_fixture::{Answer, Record, Server};
use serde_json::{Value, json};

/// The endpoint of one task.
pub struct Metadata {
    /// The value of `ECS_CONTAINER_METADATA_URI_V4`.
    pub uri: String,
    state: Arc<State>,
    record: Record,
}

struct State {
    task: Mutex<Value>,
    failing: AtomicBool,
}

/// Docker's ID of the container that owns the endpoint.
pub const OWN_DOCKER_ID: &str = "0f1e2d3c";

impl Metadata {
    /// Starts the endpoint of task `f1a2` of this family, with these containers and the container that owns the endpoint.
    ///
    /// # Panics
    /// When loopback has no port left.
    #[must_use]
    pub fn start(family: &str, containers: Value) -> Self {
        let task = Mutex::new(json!({
            "Cluster": "blue", "Family": family, "Revision": "1", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2", "Containers": with_own(containers)
        }));
        let state = Arc::new(State { task, failing: AtomicBool::new(false) });
        let shared = state.clone();
        let server = Server::start(move |request| shared.answer(request.path()));
        Self { uri: format!("{}/v4/f1a2-test", server.url()), state, record: server.record }
    }

    /// Sets the containers of the task, beside the container that owns the endpoint.
    pub fn set_containers(&self, containers: Value) {
        self.state.task.lock().expect("no reader panics")["Containers"] = with_own(containers);
    }

    /// Sets a field of the task.
    pub fn set_field(&self, name: &str, value: Value) {
        self.state.task.lock().expect("no reader panics")[name] = value;
    }

    /// Sets the task's desired status.
    pub fn set_desired_status(&self, status: &str) {
        self.state.task.lock().expect("no reader panics")["DesiredStatus"] = status.into();
    }

    /// From now on, every answer is a 500, or no longer is.
    pub fn set_failing(&self, failing: bool) {
        self.state.failing.store(failing, Ordering::SeqCst);
    }

    /// How many requests have their whole answer.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.record.answered() as u64
    }
}

/// ECS also lists the container that asks.
fn with_own(mut containers: Value) -> Value {
    if let Some(containers) = containers.as_array_mut()
        && containers.iter().all(|container| container["DockerId"] != OWN_DOCKER_ID)
    {
        containers.push(json!({ "DockerId": OWN_DOCKER_ID, "Name": "envoy", "KnownStatus": "RUNNING" }));
    }
    containers
}

impl State {
    fn answer(&self, path: &str) -> Answer {
        let task = self.task.lock().expect("no other test's thread panics");
        if self.failing.load(Ordering::SeqCst) {
            Answer::new("500 Internal Server Error", "")
        } else if path.ends_with("/task") {
            Answer::ok(&*task)
        } else if path.ends_with("-test") {
            let mut containers = task["Containers"].as_array().into_iter().flatten();
            let own = containers.find(|container| container["DockerId"] == OWN_DOCKER_ID).cloned();
            Answer::ok(own.unwrap_or_else(|| json!({ "DockerId": OWN_DOCKER_ID, "Name": "envoy" })))
        } else {
            Answer::new("404 Not Found", "")
        }
    }
}
