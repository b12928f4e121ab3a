//! The document's types: every field of consul-ecs 0.6 and of 0.7 to 0.10. `agentless.rs` has the objects that only 0.7 to 0.10 have.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::agentless::{ConsulServers, Controller, NetworkResilience, TransparentProxy};
use crate::names::PUBLIC_LISTENER_PORT;

/// How a task reaches Consul. A document with `consulServers` chooses [`Mode::Agentless`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Through a Consul agent in the task, as with consul-ecs 0.6.
    Agent,
    /// Directly at the servers, as with consul-ecs 0.7 to 0.10.
    Agentless,
}

impl Mode {
    /// The mode that this document chooses.
    #[must_use]
    pub fn of(document: &Value) -> Self {
        if document.get("consulServers").is_some() { Self::Agentless } else { Self::Agent }
    }
}

/// The document. `null` is the same as an absent field.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `bootstrapDir`: the directory of the volume where mesh-init leaves the bootstrap.
    pub bootstrap_dir: PathBuf,
    /// `logLevel`.
    pub log_level: Option<LogLevel>,
    /// `consulHTTPAddr`: the servers' address, for a login.
    pub consul_http_addr: Option<String>,
    /// `consulCACertFile`: the file with the servers' CA certificate, for a login.
    pub consul_ca_cert_file: Option<PathBuf>,
    /// `consulLogin`: how to get a token from an auth method.
    pub consul_login: Option<ConsulLogin>,
    /// `healthSyncContainers`: the containers whose ECS health goes into Consul.
    pub health_sync_containers: Vec<String>,
    /// `service`.
    pub service: Option<Service>,
    /// `proxy`, or its defaults.
    pub proxy: Proxy,
    /// `gateway`: the task is a gateway.
    pub gateway: Option<Gateway>,
    /// `consulServers`: the servers of a task without a Consul agent.
    pub consul_servers: Option<ConsulServers>,
    /// `controller`, for a task without an agent.
    pub controller: Option<Controller>,
    /// `transparentProxy`, for a task without an agent.
    pub transparent_proxy: Option<TransparentProxy>,
    /// One line for each unknown field that the schema allows, and for each broken rule that only warns.
    pub warnings: Vec<String>,
}

/// `logLevel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl LogLevel {
    /// The level as `LOG_LEVEL` takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// `consulLogin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsulLogin {
    /// Log in at all; default false.
    pub enabled: bool,
    /// The auth method; default `iam-ecs-service-token`.
    pub method: String,
    /// The datacenter of the auth method, for a task without an agent.
    pub datacenter: Option<String>,
    /// Give the auth method the role's path and tags; default true.
    pub include_entity: bool,
    /// Meta of the login.
    pub meta: BTreeMap<String, String>,
    /// The AWS region; default `AWS_REGION`, else the task's.
    pub region: Option<String>,
    /// The URL of STS; default the region's.
    pub sts_endpoint: Option<String>,
    /// The value of `X-Consul-IAM-ServerID`.
    pub server_id_header_value: Option<String>,
}

/// `service`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Service {
    /// The service's name; absent or empty: the task family.
    pub name: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The port the app listens on; 0 if it listens on none.
    pub port: u16,
    /// Allows changes of the tags in the catalog.
    pub enable_tag_override: Option<bool>,
    /// Its meta.
    pub meta: BTreeMap<String, String>,
    /// Its share of DNS answers and of the requests from proxies.
    pub weights: Option<Weights>,
    /// Its checks.
    pub checks: Vec<Check>,
    /// Its namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// `networkResilienceConfig`, for a task without an agent.
    pub network_resilience: Option<NetworkResilience>,
}

/// `service.weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weights {
    /// The weight of a passing instance.
    pub passing: i64,
    /// The weight of an instance with a warning.
    pub warning: i64,
}

/// One of `service.checks`: the fields of Consul's "Register Check", durations as Consul writes them (`10s`). `Debug` shows
/// neither `header` nor `body`.
#[derive(Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "Consul's own names, described in its HTTP API under \"Register Check\"")]
pub struct Check {
    pub check_id: Option<String>,
    pub name: Option<String>,
    pub args: Vec<String>,
    pub interval: Option<String>,
    pub timeout: Option<String>,
    pub ttl: Option<String>,
    pub http: Option<String>,
    pub header: BTreeMap<String, Vec<String>>,
    pub method: Option<String>,
    pub body: Option<String>,
    pub tcp: Option<String>,
    pub udp: Option<String>,
    pub status: Option<CheckStatus>,
    pub notes: Option<String>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
    pub grpc: Option<String>,
    pub grpc_use_tls: Option<bool>,
    pub h2ping: Option<String>,
    pub h2ping_use_tls: Option<bool>,
    pub alias_node: Option<String>,
    pub alias_service: Option<String>,
    pub success_before_passing: Option<i64>,
    pub failures_before_critical: Option<i64>,
}

/// The status a check starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "Consul's own names")]
pub enum CheckStatus {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

/// `proxy`. `Debug` doesn't show its configuration.
#[derive(Clone, PartialEq)]
pub struct Proxy {
    /// Opaque configuration, passed on unchanged.
    pub config: Map<String, Value>,
    /// `localServiceAddress`: the address on which the app listens, for a task without an agent.
    pub local_service_address: Option<String>,
    /// The port of Envoy's public listener.
    pub public_listener_port: u16,
    /// The port on which Envoy says that it is ready, for a task without an agent.
    pub health_check_port: Option<u16>,
    /// The services the app reaches through the mesh.
    pub upstreams: Vec<Upstream>,
    /// How upstreams in other datacenters are reached.
    pub mesh_gateway: Option<MeshGatewayMode>,
    /// Paths that are reachable from outside the mesh.
    pub expose: Option<Expose>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            config: Map::new(),
            local_service_address: None,
            public_listener_port: PUBLIC_LISTENER_PORT,
            health_check_port: None,
            upstreams: Vec::new(),
            mesh_gateway: None,
            expose: None,
        }
    }
}

/// One of `proxy.upstreams`. `Debug` doesn't show its configuration.
#[derive(Clone, PartialEq)]
pub struct Upstream {
    /// A service or a prepared query; Consul's default is a service.
    pub destination_type: Option<DestinationType>,
    /// The upstream's namespace (Consul Enterprise).
    pub destination_namespace: Option<String>,
    /// The upstream's admin partition (Consul Enterprise).
    pub destination_partition: Option<String>,
    /// The upstream's name.
    pub destination_name: String,
    /// The peer that has the upstream, for a task without an agent.
    pub destination_peer: Option<String>,
    /// The upstream's datacenter.
    pub datacenter: Option<String>,
    /// The address its listener binds; Consul's default is 127.0.0.1.
    pub local_bind_address: Option<String>,
    /// The port its listener binds.
    pub local_bind_port: u16,
    /// Opaque configuration, passed on unchanged.
    pub config: Map<String, Value>,
    /// How it is reached in another datacenter.
    pub mesh_gateway: Option<MeshGatewayMode>,
}

/// `destinationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "Consul's own names")]
pub enum DestinationType {
    Service,
    PreparedQuery,
}

/// `meshGateway.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "Consul's own names")]
pub enum MeshGatewayMode {
    None,
    Local,
    Remote,
}

/// `proxy.expose`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// Expose the paths of all HTTP and gRPC checks.
    pub checks: Option<bool>,
    /// Paths to expose.
    pub paths: Vec<ExposePath>,
}

/// One of `proxy.expose.paths`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposePath {
    /// The port Envoy listens on.
    pub listener_port: Option<u16>,
    /// The path, with its slash.
    pub path: Option<String>,
    /// The port the app listens on.
    pub local_path_port: Option<u16>,
    /// The protocol; Consul's default is HTTP/1.1.
    pub protocol: Option<ExposeProtocol>,
}

/// `proxy.expose.paths[].protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "Consul's own names")]
pub enum ExposeProtocol {
    Http,
    Http2,
}

/// `gateway`. `Debug` doesn't show its configuration.
#[derive(Clone, PartialEq)]
pub struct Gateway {
    /// Which kind of gateway.
    pub kind: GatewayKind,
    /// Its address inside the datacenter.
    pub lan_address: Option<Address>,
    /// Its address for other datacenters.
    pub wan_address: Option<Address>,
    /// Its name; absent or empty: the task family.
    pub name: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its meta.
    pub meta: BTreeMap<String, String>,
    /// Its namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// The port on which Envoy says that it is ready, for a task without an agent.
    pub health_check_port: Option<u16>,
    /// `proxy.config`, passed on unchanged.
    pub config: Map<String, Value>,
}

/// `gateway.kind`. consul-ecs 0.6 has only mesh gateways. An API gateway is refused by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "Consul's own names")]
pub enum GatewayKind {
    #[default]
    Mesh,
    Ingress,
    Terminating,
    Api,
}

/// `gateway.lanAddress`, `gateway.wanAddress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// An IP address or a name.
    pub address: Option<String>,
    /// A port.
    pub port: Option<u16>,
}

/// Implements `Debug` without headers, bodies and opaque configuration, because they may hold credentials.
macro_rules! debug_with {
    ($type:ident: $($field:ident),+) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))$(.field(stringify!($field), &self.$field))+.finish_non_exhaustive()
            }
        }
    };
}
debug_with!(Check: check_id, name);
debug_with!(Proxy: public_listener_port, upstreams, mesh_gateway, expose);
debug_with!(Upstream: destination_name, local_bind_address, local_bind_port);
debug_with!(Gateway: kind, name, lan_address, wan_address);
