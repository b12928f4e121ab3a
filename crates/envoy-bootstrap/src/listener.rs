//! Listeners that serve a part of Envoy's admin interface: metrics for Prometheus, all stats, readiness.

use std::net::IpAddr;

use serde_json::{Value, json};
use sidecar_kit::secret::shown;

use super::stats::split_ip_port;
use super::{BootstrapError, socket_address, static_cluster};

const TLS_CONTEXT: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// The listener for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prometheus {
    /// The port to which the listener forwards, on the admin interface's address. None: the admin interface's own port.
    pub backend_port: Option<u16>,
    /// The path to scrape.
    pub scrape_path: String,
    /// Certificates, if the listeners speak TLS.
    pub tls: Option<PrometheusTls>,
}

/// Files in Envoy's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusTls {
    /// The CA certificates that verify Prometheus's client certificate.
    pub authority: PrometheusAuthority,
    /// The certificate.
    pub cert_file: String,
    /// The private key.
    pub key_file: String,
}

/// The place of the CA certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrometheusAuthority {
    /// In a file.
    File(String),
    /// In a directory of files.
    Path(String),
}

impl Default for Prometheus {
    fn default() -> Self {
        Self { backend_port: None, scrape_path: "/metrics".to_owned(), tls: None }
    }
}

/// The static resources to which each listener adds.
pub(super) struct Listeners {
    pub(super) clusters: Vec<Value>,
    pub(super) listeners: Vec<Value>,
    pub(super) secrets: Vec<Value>,
}

struct Route<'a> {
    name: &'a str,
    matches: Value,
    rewritten: &'a str,
    cluster: &'a str,
    port: u16,
}

impl Listeners {
    pub(super) fn add_prometheus(&mut self, bind: (IpAddr, u16), admin: (IpAddr, u16), prometheus: &Prometheus) {
        let (cluster, port) = match prometheus.backend_port {
            Some(port) => ("prometheus_backend", port),
            None => ("self_admin", admin.1),
        };
        let matches = json!({ "path": prometheus.scrape_path });
        let name = "envoy_prometheus_metrics";
        let route = Route { name, matches, rewritten: "/stats/prometheus", cluster, port };
        self.add(bind, admin.0, &route, prometheus);
    }

    pub(super) fn add_stats(&mut self, bind: (IpAddr, u16), admin: (IpAddr, u16), prometheus: &Prometheus) {
        let matches = json!({ "prefix": "/stats" });
        let name = "envoy_metrics";
        let route = Route { name, matches, rewritten: "/stats", cluster: "self_admin", port: admin.1 };
        self.add(bind, admin.0, &route, prometheus);
    }

    pub(super) fn add_ready(&mut self, bind: (IpAddr, u16), admin: (IpAddr, u16), prometheus: &Prometheus) {
        let matches = json!({ "path": "/ready" });
        let name = "envoy_ready";
        let route = Route { name, matches, rewritten: "/ready", cluster: "self_admin", port: admin.1 };
        self.add(bind, admin.0, &route, prometheus);
    }

    fn add(&mut self, bind: (IpAddr, u16), admin: IpAddr, route: &Route<'_>, prometheus: &Prometheus) {
        // Envoy refuses a second cluster of the same name.
        if self.clusters.iter().all(|cluster| cluster["name"] != route.cluster) {
            let address = socket_address((admin, route.port));
            self.clusters.push(static_cluster(route.cluster, "5s", "http_protocol_options", address));
        }
        let mut chain = json!({ "filters": [connection_manager(route)] });
        if let Some(tls) = &prometheus.tls {
            chain["transportSocket"] = transport_socket();
            if self.secrets.is_empty() {
                self.secrets = secrets(tls);
            }
        }
        self.listeners.push(json!({
            "name": format!("{}_listener", route.name),
            "address": socket_address(bind),
            "filter_chains": [chain],
        }));
    }
}

/// The value of `--ready-bind`.
///
/// # Errors
/// [`BootstrapError::ReadyBind`].
pub fn ready_bind(text: &str) -> Result<(IpAddr, u16), BootstrapError> {
    split_ip_port(text).ok_or_else(|| BootstrapError::ReadyBind(shown(text)))
}

fn connection_manager(route: &Route<'_>) -> Value {
    let routes = json!([
        { "match": route.matches, "route": { "cluster": route.cluster, "prefix_rewrite": route.rewritten } },
        { "match": { "prefix": "/" }, "direct_response": { "status": 404 } },
    ]);
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typedConfig": {
            "@type": CONNECTION_MANAGER,
            "stat_prefix": route.name,
            "codec_type": "HTTP1",
            "route_config": {
                "name": "self_admin_route",
                "virtual_hosts": [{ "name": "self_admin", "domains": ["*"], "routes": routes }],
            },
            "http_filters": [{ "name": "envoy.filters.http.router", "typedConfig": { "@type": router } }],
        },
    })
}

fn transport_socket() -> Value {
    let context = json!({
        "tlsCertificateSdsSecretConfigs": [{ "name": "prometheus_cert" }],
        "validationContextSdsSecretConfig": { "name": "prometheus_validation_context" },
    });
    json!({ "name": "tls", "typedConfig": { "@type": TLS_CONTEXT, "commonTlsContext": context } })
}

fn secrets(tls: &PrometheusTls) -> Vec<Value> {
    let file = |path: &str| json!({ "filename": path });
    let validation = match &tls.authority {
        PrometheusAuthority::File(path) => json!({ "trustedCa": file(path) }),
        PrometheusAuthority::Path(path) => json!({ "watchedDirectory": { "path": path } }),
    };
    let certificate = json!({ "certificateChain": file(&tls.cert_file), "privateKey": file(&tls.key_file) });
    vec![
        json!({ "name": "prometheus_cert", "tlsCertificate": certificate }),
        json!({ "name": "prometheus_validation_context", "validationContext": validation }),
    ]
}
