//! The document: every field of consul-ecs 0.6's schema, and the checks that go beyond a field's type.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::names::PUBLIC_LISTENER_PORT;
use crate::reader::{self, ConfigError, Object, Unknown};

const PORTS: std::ops::RangeInclusive<u16> = 1..=65535;

/// The document. What is `null` in it is the same as absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `bootstrapDir`: the directory of the volume where mesh-init leaves the bootstrap.
    pub bootstrap_dir: PathBuf,
    /// `logLevel`.
    pub log_level: Option<LogLevel>,
    /// `consulHTTPAddr`: the servers' address, for a login.
    pub consul_http_addr: Option<String>,
    /// `consulCACertFile`: the file with the servers' authority, for a login.
    pub consul_ca_cert_file: Option<PathBuf>,
    /// `consulLogin`: how to get a token from an auth method.
    pub consul_login: Option<ConsulLogin>,
    /// `healthSyncContainers`: the containers whose ECS health goes into Consul.
    pub health_sync_containers: Vec<String>,
    /// `service`.
    pub service: Option<Service>,
    /// `proxy`; where it is absent, its defaults.
    pub proxy: Proxy,
    /// `gateway`: the task is a gateway.
    pub gateway: Option<Gateway>,
    /// Fields that nothing reads, in places where the schema lets them pass: one line each, to be logged.
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
    /// Let the auth method see the role's path and tags; default true.
    pub include_entity: bool,
    /// Meta of the login.
    pub meta: BTreeMap<String, String>,
    /// The AWS region; default the task's.
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
    /// Lets others than the agent change the tags.
    pub enable_tag_override: Option<bool>,
    /// Its meta.
    pub meta: BTreeMap<String, String>,
    /// Its weights in DNS answers.
    pub weights: Option<Weights>,
    /// Its checks.
    pub checks: Vec<Check>,
    /// Its namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    pub partition: Option<String>,
}

/// `service.weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weights {
    /// The weight of a passing instance.
    pub passing: i64,
    /// The weight of an instance with a warning.
    pub warning: i64,
}

/// One of `service.checks`: the fields of Consul's "Register Check", durations as Consul writes them (`10s`).
#[derive(Debug, Clone, PartialEq, Default)]
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

/// `proxy`.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Opaque configuration, passed on as it is.
    pub config: Map<String, Value>,
    /// The port of Envoy's public listener.
    pub public_listener_port: u16,
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
            public_listener_port: PUBLIC_LISTENER_PORT,
            upstreams: Vec::new(),
            mesh_gateway: None,
            expose: None,
        }
    }
}

/// One of `proxy.upstreams`.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// A service or a prepared query; Consul's default is a service.
    pub destination_type: Option<DestinationType>,
    /// The upstream's namespace (Consul Enterprise).
    pub destination_namespace: Option<String>,
    /// The upstream's admin partition (Consul Enterprise).
    pub destination_partition: Option<String>,
    /// The upstream's name.
    pub destination_name: String,
    /// The upstream's datacenter.
    pub datacenter: Option<String>,
    /// The address its listener binds; Consul's default is 127.0.0.1.
    pub local_bind_address: Option<String>,
    /// The port its listener binds.
    pub local_bind_port: u16,
    /// Opaque configuration, passed on as it is.
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

/// `gateway`: a mesh gateway, the one kind there is.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
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
    /// `proxy.config`, passed on as it is.
    pub config: Map<String, Value>,
}

/// `gateway.lanAddress`, `gateway.wanAddress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// An IP address or a name.
    pub address: Option<String>,
    /// A port.
    pub port: Option<u16>,
}

impl Config {
    /// Reads the document.
    ///
    /// # Errors
    /// All that is wrong with it at once, each with its path, what stood there and what would do. What may be a
    /// credential (a check's header and body) is not repeated.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let (mut config, warnings) = reader::document(text, Self::read)?;
        config.warnings = warnings;
        Ok(config)
    }

    fn read(root: &mut Object<'_>) -> Self {
        Self {
            bootstrap_dir: root.required_text("bootstrapDir").into(),
            log_level: root.choice("logLevel", &LOG_LEVELS),
            consul_http_addr: root.text("consulHTTPAddr"),
            consul_ca_cert_file: root.text("consulCACertFile").map(PathBuf::from),
            consul_login: root.object("consulLogin", Unknown::Refused, ConsulLogin::read),
            health_sync_containers: root.unique_texts("healthSyncContainers"),
            service: root.object("service", Unknown::Warned, Service::read),
            proxy: root.object("proxy", Unknown::Warned, Proxy::read).unwrap_or_default(),
            gateway: root.object("gateway", Unknown::Refused, Gateway::read),
            warnings: Vec::new(),
        }
    }
}

const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("TRACE", LogLevel::Trace),
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARN", LogLevel::Warn),
    ("ERROR", LogLevel::Error),
];

const CHECK_STATUSES: [(&str, CheckStatus); 4] = [
    ("passing", CheckStatus::Passing),
    ("warning", CheckStatus::Warning),
    ("critical", CheckStatus::Critical),
    ("maintenance", CheckStatus::Maintenance),
];

const DESTINATION_TYPES: [(&str, DestinationType); 2] =
    [("service", DestinationType::Service), ("prepared_query", DestinationType::PreparedQuery)];

const MESH_GATEWAY_MODES: [(&str, MeshGatewayMode); 3] =
    [("none", MeshGatewayMode::None), ("local", MeshGatewayMode::Local), ("remote", MeshGatewayMode::Remote)];

impl ConsulLogin {
    fn read(login: &mut Object<'_>) -> Self {
        Self {
            enabled: login.boolean("enabled").unwrap_or(false),
            method: login.text("method").unwrap_or_else(|| "iam-ecs-service-token".to_owned()),
            include_entity: login.boolean("includeEntity").unwrap_or(true),
            meta: login.text_map("meta"),
            region: login.text("region"),
            sts_endpoint: login.text("stsEndpoint"),
            server_id_header_value: login.text("serverIdHeaderValue"),
        }
    }
}

impl Service {
    fn read(service: &mut Object<'_>) -> Self {
        Self {
            name: service.service_name("name"),
            tags: service.unique_texts("tags"),
            port: service.required_integer("port", 0..=65535),
            enable_tag_override: service.boolean("enableTagOverride"),
            meta: service.text_map("meta"),
            weights: service.object("weights", Unknown::Refused, |weights| Weights {
                passing: weights.required_integer("passing", 0..=65535),
                warning: weights.required_integer("warning", 0..=65535),
            }),
            checks: service.objects("checks", Unknown::Refused, Check::read),
            namespace: service.text("namespace"),
            partition: service.text("partition"),
        }
    }
}

impl Check {
    fn read(check: &mut Object<'_>) -> Self {
        Self {
            check_id: check.text("checkId"),
            name: check.text("name"),
            args: check.texts("args"),
            interval: check.text("interval"),
            timeout: check.text("timeout"),
            ttl: check.text("ttl"),
            http: check.text("http"),
            header: check.headers("header"),
            method: check.text("method"),
            body: check.private_text("body"),
            tcp: check.text("tcp"),
            udp: check.text("udp"),
            status: check.choice("status", &CHECK_STATUSES),
            notes: check.text("notes"),
            tls_server_name: check.text("tlsServerName"),
            tls_skip_verify: check.boolean("tlsSkipVerify"),
            grpc: check.text("grpc"),
            grpc_use_tls: check.boolean("grpcUseTls"),
            h2ping: check.text("h2ping"),
            h2ping_use_tls: check.boolean("h2pingUseTls"),
            alias_node: check.text("aliasNode"),
            alias_service: check.text("aliasService"),
            success_before_passing: check.integer("successBeforePassing", 0..=65535),
            failures_before_critical: check.integer("failuresBeforeCritical", 0..=65535),
        }
    }
}

impl Proxy {
    fn read(proxy: &mut Object<'_>) -> Self {
        let read = Self {
            config: proxy.opaque("config"),
            public_listener_port: proxy.integer("publicListenerPort", PORTS).unwrap_or(PUBLIC_LISTENER_PORT),
            upstreams: proxy.objects("upstreams", Unknown::Refused, Upstream::read),
            mesh_gateway: mesh_gateway(proxy),
            expose: proxy.object("expose", Unknown::Warned, Expose::read),
        };
        read.check_ports(proxy);
        read
    }

    /// Envoy would start, and one of two listeners on the same port would silently get nothing.
    fn check_ports(&self, proxy: &Object<'_>) {
        let exposed = self.expose.iter().flat_map(|expose| &expose.paths).map(|path| path.listener_port.unwrap_or(0));
        let upstreams = self.upstreams.iter().map(|upstream| upstream.local_bind_port);
        let named = upstreams.enumerate().map(|(index, port)| (format!("upstreams[{index}].localBindPort"), port));
        let mut taken = BTreeSet::from([self.public_listener_port]);
        for (name, port) in named {
            // 0 stands where a port was wrong or missing, which is reported already.
            if port != 0 && !taken.insert(port) {
                proxy.refuse(&name, port, "a port that no other upstream and not the public listener has");
            }
        }
        for (index, port) in exposed.enumerate() {
            if port != 0 && !taken.insert(port) {
                let name = format!("expose.paths[{index}].listenerPort");
                proxy.refuse(&name, port, "a port that no other listener of this proxy has");
            }
        }
    }
}

fn mesh_gateway(object: &mut Object<'_>) -> Option<MeshGatewayMode> {
    object.object("meshGateway", Unknown::Warned, |gateway| gateway.required_choice("mode", &MESH_GATEWAY_MODES))?
}

impl Upstream {
    fn read(upstream: &mut Object<'_>) -> Self {
        Self {
            destination_type: upstream.choice("destinationType", &DESTINATION_TYPES),
            destination_namespace: upstream.text("destinationNamespace"),
            destination_partition: upstream.text("destinationPartition"),
            destination_name: upstream.required_text("destinationName"),
            datacenter: upstream.text("datacenter"),
            local_bind_address: upstream.text("localBindAddress"),
            local_bind_port: upstream.required_integer("localBindPort", PORTS),
            config: upstream.opaque("config"),
            mesh_gateway: mesh_gateway(upstream),
        }
    }
}

impl Expose {
    fn read(expose: &mut Object<'_>) -> Self {
        Self {
            checks: expose.boolean("checks"),
            paths: expose.objects("paths", Unknown::Warned, |path| ExposePath {
                listener_port: path.integer("listenerPort", PORTS),
                path: path.text("path"),
                local_path_port: path.integer("localPathPort", PORTS),
                protocol: path.choice("protocol", &[("http", ExposeProtocol::Http), ("http2", ExposeProtocol::Http2)]),
            }),
        }
    }
}

impl Gateway {
    fn read(gateway: &mut Object<'_>) -> Self {
        let address = |address: &mut Object<'_>| Address {
            address: address.text("address"),
            port: address.integer("port", 0..=65535),
        };
        gateway.required_choice("kind", &[("mesh-gateway", ())]);
        Self {
            lan_address: gateway.object("lanAddress", Unknown::Refused, address),
            wan_address: gateway.object("wanAddress", Unknown::Refused, address),
            name: gateway.service_name("name"),
            tags: gateway.unique_texts("tags"),
            meta: gateway.text_map("meta"),
            namespace: gateway.text("namespace"),
            partition: gateway.text("partition"),
            config: gateway.object("proxy", Unknown::Warned, |proxy| proxy.opaque("config")).unwrap_or_default(),
        }
    }
}
