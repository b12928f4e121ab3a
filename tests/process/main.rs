//! Our binaries beside a real Consul agent, a real Envoy and a real Docker engine.

mod app_entrypoint;
mod consul_api;
mod ecs_local;
mod envoy_entrypoint;
mod health_sync;
mod mesh_init;
mod xds_bridge;
mod xtask;
