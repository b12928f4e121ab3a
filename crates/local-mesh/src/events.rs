//! Docker's events of the tasks' containers.

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

/// The kind of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The container started.
    Started,
    /// Its health check passed.
    Healthy,
    /// Docker sent it this signal.
    Signalled(i32),
    /// It exited with this code.
    Exited(i64),
}

/// One event of a task's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The time, in nanoseconds since 1970 by Docker's clock.
    pub at: i64,
    /// The task's name in docker-compose.yml.
    pub task: String,
    /// The container's name within the task.
    pub container: String,
    /// Whether the container holds the task's network namespace.
    pub holder: bool,
    /// The kind of the event.
    pub what: What,
}

/// Collects events from its start on.
#[derive(Debug)]
pub struct Recorder(JoinHandle<()>, tokio::sync::mpsc::UnboundedReceiver<Event>);

impl Recorder {
    /// Starts to record the events of the mesh's containers. It reads them as they come, because Docker keeps only the last 256
    /// events, and health checks make many.
    #[must_use]
    pub fn start(docker: &Docker) -> Self {
        let filters = HashMap::from([("type", vec!["container"]), ("label", vec![PROJECT_LABEL])]);
        // The stream begins at its first read. `since` adds the events before that.
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
                            "Docker ended the stream of events, so later events are missing: {}",
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

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.1.try_recv().ok()).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads one of Docker's events. `None` for another kind of event, and for a container of no task.
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
