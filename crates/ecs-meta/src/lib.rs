//! The ECS task metadata endpoint, version 4, and ECS's ARNs.
//!
//! [`MetadataClient`] fetches what the endpoint says of this [`Task`] and this [`Container`], bounded in time and size.
//! The types hold every field that the AWS pages "Amazon ECS task metadata V4 JSON response" and "Amazon ECS task
//! metadata v4 JSON response for tasks on Fargate" document; what AWS omits is optional, and unknown fields are ignored,
//! since AWS adds fields to version 4.

mod arn;
mod client;
mod metadata;

pub use arn::{ArnError, ClusterArn, TaskArn};
pub use client::{Error, MetadataClient, VARIABLE};
pub use metadata::{
    ClockDrift, Container, ContainerType, EphemeralStorage, Health, HealthStatus, Limits, Network, Port, Status, Task,
    TaskError, Volume,
};
