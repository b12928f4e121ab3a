//! The ECS task metadata endpoint, version 4, and ECS's ARNs.
//!
//! [`MetadataClient`] fetches what the endpoint says of this [`Task`] and this [`Container`], bounded in time and size.
//! The types hold the fields that sidecars use ("Amazon ECS task metadata V4 JSON response"); all others are ignored.

mod arn;
mod client;
mod metadata;
mod watch;

pub use arn::{ArnError, ClusterArn, TaskArn};
pub use client::{Error, MetadataClient, VARIABLE};
pub use metadata::{Container, ContainerType, Health, HealthStatus, Network, Status, Task};
pub use watch::{Answer, Watch};
