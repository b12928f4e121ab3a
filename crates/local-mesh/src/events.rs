//! What happens to the containers of tasks and when, by Docker's own events.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use ecs_local::labels::{CONTAINER_NAME, TYPE};
use futures_util::StreamExt;
use sidecar_kit::exit::one_line;
use tokio::task::JoinHandle;

use crate::docker::{HOLDER, PROJECT_LABEL, TASK};

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It started.
    Started,
    /// Its health check succeeded.
    Healthy,
    /// It was sent this signal.
    Signalled(i32),
    /// It ended with this exit code.
    Exited(i64),
}

/// An event of a task's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since 1970, by Docker's clock.
    pub at: i64,
    /// The task, by the name it has in docker-compose.yml.
    pub task: String,
    /// The container's name within the task.
    pub container: String,
    /// Whether it is the holder of the task's network namespace.
    pub holder: bool,
    /// What happened.
    pub what: What,
}

/// Collects events from the moment it is made.
#[derive(Debug)]
pub struct Recorder(JoinHandle<()>, tokio::sync::mpsc::UnboundedReceiver<Event>);

impl Recorder {
    /// Begins to record the mesh's containers. Docker keeps only its last 256 events and health checks fill them quickly,
    /// so they are read as they come.
    #[must_use]
    pub fn start(docker: &Docker) -> Self {
        let filters = HashMap::from([("type", vec!["container"]), ("label", vec![PROJECT_LABEL])]);
        // The stream begins when it is first read: what happens until then is asked for too.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let mut events = Box::pin(docker.events(Some(options)));
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let reading = tokio::spawn(async move {
            while let Some(message) = events.next().await {
                let message = match message {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::warn!(
                            "Docker ends its events; what happens from here on is not told: {}",
                            one_line(&error)
                        );
                        return;
                    }
                };
                if let Some(event) = event(&message)
                    && sender.send(event).is_err()
                {
                    return;
                }
            }
        });
        Self(reading, receiver)
    }

    /// What has happened so far.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.1.try_recv().ok()).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Our reading of Docker's event; none for what isn't a task's or of no interest.
fn event(message: &EventMessage) -> Option<Event> {
    let attributes = message.actor.as_ref()?.attributes.as_ref()?;
    let what = match message.action.as_deref()? {
        "start" => What::Started,
        "kill" => What::Signalled(attributes.get("signal")?.parse().ok()?),
        "die" => What::Exited(attributes.get("exitCode")?.parse().ok()?),
        "health_status: healthy" => What::Healthy,
        _ => return None,
    };
    Some(Event {
        at: message.time_nano?,
        task: attributes.get(TASK)?.clone(),
        container: attributes.get(CONTAINER_NAME)?.clone(),
        holder: attributes.get(TYPE).is_some_and(|kind| kind == HOLDER),
        what,
    })
}
