//! The tasks of this engine: watched, described, and stopped when they are to stop.

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

/// How often stopping what is left of a task is tried, when the engine fails to or says that it did and it still runs.
const STOP_ATTEMPTS: usize = 10;

/// What is known beyond what the engine can be asked. All of it may be lost: a stop is begun again when an essential
/// container has exited, and since when a container is healthy is then told from its last checks.
#[derive(Debug, Default)]
struct Seen {
    /// The tasks that are being stopped, and since when.
    stopping: BTreeMap<TaskArn, OffsetDateTime>,
    /// Who asked last that a task stop; kept when it has, for those who ask why.
    requests: BTreeMap<TaskArn, StopRequest>,
    /// The last change of each container's health, by Docker's ID.
    health: HashMap<String, (HealthStatus, OffsetDateTime)>,
    /// How often each container was started again by its restart policy, and after which end the last time, by Docker's ID.
    restarts: HashMap<String, (u32, Option<OffsetDateTime>)>,
}

/// The tasks of one Docker engine.
#[derive(Debug)]
pub(crate) struct Live {
    engine: Engine,
    order: StopOrder,
    seen: Mutex<Seen>,
}

/// Somebody's wish that a task stop, through `StopTask`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopRequest {
    pub(crate) at: OffsetDateTime,
    pub(crate) reason: String,
}

/// The tasks of a cluster as one listing shows them: by name, not looked at yet.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// What the labels of one of its containers say, for each task.
    pub(crate) tasks: BTreeMap<TaskArn, Labels>,
    listed: Vec<Listed>,
}

impl Cluster {
    /// The ARN of the task with this ID or ARN.
    pub(crate) fn find(&self, task: &str) -> Option<&TaskArn> {
        self.tasks.keys().find(|arn| arn.task_id().as_str() == task || arn.to_string() == task)
    }
}

/// What an endpoint's ID stands for.
pub(crate) struct Found {
    pub(crate) task: Task,
    /// The container's name.
    pub(crate) name: String,
    /// Since when the task is being stopped.
    pub(crate) stopping: Option<OffsetDateTime>,
    /// Whether it has its tags, see [`Live::has_tags`].
    pub(crate) has_tags: bool,
}

impl Live {
    /// Tasks are stopped in this order unless somebody asks for another.
    pub(crate) fn new(engine: Engine, order: StopOrder) -> Self {
        Self { engine, order, seen: Mutex::default() }
    }

    pub(crate) async fn ping(&self) -> Result<(), EngineError> {
        self.engine.ping().await
    }

    /// The task and container whose metadata URI ends in this ID.
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

    /// Looks at all containers of one task at the same time.
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

    /// Stops the tasks that are to stop, without end and through the engine's restarts and failures: after any of them all
    /// tasks are looked at again.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        // What happens from here on comes as an event, though it may happen before the engine is asked for them.
        let mut since = OffsetDateTime::now_utc();
        loop {
            match self.follow(&mut since, &mut backoff).await {
                Ok(()) => tracing::warn!("the Docker engine ended its events"),
                Err(error) => tracing::warn!("waiting for the Docker engine without end: {}", one_line(&error)),
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Looks at all tasks and then at each that an event names, until the engine fails once. `since` follows the events,
    /// so that none is lost before the next time.
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

    /// Begins to stop a task whose essential container has exited, or starts again what has a restart policy.
    fn reconcile(self: &Arc<Self>, task: Option<Task>) {
        let Some(task) = task else { return };
        let Some(exited) = task.essential_exit() else { return self.restart(&task) };
        let since = exited.finished_at.unwrap_or_else(OffsetDateTime::now_utc);
        let (name, code) = (exited.labels.name.clone(), exited.exit_code.unwrap_or_default());
        if self.begin_stop(&task, since, None) {
            tracing::info!("stopping {}: its essential container {name} exited with {code}", task.arn);
        }
    }

    /// Starts again the exited containers of a task that have a restart policy, unless the task is being stopped. One that
    /// can't be started is as one that has exited without a policy.
    fn restart(self: &Arc<Self>, task: &Task) {
        let mut seen = self.seen();
        if seen.stopping.contains_key(&task.arn) {
            return;
        }
        for container in task.to_restart() {
            let (count, after) = seen.restarts.entry(container.id.clone()).or_default();
            if *after == container.finished_at {
                // It runs again by now, or soon: this look at it is an old one.
                continue;
            }
            (*count, *after) = (*count + 1, container.finished_at);
            let (name, code) = (&container.labels.name, container.exit_code.unwrap_or_default());
            tracing::info!("restarting {name} of {}: it exited with {code}", task.arn);
            let (live, task, container) = (self.clone(), task.clone(), container.clone());
            tokio::spawn(async move {
                if let Err(error) = live.engine.start(&container.id).await {
                    tracing::error!("cannot restart {} of {}: {}", container.labels.name, task.arn, one_line(&error));
                    if container.labels.essential {
                        live.begin_stop(&task, OffsetDateTime::now_utc(), None);
                    }
                }
            });
        }
    }

    /// A cluster by its name; none without a task, unless it is the one that this program is for.
    pub(crate) async fn cluster(&self, name: &str) -> Result<Option<Cluster>, EngineError> {
        let listed = self.engine.list().await?;
        let labels = listed.iter().filter_map(|one| Labels::read(&one.labels).0);
        let of_cluster = labels.filter(|labels| short_name(&labels.cluster) == name);
        let tasks: BTreeMap<_, _> = of_cluster.map(|labels| (labels.task.clone(), labels)).collect();
        let known = !tasks.is_empty() || self.engine.cluster() == Some(name);
        Ok(known.then_some(Cluster { tasks, listed }))
    }

    /// Looks at tasks of a cluster, in this order; without those that have been removed since they were listed.
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

    /// Since when a task is being stopped.
    pub(crate) fn stopping(&self, task: &TaskArn) -> Option<OffsetDateTime> {
        self.seen().stopping.get(task).copied()
    }

    /// Who asked for the end of a task's present run, if somebody did.
    pub(crate) fn stop_request(&self, task: &Task) -> Option<StopRequest> {
        let request = self.seen().requests.get(&task.arn).cloned();
        request.filter(|request| task.run_began().is_none_or(|began| began < request.at))
    }

    /// Whether a task has its tags: `StopTask` deletes them, while the containers still run ("StopTask" in the Amazon ECS API
    /// Reference).
    pub(crate) fn has_tags(&self, task: &Task) -> bool {
        self.stop_request(task).is_none()
    }

    /// Begins to stop a task because somebody asked for it, as [`Live::begin_stop`] does.
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

    /// Begins to stop a task, unless that has begun or nothing of it runs.
    pub(crate) fn begin_stop(self: &Arc<Self>, task: &Task, since: OffsetDateTime, order: Option<StopOrder>) -> bool {
        let mut seen = self.seen();
        if seen.stopping.contains_key(&task.arn) || !task.containers.iter().any(Container::is_running) {
            return false;
        }
        seen.stopping.insert(task.arn.clone(), since);
        let (live, task, order) = (self.clone(), task.clone(), order.unwrap_or(self.order));
        tokio::spawn(async move {
            match live.stop(&task, order).await {
                Ok(()) => tracing::info!("stopped {}", task.arn),
                Err(error) => tracing::error!("gave up stopping {}: {}", task.arn, one_line(&error)),
            }
            live.seen().stopping.remove(&task.arn);
        });
        true
    }

    /// Stops a task as ECS does: TERM to its running containers in this order, KILL to each that has not exited after its
    /// stop timeout, and the pause container when all others have exited. Each is told once. A container that is started
    /// meanwhile is stopped too; a task whose pause container is started again is left alone.
    async fn stop(&self, task: &Task, mut order: StopOrder) -> Result<(), EngineError> {
        let began = |task: &Task| task.pause().and_then(|pause| pause.started_at);
        let mut backoff = Backoff::default();
        let mut failures = 0;
        let mut now = task.clone();
        // Who has been told, and whose end is waited for.
        let mut told = BTreeSet::new();
        let mut stops = FuturesUnordered::new();
        loop {
            let running = now.containers.iter().any(Container::is_running);
            if !running || began(&now) != began(task) {
                return Ok(());
            }
            for container in now.may_stop(order) {
                if told.insert(container.id.clone()) {
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
                // One that had stopped runs again.
                None => {
                    told.clear();
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
                // All of it has been removed.
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
                told.remove(&id);
            }
        }
    }
}

/// A cluster's name, which may be given as its ARN.
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

    /// An engine whose first listing fails, and whose container `side` runs on until it has been stopped three times.
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
                // Without an event, until the client closes the connection.
                return Answer::raw_open("HTTP/1.1 200 OK\r\n\r\n");
            }
            let (status, body) = self.answer(path);
            Answer::new(status, body).with_header("content-type", "application/json")
        }
    }

    #[tokio::test]
    async fn a_dead_task_is_stopped_though_the_engine_fails_at_first_and_then_does_not_do_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let bad = Arc::new(BadEngine::default());
        let answering = bad.clone();
        let server = Server::start_at(&directory.path().join("sock"), move |request| answering.respond(request.path()));
        let began = Instant::now();
        let engine = Engine::connect(&format!("unix://{}", server.address), None).await.unwrap();
        let live = Arc::new(Live::new(engine, StopOrder::AllAtOnce));
        let watching = tokio::spawn(live.clone().watch());
        let stopped = async {
            while bad.stops.load(Ordering::SeqCst) < 3 || !live.seen().stopping.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), stopped).await.expect("the task is stopped");
        // One delay after the listing, of at least 50 ms, and two between the stops, of at least 50 ms and 100 ms.
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        assert_eq!(bad.stops.load(Ordering::SeqCst), 3);
        watching.abort();
    }
}
