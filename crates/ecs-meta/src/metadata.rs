//! The types of the endpoint's answer. They have only the fields that sidecars read, so an unexpected value in another field causes no
//! error.

use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::arn::{ArnError, ClusterArn, TaskArn, TaskId};

/// Defines an enum of the words that AWS uses, and a variant for any other word.
macro_rules! words {
    ($(#[$of_enum:meta])* $name:ident { $($(#[$of_word:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$of_enum])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$of_word])* $variant,)*
            /// Any other word.
            Other(String),
        }

        impl $name {
            /// The word as AWS writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $($word => Self::$variant,)*
                    _ => Self::Other(word),
                }
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// A task's or container's status, in ECS's order. A running pause container has `RESOURCES_PROVISIONED`, any other running
    /// container has `RUNNING`.
    #[derive(Default)]
    Status {
        /// Nothing has happened yet.
        #[default]
        None = "NONE",
        /// The agent has the image's manifest.
        ManifestPulled = "MANIFEST_PULLED",
        /// The agent has the image.
        Pulled = "PULLED",
        /// The container exists, but has not started.
        Created = "CREATED",
        /// It runs.
        Running = "RUNNING",
        /// The pause container runs and its network is set up.
        ResourcesProvisioned = "RESOURCES_PROVISIONED",
        /// It has stopped. As a desired status: ECS stops it.
        Stopped = "STOPPED",
    }
}

words! {
    /// The result of the last health checks.
    #[derive(Default)]
    HealthStatus {
        /// They pass.
        Healthy = "HEALTHY",
        /// They fail.
        Unhealthy = "UNHEALTHY",
        /// There is no result yet.
        #[default]
        Unknown = "UNKNOWN",
    }
}

impl HealthStatus {
    /// Whether there is no result yet.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

words! {
    /// Who put a container into the task.
    #[derive(Default)]
    ContainerType {
        /// The task definition.
        #[default]
        Normal = "NORMAL",
        /// The ECS agent, for the container that holds the network namespace.
        CniPause = "CNI_PAUSE",
    }
}

/// The task, as `${ECS_CONTAINER_METADATA_URI_V4}/task` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// The cluster's short name or ARN; see [`Task::cluster_arn`].
    pub cluster: String,
    /// The task's ARN.
    #[serde(rename = "TaskARN")]
    pub task_arn: TaskArn,
    /// The task definition's family.
    pub family: String,
    /// The status that ECS wants the task to have.
    #[serde(default, deserialize_with = "null_as_default")]
    pub desired_status: Status,
    /// The task's status: RUNNING when all of its containers have started.
    #[serde(default, deserialize_with = "null_as_default")]
    pub known_status: Status,
    /// The availability zone; none if the agent does not know it, or answers with something else than a text.
    #[serde(default, deserialize_with = "text_or_none")]
    pub availability_zone: Option<String>,
    /// The containers that the agent knows so far.
    #[serde(default, deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
}

impl Task {
    /// The task ID, from the task's ARN.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        self.task_arn.task_id()
    }

    /// The cluster's ARN. If the metadata has only the cluster's name, the partition, region and account come from the task's ARN.
    ///
    /// # Errors
    /// If the metadata has an ARN that is not a cluster's.
    pub fn cluster_arn(&self) -> Result<ClusterArn, ArnError> {
        if self.cluster.starts_with("arn:") {
            return self.cluster.parse();
        }
        Ok(self.task_arn.cluster_arn(&self.cluster))
    }

    /// The task's address: the first address of any of its containers. With `awsvpc`, all containers share it.
    #[must_use]
    pub fn private_ip(&self) -> Option<&str> {
        self.containers.iter().find_map(Container::private_ip)
    }
}

/// One container, as `${ECS_CONTAINER_METADATA_URI_V4}` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Docker's ID; on Fargate the task ID and a number.
    #[serde(default, deserialize_with = "null_as_default")]
    pub docker_id: String,
    /// Its name in the task definition.
    pub name: String,
    /// The status that ECS wants the container to have.
    #[serde(default, deserialize_with = "null_as_default")]
    pub desired_status: Status,
    /// The container's status.
    #[serde(default, deserialize_with = "null_as_default")]
    pub known_status: Status,
    /// Who put the container into the task.
    #[serde(rename = "Type", default, deserialize_with = "null_as_default")]
    pub type_: ContainerType,
    /// Its health; only if it has a health check.
    #[serde(default)]
    pub health: Option<Health>,
    /// Its networks.
    #[serde(default, deserialize_with = "null_as_default")]
    pub networks: Vec<Network>,
    /// Its log driver.
    #[serde(default)]
    pub log_driver: Option<String>,
}

impl Container {
    /// The container's first IPv4 address, otherwise its first IPv6 address. ECS's agent lists an empty text for an interface without an
    /// address.
    #[must_use]
    pub fn private_ip(&self) -> Option<&str> {
        let v4 = self.networks.iter().flat_map(|network| &network.ipv4_addresses);
        let v6 = self.networks.iter().flat_map(|network| &network.ipv6_addresses);
        v4.chain(v6).map(String::as_str).find(|address| !address.is_empty())
    }
}

/// The health of a container. AWS writes this key in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Health {
    /// The status. ECS leaves out an unknown status (`dockerContainerHealthToV2Health` in its agent).
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: HealthStatus,
}

/// One network interface of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// Its IPv4 addresses.
    #[serde(rename = "IPv4Addresses", default, deserialize_with = "null_as_default")]
    pub ipv4_addresses: Vec<String>,
    /// Its IPv6 addresses.
    #[serde(rename = "IPv6Addresses", default, deserialize_with = "null_as_default")]
    pub ipv6_addresses: Vec<String>,
}

fn text_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Field {
        Text(String),
        Other(IgnoredAny),
    }
    Ok(match Field::deserialize(deserializer)? {
        Field::Text(text) => Some(text),
        Field::Other(_) => None,
    })
}

/// Go writes an empty list as `null`.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
