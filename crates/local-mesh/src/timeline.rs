//! What happened to each task and when, by Docker's own events.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use crate::docker::PROJECT_LABEL;

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It started.
    Started,
    /// Its health check succeeded.
    Healthy,
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
            while let Some(Ok(message)) = events.next().await {
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
        "die" => What::Exited(attributes.get("exitCode")?.parse().ok()?),
        "health_status: healthy" => What::Healthy,
        _ => return None,
    };
    Some(Event {
        at: message.time_nano?,
        task: attributes.get("ecs-mesh.task")?.clone(),
        container: attributes.get("com.amazonaws.ecs.container-name")?.clone(),
        holder: attributes.get("ecs-mesh.type").is_some_and(|kind| kind == "CNI_PAUSE"),
        what,
    })
}

/// The start of every task that began within these events: T0 the task starts, T1 its proxy starts, T2 the proxy's public
/// listener is open and the app starts; each with its offset from T0 in ms.
#[must_use]
pub fn startup(events: &[Event]) -> String {
    let mut tasks: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        tasks.entry(&event.task).or_default().push(event);
    }
    let mut text = String::new();
    for (task, mut events) in tasks {
        events.sort_by_key(|event| event.at);
        let Some(begin) = events.iter().position(|event| event.holder && event.what == What::Started) else {
            continue;
        };
        let zero = events[begin].at;
        let _ = writeln!(text, "task {task}");
        for event in &events[begin..] {
            let (mark, said) = said(event);
            let _ = writeln!(text, "  {mark:2} {:>7} ms  {:<14} {said}", (event.at - zero) / 1_000_000, name(event));
        }
    }
    text
}

fn name(event: &Event) -> &str {
    if event.holder { "(task)" } else { &event.container }
}

fn said(event: &Event) -> (&'static str, String) {
    match (&event.what, event.container.as_str()) {
        (What::Started, _) if event.holder => ("T0", "the task starts".to_owned()),
        (What::Started, "sidecar-proxy") => ("T1", "started".to_owned()),
        (What::Healthy, "sidecar-proxy") => ("T2", "healthy: the public listener is open".to_owned()),
        (What::Exited(0), "mesh-init") => {
            ("", "registered service and proxy, wrote the bootstrap, exited 0".to_owned())
        }
        (What::Exited(0), "consul-config") => ("", "wrote the agent's configuration, exited 0".to_owned()),
        (What::Started, _) => ("", "started".to_owned()),
        (What::Healthy, _) => ("", "healthy".to_owned()),
        (What::Exited(code), _) => ("", format!("exited {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ms: i64, container: &str, what: What) -> Event {
        let holder = container == "pause";
        Event { at: ms * 1_000_000, task: "web".to_owned(), container: container.to_owned(), holder, what }
    }

    #[test]
    fn the_marks_stand_at_their_events_with_offsets_from_the_task_s_start() {
        let events = [
            event(1500, "sidecar-proxy", What::Started),
            event(900, "app", What::Exited(0)),
            event(1000, "pause", What::Started),
            event(1400, "mesh-init", What::Exited(0)),
            event(2600, "sidecar-proxy", What::Healthy),
            event(2700, "app", What::Started),
        ];
        let text = startup(&events);
        let lines = text.lines().collect::<Vec<_>>();
        assert_eq!(lines[0], "task web");
        assert_eq!(lines[1], "  T0       0 ms  (task)         the task starts");
        assert!(lines[2].contains("400 ms  mesh-init"), "{text}");
        assert!(lines[3].starts_with("  T1     500 ms  sidecar-proxy"), "{text}");
        assert!(lines[4].starts_with("  T2    1600 ms  sidecar-proxy"), "{text}");
        assert_eq!(lines.len(), 6, "what was before the task's start is left out: {text}");
    }

    #[test]
    fn a_task_that_did_not_start_has_no_timeline() {
        assert_eq!(startup(&[event(1, "app", What::Started)]), "");
    }
}
