//! The labels that make a container part of a task.

use std::collections::BTreeMap;
use std::time::Duration;

use ecs_meta::{ContainerType, TaskArn};

/// ECS's label with the task's ARN. A container with this label belongs to a task.
pub const TASK_ARN: &str = "com.amazonaws.ecs.task-arn";
pub(crate) const CLUSTER: &str = "com.amazonaws.ecs.cluster";
/// ECS's label with the task definition's family.
pub const FAMILY: &str = "com.amazonaws.ecs.task-definition-family";
pub(crate) const VERSION: &str = "com.amazonaws.ecs.task-definition-version";
/// ECS's label with the container's name in the task definition.
pub const CONTAINER_NAME: &str = "com.amazonaws.ecs.container-name";
/// The restart attempt period in seconds. A container with this label has a restart policy.
pub const RESTART_ATTEMPT_PERIOD: &str = "ecs-mesh.restart-attempt-period";
const TAG: &str = "ecs-mesh.tag.";
const STOP_TIMEOUT: &str = "ecs-mesh.stop-timeout";
/// `true` or `false`.
pub const ESSENTIAL: &str = "ecs-mesh.essential";
/// `CNI_PAUSE` for the container that holds the network namespace.
pub const TYPE: &str = "ecs-mesh.type";
/// `NAME:CONDITION`, separated by commas.
pub const DEPENDS_ON: &str = "ecs-mesh.depends-on";
/// The conditions that ECS knows ("ContainerDependency" in the API reference).
const CONDITIONS: [&str; 4] = ["START", "COMPLETE", "SUCCESS", "HEALTHY"];

/// ECS's default, `ECS_CONTAINER_STOP_TIMEOUT`.
const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The parsed labels of a container. A missing label has ECS's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// The task.
    pub task: TaskArn,
    /// The container's name in the task definition.
    pub name: String,
    /// The cluster's name or ARN.
    pub cluster: String,
    /// The task definition's family.
    pub family: String,
    /// The task definition's revision.
    pub revision: String,
    /// Whether the task stops when this container does.
    pub essential: bool,
    /// The time between TERM and KILL.
    pub stop_timeout: Duration,
    /// How long the container must have run before it exits so that its restart policy starts it again; none without a policy.
    pub restart_attempt_period: Option<Duration>,
    /// `CNI_PAUSE` for the container that holds the network namespace.
    pub type_: ContainerType,
    /// The containers it depends on, by their names in the task definition.
    pub depends_on: Vec<String>,
    /// The task's tags.
    pub tags: BTreeMap<String, String>,
    /// The labels that the metadata shows: all except those of compose and `ecs-mesh.…`.
    pub shown: BTreeMap<String, String>,
}

impl Labels {
    /// Parses the labels of a container, and returns the problems too. None if the labels lack a task's ARN or a container's name: the
    /// container then belongs to no task.
    pub fn read(labels: &BTreeMap<String, String>) -> (Option<Self>, Vec<String>) {
        let mut problems = Vec::new();
        let get = |key: &str| labels.get(key).filter(|value| !value.is_empty());
        let mut expect = |key: &str, expected: &str| {
            problems.push(format!("label {key} is {:?}: expected {expected}", labels.get(key).map_or("", |l| l)));
        };

        let Some(task) = get(TASK_ARN).and_then(|arn| arn.parse::<TaskArn>().ok()) else {
            expect(TASK_ARN, "a task ARN");
            return (None, problems);
        };
        let Some(name) = get(CONTAINER_NAME) else {
            expect(CONTAINER_NAME, "the container's name");
            return (None, problems);
        };
        let essential = match get(ESSENTIAL).map(String::as_str) {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => {
                expect(ESSENTIAL, "true or false");
                true
            }
        };
        let mut seconds = |key: &str| {
            let seconds = get(key)?.parse::<u16>();
            if seconds.is_err() {
                expect(key, "whole seconds, at most 65535");
            }
            Some(Duration::from_secs(seconds.ok()?.into()))
        };
        let stop_timeout = seconds(STOP_TIMEOUT).unwrap_or(DEFAULT_STOP_TIMEOUT);
        let restart_attempt_period = seconds(RESTART_ATTEMPT_PERIOD);
        let type_ = get(TYPE).map_or(ContainerType::Normal, |type_| type_.clone().into());
        if matches!(type_, ContainerType::Other(_)) {
            expect(TYPE, "NORMAL or CNI_PAUSE");
        }
        let mut depends_on = Vec::new();
        for dependency in get(DEPENDS_ON).into_iter().flat_map(|list| list.split(',')) {
            match dependency.split_once(':') {
                Some((name, condition)) if !name.is_empty() && CONDITIONS.contains(&condition) => {
                    depends_on.push(name.to_owned());
                }
                _ => expect(DEPENDS_ON, "name:CONDITION,… with START, COMPLETE, SUCCESS or HEALTHY"),
            }
        }
        let cluster = get(CLUSTER).map(String::as_str).or(task.cluster()).unwrap_or("default").to_owned();
        let tags = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(TAG)?.to_owned(), value.clone())));
        let shown =
            labels.iter().filter(|(key, _)| !key.starts_with("ecs-mesh.") && !key.starts_with("com.docker.compose."));
        let read = Self {
            name: name.clone(),
            cluster,
            family: get(FAMILY).cloned().unwrap_or_default(),
            revision: get(VERSION).cloned().unwrap_or_default(),
            essential,
            stop_timeout,
            restart_attempt_period,
            type_,
            depends_on,
            tags: tags.collect(),
            shown: shown.map(|(key, value)| (key.clone(), value.clone())).collect(),
            task,
        };
        (Some(read), problems)
    }

    /// The last part of the container's metadata URI, `<task ID>-<container name>`.
    #[must_use]
    pub fn endpoint_id(&self) -> String {
        format!("{}-{}", self.task.task_id(), self.name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ARN: &str = "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b";

    pub(crate) fn labels(name: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let ours = [(TASK_ARN, ARN), (CONTAINER_NAME, name), (CLUSTER, "blue"), (FAMILY, "f"), (VERSION, "7")];
        ours.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn missing_labels_have_ecs_s_defaults() {
        let (read, problems) = Labels::read(&labels("web", &[]));
        let read = read.unwrap();
        assert_eq!(problems, Vec::<String>::new());
        assert!(read.essential);
        assert_eq!(read.stop_timeout, Duration::from_secs(30));
        assert_eq!(read.type_, ContainerType::Normal);
        assert_eq!(read.endpoint_id(), "0a1b-web");
    }

    #[test]
    fn ecs_mesh_labels_are_parsed_and_not_shown() {
        let more = [
            ("ecs-mesh.essential", "false"),
            ("ecs-mesh.stop-timeout", "5"),
            ("ecs-mesh.type", "CNI_PAUSE"),
            ("ecs-mesh.depends-on", "init:SUCCESS,proxy:HEALTHY"),
            ("ecs-mesh.tag.consul.hashicorp.com/mesh", "true"),
            ("com.docker.compose.project", "p"),
            ("mine", "yes"),
        ];
        let read = Labels::read(&labels("web", &more)).0.unwrap();
        assert!(!read.essential);
        assert_eq!(read.stop_timeout, Duration::from_secs(5));
        assert_eq!(read.type_, ContainerType::CniPause);
        assert_eq!(read.depends_on, ["init", "proxy"]);
        assert_eq!(read.tags.into_iter().collect::<Vec<_>>(), [("consul.hashicorp.com/mesh".into(), "true".into())]);
        assert_eq!(read.shown.len(), 6);
        assert_eq!(read.shown["mine"], "yes");
    }

    #[test]
    fn wrong_labels_are_reported_and_replaced_by_defaults() {
        let more = [
            ("ecs-mesh.essential", "maybe"),
            ("ecs-mesh.stop-timeout", "soon"),
            ("ecs-mesh.restart-attempt-period", "-1"),
            ("ecs-mesh.type", "PAUSE"),
            ("ecs-mesh.depends-on", "init:SUCCESS,proxy:READY"),
        ];
        let (read, problems) = Labels::read(&labels("web", &more));
        let read = read.unwrap();
        assert!(read.essential);
        assert_eq!(read.stop_timeout, Duration::from_secs(30));
        assert_eq!(problems[0], r#"label ecs-mesh.essential is "maybe": expected true or false"#);
        assert_eq!((problems.len(), read.restart_attempt_period), (5, None));
        assert_eq!(read.depends_on, ["init"]);

        let (read, problems) = Labels::read(&labels("", &[]));
        assert_eq!((read, problems.len()), (None, 1));
        let (read, problems) = Labels::read(&BTreeMap::from([(TASK_ARN.to_owned(), "web".to_owned())]));
        assert_eq!(read, None);
        assert_eq!(problems, [format!(r#"label {TASK_ARN} is "web": expected a task ARN"#)]);
    }
}
