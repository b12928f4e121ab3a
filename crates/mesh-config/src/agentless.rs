//! The fields that only a task without a Consul agent has: those of consul-ecs 0.7 to 0.10.

use std::path::{Path, PathBuf};

use crate::reader::{Object, Unknown};

/// The port of the servers' HTTP API, with TLS.
const HTTP_PORT: u16 = 8501;
/// The port of the servers' gRPC, with TLS.
const GRPC_PORT: u16 = 8503;
/// The port of Envoy's readiness listener.
pub const HEALTH_CHECK_PORT: u16 = 22000;

/// `consulServers`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsulServers {
    /// `hosts`: names or IP addresses, separated by commas.
    pub hosts: String,
    /// TLS of HTTP and gRPC.
    pub defaults: ServerTls,
    /// The settings for HTTP, in place of the defaults.
    pub http: HttpServers,
    /// The settings for gRPC, in place of the defaults.
    pub grpc: GrpcServers,
    /// Don't ask the servers for the addresses of all servers; default false.
    pub skip_server_watch: bool,
}

/// How a server is reached by TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerTls {
    /// The file with the certificates of the servers' authority.
    pub ca_cert_file: Option<PathBuf>,
    /// Whether to use TLS.
    pub tls: Option<bool>,
    /// The name in the servers' certificate.
    pub tls_server_name: Option<String>,
}

/// `consulServers.http`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpServers {
    /// The port.
    pub port: Option<u16>,
    /// Whether to use HTTPS; default true.
    pub https: Option<bool>,
    /// TLS settings in place of the defaults. As in consul-ecs, `tls` is not used here, because `https` decides.
    pub tls: ServerTls,
}

/// `consulServers.grpc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrpcServers {
    /// The port.
    pub port: Option<u16>,
    /// In place of the defaults.
    pub tls: ServerTls,
}

/// How HTTP or gRPC of the servers is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerEndpoint<'a> {
    /// The port.
    pub port: u16,
    /// Whether to use TLS.
    pub tls: bool,
    /// The file with the certificates of the servers' authority.
    pub ca_file: Option<&'a Path>,
    /// The name in the servers' certificate, if it is not the host.
    pub server_name: Option<&'a str>,
}

impl ConsulServers {
    /// The hosts, one by one.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        hosts(&self.hosts)
    }

    /// The servers' HTTP API: port 8501 with TLS, unless the document says otherwise.
    #[must_use]
    pub fn http_endpoint(&self) -> ServerEndpoint<'_> {
        let (ca_file, server_name) = self.trust(&self.http.tls);
        let (port, tls) = (self.http.port.unwrap_or(HTTP_PORT), self.http.https.unwrap_or(true));
        ServerEndpoint { port, tls, ca_file, server_name }
    }

    /// The servers' gRPC: port 8503 with TLS, unless the document says otherwise.
    #[must_use]
    pub fn grpc_endpoint(&self) -> ServerEndpoint<'_> {
        let (ca_file, server_name) = self.trust(&self.grpc.tls);
        let tls = self.grpc.tls.tls.or(self.defaults.tls).unwrap_or(true);
        ServerEndpoint { port: self.grpc.port.unwrap_or(GRPC_PORT), tls, ca_file, server_name }
    }

    fn trust<'a>(&'a self, own: &'a ServerTls) -> (Option<&'a Path>, Option<&'a str>) {
        let ca_file = own.ca_cert_file.as_deref().or(self.defaults.ca_cert_file.as_deref());
        (ca_file, own.tls_server_name.as_deref().or(self.defaults.tls_server_name.as_deref()))
    }

    pub(crate) fn read(servers: &mut Object<'_>) -> Self {
        Self {
            hosts: servers
                .field("hosts", "The servers: a name or an IP address, or several, separated by commas.")
                .required()
                .text()
                .unwrap_or_default(),
            defaults: servers
                .field("defaults", "TLS for HTTP and gRPC.")
                .object(Unknown::Warned, |tls| ServerTls::read(tls, DEFAULT_TLS))
                .unwrap_or_default(),
            http: servers
                .field("http", "Settings for the servers' HTTP API, in place of `defaults`.")
                .object(Unknown::Warned, HttpServers::read)
                .unwrap_or_default(),
            grpc: servers
                .field("grpc", "Settings for the servers' gRPC, in place of `defaults`.")
                .object(Unknown::Warned, GrpcServers::read)
                .unwrap_or_default(),
            skip_server_watch: servers
                .field(
                    "skipServerWatch",
                    "Use only `hosts`, and do not ask the servers for the addresses of all servers; default false. Set it \
                     if the servers are behind a load balancer.",
                )
                .boolean()
                .unwrap_or(false),
        }
    }
}

/// The hosts in `consulServers.hosts`.
pub(crate) fn hosts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// The descriptions of `caCertFile`, `tls` and `tlsServerName`.
type About = [&'static str; 3];

const DEFAULT_TLS: About = [
    "The file with the CA certificate of the servers.",
    "Use TLS for gRPC; default true. For HTTP, `http.https` decides.",
    "The name in the servers' certificates; default the host.",
];
const HTTP_TLS: About = [
    "The file with the CA certificate, in place of `defaults.caCertFile`.",
    "Not used, as in consul-ecs: `https` decides.",
    "The name in the servers' certificates, in place of `defaults.tlsServerName`.",
];
const GRPC_TLS: About = [
    "The file with the CA certificate, in place of `defaults.caCertFile`.",
    "Use TLS, in place of `defaults.tls`.",
    "The name in the servers' certificates, in place of `defaults.tlsServerName`.",
];

impl ServerTls {
    fn read(tls: &mut Object<'_>, about: About) -> Self {
        Self {
            ca_cert_file: tls.field("caCertFile", about[0]).text().map(PathBuf::from),
            tls: tls.field("tls", about[1]).boolean(),
            tls_server_name: tls.field("tlsServerName", about[2]).text(),
        }
    }
}

impl HttpServers {
    fn read(http: &mut Object<'_>) -> Self {
        Self {
            port: http.field("port", "The port of the HTTP API; default 8501.").integer(),
            https: http.field("https", "Use HTTPS; default true.").boolean(),
            tls: ServerTls::read(http, HTTP_TLS),
        }
    }
}

impl GrpcServers {
    fn read(grpc: &mut Object<'_>) -> Self {
        Self {
            port: grpc.field("port", "The port of gRPC; default 8503.").integer(),
            tls: ServerTls::read(grpc, GRPC_TLS),
        }
    }
}

/// `controller`: settings of the controller of consul-ecs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it, and mesh-init uses none of them")]
pub struct Controller {
    pub iam_role_path: Option<String>,
    pub partitions_enabled: bool,
    pub partition: Option<String>,
}

impl Controller {
    pub(crate) fn read(controller: &mut Object<'_>) -> Self {
        Self {
            iam_role_path: controller
                .field("iamRolePath", "The path of the IAM roles that may log in; default `/consul-ecs/`.")
                .text(),
            partitions_enabled: controller
                .field("partitionsEnabled", "Whether Consul has partitions and namespaces; default false.")
                .boolean()
                .unwrap_or(false),
            partition: controller
                .field("partition", "The controller's admin partition (Consul Enterprise 1.11).")
                .text(),
        }
    }
}

/// `transparentProxy`. A rule refuses it if it is enabled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct TransparentProxy {
    pub enabled: Option<bool>,
    pub exclude_inbound_ports: Vec<i64>,
    pub exclude_outbound_ports: Vec<i64>,
    pub exclude_outbound_cidrs: Vec<String>,
    pub exclude_uids: Vec<String>,
    /// `consulDNS.enabled`.
    pub consul_dns: bool,
}

impl TransparentProxy {
    pub(crate) fn read(proxy: &mut Object<'_>) -> Self {
        Self {
            enabled: proxy
                .field("enabled", "Must be there and false: as in consul-ecs, an absent `enabled` means true.")
                .boolean(),
            exclude_inbound_ports: proxy
                .field("excludeInboundPorts", "Inbound ports that are not redirected.")
                .unique_integers(),
            exclude_outbound_ports: proxy
                .field("excludeOutboundPorts", "Outbound ports that are not redirected.")
                .unique_integers(),
            exclude_outbound_cidrs: proxy
                .field("excludeOutboundCIDRs", "Outbound addresses that are not redirected.")
                .unique_texts(),
            exclude_uids: proxy.field("excludeUIDs", "Users whose traffic is not redirected.").unique_texts(),
            consul_dns: proxy
                .field("consulDNS", "Consul's DNS for the task.")
                .not_null()
                .object(Unknown::Refused, |dns| {
                    dns.field("enabled", "Use Consul's DNS for all names; default false.").boolean()
                })
                .flatten()
                .unwrap_or(false),
        }
    }
}

/// `service.networkResilienceConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkResilience {
    /// Whether mesh-init writes a passive health check into the service's `service-defaults`.
    pub enabled: bool,
    /// The passive health check of its upstreams.
    pub outlier_detection: Option<OutlierDetection>,
}

/// `service.networkResilienceConfig.outlierDetection`: Consul's `PassiveHealthCheck`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are Consul's and Envoy's")]
pub struct OutlierDetection {
    /// In nanoseconds.
    pub interval: Option<i64>,
    pub max_failures: Option<u32>,
    pub enforcing_consecutive_5xx: Option<u32>,
    pub consecutive_5xx: Option<u32>,
    pub enforcing_consecutive_gateway_failure: Option<u32>,
    pub consecutive_gateway_failure: Option<u32>,
    pub max_ejection_percent: Option<u32>,
}

impl NetworkResilience {
    pub(crate) fn read(resilience: &mut Object<'_>) -> Self {
        Self {
            enabled: resilience
                .field(
                    "enabled",
                    "Write `outlierDetection` into the service's `service-defaults`, unless they have a \
                       `PassiveHealthCheck`; default false.",
                )
                .not_null()
                .boolean()
                .unwrap_or(false),
            outlier_detection: resilience
                .field(
                    "outlierDetection",
                    "When the proxy leaves out an instance of an upstream because its requests fail.",
                )
                .object(Unknown::Refused, OutlierDetection::read),
        }
    }
}

impl OutlierDetection {
    fn read(outlier: &mut Object<'_>) -> Self {
        let (percent, any) = (Some(100), None);
        Self {
            interval: outlier
                .field("interval", "How often the results are examined, in nanoseconds; default 10000000000 (10 s).")
                .not_null()
                .integer_in(0, any),
            max_failures: outlier
                .field("maxFailures", "The number of failures in a row after which an instance is left out; default 5.")
                .not_null()
                .integer_in(1, any),
            enforcing_consecutive_5xx: outlier
                .field("enforcingConsecutive5xx", "The probability, in percent, that an instance is left out after `consecutive5xx` answers.")
                .not_null()
                .integer_in(0, percent),
            consecutive_5xx: outlier
                .field("consecutive5xx", "The number of answers of 500 or more in a row after which an instance may be left out.")
                .not_null()
                .integer_in(0, any),
            enforcing_consecutive_gateway_failure: outlier
                .field(
                    "enforcingConsecutiveGatewayFailure",
                    "The probability, in percent, that an instance is left out after `consecutiveGatewayFailure` answers; default 100.",
                )
                .not_null()
                .integer_in(0, percent),
            consecutive_gateway_failure: outlier
                .field("consecutiveGatewayFailure", "The number of answers of 502 to 504 in a row after which an instance may be left out.")
                .not_null()
                .integer_in(0, any),
            max_ejection_percent: outlier
                .field("maxEjectionPercent", "The largest part of the instances that may be left out, in percent; default 50.")
                .not_null()
                .integer_in(0, percent),
        }
    }
}
