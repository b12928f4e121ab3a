//! Amazon Resource Names of tasks and clusters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not an ARN of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct ArnError {
    value: String,
    expected: &'static str,
}

/// The ID of a task: 32 hexadecimal digits, or a UUID in an ARN of the old form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(String);

impl TaskId {
    /// The ID as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for TaskId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl PartialEq<str> for TaskId {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

/// The ARN of a task. The old form is `arn:aws:ecs:<region>:<account>:task/<task ID>`, the new one has the cluster's name:
/// `…:task/<cluster>/<task ID>` ("Amazon Resource Names (ARNs) and IDs" in the Amazon ECS Developer Guide). Any partition is accepted:
/// `aws`, `aws-cn`, `aws-us-gov` and the isolated ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskArn {
    partition: String,
    region: String,
    account: String,
    cluster: Option<String>,
    task_id: TaskId,
}

impl TaskArn {
    /// Such as `aws` or `aws-cn`.
    #[must_use]
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Such as `us-west-2`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The AWS account's number.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The cluster's name; an ARN of the old form has none.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The ID of the task.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        &self.task_id
    }

    /// The ARN of another task in the same cluster, in the same form.
    #[must_use]
    pub fn sibling(&self, task_id: &str) -> Self {
        Self { task_id: TaskId(task_id.to_owned()), ..self.clone() }
    }

    /// The ARN of the cluster with this name in the task's partition, region and account.
    #[must_use]
    pub fn cluster_arn(&self, name: &str) -> ClusterArn {
        ClusterArn {
            partition: self.partition.clone(),
            region: self.region.clone(),
            account: self.account.clone(),
            name: name.to_owned(),
        }
    }
}

impl FromStr for TaskArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let error = || ArnError {
            value: text.to_owned(),
            expected: "a task ARN (arn:<partition>:ecs:<region>:<account>:task/[<cluster>/]<task ID>)",
        };
        let arn = EcsArn::parse(text).ok_or_else(error)?;
        let id = arn.resource.strip_prefix("task/").ok_or_else(error)?;
        let (cluster, task_id) = match id.split_once('/') {
            Some((cluster, task_id)) => (Some(cluster), task_id),
            None => (None, id),
        };
        if task_id.is_empty() || task_id.contains('/') || cluster.is_some_and(str::is_empty) {
            return Err(error());
        }
        Ok(Self {
            partition: arn.partition.to_owned(),
            region: arn.region.to_owned(),
            account: arn.account.to_owned(),
            cluster: cluster.map(str::to_owned),
            task_id: TaskId(task_id.to_owned()),
        })
    }
}

impl fmt::Display for TaskArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, cluster, task_id } = self;
        write!(f, "arn:{partition}:ecs:{region}:{account}:task/")?;
        if let Some(cluster) = cluster {
            write!(f, "{cluster}/")?;
        }
        f.write_str(task_id.as_str())
    }
}

/// The ARN of a cluster, `arn:aws:ecs:<region>:<account>:cluster/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterArn {
    partition: String,
    region: String,
    account: String,
    name: String,
}

impl ClusterArn {
    /// Such as `aws` or `aws-cn`.
    #[must_use]
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Such as `us-west-2`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The AWS account's number.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The ARN of the cluster with this name in this region. Partition and account come from any ARN, such as a secret's.
    ///
    /// # Errors
    /// If the text is not an ARN.
    pub fn beside(arn: &str, region: &str, name: &str) -> Result<Self, ArnError> {
        let error = || ArnError {
            value: arn.to_owned(),
            expected: "an ARN (arn:<partition>:<service>:<region>:<account>:…)",
        };
        let parts = arn.splitn(6, ':').collect::<Vec<_>>();
        let ["arn", partition, _, _, account, _] = parts[..] else { return Err(error()) };
        format!("arn:{partition}:ecs:{region}:{account}:cluster/{name}").parse().map_err(|_| error())
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ARN of the cluster's task with this ID.
    #[must_use]
    pub fn task(&self, task_id: &str) -> TaskArn {
        TaskArn {
            partition: self.partition.clone(),
            region: self.region.clone(),
            account: self.account.clone(),
            cluster: Some(self.name.clone()),
            task_id: TaskId(task_id.to_owned()),
        }
    }
}

impl FromStr for ClusterArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let error = || ArnError {
            value: text.to_owned(),
            expected: "a cluster ARN (arn:<partition>:ecs:<region>:<account>:cluster/<name>)",
        };
        let arn = EcsArn::parse(text).ok_or_else(error)?;
        let name = arn.resource.strip_prefix("cluster/").ok_or_else(error)?;
        if name.is_empty() || name.contains('/') {
            return Err(error());
        }
        Ok(Self {
            partition: arn.partition.to_owned(),
            region: arn.region.to_owned(),
            account: arn.account.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for ClusterArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, name } = self;
        write!(f, "arn:{partition}:ecs:{region}:{account}:cluster/{name}")
    }
}

/// The parts of any ARN of ECS.
struct EcsArn<'a> {
    partition: &'a str,
    region: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> EcsArn<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "ecs", region, account, resource] = parts[..] else { return None };
        let whole = [partition, region, account, resource].iter().all(|part| {
            // ARNs are used in Consul's service meta and in URLs.
            !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic())
        });
        whole.then_some(Self { partition, region, account, resource })
    }
}

impl TryFrom<String> for TaskArn {
    type Error = ArnError;

    fn try_from(text: String) -> Result<Self, ArnError> {
        text.parse()
    }
}

impl From<TaskArn> for String {
    fn from(arn: TaskArn) -> Self {
        arn.to_string()
    }
}

impl TryFrom<String> for ClusterArn {
    type Error = ArnError;

    fn try_from(text: String) -> Result<Self, ArnError> {
        text.parse()
    }
}

impl From<ClusterArn> for String {
    fn from(arn: ClusterArn) -> Self {
        arn.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_arn_survives_a_round_trip() {
        let cases = [
            ("arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b2c", "aws", "eu-north-1", Some("blue"), "0a1b2c"),
            ("arn:aws:ecs:eu-north-1:210987654321:task/6f2a-11", "aws", "eu-north-1", None, "6f2a-11"),
            ("arn:aws-cn:ecs:cn-north-1:210987654321:task/b/1", "aws-cn", "cn-north-1", Some("b"), "1"),
            ("arn:aws-us-gov:ecs:us-gov-east-1:210987654321:task/1", "aws-us-gov", "us-gov-east-1", None, "1"),
            ("arn:aws-iso-b:ecs:us-isob-east-1:210987654321:task/b/1", "aws-iso-b", "us-isob-east-1", Some("b"), "1"),
        ];
        for (text, partition, region, cluster, task_id) in cases {
            let arn: TaskArn = text.parse().unwrap();
            assert_eq!(arn.partition(), partition);
            assert_eq!(arn.region(), region);
            assert_eq!(arn.account(), "210987654321");
            assert_eq!(arn.cluster(), cluster);
            assert_eq!(arn.task_id(), task_id);
            assert_eq!(arn.to_string(), text);
        }
    }

    #[test]
    fn a_text_that_is_not_a_task_arn_is_refused() {
        let not = [
            "",
            "0a1b2c",
            "arn:aws:ecs:eu-north-1:210987654321:cluster/blue",
            "arn:aws:ec2:eu-north-1:210987654321:task/blue/0a1b2c",
            "arn:aws:ecs::210987654321:task/blue/0a1b2c",
            "arn:aws:ecs:eu-north-1::task/blue/0a1b2c",
            "arn::ecs:eu-north-1:210987654321:task/blue/0a1b2c",
            "arn:aws:ecs:eu-north-1:210987654321:task/",
            "arn:aws:ecs:eu-north-1:210987654321:task/blue/",
            "arn:aws:ecs:eu-north-1:210987654321:task//0a1b2c",
            "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a/1b",
            "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a:1b",
            "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a\n1b",
        ];
        for text in not {
            let error = text.parse::<TaskArn>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a task ARN (arn:")), "{error}");
        }
    }

    #[test]
    fn a_cluster_arn_survives_a_round_trip() {
        let text = "arn:aws-cn:ecs:cn-north-1:210987654321:cluster/blue";
        let arn: ClusterArn = text.parse().unwrap();
        assert_eq!((arn.name(), arn.region(), arn.account()), ("blue", "cn-north-1", "210987654321"));
        assert_eq!(arn.to_string(), text);
        for text in ["blue", "arn:aws:ecs:eu-north-1:210987654321:task/blue", "arn:aws:ecs:eu-north-1:2:cluster/"] {
            assert!(text.parse::<ClusterArn>().is_err(), "{text}");
        }
    }
}
