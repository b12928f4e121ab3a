//! The fields of the metadata endpoint's answers. They are all fields that two AWS pages document: "Amazon ECS task metadata V4 JSON
//! response" and "Amazon ECS task metadata v4 JSON response for tasks on Fargate".
//!
//! Times are RFC 3339 text in UTC, as the agent sends them. The sidecars parse the same answers with `ecs_meta::Task`, which has
//! only the fields that they use.

use std::collections::BTreeMap;

use ecs_meta::{ContainerType, HealthStatus, Status, TaskArn};
use serde::{Deserialize, Serialize, Serializer};

/// The task, as `${ECS_CONTAINER_METADATA_URI_V4}/task` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// The cluster's short name or ARN.
    pub cluster: String,
    /// The task's ARN.
    #[serde(rename = "TaskARN")]
    pub task_arn: TaskArn,
    /// The task definition's family.
    pub family: String,
    /// The task definition's revision.
    #[serde(default)]
    pub revision: String,
    /// The ECS service of the task, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The status that ECS wants the task to have.
    #[serde(default)]
    pub desired_status: Status,
    /// The status of the task.
    #[serde(default)]
    pub known_status: Status,
    /// The containers that the agent knows so far.
    #[serde(default)]
    pub containers: Vec<Container>,
    /// Limits of the whole task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When the first image pull began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_started_at: Option<String>,
    /// When the last image pull ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_stopped_at: Option<String>,
    /// When the desired status became `STOPPED`, for example because an essential container exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_stopped_at: Option<String>,
    /// The availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability_zone: Option<String>,
    /// `EC2`, `FARGATE`, `EXTERNAL` or `MANAGED_INSTANCES`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_type: Option<String>,
    /// The VPC of the container instance; EC2 only.
    #[serde(rename = "VPCID", default, skip_serializing_if = "Option::is_none")]
    pub vpc_id: Option<String>,
    /// The task's tags; with `/taskWithTags` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_tags: Option<BTreeMap<String, String>>,
    /// The container instance's tags; with `/taskWithTags` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_instance_tags: Option<BTreeMap<String, String>>,
    /// Why tags are missing; with `/taskWithTags` on EC2 only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<TaskError>,
    /// The clock; Fargate and managed instances only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_drift: Option<ClockDrift>,
    /// The ephemeral storage; Fargate only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage_metrics: Option<EphemeralStorage>,
    /// Whether the task may ask for faults to be injected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_injection_enabled: Option<bool>,
}

/// One container, as `${ECS_CONTAINER_METADATA_URI_V4}` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Docker's ID; on Fargate the task ID and a number.
    #[serde(default)]
    pub docker_id: String,
    /// Its name in the task definition.
    pub name: String,
    /// Its name in Docker.
    #[serde(default)]
    pub docker_name: String,
    /// The image's name.
    #[serde(default)]
    pub image: String,
    /// The image's SHA-256 digest; empty for a pause container.
    #[serde(rename = "ImageID", default)]
    pub image_id: String,
    /// The ports that the container exposes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// The container's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The status that ECS wants the container to have.
    #[serde(default)]
    pub desired_status: Status,
    /// The status of the container.
    #[serde(default)]
    pub known_status: Status,
    /// Its exit code, once it has exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Limits of this container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Whether it is a container of the task definition or one that ECS adds.
    #[serde(rename = "Type", default)]
    pub type_: ContainerType,
    /// Its health; only if it has a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// Its volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Its log driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<String>,
    /// Its log driver's options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_options: Option<BTreeMap<String, String>>,
    /// Its ARN.
    #[serde(rename = "ContainerARN", default, skip_serializing_if = "Option::is_none")]
    pub container_arn: Option<String>,
    /// containerd's snapshotter; Fargate and managed instances only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshotter: Option<String>,
    /// How many times it was restarted; only with a restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
    /// The clock. In AWS's example a Fargate container has this field too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_drift: Option<ClockDrift>,
}

/// The CPU and memory limits of a task or a container.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Limits {
    /// CPU: in vCPUs for a task, in CPU units (1,024 a vCPU) for a container.
    #[serde(rename = "CPU", default, skip_serializing_if = "Option::is_none", serialize_with = "shortest")]
    pub cpu: Option<f64>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
}

/// Writes a whole number without a fraction, as AWS does: some clients parse it as an integer.
fn shortest<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match *number {
        #[allow(clippy::cast_possible_truncation, reason = "it has no fraction")]
        Some(number) if number.fract() == 0.0 => serializer.serialize_i64(number as i64),
        number => number.serialize(serializer),
    }
}

/// The health of a container. AWS writes these keys in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The status. ECS leaves out an unknown status (`dockerContainerHealthToV2Health` in its agent).
    #[serde(default, skip_serializing_if = "HealthStatus::is_unknown")]
    pub status: HealthStatus,
    /// Since when the container has this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_since: Option<String>,
    /// The last check's exit code, unless it is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// The last check's output, unless it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// One network interface of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// `awsvpc`, `bridge`, `host`, `none` or `default`.
    #[serde(default)]
    pub network_mode: String,
    /// Its IPv4 addresses.
    #[serde(rename = "IPv4Addresses", default, skip_serializing_if = "Vec::is_empty")]
    pub ipv4_addresses: Vec<String>,
    /// Its IPv6 addresses.
    #[serde(rename = "IPv6Addresses", default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6_addresses: Vec<String>,
    /// The index of the elastic network interface in the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment_index: Option<u32>,
    /// The MAC address.
    #[serde(rename = "MACAddress", default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// The subnet's IPv4 block.
    #[serde(rename = "IPv4SubnetCIDRBlock", default, skip_serializing_if = "Option::is_none")]
    pub ipv4_subnet_cidr_block: Option<String>,
    /// The subnet's IPv6 block.
    #[serde(rename = "IPv6SubnetCIDRBlock", default, skip_serializing_if = "Option::is_none")]
    pub ipv6_subnet_cidr_block: Option<String>,
    /// DNS servers; Fargate only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domain_name_servers: Vec<String>,
    /// DNS search list; Fargate only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domain_name_search_list: Vec<String>,
    /// The private DNS name.
    #[serde(rename = "PrivateDNSName", default, skip_serializing_if = "Option::is_none")]
    pub private_dns_name: Option<String>,
    /// The subnet's gateway with the length of its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_gateway_ipv4_address: Option<String>,
    /// The subnet's IPv6 gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_gateway_ipv6_address: Option<String>,
}

/// An exposed port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Port {
    /// The port in the container.
    #[serde(default)]
    pub container_port: u16,
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: String,
    /// The port on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The address of the host to which the port is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
}

/// A mounted volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Docker's name of the volume; a bind mount has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_name: Option<String>,
    /// Its path on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its path in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

/// The error of the clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClockDrift {
    /// The largest error, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_bound: Option<f64>,
    /// When the error was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_timestamp: Option<String>,
    /// `SYNCHRONIZED` or `NOT_SYNCHRONIZED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_synchronization_status: Option<String>,
}

/// The task's ephemeral storage, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EphemeralStorage {
    /// The storage in use.
    pub utilized: i64,
    /// The size of the storage that ECS reserves for the task.
    pub reserved: i64,
}

/// Why the agent could not list the tags of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskError {
    /// The missing field: `TaskTags` or `ContainerInstanceTags`.
    #[serde(default)]
    pub error_field: String,
    /// The ECS API's error code.
    #[serde(default)]
    pub error_code: String,
    /// The ECS API's message.
    #[serde(default)]
    pub error_message: String,
    /// The HTTP status.
    #[serde(default)]
    pub status_code: u16,
    /// The ECS API's request ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The ARN of the resource with the tags.
    #[serde(rename = "ResourceARN", default, skip_serializing_if = "Option::is_none")]
    pub resource_arn: Option<String>,
}
