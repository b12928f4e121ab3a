//! The `process` suite.
mod consul_api;
mod envoy_entrypoint;
mod mesh_init;
mod xds_bridge;

mod ecs_local;
