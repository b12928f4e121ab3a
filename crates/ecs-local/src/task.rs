//! One task: its containers, its statuses, and whether it must stop.

use std::collections::BTreeMap;

use clap::ValueEnum;
use ecs_meta::{ContainerType, HealthStatus, Status, TaskArn};
use time::OffsetDateTime;

use crate::container::{Container, rfc3339};
use crate::documented::{self, Network};

/// The order in which the containers of a stopping task get TERM. ECS's agents use different orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum StopOrder {
    /// All at once.
    #[default]
    AllAtOnce,
    /// A container gets TERM when all containers that directly depend on it have stopped.
    DependsOn,
}

impl StopOrder {
    /// The name on the command line and in the header of a `StopTask` request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllAtOnce => "all-at-once",
            Self::DependsOn => "depends-on",
        }
    }
}

/// The launch type of all tasks here.
pub(crate) const LAUNCH_TYPE: &str = "EC2";

/// The state of a task.
#[derive(Debug, Clone)]
pub struct Task {
    /// The task's ARN.
    pub arn: TaskArn,
    /// The containers, at least one: first the pause container, then the others, the oldest first.
    pub containers: Vec<Container>,
    /// The pause container's networks, which all containers share.
    networks: Vec<Network>,
}

impl Task {
    /// Builds a task from its containers; none if there are no containers. If several containers have the same name, the newest
    /// counts, because compose creates a new container before it removes the one that it replaces.
    #[must_use]
    pub fn of(containers: Vec<Container>) -> Option<Self> {
        let mut newest: BTreeMap<String, Container> = BTreeMap::new();
        for container in containers {
            let name = container.labels.name.clone();
            if newest.get(&name).is_none_or(|other| other.created_at < container.created_at) {
                newest.insert(name, container);
            }
        }
        let mut containers: Vec<Container> = newest.into_values().collect();
        containers.sort_by_key(|container| (!container.is_pause(), container.created_at));
        let first = containers.first()?;
        Some(Self { arn: first.labels.task.clone(), networks: first.networks(), containers })
    }

    /// The container that holds the network namespace.
    #[must_use]
    pub fn pause(&self) -> Option<&Container> {
        self.containers.first().filter(|container| container.is_pause())
    }

    /// When the task's present run began: the last start of its pause container. Without a pause container, it is the start of the
    /// container that has run longest. A container that ended earlier belongs to an earlier run: compose may start the same
    /// containers again.
    #[must_use]
    pub fn run_began(&self) -> Option<OffsetDateTime> {
        match self.pause() {
            Some(pause) => pause.started_at,
            None => self.containers.iter().filter(|c| c.is_running()).filter_map(|c| c.started_at).min(),
        }
    }

    /// The first essential container that exited in the present run and is not restarted. If there is one, the task must stop
    /// ("essential" in "Amazon ECS task definition parameters").
    #[must_use]
    pub fn essential_exit(&self) -> Option<&Container> {
        let exited = self.exited().filter(|c| c.labels.essential && !c.restarts());
        exited.min_by_key(|c| c.finished_at)
    }

    /// The containers that exited in the present run and must be started again because of their restart policies.
    pub fn to_restart(&self) -> impl Iterator<Item = &Container> {
        self.exited().filter(|c| c.restarts())
    }

    fn exited(&self) -> impl Iterator<Item = &Container> {
        let began = self.run_began();
        self.containers.iter().filter(move |c| c.finished_at.is_some() && c.finished_at > began)
    }

    /// The health of the essential containers with a health check: `UNHEALTHY` if one of them is unhealthy, `HEALTHY` if all are
    /// healthy, otherwise `UNKNOWN` ("HealthCheck" in the API reference).
    #[must_use]
    pub fn health(&self) -> HealthStatus {
        let essential = self.containers.iter().filter(|c| c.labels.essential);
        let mut statuses = essential.filter_map(|c| c.health.as_ref().map(|health| &health.status)).peekable();
        let all_healthy = |status: &HealthStatus| *status == HealthStatus::Healthy;
        if statuses.clone().any(|status| *status == HealthStatus::Unhealthy) {
            HealthStatus::Unhealthy
        } else if statuses.peek().is_some() && statuses.all(all_healthy) {
            HealthStatus::Healthy
        } else {
            HealthStatus::Unknown
        }
    }

    /// The running containers that may get TERM now: all of them or, with the order `depends-on`, those on which no running
    /// container directly depends. The pause container is included only if it is the last one. If containers depend on each other in
    /// a circle, the list is empty although some of them run.
    #[must_use]
    pub fn may_stop(&self, order: StopOrder) -> Vec<&Container> {
        let running: Vec<_> = self.containers.iter().filter(|container| container.is_running()).collect();
        if running.iter().all(|container| container.is_pause()) {
            return running;
        }
        let needed = |name: &String| running.iter().any(|container| container.labels.depends_on.contains(name));
        let may = |container: &&Container| {
            !container.is_pause() && (order == StopOrder::AllAtOnce || !needed(&container.labels.name))
        };
        running.iter().copied().filter(may).collect()
    }

    /// The earliest status of its containers. It is `STOPPED` only if all containers have stopped.
    #[must_use]
    pub fn status(&self) -> Status {
        let of_all = |reached: fn(&Container) -> bool| self.containers.iter().all(reached);
        if of_all(|c| c.status == Status::Stopped) {
            Status::Stopped
        } else if of_all(|c| c.status == Status::Stopped || c.is_running()) {
            Status::Running
        } else if of_all(|c| c.status != Status::None) {
            Status::Created
        } else {
            Status::None
        }
    }

    /// When the task began to stop: `asked_to`, or otherwise the exit of an essential container.
    fn execution_stopped_at(&self, asked_to: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
        asked_to.or_else(|| self.essential_exit()?.finished_at)
    }

    /// `STOPPED` if the task must stop, otherwise `RUNNING`.
    #[must_use]
    pub fn desired_status(&self, asked_to: Option<OffsetDateTime>) -> Status {
        if self.execution_stopped_at(asked_to).is_some() { Status::Stopped } else { Status::Running }
    }

    /// The task's tags, from the labels of all its containers.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        self.containers.iter().flat_map(|container| container.labels.tags.clone()).collect()
    }

    /// The metadata endpoint's answer for the task. `asked_to` is the time of a `StopTask` request.
    #[must_use]
    pub fn metadata(&self, asked_to: Option<OffsetDateTime>, with_tags: bool) -> documented::Task {
        let stopped_at = self.execution_stopped_at(asked_to);
        let labels = &self.containers[0].labels;
        // ecs-local pulls no images: the engine has them before the first container is created.
        let pulled_at = self.containers.iter().filter_map(|container| container.created_at).min();
        documented::Task {
            cluster: labels.cluster.clone(),
            task_arn: self.arn.clone(),
            family: labels.family.clone(),
            revision: labels.revision.clone(),
            service_name: None,
            desired_status: self.desired_status(asked_to),
            known_status: self.status(),
            containers: self.containers.iter().map(|c| self.container_metadata(c, stopped_at.is_some())).collect(),
            limits: None,
            pull_started_at: rfc3339(pulled_at),
            pull_stopped_at: rfc3339(pulled_at),
            execution_stopped_at: rfc3339(stopped_at),
            availability_zone: Some(format!("{}a", self.arn.region())),
            launch_type: Some(LAUNCH_TYPE.to_owned()),
            vpc_id: self.containers[0].network_id().and_then(|id| Some(format!("vpc-{}", id.get(..17)?))),
            task_tags: Some(self.tags()).filter(|tags| with_tags && !tags.is_empty()),
            container_instance_tags: None,
            errors: Vec::new(),
            clock_drift: None,
            ephemeral_storage_metrics: None,
            fault_injection_enabled: None,
        }
    }

    /// The metadata endpoint's answer for one container; none if the task has no container with this name.
    #[must_use]
    pub fn metadata_of(&self, name: &str, asked_to: Option<OffsetDateTime>) -> Option<documented::Container> {
        let container = self.containers.iter().find(|container| container.labels.name == name)?;
        Some(self.container_metadata(container, self.execution_stopped_at(asked_to).is_some()))
    }

    fn container_metadata(&self, container: &Container, stopping: bool) -> documented::Container {
        let shares = container.joins.is_some() || container.labels.type_ == ContainerType::CniPause;
        let networks = if shares { self.networks.clone() } else { container.networks() };
        container.metadata(stopping, networks)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::container::tests::container;

    const PAUSE: &[(&str, &str)] = &[("ecs-mesh.type", "CNI_PAUSE")];
    const NOT_ESSENTIAL: &[(&str, &str)] = &[("ecs-mesh.essential", "false")];

    fn started(at: &str) -> Value {
        json!({"State": {"StartedAt": at}})
    }

    fn exited(at: &str) -> Value {
        json!({"State": {"Status": "exited", "FinishedAt": at}})
    }

    fn task(containers: impl IntoIterator<Item = Container>) -> Task {
        Task::of(containers.into_iter().collect()).unwrap()
    }

    fn essential_exit(task: &Task) -> Option<&str> {
        task.essential_exit().map(|container| container.labels.name.as_str())
    }

    #[test]
    fn a_task_stops_only_when_an_essential_container_exits() {
        let pause = || container("pause", PAUSE, started("2031-01-02T03:00:00Z"));
        let running = task([pause(), container("web", &[], json!({}))]);
        assert_eq!(essential_exit(&running), None);

        let done = container("mesh-init", NOT_ESSENTIAL, exited("2031-01-02T03:01:00Z"));
        let init_done = task([pause(), done, container("web", &[], json!({}))]);
        assert_eq!(essential_exit(&init_done), None);
        assert_eq!(init_done.status(), Status::Running);
        assert_eq!(init_done.metadata(None, false).desired_status, Status::Running);

        let web_exited = task([pause(), container("web", &[], exited("2031-01-02T03:02:00Z"))]);
        assert_eq!(essential_exit(&web_exited), Some("web"));
        let metadata = web_exited.metadata(None, false);
        assert_eq!(metadata.desired_status, Status::Stopped);
        assert_eq!(metadata.known_status, Status::Running);
        assert_eq!(metadata.execution_stopped_at.as_deref(), Some("2031-01-02T03:02:00Z"));
        assert!(metadata.containers.iter().all(|container| container.desired_status == Status::Stopped));

        let pause_exited = task([container("pause", PAUSE, exited("2031-01-02T04:02:00Z"))]);
        assert_eq!(essential_exit(&pause_exited), Some("pause"));
        assert_eq!(pause_exited.metadata(None, false).known_status, Status::Stopped);
    }

    #[test]
    fn only_a_container_that_ran_long_enough_is_restarted() {
        let policy = [("ecs-mesh.restart-attempt-period", "60")];
        let ran_until = |end: &str| {
            let state = json!({"State": {
                "Status": "exited", "ExitCode": 1, "StartedAt": "2031-01-02T03:01:00Z", "FinishedAt": end,
            }});
            let pause = container("pause", PAUSE, started("2031-01-02T03:00:00Z"));
            task([pause, container("sync", &policy, state), container("web", &[], json!({}))])
        };
        let restarted = |task: &Task| task.to_restart().map(|c| c.labels.name.clone()).collect::<Vec<_>>();
        let long = ran_until("2031-01-02T03:02:00Z");
        assert_eq!((essential_exit(&long), restarted(&long)), (None, vec!["sync".to_owned()]));
        assert_eq!(long.metadata(None, false).desired_status, Status::Running);
        let short = ran_until("2031-01-02T03:01:59.9Z");
        assert_eq!((essential_exit(&short), restarted(&short)), (Some("sync"), vec![]));

        let before_this_run = task([
            container("pause", PAUSE, started("2031-01-02T05:00:00Z")),
            container("sync", &policy, exited("2031-01-02T04:00:00Z")),
        ]);
        assert_eq!(restarted(&before_this_run), [""; 0]);
    }

    #[test]
    fn a_task_s_health_comes_from_its_essential_containers() {
        let with = |name: &str, labels: &[(&str, &str)], status: &str| {
            let check =
                json!({"Config": {"Healthcheck": {"Test": ["CMD", "/x"]}}, "State": {"Health": {"Status": status}}});
            container(name, labels, check)
        };
        let health = |a: &str, b: &str| {
            let unchecked = container("agent", &[], json!({}));
            let not_essential = with("side", NOT_ESSENTIAL, "unhealthy");
            task([unchecked, not_essential, with("web", &[], a), with("proxy", &[], b)]).health()
        };
        assert_eq!(health("healthy", "healthy"), HealthStatus::Healthy);
        assert_eq!(health("healthy", "starting"), HealthStatus::Unknown);
        assert_eq!(health("unhealthy", "starting"), HealthStatus::Unhealthy);
        assert_eq!(
            task([container("web", &[], json!({}))]).health(),
            HealthStatus::Unknown,
            "no container has a health check"
        );
    }

    #[test]
    fn an_exit_before_the_pause_container_started_is_ignored() {
        let again = task([
            container("pause", PAUSE, started("2031-01-02T05:00:00Z")),
            container("web", &[], exited("2031-01-02T04:59:59.9Z")),
        ]);
        assert_eq!(essential_exit(&again), None);
        assert_eq!(again.metadata(None, false).desired_status, Status::Running);
    }

    #[test]
    fn without_a_pause_container_the_longest_run_counts() {
        let web = || container("web", &[], exited("2031-01-02T03:02:00Z"));
        assert_eq!(essential_exit(&task([web()])), Some("web"));
        let other = container("other", &[], started("2031-01-02T03:01:00Z"));
        assert_eq!(essential_exit(&task([web(), other])), Some("web"));
        let other = container("other", &[], started("2031-01-02T03:03:00Z"));
        assert_eq!(essential_exit(&task([web(), other])), None);
    }

    #[test]
    fn the_newest_container_of_a_name_counts() {
        let mut replaced = exited("2031-01-02T03:02:00Z");
        replaced["Created"] = json!("2030-01-01T00:00:00Z");
        let task = task([
            container("web", &[], json!({})),
            container("web", &[], replaced),
            container("pause", PAUSE, json!({"Created": "2032-01-01T00:00:00Z"})),
        ]);
        assert_eq!(essential_exit(&task), None);
        let names: Vec<_> = task.containers.iter().map(|container| container.labels.name.as_str()).collect();
        assert_eq!(names, ["pause", "web"]);
    }

    #[test]
    fn containers_have_the_pause_container_s_networks() {
        let networks = json!({"NetworkSettings": {"Networks": {"mesh": {
            "IPAddress": "10.20.3.5", "IPPrefixLen": 16, "NetworkID": "0123456789abcdef0123",
        }}}});
        let joins = json!({"HostConfig": {"NetworkMode": "container:abc"}});
        let task = task([container("pause", PAUSE, networks), container("web", &[], joins)]);
        let metadata = task.metadata(None, false);
        assert_eq!(metadata.vpc_id.as_deref(), Some("vpc-0123456789abcdef0"));
        for container in &metadata.containers {
            assert_eq!(container.networks[0].ipv4_addresses, ["10.20.3.5"], "{}", container.name);
        }
        assert_eq!(task.metadata_of("web", None).unwrap().networks[0].ipv4_addresses, ["10.20.3.5"]);
        assert_eq!(task.metadata_of("nobody", None), None);
    }

    #[test]
    fn depends_on_stops_a_container_after_its_dependents() {
        let app = |state: Value| container("app", &[("ecs-mesh.depends-on", "proxy:HEALTHY")], state);
        let proxy = || container("proxy", &[("ecs-mesh.depends-on", "init:SUCCESS")], json!({}));
        let init = || {
            let labels = [("ecs-mesh.essential", "false"), ("ecs-mesh.depends-on", "agent:START")];
            container("init", &labels, exited("2031-01-02T03:04:07Z"))
        };
        let agent = || container("agent", &[], json!({}));
        let names = |task: &Task, order| {
            let mut names: Vec<_> = task.may_stop(order).into_iter().map(|c| c.labels.name.clone()).collect();
            names.sort();
            names
        };
        let all = task([container("pause", PAUSE, json!({})), agent(), init(), proxy(), app(json!({}))]);
        assert_eq!(names(&all, StopOrder::AllAtOnce), ["agent", "app", "proxy"]);
        assert_eq!(names(&all, StopOrder::DependsOn), ["agent", "app"], "init has exited and holds nothing");
        let app_gone = task([container("pause", PAUSE, json!({})), proxy(), app(exited("2031-01-02T03:04:09Z"))]);
        assert_eq!(names(&app_gone, StopOrder::DependsOn), ["proxy"]);
        let pause = task([container("pause", PAUSE, json!({})), app(exited("2031-01-02T03:04:09Z"))]);
        assert_eq!(names(&pause, StopOrder::DependsOn), ["pause"]);
        let circle = task([
            container("one", &[("ecs-mesh.depends-on", "two:START")], json!({})),
            container("two", &[("ecs-mesh.depends-on", "one:START")], json!({})),
        ]);
        assert!(circle.may_stop(StopOrder::DependsOn).is_empty());
    }

    #[test]
    fn tags_are_shown_only_when_asked_for() {
        let task = task([container("web", &[("ecs-mesh.tag.team", "blue")], json!({}))]);
        assert_eq!(task.metadata(None, false).task_tags, None);
        assert_eq!(task.metadata(None, true).task_tags.unwrap()["team"], "blue");
    }

    #[test]
    fn a_stop_request_changes_the_desired_status_at_once() {
        let asked = OffsetDateTime::from_unix_timestamp(1_924_992_000).unwrap();
        let metadata = task([container("web", &[], json!({}))]).metadata(Some(asked), false);
        assert_eq!((metadata.desired_status, metadata.known_status), (Status::Stopped, Status::Running));
        assert_eq!(metadata.execution_stopped_at.as_deref(), Some("2031-01-01T00:00:00Z"));
    }
}
