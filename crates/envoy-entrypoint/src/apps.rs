//! The task's apps, as the task metadata tells of them.

use std::time::Duration;

use ecs_meta::{Container, ContainerType, MetadataClient, Status, Task};
use mesh_config::is_sidecar;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// While the apps' end is waited for: ten requests a second, a quarter of what ECS allows a task ("Amazon ECS task metadata
/// endpoint version 4": 40 a second).
const WAITING: Duration = Duration::from_millis(100);

/// While the task runs.
const RUNNING: Duration = Duration::from_secs(1);

/// The metadata, asked at a steady pace; failures are logged when they begin, change and end.
struct Asked<'a> {
    metadata: &'a MetadataClient,
    pace: Interval,
    failure: LastFailure,
}

impl<'a> Asked<'a> {
    fn every(period: Duration, metadata: &'a MetadataClient) -> Self {
        let mut pace = interval(period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { metadata, pace, failure: LastFailure::default() }
    }

    /// The next answer, however long that takes.
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
                        tracing::warn!("Envoy runs on, asking again without end: {failure}");
                    }
                }
            }
        }
    }
}

/// Returns when ECS has decided that the task stops.
pub(crate) async fn told_to_stop(metadata: &MetadataClient) {
    let mut asked = Asked::every(RUNNING, metadata);
    while asked.next(async |metadata| metadata.whole_task(None).await).await.desired_status != Status::Stopped {}
}

/// Says what it means for this container that it logs through a log router, if it does. ECS starts a log router before the containers
/// that log through it, and stops it after them ("Container dependency").
pub(crate) async fn explain_log_router(metadata: &MetadataClient, ignored: &[String]) {
    let routed = metadata.container().await.is_ok_and(|own| own.log_driver.as_deref() == Some("awsfirelens"));
    if routed && ignored.is_empty() {
        tracing::warn!(
            "this container logs through a log router, which ECS stops only after it: name the router in --ignore-container, or Envoy \
             waits for it until --grace is over"
        );
    }
}

/// Returns when every app container has stopped.
pub(crate) async fn gone(metadata: &MetadataClient, ignored: &[String]) {
    let mut asked = Asked::every(WAITING, metadata);
    // Whatever the task definition calls it, this container is no app.
    let own = asked.next(MetadataClient::container).await.docker_id;
    let mut said = Vec::new();
    let mut task = asked.next(async |metadata| metadata.whole_task(Some(&own)).await).await;
    for name in ignored.iter().filter(|name| !task.containers.iter().any(|container| container.name == **name)) {
        tracing::warn!("--ignore-container names {name}, and this task has no such container");
    }
    loop {
        let left = left(&task, &own, ignored);
        if left.is_empty() {
            return;
        }
        if left != said {
            tracing::info!("waiting for {}", left.join(", "));
            said = left.into_iter().map(str::to_owned).collect();
        }
        task = asked.next(async |metadata| metadata.whole_task(Some(&own)).await).await;
    }
}

/// The app containers that have not stopped.
fn left<'a>(task: &'a Task, own: &str, ignored: &[String]) -> Vec<&'a str> {
    let is_app = |container: &&Container| {
        container.type_ == ContainerType::Normal
            && container.docker_id != own
            && !is_sidecar(&container.name)
            && !ignored.contains(&container.name)
    };
    let apps = task.containers.iter().filter(is_app);
    apps.filter(|container| !has_stopped(container)).map(|container| container.name.as_str()).collect()
}

/// Also a container that has not started and is not to start any more.
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

    fn left_of(container: Value) -> bool {
        let task: Task = serde_json::from_value(json!({
            "Cluster": "blue", "Family": "shop", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "Containers": [container],
        }))
        .unwrap();
        !left(&task, "own", &["logger".to_owned()]).is_empty()
    }

    #[test]
    fn an_app_is_left_until_it_has_stopped_or_never_will_start() {
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
            assert_eq!(left_of(app), expected, "{known} {desired}");
        }
    }

    #[test]
    fn neither_sidecars_nor_aws_s_containers_nor_ignored_ones_nor_this_one_are_apps() {
        let running = |name: &str| json!({ "Name": name, "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING" });
        for name in ["consul-client", "health-sync", "sidecar-proxy", "ecs-service-connect-x", "logger"] {
            assert!(!left_of(running(name)), "{name}");
        }
        let mut pause = running("~internal~ecs~pause");
        pause["Type"] = json!("CNI_PAUSE");
        assert!(!left_of(pause));
        let mut own = running("envoy");
        assert!(left_of(own.clone()));
        own["DockerId"] = json!("own");
        assert!(!left_of(own));
    }
}
