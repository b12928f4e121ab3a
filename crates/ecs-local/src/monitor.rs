//! The task monitor: describes the engine's tasks, stops tasks, and restarts containers with a restart policy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex};

use bollard::models::EventMessage;
use ecs_meta::{HealthStatus, TaskArn};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use time::OffsetDateTime;

use crate::container::Container;
use crate::engine::{Engine, EngineError, Listed};
use crate::labels::Labels;
use crate::task::{StopOrder, Task};

/// How many attempts to stop a task may fail before the monitor gives up. An attempt fails if the engine reports an error, or reports a
/// stopped container that still runs.
const STOP_ATTEMPTS: usize = 10;

/// The state that the engine does not store. After a restart of ecs-local it is empty. The monitor then begins again to stop each
/// task whose essential container has exited, and estimates the time of a health status from the last checks.
#[derive(Debug, Default)]
struct Seen {
    /// The tasks that are stopping, and since when.
    stopping: BTreeMap<TaskArn, OffsetDateTime>,
    /// The last `StopTask` request for each task. It stays after the task has stopped, for the task's description.
    requests: BTreeMap<TaskArn, StopRequest>,
    /// The last change of each container's health, by Docker's ID.
    health: HashMap<String, (HealthStatus, OffsetDateTime)>,
    /// How many times the monitor restarted each container, and the end time that led to the last restart, by Docker's ID.
    restarts: HashMap<String, (u32, Option<OffsetDateTime>)>,
}

/// The tasks of one Docker engine.
#[derive(Debug)]
pub(crate) struct TaskMonitor {
    engine: Engine,
    order: StopOrder,
    seen: Mutex<Seen>,
}

/// A `StopTask` request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopRequest {
    pub(crate) at: OffsetDateTime,
    pub(crate) reason: String,
}

/// The tasks of a cluster in one listing. They have not been inspected yet.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// For each task, the labels of one of its containers.
    pub(crate) tasks: BTreeMap<TaskArn, Labels>,
    listed: Vec<Listed>,
}

impl Cluster {
    /// The ARN of the task with this ID or ARN.
    pub(crate) fn find(&self, task: &str) -> Option<&TaskArn> {
        self.tasks.keys().find(|arn| arn.task_id().as_str() == task || arn.to_string() == task)
    }
}

/// The task and the container of a metadata URI.
pub(crate) struct Found {
    pub(crate) task: Task,
    /// The container's name.
    pub(crate) name: String,
    /// Since when the task has been stopping.
    pub(crate) stopping: Option<OffsetDateTime>,
    /// Whether the task still has its tags: see [`TaskMonitor::has_tags`].
    pub(crate) has_tags: bool,
}

impl TaskMonitor {
    /// Creates a monitor. It stops tasks in this order unless a `StopTask` request names another one.
    pub(crate) fn new(engine: Engine, order: StopOrder) -> Self {
        Self { engine, order, seen: Mutex::default() }
    }

    pub(crate) async fn ping(&self) -> Result<(), EngineError> {
        self.engine.ping().await
    }

    /// Finds the task and the container whose metadata URI ends in this ID.
    pub(crate) async fn find(&self, endpoint_id: &str) -> Result<Option<Found>, EngineError> {
        let listed = self.engine.list().await?;
        let labels =
            listed.iter().find_map(|one| Labels::read(&one.labels).0.filter(|l| l.endpoint_id() == endpoint_id));
        let Some(labels) = labels else { return Ok(None) };
        let stopping = self.stopping(&labels.task);
        let task = self.inspect(&labels.task, &listed).await?;
        Ok(task.map(|task| Found { has_tags: self.has_tags(&task), task, name: labels.name, stopping }))
    }

    async fn task(&self, arn: &TaskArn) -> Result<Option<Task>, EngineError> {
        self.inspect(arn, &self.engine.list().await?).await
    }

    /// Inspects all containers of one task at the same time.
    async fn inspect(&self, arn: &TaskArn, listed: &[Listed]) -> Result<Option<Task>, EngineError> {
        let of_task = |one: &&Listed| Labels::read(&one.labels).0.is_some_and(|labels| labels.task == *arn);
        let inspections = listed.iter().filter(of_task).map(|one| self.engine.inspect(&one.id));
        let mut containers = Vec::new();
        for inspected in join_all(inspections).await {
            let Some(inspected) = inspected? else { continue };
            let seen = self.seen();
            let since = |id: &str, status: &HealthStatus| {
                seen.health.get(id).filter(|(seen, _)| seen == status).map(|(_, since)| *since)
            };
            let mut container = Container::read(inspected, since);
            if let Some(Container { id, restart_count: Some(count), .. }) = &mut container {
                *count = seen.restarts.get(id).map_or(0, |(count, _)| *count);
            }
            containers.extend(container);
        }
        Ok(Task::of(containers))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stops the tasks that must stop. Never returns: after a failure or restart of the engine it checks all tasks again.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        // The engine also reports events between this time and the request for events, so none is missed.
        let mut since = OffsetDateTime::now_utc();
        loop {
            match self.follow(&mut since, &mut backoff).await {
                Ok(()) => tracing::warn!("the Docker engine ended its events"),
                Err(error) => {
                    tracing::warn!("waiting for the Docker engine, without a time limit: {}", one_line(&error))
                }
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Checks all tasks, and then each task that an event names, until the engine fails once. `since` is set to the time of each
    /// event, so that the next call continues there.
    async fn follow(self: &Arc<Self>, since: &mut OffsetDateTime, backoff: &mut Backoff) -> Result<(), EngineError> {
        self.reconcile_all().await?;
        let mut events = pin!(self.engine.events(*since));
        while let Some(event) = events.next().await {
            let event = event?;
            if let Some(Ok(at)) = event.time_nano.map(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos.into())) {
                *since = at;
            }
            self.on_event(event).await?;
            backoff.reset();
        }
        Ok(())
    }

    async fn on_event(self: &Arc<Self>, event: EventMessage) -> Result<(), EngineError> {
        let actor = event.actor.unwrap_or_default();
        let action = event.action.unwrap_or_default();
        let id = actor.id.unwrap_or_default();
        let at = OffsetDateTime::from_unix_timestamp_nanos(event.time_nano.unwrap_or_default().into());
        let (labels, problems) = Labels::read(&actor.attributes.unwrap_or_default().into_iter().collect());
        if action == "start" {
            report(&id, problems);
        }
        match (action.as_str(), at) {
            ("health_status: healthy", Ok(at)) => {
                self.seen().health.insert(id, (HealthStatus::Healthy, at));
            }
            ("health_status: unhealthy", Ok(at)) => {
                self.seen().health.insert(id, (HealthStatus::Unhealthy, at));
            }
            ("destroy", _) => {
                let mut seen = self.seen();
                seen.health.remove(&id);
                seen.restarts.remove(&id);
                labels.map(|labels| seen.requests.remove(&labels.task));
            }
            ("start" | "die", _) => {
                if let Some(labels) = labels {
                    self.reconcile(self.task(&labels.task).await?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn reconcile_all(self: &Arc<Self>) -> Result<(), EngineError> {
        let listed = self.engine.list().await?;
        let mut tasks = BTreeSet::new();
        for one in &listed {
            let (labels, problems) = Labels::read(&one.labels);
            report(&one.id, problems);
            tasks.extend(labels.map(|labels| labels.task));
        }
        for arn in tasks {
            let task = self.inspect(&arn, &listed).await?;
            self.reconcile(task);
        }
        Ok(())
    }

    /// Begins to stop a task if an essential container has exited. Otherwise restarts containers with a restart policy.
    fn reconcile(self: &Arc<Self>, task: Option<Task>) {
        let Some(task) = task else { return };
        let Some(exited) = task.essential_exit() else { return self.restart(&task) };
        let since = exited.finished_at.unwrap_or_else(OffsetDateTime::now_utc);
        let (name, code) = (exited.labels.name.clone(), exited.exit_code.unwrap_or_default());
        if self.begin_stop(&task, since, None) {
            tracing::info!("stopping {}: its essential container {name} exited with {code}", task.arn);
        }
    }

    /// Starts the exited containers with a restart policy again, unless the task is stopping. A container that cannot be started
    /// counts as a container that exited without a restart policy.
    fn restart(self: &Arc<Self>, task: &Task) {
        let mut seen = self.seen();
        if seen.stopping.contains_key(&task.arn) {
            return;
        }
        for container in task.to_restart() {
            let (count, after) = seen.restarts.entry(container.id.clone()).or_default();
            if *after == container.finished_at {
                // The monitor has already restarted the container after this exit: this inspection is old.
                continue;
            }
            (*count, *after) = (*count + 1, container.finished_at);
            let (name, code) = (&container.labels.name, container.exit_code.unwrap_or_default());
            tracing::info!("restarting {name} of {}: it exited with {code}", task.arn);
            let (monitor, task, container) = (self.clone(), task.clone(), container.clone());
            tokio::spawn(async move {
                if let Err(error) = monitor.engine.start(&container.id).await {
                    tracing::error!("cannot restart {} of {}: {}", container.labels.name, task.arn, one_line(&error));
                    if container.labels.essential {
                        monitor.begin_stop(&task, OffsetDateTime::now_utc(), None);
                    }
                }
            });
        }
    }

    /// A cluster by its name; none if it has no tasks and is not the cluster of `--cluster`.
    pub(crate) async fn cluster(&self, name: &str) -> Result<Option<Cluster>, EngineError> {
        let listed = self.engine.list().await?;
        let labels = listed.iter().filter_map(|one| Labels::read(&one.labels).0);
        let of_cluster = labels.filter(|labels| short_name(&labels.cluster) == name);
        let tasks: BTreeMap<_, _> = of_cluster.map(|labels| (labels.task.clone(), labels)).collect();
        let known = !tasks.is_empty() || self.engine.cluster() == Some(name);
        Ok(known.then_some(Cluster { tasks, listed }))
    }

    /// Inspects tasks of a cluster, in this order. It leaves out tasks that have been removed since the listing.
    pub(crate) async fn tasks(
        &self,
        cluster: &Cluster,
        arns: impl IntoIterator<Item = &TaskArn>,
    ) -> Result<Vec<Task>, EngineError> {
        let looks = arns.into_iter().map(|arn| self.inspect(arn, &cluster.listed));
        let mut tasks = Vec::new();
        for task in join_all(looks).await {
            tasks.extend(task?);
        }
        Ok(tasks)
    }

    /// Since when a task has been stopping.
    pub(crate) fn stopping(&self, task: &TaskArn) -> Option<OffsetDateTime> {
        self.seen().stopping.get(task).copied()
    }

    /// The `StopTask` request for a task's present run, if there is one.
    pub(crate) fn stop_request(&self, task: &Task) -> Option<StopRequest> {
        let request = self.seen().requests.get(&task.arn).cloned();
        request.filter(|request| task.run_began().is_none_or(|began| began < request.at))
    }

    /// Whether a task still has its tags. `StopTask` deletes them while the containers still run ("StopTask" in the Amazon ECS API
    /// Reference).
    pub(crate) fn has_tags(&self, task: &Task) -> bool {
        self.stop_request(task).is_none()
    }

    /// Begins to stop a task because of a `StopTask` request: see [`TaskMonitor::begin_stop`].
    pub(crate) fn begin_requested_stop(
        self: &Arc<Self>,
        task: &Task,
        request: StopRequest,
        order: Option<StopOrder>,
    ) -> bool {
        let begun = self.begin_stop(task, request.at, order);
        if begun {
            self.seen().requests.insert(task.arn.clone(), request);
        }
        begun
    }

    /// Begins to stop a task and returns true. Returns false if the task is already stopping or has no running container.
    pub(crate) fn begin_stop(self: &Arc<Self>, task: &Task, since: OffsetDateTime, order: Option<StopOrder>) -> bool {
        let mut seen = self.seen();
        if seen.stopping.contains_key(&task.arn) || !task.containers.iter().any(Container::is_running) {
            return false;
        }
        seen.stopping.insert(task.arn.clone(), since);
        let (monitor, task, order) = (self.clone(), task.clone(), order.unwrap_or(self.order));
        tokio::spawn(async move {
            match monitor.stop(&task, order).await {
                Ok(()) => tracing::info!("stopped {}", task.arn),
                Err(error) => tracing::error!("gave up stopping {}: {}", task.arn, one_line(&error)),
            }
            monitor.seen().stopping.remove(&task.arn);
        });
        true
    }

    /// Stops a task as ECS does. Each running container gets TERM once, in this order, and KILL if it still runs after its stop
    /// timeout. The pause container is last. If another container starts meanwhile, it is stopped too. If the pause container starts
    /// again, the task has a new run, and this call ends.
    async fn stop(&self, task: &Task, mut order: StopOrder) -> Result<(), EngineError> {
        let began = |task: &Task| task.pause().and_then(|pause| pause.started_at);
        let mut backoff = Backoff::default();
        let mut failures = 0;
        let mut now = task.clone();
        // The containers that got TERM, and the calls that wait for their ends.
        let mut signalled = BTreeSet::new();
        let mut stops = FuturesUnordered::new();
        loop {
            let running = now.containers.iter().any(Container::is_running);
            if !running || began(&now) != began(task) {
                return Ok(());
            }
            for container in now.may_stop(order) {
                if signalled.insert(container.id.clone()) {
                    let (id, timeout) = (container.id.clone(), container.labels.stop_timeout);
                    stops.push(async move { (self.engine.stop(&id, timeout).await, id) });
                }
            }
            let (stopped, id) = match stops.next().await {
                Some(stop) => stop,
                None if order == StopOrder::DependsOn => {
                    tracing::warn!("containers of {} depend on each other in a circle: all get TERM at once", task.arn);
                    order = StopOrder::AllAtOnce;
                    continue;
                }
                // A container that had stopped runs again.
                None => {
                    signalled.clear();
                    (Ok(()), String::new())
                }
            };
            let looked = match stopped {
                Ok(()) => self.task(&task.arn).await,
                Err(error) => Err(error),
            };
            let failed = match looked {
                Ok(Some(task)) => {
                    now = task;
                    let left = now.containers.iter().find(|container| container.is_running() && container.id == id);
                    left.map(|container| EngineError::StillRuns(container.labels.name.clone()))
                }
                // All containers have been removed.
                Ok(None) => return Ok(()),
                Err(error) => Some(error),
            };
            if let Some(error) = failed {
                failures += 1;
                if failures == STOP_ATTEMPTS {
                    return Err(error);
                }
                tracing::warn!("cannot stop {} yet: {}", task.arn, one_line(&error));
                tokio::time::sleep(backoff.delay()).await;
                signalled.remove(&id);
            }
        }
    }
}

/// The name of a cluster, from its name or its ARN.
pub(crate) fn short_name(cluster: &str) -> &str {
    cluster.rsplit('/').next().unwrap_or_default()
}

fn report(id: &str, problems: Vec<String>) {
    for problem in problems {
        tracing::warn!("container {}: {problem}", id.get(..12).unwrap_or(id));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use http_fixture::{Answer, Server};
    use serde_json::{Value, json};

    use super::*;
    use crate::labels::tests::labels;

    /// An engine whose first listing fails, and whose container `side` still runs until the third request to stop it.
    #[derive(Default)]
    struct BadEngine {
        listings: AtomicUsize,
        stops: AtomicUsize,
    }

    impl BadEngine {
        fn answer(&self, path: &str) -> (&'static str, Value) {
            let inspected = |name: &str, status: &str| {
                json!({
                    "Id": name, "Config": {"Labels": labels(name, &[])},
                    "State": {
                        "Status": status, "StartedAt": "2031-01-02T03:00:00Z", "FinishedAt": "2031-01-02T03:01:00Z",
                    },
                })
            };
            let ok = "200 OK";
            match path {
                "/version" => (ok, json!({"ApiVersion": "1.41"})),
                "/containers/json" if self.listings.fetch_add(1, Ordering::SeqCst) == 0 => {
                    ("500 Busy", json!({"message": "busy"}))
                }
                "/containers/json" => {
                    (ok, ["web", "side"].map(|id| json!({"Id": id, "Labels": labels(id, &[])})).into())
                }
                "/containers/web/json" => (ok, inspected("web", "exited")),
                "/containers/side/json" if self.stops.load(Ordering::SeqCst) < 3 => (ok, inspected("side", "running")),
                "/containers/side/json" => (ok, inspected("side", "exited")),
                "/containers/side/stop" => {
                    self.stops.fetch_add(1, Ordering::SeqCst);
                    (ok, json!({}))
                }
                _ => ("404 Not Found", json!({"message": path})),
            }
        }

        fn respond(&self, path: &str) -> Answer {
            let path = path.strip_prefix("/v1.41").unwrap_or(path);
            if path == "/events" {
                // Sends no event, and stays open until the client closes the connection.
                return Answer::raw_open("HTTP/1.1 200 OK\r\n\r\n");
            }
            let (status, body) = self.answer(path);
            Answer::new(status, body).with_header("content-type", "application/json")
        }
    }

    #[tokio::test]
    async fn a_task_is_stopped_in_spite_of_engine_failures() {
        let directory = tempfile::tempdir().unwrap();
        let bad = Arc::new(BadEngine::default());
        let answering = bad.clone();
        let server = Server::start_at(&directory.path().join("sock"), move |request| answering.respond(request.path()));
        let began = Instant::now();
        let engine = Engine::connect(&format!("unix://{}", server.address), None).await.unwrap();
        let monitor = Arc::new(TaskMonitor::new(engine, StopOrder::AllAtOnce));
        let watching = tokio::spawn(monitor.clone().watch());
        let stopped = async {
            while bad.stops.load(Ordering::SeqCst) < 3 || !monitor.seen().stopping.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), stopped).await.expect("the task is stopped");
        // The delay after the listing is at least 50 ms, and the two delays between the stops are at least 50 ms and 100 ms.
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        assert_eq!(bad.stops.load(Ordering::SeqCst), 3);
        watching.abort();
    }
}
