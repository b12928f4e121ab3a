//! The tasks of this engine: watched, described, and stopped when they are to stop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex};

use bollard::models::EventMessage;
use ecs_meta::{HealthStatus, TaskArn};
use futures_util::StreamExt;
use futures_util::future::join_all;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use time::OffsetDateTime;

use crate::container::Container;
use crate::engine::{Engine, EngineError, Listed};
use crate::labels::Labels;
use crate::task::Task;

/// How often stopping what is left of a task is tried, when the engine fails to.
const STOP_ATTEMPTS: usize = 10;

/// What is known beyond what the engine can be asked. All of it may be lost: a stop is begun again when an essential
/// container has exited, and since when a container is healthy is then told from its last checks.
#[derive(Debug, Default)]
struct Seen {
    /// The tasks that are being stopped, and since when.
    stopping: BTreeMap<TaskArn, OffsetDateTime>,
    /// The last change of each container's health, by Docker's ID.
    health: HashMap<String, (HealthStatus, OffsetDateTime)>,
}

/// The tasks of one Docker engine.
#[derive(Debug)]
pub(crate) struct Live {
    engine: Engine,
    seen: Mutex<Seen>,
}

/// What an endpoint's ID stands for.
pub(crate) struct Found {
    pub(crate) task: Task,
    /// The container's name.
    pub(crate) name: String,
    /// Since when the task is being stopped.
    pub(crate) stopping: Option<OffsetDateTime>,
}

impl Live {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, seen: Mutex::default() }
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
        let stopping = self.seen().stopping.get(&labels.task).copied();
        let task = self.inspect(&labels.task, &listed).await?;
        Ok(task.map(|task| Found { task, name: labels.name, stopping }))
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
            containers.extend(Container::read(inspected, since));
        }
        Ok(Task::of(containers))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Follows the engine's events without end, through its restarts, and stops the tasks that are to stop.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            // What happens from here on comes as an event, though it may happen before the engine is asked for them.
            let since = OffsetDateTime::now_utc();
            match self.reconcile_all().await {
                Ok(()) => backoff.reset(),
                Err(error) => tracing::warn!("waiting for the Docker engine without end: {}", one_line(&error)),
            }
            let mut events = pin!(self.engine.events(since));
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => self.clone().on_event(event).await,
                    Err(error) => {
                        tracing::warn!("the Docker engine's events broke off: {}", one_line(&error));
                        break;
                    }
                }
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn on_event(self: Arc<Self>, event: EventMessage) {
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
                self.seen().health.remove(&id);
            }
            ("start" | "die", _) => {
                if let Some(labels) = labels {
                    match self.task(&labels.task).await {
                        Ok(task) => self.reconcile(task),
                        Err(error) => tracing::warn!("cannot look at {}: {}", labels.task, one_line(&error)),
                    }
                }
            }
            _ => {}
        }
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

    /// Begins to stop a task whose essential container has exited.
    fn reconcile(self: &Arc<Self>, task: Option<Task>) {
        let Some(task) = task else { return };
        let Some(exited) = task.essential_exit() else { return };
        if !task.containers.iter().any(Container::is_running) {
            return;
        }
        let since = exited.finished_at.unwrap_or_else(OffsetDateTime::now_utc);
        let (name, code) = (exited.labels.name.clone(), exited.exit_code.unwrap_or_default());
        if self.begin_stop(&task, since) {
            tracing::info!("stopping {}: its essential container {name} exited with {code}", task.arn);
        }
    }

    /// Begins to stop a task, unless that has begun.
    fn begin_stop(self: &Arc<Self>, task: &Task, since: OffsetDateTime) -> bool {
        let mut seen = self.seen();
        if seen.stopping.contains_key(&task.arn) {
            return false;
        }
        seen.stopping.insert(task.arn.clone(), since);
        let (live, task) = (self.clone(), task.clone());
        tokio::spawn(async move {
            match live.stop(&task).await {
                Ok(()) => tracing::info!("stopped {}", task.arn),
                Err(error) => tracing::error!("gave up stopping {}: {}", task.arn, one_line(&error)),
            }
            live.seen().stopping.remove(&task.arn);
        });
        true
    }

    /// Stops a task as ECS does: TERM to all its running containers at once, KILL to each that has not exited after its
    /// stop timeout, and the pause container when all others have exited. A container that is started meanwhile is
    /// stopped too; a task whose pause container is started again is left alone.
    async fn stop(&self, task: &Task) -> Result<(), EngineError> {
        let began = |task: &Task| task.pause().and_then(|pause| pause.started_at);
        let mut backoff = Backoff::default();
        let mut failures = 0;
        let mut now = task.clone();
        loop {
            let (pause, others): (Vec<_>, Vec<_>) =
                now.containers.iter().filter(|c| c.is_running()).partition(|container| container.is_pause());
            let next = if others.is_empty() { pause } else { others };
            if next.is_empty() || began(&now) != began(task) {
                return Ok(());
            }
            let stops =
                next.into_iter().map(|container| self.engine.stop(&container.id, container.labels.stop_timeout));
            let stopped: Result<(), EngineError> = join_all(stops).await.into_iter().collect();
            let looked = match stopped {
                Ok(()) => self.task(&task.arn).await,
                Err(error) => Err(error),
            };
            match looked {
                Ok(Some(task)) => now = task,
                // All of it has been removed.
                Ok(None) => return Ok(()),
                Err(error) => {
                    failures += 1;
                    if failures == STOP_ATTEMPTS {
                        return Err(error);
                    }
                    tracing::warn!("cannot stop {} yet: {}", task.arn, one_line(&error));
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
    }
}

fn report(id: &str, problems: Vec<String>) {
    for problem in problems {
        tracing::warn!("container {}: {problem}", id.get(..12).unwrap_or(id));
    }
}
