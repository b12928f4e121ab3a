//! The task's app containers, from the task metadata.

use std::time::Duration;

use ecs_meta::{Container, ContainerType, MetadataClient, Status, Task};
use mesh_config::is_sidecar;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::wait::{Attempt, until};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the metadata is asked for while Envoy waits for the apps to stop. ECS allows a task 40 requests a second ("Amazon ECS
/// task metadata endpoint version 4").
const STOPPING_PERIOD: Duration = Duration::from_millis(100);

/// How often the metadata is asked for while the task runs.
const RUNNING_PERIOD: Duration = Duration::from_secs(1);

/// How long the endpoint may take to give the containers' log drivers.
const LOG_DRIVER_BOUND: Duration = Duration::from_secs(60);

/// The log driver of a container that logs through a log router.
const ROUTED: &str = "awsfirelens";

/// Asks for the metadata at a steady pace, without end. Logs when failures begin, change and end.
struct Poll<'a> {
    metadata: &'a MetadataClient,
    pace: Interval,
    failure: LastFailure,
}

impl<'a> Poll<'a> {
    fn every(period: Duration, metadata: &'a MetadataClient) -> Self {
        let mut pace = interval(period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { metadata, pace, failure: LastFailure::default() }
    }

    /// Waits for an answer that lists the container `own`.
    async fn task(&mut self, own: Option<&str>) -> Task {
        self.next(async |metadata| metadata.whole_task(own).await).await
    }

    async fn next<T>(&mut self, ask: impl AsyncFn(&MetadataClient) -> Result<T, ecs_meta::Error>) -> T {
        loop {
            self.pace.tick().await;
            match ask(self.metadata).await {
                Ok(answer) => {
                    if self.failure.end() {
                        tracing::info!("the task metadata is there again");
                    }
                    return answer;
                }
                Err(error) => {
                    let failure = one_line(&error);
                    if self.failure.is_new(&failure) {
                        tracing::warn!("no task metadata, asking again: {failure}");
                    }
                }
            }
        }
    }
}

/// Returns when ECS's desired status for the task is STOPPED.
pub(super) async fn stop_is_desired(metadata: &MetadataClient) {
    let mut poll = Poll::every(RUNNING_PERIOD, metadata);
    while poll.task(None).await.desired_status != Status::Stopped {}
}

/// Warns if this container logs through a log router that is not ignored. ECS starts a log router before the containers that log
/// through it, and stops it after them ("Container dependency").
pub(super) async fn warn_of_log_router(metadata: &MetadataClient, ignored: &[String]) {
    let waits =
        until("the task metadata", LOG_DRIVER_BOUND, Backoff::default(), async || {
            match waits_for_log_router(metadata, ignored).await {
                Ok(waits) => Attempt::Done(waits),
                Err(error) => Attempt::Again(error),
            }
        });
    match waits.await {
        Ok(true) => tracing::warn!(
            "this container logs through a log router, which ECS stops only after this container: name the router in \
             --ignore-container, or Envoy waits for it until --grace is over"
        ),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!("cannot tell whether this container logs through a log router: {}", one_line(&error))
        }
    }
}

/// Whether this container logs through a log router that `--ignore-container` does not name. The metadata does not say which container is
/// the router. But a container that itself logs through a router cannot be one.
async fn waits_for_log_router(metadata: &MetadataClient, ignored: &[String]) -> Result<bool, ecs_meta::Error> {
    let own = metadata.container().await?;
    let task = metadata.whole_task(Some(&own.docker_id)).await?;
    let is_routed = |container: &Container| container.log_driver.as_deref() == Some(ROUTED);
    let mut ignored = task.containers.iter().filter(|container| ignored.contains(&container.name));
    Ok(is_routed(&own) && ignored.all(is_routed))
}

/// Warns of names in --ignore-container that no container of the task has.
pub(super) async fn warn_of_unknown_names(metadata: &MetadataClient, ignored: &[String]) {
    if ignored.is_empty() {
        return;
    }
    let mut poll = Poll::every(RUNNING_PERIOD, metadata);
    let mut task = poll.task(None).await;
    // ECS lists a container once it is created, and calls the task RUNNING once all of them have started.
    while task.known_status != Status::Running {
        task = poll.task(None).await;
    }
    for name in ignored.iter().filter(|name| task.containers.iter().all(|container| container.name != **name)) {
        tracing::warn!("--ignore-container names {name}, and this task has no such container");
    }
}

/// Returns when every app container has stopped.
pub(super) async fn all_stopped(metadata: &MetadataClient, ignored: &[String]) {
    let mut poll = Poll::every(STOPPING_PERIOD, metadata);
    // This container is not an app, whatever its name in the task definition.
    let own = poll.next(MetadataClient::own_id).await;
    let mut logged = Vec::new();
    loop {
        let task = poll.task(Some(&own)).await;
        let running = running(&task, &own, ignored);
        if running.is_empty() {
            return;
        }
        if running != logged {
            tracing::info!("waiting for {}", running.join(", "));
            logged = running.into_iter().map(str::to_owned).collect();
        }
    }
}

/// The app containers that have not stopped.
fn running<'a>(task: &'a Task, own: &str, ignored: &[String]) -> Vec<&'a str> {
    let is_app = |container: &&Container| {
        container.type_ == ContainerType::Normal
            && container.docker_id != own
            && !is_sidecar(&container.name)
            && !ignored.contains(&container.name)
    };
    let apps = task.containers.iter().filter(is_app);
    apps.filter(|container| !has_stopped(container)).map(|container| container.name.as_str()).collect()
}

/// Whether the container has stopped, or has not started and never will.
fn has_stopped(container: &Container) -> bool {
    match container.known_status {
        Status::Stopped => true,
        Status::None | Status::ManifestPulled | Status::Pulled | Status::Created => {
            container.desired_status == Status::Stopped
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_waited_for(container: Value) -> bool {
        let task: Task = serde_json::from_value(json!({
            "Cluster": "blue", "Family": "shop", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "Containers": [container],
        }))
        .unwrap();
        !running(&task, "own", &["logger".to_owned()]).is_empty()
    }

    #[test]
    fn an_app_counts_until_it_has_stopped_or_cannot_start() {
        let rows = [
            ("RUNNING", "RUNNING", true),
            ("RUNNING", "STOPPED", true),
            ("STOPPED", "STOPPED", false),
            ("STOPPED", "RUNNING", false),
            ("CREATED", "RUNNING", true),
            ("CREATED", "STOPPED", false),
            ("PULLED", "STOPPED", false),
            ("NONE", "STOPPED", false),
            ("SOMETHING_NEW", "STOPPED", true),
        ];
        for (known, desired, expected) in rows {
            let app = json!({ "Name": "app", "KnownStatus": known, "DesiredStatus": desired });
            assert_eq!(is_waited_for(app), expected, "{known} {desired}");
        }
    }

    #[test]
    fn sidecars_aws_containers_and_ignored_ones_are_no_apps() {
        let running = |name: &str| json!({ "Name": name, "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING" });
        for name in ["consul-client", "health-sync", "sidecar-proxy", "ecs-service-connect-x", "logger"] {
            assert!(!is_waited_for(running(name)), "{name}");
        }
        let mut pause = running("~internal~ecs~pause");
        pause["Type"] = json!("CNI_PAUSE");
        assert!(!is_waited_for(pause));
        let mut own = running("envoy");
        assert!(is_waited_for(own.clone()));
        own["DockerId"] = json!("own");
        assert!(!is_waited_for(own));
    }
}
