//! The ECS task metadata endpoint, version 4, and ECS's ARNs.
//!
//! `MetadataClient`, with the feature `client`, fetches what the endpoint says of this [`Task`] and this [`Container`], bounded in time and size.
//! The types hold the fields that sidecars use ("Amazon ECS task metadata V4 JSON response"); all others are ignored.

mod arn;
#[cfg(feature = "client")]
mod client;
mod metadata;
#[cfg(feature = "client")]
mod watch;

pub use arn::{ArnError, ClusterArn, TaskArn, TaskId};
#[cfg(feature = "client")]
pub use client::{Error, MetadataClient, VARIABLE};
pub use metadata::{Container, ContainerType, Health, HealthStatus, Network, Status, Task};
#[cfg(feature = "client")]
pub use watch::{Answer, Watch};
