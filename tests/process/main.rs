//! Tests of our binaries with a real Consul agent, a real Envoy, a real Docker engine and moto.

mod acl_controller;
mod app_entrypoint;
mod app_mesh;
mod bootstrap;
mod consul_api;
mod deploy;
mod document;
mod draining;
mod ecs_local;
mod envoy_entrypoint;
mod envoy_lifecycle;
mod gateways;
mod health_sync;
mod ipv6;
mod login;
mod machine;
mod mesh_init;
mod mesh_task;
mod migration;
mod names_with_capitals;
mod service_connect;
mod setup;
mod supervise;
mod xds_bridge;
mod xtask;
