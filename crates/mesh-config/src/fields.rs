//! How the document is read: which fields it has and what each is for.

use std::path::PathBuf;

use serde_json::Value;

use crate::agentless::{ConsulServers, Controller, NetworkResilience, TransparentProxy};
use crate::document::{
    Address, Check, CheckStatus, Config, ConsulLogin, DestinationType, Expose, ExposePath, ExposeProtocol, Gateway,
    GatewayKind, LogLevel, MeshGatewayMode, Mode, Proxy, Service, Upstream, Weights,
};
use crate::names::PUBLIC_LISTENER_PORT;
use crate::reader::{self, ConfigError, Findings, Object, Unknown};
use crate::rules;

impl Config {
    /// Reads the document and checks the rules.
    ///
    /// # Errors
    /// All errors at once, each with its path, the value and what would be valid, and the warnings. No error repeats a value that
    /// may be a credential: a check's header and body, or opaque configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_str(text).map_err(ConfigError::NotJson)?;
        let (config, mut findings) = reader::document(&value, Mode::of(&value), Self::read);
        for (rule, error) in rules::broken(&value) {
            if rule.warns {
                findings.warnings.push(error.to_string());
            } else if value.is_object() {
                findings.errors.push(error);
            }
        }
        if findings.errors.is_empty() {
            Ok(Self { warnings: findings.warnings, ..config })
        } else {
            Err(ConfigError::Fields { errors: findings.errors, warnings: findings.warnings })
        }
    }

    /// Reads a document with these fields, except `bootstrapDir`, and with fields of the caller. `own` reads the caller's fields. The rules
    /// are not checked. The values are valid only if there are no errors.
    pub fn read_beside<T>(
        value: &Value,
        bootstrap_dir: &str,
        own: impl FnOnce(&mut Object<'_>) -> T,
    ) -> (Self, T, Findings) {
        let read = |root: &mut Object<'_>| (own(root), Self::read_rest(root, bootstrap_dir.into()));
        let ((own, config), findings) = reader::document(value, Mode::of(value), read);
        (config, own, findings)
    }

    pub(crate) fn read(root: &mut Object<'_>) -> Self {
        let bootstrap_dir = root
            .field("bootstrapDir", "The directory of the task's shared volume, where mesh-init writes its files.")
            .required()
            .filled_text()
            .unwrap_or_default();
        Self::read_rest(root, bootstrap_dir.into())
    }

    pub(crate) fn read_rest(root: &mut Object<'_>, bootstrap_dir: PathBuf) -> Self {
        let log_level = root
            .field("logLevel", "The log level of mesh-init and health-sync; default `INFO`. `LOG_LEVEL` overrides it.")
            .choice(&LOG_LEVELS);
        let (consul_http_addr, consul_ca_cert_file) = servers_for_a_login(root);
        let consul_login = root
            .field("consulLogin", "How to get an ACL token from an auth method.")
            .object(Unknown::Refused, ConsulLogin::read);
        let health_sync_containers = root
            .field("healthSyncContainers", "The containers whose ECS health health-sync writes into Consul's checks.")
            .unique_texts();
        let unknown_in_service = if root.is_agentless() { Unknown::Refused } else { Unknown::Warned };
        let service =
            root.field("service", "The service to register.").not_null().object(unknown_in_service, Service::read);
        let proxy = root
            .field("proxy", "The service's sidecar proxy.")
            .object(Unknown::Warned, Proxy::read)
            .unwrap_or_default();
        let gateway = root
            .field("gateway", "The gateway to register, in place of a service.")
            .not_null()
            .object(Unknown::Refused, Gateway::read);
        let (consul_servers, controller, transparent_proxy) = without_an_agent(root);
        Self {
            bootstrap_dir,
            log_level,
            consul_http_addr,
            consul_ca_cert_file,
            consul_login,
            health_sync_containers,
            service,
            proxy,
            gateway,
            consul_servers,
            controller,
            transparent_proxy,
            warnings: Vec::new(),
        }
    }

    /// How the task reaches Consul.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.consul_servers.is_some() { Mode::Agentless } else { Mode::Agent }
    }
}

/// `consulHTTPAddr` and `consulCACertFile`.
fn servers_for_a_login(root: &mut Object<'_>) -> (Option<String>, Option<PathBuf>) {
    if root.is_agentless() {
        root.refuse("consulHTTPAddr", "a task without an agent has its servers in `consulServers`");
        root.refuse("consulCACertFile", "a task without an agent has this file in `consulServers.defaults.caCertFile`");
        return (None, None);
    }
    let address = root.field("consulHTTPAddr", "The URL of Consul's servers, for a login.").text();
    let ca = root.field("consulCACertFile", "The file with the servers' CA certificate, for a login.").text();
    (address, ca.map(PathBuf::from))
}

/// Why a document without `consulServers` must not have a field.
const ONLY_AGENTLESS: &str = "it is for a task without an agent, whose document has `consulServers`";

/// A text that a document with an agent must not have.
fn only_agentless(object: &mut Object<'_>, name: &'static str, about: &'static str) -> Option<String> {
    if object.is_agentless() {
        return object.field(name, about).text();
    }
    object.refuse(name, ONLY_AGENTLESS);
    None
}

/// `consulServers`, `controller` and `transparentProxy`.
fn without_an_agent(root: &mut Object<'_>) -> (Option<ConsulServers>, Option<Controller>, Option<TransparentProxy>) {
    if !root.is_agentless() {
        root.refuse("controller", ONLY_AGENTLESS);
        root.refuse("transparentProxy", ONLY_AGENTLESS);
        return (None, None, None);
    }
    let servers = root
        .field("consulServers", "Consul's servers. If this field is there, the task has no Consul agent.")
        .required()
        .object(Unknown::Refused, ConsulServers::read);
    let controller = root
        .field("controller", "Settings of the controller of consul-ecs. ecs-mesh does not use them.")
        .object(Unknown::Refused, Controller::read);
    let transparent_proxy = root
        .field("transparentProxy", "Transparent proxying, which is not supported: must be `{\"enabled\": false}`.")
        .object(Unknown::Refused, TransparentProxy::read);
    (servers, controller, transparent_proxy)
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

const EXPOSE_PROTOCOLS: [(&str, ExposeProtocol); 2] =
    [("http", ExposeProtocol::Http), ("http2", ExposeProtocol::Http2)];

const GATEWAY_KINDS: [(&str, GatewayKind); 3] = [
    ("mesh-gateway", GatewayKind::Mesh),
    ("ingress-gateway", GatewayKind::Ingress),
    ("terminating-gateway", GatewayKind::Terminating),
];

const AGENTLESS_GATEWAY_KINDS: [(&str, GatewayKind); 3] = [
    ("mesh-gateway", GatewayKind::Mesh),
    ("terminating-gateway", GatewayKind::Terminating),
    ("api-gateway", GatewayKind::Api),
];

impl ConsulLogin {
    fn read(login: &mut Object<'_>) -> Self {
        Self {
            enabled: login
                .field("enabled", "Log in and write the token to `<bootstrapDir>/service-token`; default false.")
                .boolean()
                .unwrap_or(false),
            method: login
                .field("method", "The auth method; default `iam-ecs-service-token`.")
                .text()
                .unwrap_or_else(|| "iam-ecs-service-token".to_owned()),
            datacenter: only_agentless(login, "datacenter", "The auth method's datacenter; default the servers' own."),
            include_entity: login
                .field("includeEntity", "Let the auth method see the IAM role's path and tags; default true.")
                .boolean()
                .unwrap_or(true),
            meta: login.field("meta", "Meta that mesh-init sends with the login, beside its own.").text_map(),
            region: login
                .field("region", "The AWS region of the signed request; default `AWS_REGION`, else the task's.")
                .text(),
            sts_endpoint: login
                .field(
                    "stsEndpoint",
                    "The URL of STS, as in the auth method's `STSEndpoint`; default the region's STS.",
                )
                .text(),
            server_id_header_value: login
                .field("serverIdHeaderValue", "The value of the auth method's `ServerIDHeaderValue`.")
                .text(),
        }
    }
}

impl Service {
    fn read(service: &mut Object<'_>) -> Self {
        Self {
            name: service.field("name", "Its name in Consul; default the task family in lower case.").service_name(),
            tags: service.field("tags", "Its tags.").unique_texts(),
            port: service
                .field("port", "The port on which the app listens; 0 if it listens on none.")
                .required()
                .integer()
                .unwrap_or_default(),
            enable_tag_override: service
                .field("enableTagOverride", "Allow changes of the tags in the catalog.")
                .boolean(),
            meta: service.field("meta", "Its meta, besides `task-id`, `task-arn` and `source`.").text_map(),
            weights: service.field("weights", "Its share of DNS answers and of the requests from proxies.").object(
                Unknown::Refused,
                |weights| Weights {
                    passing: weights
                        .field("passing", "The weight while its checks pass.")
                        .required()
                        .integer()
                        .unwrap_or_default(),
                    warning: weights
                        .field("warning", "The weight while one of its checks warns.")
                        .required()
                        .integer()
                        .unwrap_or_default(),
                },
            ),
            checks: checks(service),
            network_resilience: network_resilience(service),
            namespace: service.field("namespace", "Its namespace (Consul Enterprise 1.7).").text(),
            partition: service.field("partition", "Its admin partition (Consul Enterprise 1.11).").text(),
        }
    }
}

fn checks(service: &mut Object<'_>) -> Vec<Check> {
    if service.is_agentless() {
        service.refuse("checks", "no agent is there to run them; list the containers in `healthSyncContainers`");
        return Vec::new();
    }
    service.field("checks", "Its checks, which Consul's agent runs.").objects(Unknown::Refused, Check::read)
}

fn network_resilience(service: &mut Object<'_>) -> Option<NetworkResilience> {
    if !service.is_agentless() {
        return None;
    }
    service
        .field("networkResilienceConfig", "Passive health checks of all upstreams (Consul 1.10).")
        .object(Unknown::Refused, NetworkResilience::read)
}

impl Check {
    fn read(check: &mut Object<'_>) -> Self {
        Self {
            check_id: check
                .field("checkId", "Its ID, unique on the agent; by default Consul makes it from the name.")
                .text(),
            name: check.field("name", "Its name.").not_null().text(),
            args: check.field("args", "A command to run, where the agent allows script checks.").texts(),
            interval: check.field("interval", "How often it runs: `10s`.").text(),
            timeout: check.field("timeout", "How long one run may take: `2s`.").text(),
            ttl: check.field("ttl", "The time within which a program must update the check: `30s`.").text(),
            http: check.field("http", "The URL of an HTTP check.").text(),
            header: check.field("header", "The header fields of an HTTP check.").private().headers(),
            method: check.field("method", "The method of an HTTP check; default GET.").text(),
            body: check.field("body", "The body of an HTTP check.").private().text(),
            tcp: check.field("tcp", "The `host:port` of a TCP check.").text(),
            udp: check.field("udp", "The `host:port` of a UDP check (Consul 1.13).").text(),
            status: check.field("status", "Its first status. Consul refuses `maintenance`.").choice(&CHECK_STATUSES),
            notes: check.field("notes", "A text for people.").text(),
            tls_server_name: check.field("tlsServerName", "The server name for TLS (Consul 1.10).").text(),
            tls_skip_verify: check.field("tlsSkipVerify", "Don't verify the certificate.").boolean(),
            grpc: check.field("grpc", "The `host:port[/service]` of a gRPC check.").text(),
            grpc_use_tls: check.field("grpcUseTls", "Use TLS for the gRPC check.").boolean(),
            h2ping: check.field("h2ping", "The `host:port` of an HTTP/2 ping check (Consul 1.10).").text(),
            h2ping_use_tls: check.field("h2pingUseTls", "Use TLS for the HTTP/2 ping check (Consul 1.11).").boolean(),
            alias_node: check.field("aliasNode", "The node of an alias check.").text(),
            alias_service: check.field("aliasService", "The service ID of an alias check.").text(),
            success_before_passing: check
                .field("successBeforePassing", "How many runs in a row must succeed before it passes.")
                .integer(),
            failures_before_critical: check
                .field("failuresBeforeCritical", "How many runs in a row must fail before it is critical.")
                .integer(),
        }
    }
}

impl Proxy {
    fn read(proxy: &mut Object<'_>) -> Self {
        Self {
            config: proxy
                .field("config", "Settings that Consul passes to Envoy, and the `envoy_…` options of the bootstrap.")
                .opaque(),
            local_service_address: local_service_address(proxy),
            public_listener_port: proxy
                .field("publicListenerPort", "The port on which Envoy takes requests from the mesh; default 20000.")
                .integer()
                .filter(|port| *port != 0)
                .unwrap_or(PUBLIC_LISTENER_PORT),
            health_check_port: if proxy.is_agentless() { health_check_port(proxy) } else { None },
            upstreams: proxy
                .field("upstreams", "The services that the app reaches through the mesh.")
                .objects(Unknown::Refused, Upstream::read),
            mesh_gateway: mesh_gateway(proxy, "How upstreams in other datacenters are reached."),
            expose: proxy
                .field("expose", "Paths that Envoy serves without mutual TLS.")
                .object(Unknown::Warned, Expose::read),
        }
    }
}

fn local_service_address(proxy: &mut Object<'_>) -> Option<String> {
    if !proxy.is_agentless() {
        return None;
    }
    proxy.field("localServiceAddress", "The address on which the app listens; default 127.0.0.1.").text()
}

fn health_check_port(object: &mut Object<'_>) -> Option<u16> {
    object.field("healthCheckPort", "The port on which Envoy says that it is ready; default 22000.").port_of_any_type()
}

fn mesh_gateway(object: &mut Object<'_>, about: &'static str) -> Option<MeshGatewayMode> {
    object.field("meshGateway", about).object(Unknown::Warned, |gateway| {
        gateway
            .field("mode", "`none`: directly; `local`: through a mesh gateway of this datacenter; `remote`: through one of the upstream's datacenter.")
            .required()
            .choice(&MESH_GATEWAY_MODES)
    })?
}

impl Upstream {
    fn read(upstream: &mut Object<'_>) -> Self {
        Self {
            destination_type: upstream
                .field("destinationType", "A service or a prepared query; default a service.")
                .choice(&DESTINATION_TYPES),
            destination_namespace: upstream
                .field("destinationNamespace", "The upstream's namespace (Consul Enterprise 1.7).")
                .text(),
            destination_partition: upstream
                .field("destinationPartition", "The upstream's admin partition (Consul Enterprise 1.11).")
                .text(),
            destination_name: upstream
                .field("destinationName", "The name of the service or of the prepared query.")
                .required()
                .text()
                .unwrap_or_default(),
            destination_peer: only_agentless(
                upstream,
                "destinationPeer",
                "The peer that has the upstream (Consul 1.13).",
            ),
            datacenter: upstream.field("datacenter", "The upstream's datacenter; default the task's.").text(),
            local_bind_address: upstream
                .field("localBindAddress", "The address on which Envoy listens for the app; default 127.0.0.1.")
                .text(),
            local_bind_port: upstream
                .field("localBindPort", "The port on which Envoy listens for the app.")
                .required()
                .integer()
                .unwrap_or_default(),
            config: upstream.field("config", "Settings that Consul passes to Envoy for this upstream.").opaque(),
            mesh_gateway: mesh_gateway(upstream, "How it is reached in another datacenter."),
        }
    }
}

impl Expose {
    fn read(expose: &mut Object<'_>) -> Self {
        Self {
            checks: expose.field("checks", "Expose the paths of all HTTP and gRPC checks.").boolean(),
            paths: expose.field("paths", "The paths to expose.").objects(Unknown::Warned, |path| ExposePath {
                listener_port: path.field("listenerPort", "The port on which Envoy listens.").integer(),
                path: path.field("path", "The path, with its leading slash.").text(),
                local_path_port: path.field("localPathPort", "The port on which the app listens.").integer(),
                protocol: path.field("protocol", "The protocol; default `http`.").choice(&EXPOSE_PROTOCOLS),
            }),
        }
    }
}

/// The descriptions of address and port.
const LAN_ADDRESS: [&str; 2] = ["An IP address or a name; default the task's.", "The gateway's port; default 8443."];
const WAN_ADDRESS: [&str; 2] =
    ["An IP address or a name. If it is absent, there is no WAN address.", "The port; default 8443."];

fn address(object: &mut Object<'_>, about: [&'static str; 2]) -> Address {
    Address { address: object.field("address", about[0]).text(), port: object.field("port", about[1]).integer() }
}

impl Gateway {
    fn read(gateway: &mut Object<'_>) -> Self {
        let kinds = if gateway.is_agentless() { &AGENTLESS_GATEWAY_KINDS } else { &GATEWAY_KINDS };
        Self {
            // The reader reports a kind that is missing or wrong.
            kind: gateway
                .field("kind", "The kind of gateway. The rule `api-gateway` refuses an API gateway.")
                .required()
                .choice(kinds)
                .unwrap_or_default(),
            lan_address: gateway
                .field("lanAddress", "Its address inside the datacenter.")
                .object(Unknown::Refused, |lan| address(lan, LAN_ADDRESS)),
            wan_address: gateway
                .field("wanAddress", "Its address for other datacenters.")
                .object(Unknown::Refused, |wan| address(wan, WAN_ADDRESS)),
            name: gateway
                .field(
                    "name",
                    "Its name in Consul; default the task family. Without an agent, the family is in lower case. With an agent, it is \
                     unchanged, so set a name if the family has capitals.",
                )
                .service_name(),
            tags: gateway.field("tags", "Its tags.").unique_texts(),
            meta: gateway.field("meta", "Its meta, besides `task-id`, `task-arn` and `source`.").text_map(),
            namespace: gateway.field("namespace", "Its namespace (Consul Enterprise 1.7).").text(),
            partition: gateway.field("partition", "Its admin partition (Consul Enterprise 1.11).").text(),
            health_check_port: if gateway.is_agentless() {
                health_check_port(gateway)
            } else {
                gateway.refuse("healthCheckPort", ONLY_AGENTLESS);
                None
            },
            config: gateway
                .field("proxy", "The gateway's proxy.")
                .object(Unknown::Warned, |proxy| {
                    proxy
                        .field(
                            "config",
                            "Settings that Consul passes to Envoy, and the `envoy_…` options of the bootstrap.",
                        )
                        .opaque()
                })
                .unwrap_or_default(),
        }
    }
}
