//! One container: converts Docker's description into ECS's.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, EndpointSettings, HealthStatusEnum,
};
use ecs_meta::{ContainerType, HealthStatus, Status, TaskArn};
use time::OffsetDateTime;
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;

use crate::documented::{self, Health, Limits, Network};
use crate::labels::Labels;

/// How many characters of a health check's output the ECS agent stores.
const HEALTH_OUTPUT: usize = 1024;

/// A container as it is now.
#[derive(Debug, Clone)]
pub struct Container {
    /// Docker's ID.
    pub id: String,
    /// The labels, parsed.
    pub labels: Labels,
    /// `CREATED`, `RUNNING` (for a pause container `RESOURCES_PROVISIONED`) or `STOPPED`.
    pub status: Status,
    /// The exit code, once the container has stopped.
    pub exit_code: Option<i64>,
    /// When it was created.
    pub created_at: Option<OffsetDateTime>,
    /// When it last started.
    pub started_at: Option<OffsetDateTime>,
    /// When it last stopped; none if it runs again.
    pub finished_at: Option<OffsetDateTime>,
    /// The last health checks; none without a health check.
    pub health: Option<Health>,
    /// How many times its restart policy has started it again; none if it has no restart policy.
    pub restart_count: Option<u32>,
    docker_name: String,
    image: String,
    image_id: String,
    limits: Limits,
    log_driver: Option<String>,
    log_options: HashMap<String, String>,
    /// The ID of the container whose network namespace it shares.
    pub(crate) joins: Option<String>,
    endpoints: Vec<EndpointSettings>,
}

impl Container {
    /// Converts Docker's inspection of a container. None if its labels do not make it part of a task. `health_since` returns when
    /// the container got its health status, if ecs-local saw this.
    pub fn read(
        inspected: ContainerInspectResponse,
        health_since: impl Fn(&str, &HealthStatus) -> Option<OffsetDateTime>,
    ) -> Option<Self> {
        let config = inspected.config.unwrap_or_default();
        let host = inspected.host_config.unwrap_or_default();
        let state = inspected.state.unwrap_or_default();
        let labels = Labels::read(&config.labels.unwrap_or_default().into_iter().collect()).0?;
        let id = inspected.id.unwrap_or_default();
        let status = status(&state, &labels.type_);
        let stopped = status == Status::Stopped;
        let started_at = time(state.started_at.as_deref());
        let finished_at = time(state.finished_at.as_deref()).filter(|_| stopped);
        let created_at = time(inspected.created.as_deref());
        // ECS's CPU units are Docker's CPU shares. In both, 0 means that there is no limit.
        let limits = Limits {
            cpu: Some(host.cpu_shares.unwrap_or_default() as f64),
            memory: Some(host.memory.unwrap_or_default() >> 20),
        };
        let check = config.healthcheck.and_then(|check| check.test).unwrap_or_default();
        let checked = check.first().is_some_and(|kind| kind != "NONE");
        let changed_at = finished_at.or(started_at).or(created_at);
        let health = checked.then(|| health(&state, changed_at, |status| health_since(&id, status)));
        let log = host.log_config.unwrap_or_default();
        Some(Self {
            restart_count: labels.restart_attempt_period.map(|_| 0),
            labels,
            status,
            exit_code: state.exit_code.filter(|_| stopped),
            created_at,
            started_at,
            finished_at,
            health,
            docker_name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            image: config.image.unwrap_or_default(),
            image_id: inspected.image.unwrap_or_default(),
            limits,
            log_driver: log.typ,
            log_options: log.config.unwrap_or_default(),
            joins: host.network_mode.and_then(|mode| mode.strip_prefix("container:").map(str::to_owned)),
            endpoints: sorted(inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default()),
            id,
        })
    }

    /// Whether it is the task's pause container, which holds the network namespace.
    #[must_use]
    pub fn is_pause(&self) -> bool {
        self.labels.type_ == ContainerType::CniPause
    }

    /// Whether the container has a process.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::ResourcesProvisioned)
    }

    /// Whether its restart policy starts it again: the container has exited, after it ran for at least its restart attempt period
    /// ("ContainerRestartPolicy" in the API reference).
    #[must_use]
    pub fn restarts(&self) -> bool {
        let ran = self.finished_at.zip(self.started_at).map(|(finished, started)| finished - started);
        ran.zip(self.labels.restart_attempt_period).is_some_and(|(ran, period)| ran >= period)
    }

    /// The metadata endpoint's answer for this container. `networks` are the task's.
    pub(crate) fn metadata(&self, stopping: bool, networks: Vec<Network>) -> documented::Container {
        let pause = self.is_pause();
        let desired_status = match (stopping, pause) {
            (true, _) => Status::Stopped,
            (false, true) => Status::ResourcesProvisioned,
            (false, false) => Status::Running,
        };
        documented::Container {
            docker_id: self.id.clone(),
            name: self.labels.name.clone(),
            docker_name: self.docker_name.clone(),
            image: self.image.clone(),
            image_id: self.image_id.clone(),
            ports: Vec::new(),
            labels: self.labels.shown.clone(),
            desired_status,
            known_status: self.status.clone(),
            exit_code: self.exit_code,
            limits: Some(self.limits),
            created_at: rfc3339(self.created_at),
            started_at: rfc3339(self.started_at),
            finished_at: rfc3339(self.finished_at),
            type_: self.labels.type_.clone(),
            health: self.health.clone(),
            networks,
            volumes: Vec::new(),
            log_driver: self.log_driver.clone().filter(|_| !pause),
            log_options: Some(self.log_options.clone().into_iter().collect())
                .filter(|_| !pause && !self.log_options.is_empty()),
            container_arn: (!pause).then(|| container_arn(&self.labels.task, &self.labels.cluster, &self.id)),
            snapshotter: None,
            restart_count: self.restart_count,
            clock_drift: None,
        }
    }

    /// The container's own networks as ECS shows them for `awsvpc`, without the network of the metadata endpoint. None while
    /// the container does not run, because it has no addresses then.
    pub(crate) fn networks(&self) -> Vec<Network> {
        let own = self.endpoints.iter().filter_map(|endpoint| network(endpoint, self.labels.task.region()));
        own.enumerate()
            .map(|(index, network)| Network { attachment_index: u32::try_from(index).ok(), ..network })
            .collect()
    }

    /// The ID of the container's first own network. The network of the metadata endpoint does not count.
    pub(crate) fn network_id(&self) -> Option<&str> {
        let own = self.endpoints.iter().find(|endpoint| network(endpoint, "").is_some())?;
        own.network_id.as_deref()
    }
}

fn sorted(networks: HashMap<String, EndpointSettings>) -> Vec<EndpointSettings> {
    let mut networks: Vec<_> = networks.into_iter().collect();
    networks.sort_by(|(one, _), (other, _)| one.cmp(other));
    networks.into_iter().map(|(_, endpoint)| endpoint).collect()
}

fn network(endpoint: &EndpointSettings, region: &str) -> Option<Network> {
    let address: Ipv4Addr = endpoint.ip_address.as_deref()?.parse().ok()?;
    if address.is_link_local() {
        return None;
    }
    let prefix = endpoint.ip_prefix_len.and_then(|length| u32::try_from(length).ok()).filter(|length| *length <= 32)?;
    let subnet = Ipv4Addr::from_bits(address.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0));
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let domain = if region == "us-east-1" { "ec2.internal".to_owned() } else { format!("{region}.compute.internal") };
    let v6 = filled(&endpoint.global_ipv6_address);
    Some(Network {
        network_mode: "awsvpc".to_owned(),
        ipv4_addresses: vec![address.to_string()],
        ipv6_addresses: v6.into_iter().collect(),
        attachment_index: None,
        mac_address: filled(&endpoint.mac_address),
        ipv4_subnet_cidr_block: Some(format!("{subnet}/{prefix}")),
        private_dns_name: Some(format!("ip-{}.{domain}", address.to_string().replace('.', "-"))),
        subnet_gateway_ipv4_address: filled(&endpoint.gateway).map(|gateway| format!("{gateway}/{prefix}")),
        ..Network::default()
    })
}

fn status(state: &ContainerState, type_: &ContainerType) -> Status {
    use ContainerStateStatusEnum as Docker;
    match state.status {
        Some(Docker::CREATED) => Status::Created,
        Some(Docker::EXITED | Docker::DEAD | Docker::REMOVING) => Status::Stopped,
        Some(Docker::RUNNING | Docker::PAUSED | Docker::RESTARTING | Docker::STOPPING) => match type_ {
            ContainerType::CniPause => Status::ResourcesProvisioned,
            _ => Status::Running,
        },
        Some(Docker::EMPTY) | None => Status::None,
    }
}

/// A container's health, and since when it has this status. Docker stores only the results of the last five checks. If ecs-local has
/// not seen the change, it counts the latest checks with the same result, and takes the time of the oldest of them.
fn health(
    state: &ContainerState,
    changed_at: Option<OffsetDateTime>,
    seen_since: impl Fn(&HealthStatus) -> Option<OffsetDateTime>,
) -> Health {
    let docker = state.health.clone().unwrap_or_default();
    let status = match docker.status {
        Some(HealthStatusEnum::HEALTHY) => HealthStatus::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => HealthStatus::Unhealthy,
        _ => HealthStatus::Unknown,
    };
    let log = docker.log.unwrap_or_default();
    let last = log.last();
    let passed = last.is_some_and(|check| check.exit_code == Some(0));
    let alike = log.iter().rev().take_while(|check| (check.exit_code == Some(0)) == passed).last();
    let checked = alike.and_then(|check| time(check.end.as_deref()));
    let since = match status {
        HealthStatus::Healthy | HealthStatus::Unhealthy => {
            let seen = seen_since(&status).or(checked);
            // When a container stops, Docker calls it unhealthy at once, without another check.
            seen.max(changed_at)
        }
        _ => changed_at,
    };
    let output = last.and_then(|check| check.output.as_deref());
    let output = output.map(|output| output.chars().take(HEALTH_OUTPUT).collect::<String>());
    Health {
        status,
        status_since: rfc3339(since),
        exit_code: last.and_then(|check| check.exit_code).filter(|code| *code != 0),
        output: output.filter(|output| !output.is_empty()),
    }
}

/// Parses a time of Docker's. Docker writes the year 1 if there is no time.
fn time(text: Option<&str>) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(text?, &Rfc3339).ok()?.to_offset(UtcOffset::UTC);
    (time.year() > 1).then_some(time)
}

/// Formats a time as ECS does: in UTC, with the fraction of the second if there is one.
pub(crate) fn rfc3339(time: Option<OffsetDateTime>) -> Option<String> {
    time?.format(&Rfc3339).ok()
}

/// The container's ARN. ECS gives each container a random UUID. This one comes from Docker's ID, so it stays the same.
fn container_arn(task: &TaskArn, cluster: &str, id: &str) -> String {
    let cluster = cluster.rsplit('/').next().unwrap_or_default();
    let part = |from: usize, to: usize| id.get(from..to).unwrap_or_default();
    let uuid = format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32));
    let (partition, region, account) = (task.partition(), task.region(), task.account());
    format!("arn:{partition}:ecs:{region}:{account}:container/{cluster}/{}/{uuid}", task.task_id())
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::labels::tests::labels;

    /// A running container as Docker shows it, with `changes` merged into it.
    pub(crate) fn container(name: &str, more_labels: &[(&str, &str)], changes: Value) -> Container {
        let mut inspected = json!({
            "Id": format!("{name}0123456789abcdef0123456789abcdef0123456789abcdef"),
            "Created": "2031-01-02T03:04:05.1Z",
            "Image": "sha256:aa",
            "Name": format!("/p_{name}_1"),
            "State": {
                "Status": "running", "Running": true, "ExitCode": 0,
                "StartedAt": "2031-01-02T03:04:06Z", "FinishedAt": "0001-01-01T00:00:00Z",
            },
            "HostConfig": {"LogConfig": {"Type": "json-file", "Config": {}}, "NetworkMode": "net"},
            "Config": {"Image": "app:1", "Labels": labels(name, more_labels)},
            "NetworkSettings": {"Networks": {}},
        });
        merge(&mut inspected, changes);
        Container::read(serde_json::from_value(inspected).unwrap(), |_, _| None).unwrap()
    }

    fn merge(value: &mut Value, changes: Value) {
        match (value, changes) {
            (Value::Object(value), Value::Object(changes)) => {
                for (key, change) in changes {
                    merge(value.entry(key).or_insert(Value::Null), change);
                }
            }
            (value, change) => *value = change,
        }
    }

    #[test]
    fn docker_s_states_are_ecs_s_statuses() {
        let cases = [
            ("created", Status::Created),
            ("running", Status::Running),
            ("paused", Status::Running),
            ("restarting", Status::Running),
            ("removing", Status::Stopped),
            ("exited", Status::Stopped),
            ("dead", Status::Stopped),
        ];
        for (docker, status) in cases {
            assert_eq!(container("web", &[], json!({"State": {"Status": docker}})).status, status, "{docker}");
        }
        let pause = container("pause", &[("ecs-mesh.type", "CNI_PAUSE")], json!({}));
        assert_eq!(pause.status, Status::ResourcesProvisioned);
    }

    #[test]
    fn only_a_stopped_container_has_an_exit_code_and_an_end() {
        let again = json!({"State": {"ExitCode": 0, "FinishedAt": "2031-01-02T03:00:00Z"}});
        let metadata = container("web", &[], again).metadata(false, Vec::new());
        assert_eq!((metadata.exit_code, metadata.finished_at), (None, None));

        let exited =
            json!({"State": {"Status": "exited", "ExitCode": 137, "FinishedAt": "2031-01-02T04:04:07.25+01:00"}});
        let metadata = container("web", &[], exited).metadata(true, Vec::new());
        assert_eq!(metadata.exit_code, Some(137));
        assert_eq!(metadata.finished_at.as_deref(), Some("2031-01-02T03:04:07.25Z"));

        let created = json!({"State": {"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}});
        let metadata = container("web", &[], created).metadata(false, Vec::new());
        assert_eq!((metadata.started_at, metadata.finished_at, metadata.exit_code), (None, None, None));
    }

    fn check(end: &str, exit_code: i64) -> Value {
        json!({"Start": end, "End": end, "ExitCode": exit_code, "Output": "out\n"})
    }

    fn with_health(status: &str, log: Value) -> Value {
        json!({
            "Config": {"Healthcheck": {"Test": ["CMD", "/x"]}},
            "State": {"Health": {"Status": status, "FailingStreak": 0, "Log": log}},
        })
    }

    #[test]
    fn a_container_has_health_only_if_it_has_a_health_check() {
        assert_eq!(container("web", &[], json!({})).health, None);
        assert_eq!(container("web", &[], json!({"Config": {"Healthcheck": {"Test": ["NONE"]}}})).health, None);
        let created = json!({"State": {"Status": "created"}, "Config": {"Healthcheck": {"Test": ["CMD", "/x"]}}});
        assert_eq!(container("web", &[], created).health.unwrap().status, HealthStatus::Unknown);
    }

    #[test]
    fn health_is_unknown_until_checks_decide_it() {
        let health = container("web", &[], with_health("starting", json!([]))).health.unwrap();
        assert_eq!(health.status, HealthStatus::Unknown);
        assert_eq!(health.status_since.as_deref(), Some("2031-01-02T03:04:06Z"));
        assert_eq!((health.exit_code, health.output), (None, None));

        let log = json!([
            check("2031-01-02T03:04:10Z", 1),
            check("2031-01-02T04:04:11.5+01:00", 0),
            check("2031-01-02T03:04:12Z", 0)
        ]);
        let health = container("web", &[], with_health("healthy", log)).health.unwrap();
        assert_eq!(health.status, HealthStatus::Healthy);
        assert_eq!(health.status_since.as_deref(), Some("2031-01-02T03:04:11.5Z"));
        assert_eq!((health.exit_code, health.output.as_deref()), (None, Some("out\n")));

        let log = json!([check("2031-01-02T03:04:10Z", 0), check("2031-01-02T03:04:11Z", 3)]);
        let health = container("web", &[], with_health("unhealthy", log)).health.unwrap();
        assert_eq!((health.status, health.exit_code), (HealthStatus::Unhealthy, Some(3)));
    }

    fn endpoint(address: &str, prefix: i64, gateway: &str) -> Value {
        json!({
            "IPAddress": address, "IPPrefixLen": prefix, "Gateway": gateway, "MacAddress": "02:42:0a:14:00:05",
            "GlobalIPv6Address": "", "NetworkID": "0123456789abcdef0123",
        })
    }

    #[test]
    fn a_task_s_networks_omit_the_metadata_endpoint_s() {
        let networks = json!({"NetworkSettings": {"Networks": {
            "a-metadata": endpoint("169.254.170.7", 24, ""),
            "mesh": endpoint("10.20.3.5", 20, "10.20.0.1"),
        }}});
        let networks = container("pause", &[], networks).networks();
        let [network] = &networks[..] else { panic!("{networks:?}") };
        assert_eq!(network.network_mode, "awsvpc");
        assert_eq!(network.ipv4_addresses, ["10.20.3.5"]);
        assert_eq!(network.attachment_index, Some(0));
        assert_eq!(network.ipv4_subnet_cidr_block.as_deref(), Some("10.20.0.0/20"));
        assert_eq!(network.subnet_gateway_ipv4_address.as_deref(), Some("10.20.0.1/20"));
        assert_eq!(network.private_dns_name.as_deref(), Some("ip-10-20-3-5.eu-north-1.compute.internal"));
    }

    #[test]
    fn a_stopped_container_has_no_network() {
        let networks = json!({"NetworkSettings": {"Networks": {"mesh": endpoint("", 0, "")}}});
        assert_eq!(container("pause", &[], networks).networks(), []);
    }

    #[test]
    fn a_container_arn_has_the_task_id_and_docker_s_id() {
        let metadata = container("abcd", &[], json!({})).metadata(false, Vec::new());
        let expected = "arn:aws:ecs:eu-north-1:210987654321:container/blue/0a1b/abcd0123-4567-89ab-cdef-0123456789ab";
        assert_eq!(metadata.container_arn.as_deref(), Some(expected));
    }
}
