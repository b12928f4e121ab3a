//! Envoy's bootstrap, equal as JSON to what `consul connect envoy -bootstrap` of Consul 1.15 and later writes for the
//! same registration ("Consul Connect Envoy", "Envoy proxy configuration reference"). mesh-init writes it for an Envoy with an agent, and
//! mesh-dataplane for one without.

mod access_log;
mod listener;
mod options;
mod stats;
mod template;

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sidecar_kit::secret::Secret;
use sidecar_kit::tls::CertificatesPem;

pub use access_log::access_log_of;
use listener::Listeners;
pub use listener::{Prometheus, PrometheusAuthority, PrometheusTls, ready_bind};
pub use options::ProxyOptions;
use template::{Datum, Fields};
pub use template::{Template, TemplateError};

/// The cluster through which Envoy reaches xDS. Consul's resources refer to it by this name.
const AGENT_CLUSTER: &str = "local_agent";
/// The cluster through which Envoy sends its metrics to Consul's telemetry collector.
const TELEMETRY_CLUSTER: &str = "consul_telemetry_collector_loopback";
/// How often Envoy sends metrics if the collector is their only receiver (as in Consul 1.17.1 and later).
const TELEMETRY_FLUSH_INTERVAL: &str = "60s";

/// The proxy's configuration cannot be turned into a bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// An option has an invalid value.
    #[error("proxy configuration {option}: expected {expected}, got {got}")]
    Option {
        /// Its key in the proxy's configuration.
        option: &'static str,
        /// What would be valid.
        expected: &'static str,
        /// The value, or its kind.
        got: String,
    },
    /// The template for the whole bootstrap cannot be used.
    #[error("proxy configuration envoy_bootstrap_json_tpl: {0}")]
    Template(#[from] TemplateError),
    /// The flag for the ready listener has an invalid value.
    #[error("--ready-bind (MESH_INIT_READY_BIND) is {0}: expected <ip>:<port>")]
    ReadyBind(String),
    /// The access logs of proxy-defaults have an invalid value.
    #[error("proxy-defaults AccessLogs.{field}: expected {expected}, got {got}")]
    AccessLogs {
        /// The field.
        field: &'static str,
        /// What would be valid.
        expected: &'static str,
        /// The value.
        got: String,
    },
}

/// Where Envoy finds xDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdsAddress {
    /// The agent's address.
    pub endpoint: Endpoint,
    /// The CA certificates, if Envoy uses TLS to the agent.
    pub authorities: Option<CertificatesPem>,
}

/// An address in the bootstrap. Envoy resolves no names here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port.
    Tcp(IpAddr, u16),
    /// The path of a unix socket.
    Unix(String),
}

/// Everything that goes into the bootstrap.
#[derive(Clone, Copy)]
pub struct Bootstrap<'a> {
    /// The proxy's service, or the gateway's.
    pub service: &'a str,
    /// The ID of the proxy or gateway.
    pub proxy_id: &'a str,
    /// The node in the catalog, for a proxy without an agent. Its Envoy sends no token. When a stream ends, this Envoy opens a new one
    /// at once.
    pub node: Option<&'a str>,
    /// The proxy's namespace (Consul Enterprise).
    pub namespace: Option<&'a str>,
    /// The proxy's admin partition (Consul Enterprise).
    pub partition: Option<&'a str>,
    /// The datacenter, if it is known.
    pub datacenter: Option<&'a str>,
    /// The token that Envoy sends to the agent; none with `node`.
    pub token: Option<&'a Secret>,
    /// Where Envoy finds xDS.
    pub xds: &'a XdsAddress,
    /// The address and port of Envoy's admin interface.
    pub admin: (IpAddr, u16),
    /// What the listener for Prometheus serves.
    pub prometheus: &'a Prometheus,
    /// The address at which Envoy serves `/ready` outside of the admin interface.
    pub ready_bind: Option<(IpAddr, u16)>,
    /// Where Envoy logs requests to its admin interface, unless `access_log` is given.
    pub admin_access_log_path: &'a str,
    /// The access logger that proxy-defaults ask for.
    pub access_log: Option<&'a Value>,
    /// The options of the proxy's configuration in effect: proxy-defaults and service-defaults are merged in.
    pub options: &'a ProxyOptions,
}

impl Bootstrap<'_> {
    /// The bootstrap.
    ///
    /// # Errors
    /// When the template in the options cannot be filled, or gives no JSON object.
    pub fn to_json(&self) -> Result<Value, BootstrapError> {
        let options = self.options;
        let mut listeners = Listeners {
            clusters: options.static_clusters.clone(),
            listeners: options.static_listeners.clone(),
            secrets: Vec::new(),
        };
        if let Some(bind) = options.prometheus_bind {
            listeners.add_prometheus(bind, self.admin, self.prometheus);
        }
        if let Some(bind) = options.stats_bind {
            listeners.add_stats(bind, self.admin, self.prometheus);
        }
        if let Some(bind) = self.ready_bind {
            listeners.add_ready(bind, self.admin, self.prometheus);
        }
        let mut sinks = options.stats_sinks.clone();
        let mut flush_interval = options.stats_flush_interval.clone();
        if let Some(directory) = &options.telemetry_collector_dir {
            // Envoy's default of five seconds would be too often for the collector.
            if sinks.is_empty() {
                flush_interval = flush_interval.or_else(|| Some(TELEMETRY_FLUSH_INTERVAL.to_owned()));
            }
            listeners.clusters.push(self.telemetry_cluster(directory));
            sinks.push(stats::telemetry_sink(TELEMETRY_CLUSTER));
        }

        let stats_config = options.stats_config.clone().unwrap_or_else(|| self.stats_config(&options.stats_tags));
        if let Some(template) = &options.template {
            let mut fields = self.fields();
            fields.extend([
                ("StaticClustersJSON", joined(&listeners.clusters)),
                ("StaticListenersJSON", joined(&listeners.listeners)),
                ("StaticSecretsJSON", joined(&listeners.secrets)),
                ("StatsSinksJSON", joined(&sinks)),
                ("StatsConfigJSON", Datum::Text(stats_config.to_string())),
                ("StatsFlushInterval", Datum::Text(flush_interval.unwrap_or_default())),
                ("TracingConfigJSON", joined(options.tracing.as_slice())),
            ]);
            return options::filled(&template.render(&fields)?);
        }

        let mut resources = Map::new();
        let clusters: Vec<_> = std::iter::once(self.agent_cluster()).chain(listeners.clusters).collect();
        resources.insert("clusters".to_owned(), clusters.into());
        if !listeners.listeners.is_empty() {
            resources.insert("listeners".to_owned(), listeners.listeners.into());
        }
        if !listeners.secrets.is_empty() {
            resources.insert("secrets".to_owned(), listeners.secrets.into());
        }

        let mut bootstrap = Map::new();
        let mut put = |key: &str, value: Value| drop(bootstrap.insert(key.to_owned(), value));
        put("admin", self.admin());
        put("node", self.node());
        let runtime = json!({ "name": "base", "static_layer": { "re2.max_program_size.error_level": 1_048_576 } });
        put("layered_runtime", json!({ "layers": [runtime] }));
        put("static_resources", resources.into());
        if !sinks.is_empty() {
            put("stats_sinks", sinks.into());
        }
        put("stats_config", stats_config);
        if let Some(interval) = flush_interval {
            put("stats_flush_interval", interval.into());
        }
        if let Some(tracing) = options.tracing.clone() {
            put("tracing", tracing);
        }
        put("dynamic_resources", self.dynamic_resources());
        Ok(bootstrap.into())
    }

    /// The template's fields, except those that [`ProxyOptions`] give.
    fn fields(&self) -> Fields {
        let text = |text: &str| Datum::Text(text.to_owned());
        let (address, port, socket) = match &self.xds.endpoint {
            Endpoint::Tcp(ip, port) => (ip.to_string(), port.to_string(), String::new()),
            Endpoint::Unix(path) => (String::new(), String::new(), path.clone()),
        };
        // The template puts it between quotes.
        let authorities = self.xds.authorities.as_ref().map_or("", CertificatesPem::as_str).replace('\n', "\\n");
        let prometheus = self.prometheus;
        let tls = prometheus.tls.as_ref();
        let (ca_file, ca_path) = match tls.map(|tls| &tls.authority) {
            Some(PrometheusAuthority::File(file)) => (file.as_str(), ""),
            Some(PrometheusAuthority::Path(path)) => ("", path.as_str()),
            None => ("", ""),
        };
        vec![
            ("AgentAddress", Datum::Text(address)),
            ("AgentPort", Datum::Text(port)),
            ("AgentSocket", Datum::Text(socket)),
            ("AgentTLS", Datum::Flag(self.xds.authorities.is_some())),
            ("AgentCAPEM", Datum::Text(authorities)),
            ("ProxyCluster", text(self.service)),
            ("ProxyID", text(self.proxy_id)),
            ("ProxySourceService", text(self.service)),
            ("NodeName", text(self.node.unwrap_or_default())),
            ("AdminAccessLogConfig", Datum::List(self.access_log.iter().map(ToString::to_string).collect())),
            ("AdminAccessLogPath", text(self.admin_access_log_path)),
            ("AdminBindAddress", Datum::Text(self.admin.0.to_string())),
            ("AdminBindPort", Datum::Text(self.admin.1.to_string())),
            ("LocalAgentClusterName", text(AGENT_CLUSTER)),
            ("Token", text(self.token.map_or("", Secret::expose))),
            ("Namespace", text(self.namespace.unwrap_or_default())),
            ("Partition", text(self.partition.unwrap_or_default())),
            ("Datacenter", text(self.datacenter.unwrap_or_default())),
            ("PrometheusBackendPort", Datum::Text(prometheus.backend_port.map(|p| p.to_string()).unwrap_or_default())),
            ("PrometheusScrapePath", text(&prometheus.scrape_path)),
            ("PrometheusCAFile", text(ca_file)),
            ("PrometheusCAPath", text(ca_path)),
            ("PrometheusCertFile", text(tls.map_or("", |tls| &tls.cert_file))),
            ("PrometheusKeyFile", text(tls.map_or("", |tls| &tls.key_file))),
        ]
    }

    fn admin(&self) -> Value {
        let access_log = self.access_log.cloned().unwrap_or_else(|| access_log::file(self.admin_access_log_path));
        json!({ "access_log": [access_log], "address": socket_address(self.admin) })
    }

    fn node(&self) -> Value {
        let mut metadata = json!({ "namespace": or_default(self.namespace), "partition": or_default(self.partition) });
        if let Some(node) = self.node {
            metadata["node_name"] = node.into();
        }
        json!({ "cluster": self.service, "id": self.proxy_id, "metadata": metadata })
    }

    fn agent_cluster(&self) -> Value {
        let address = match &self.xds.endpoint {
            Endpoint::Tcp(ip, port) => socket_address((*ip, *port)),
            Endpoint::Unix(path) => json!({ "pipe": { "path": path } }),
        };
        let mut cluster = static_cluster(AGENT_CLUSTER, "1s", "http2_protocol_options", address);
        if let Some(authorities) = &self.xds.authorities {
            let authorities = json!({ "inline_string": authorities.as_str() });
            let context = json!({ "validation_context": { "trusted_ca": authorities } });
            cluster["transport_socket"] = json!({
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": context,
                },
            });
        }
        cluster
    }

    /// The cluster for the loopback listener of the telemetry collector. Consul gives Envoy that listener by xDS, at the same path. The
    /// file's name is a hash, because the path of a socket is limited to about a hundred characters.
    fn telemetry_cluster(&self, directory: &str) -> Value {
        let id = format!("{}_{}", or_default(self.namespace), self.proxy_id);
        let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, id.as_bytes());
        let name = BASE64_URL_SAFE_NO_PAD.encode(hash);
        let path = format!("{}/{name}.sock", directory.trim_end_matches('/'));
        json!({
            "name": TELEMETRY_CLUSTER,
            "type": "STATIC",
            "typed_extension_protocol_options": protocol_options("http2_protocol_options"),
            "loadAssignment": load_assignment(TELEMETRY_CLUSTER, json!({ "pipe": { "path": path } })),
        })
    }

    fn stats_config(&self, user_tags: &[String]) -> Value {
        let fixed = [
            ("local_cluster", Some(self.service)),
            ("consul.source.service", Some(self.service)),
            ("consul.source.namespace", Some(or_default(self.namespace))),
            ("consul.source.partition", Some(or_default(self.partition))),
            ("consul.source.datacenter", self.datacenter),
        ];
        json!({ "stats_tags": stats::tags(user_tags, &fixed), "use_all_default_tags": true })
    }

    fn dynamic_resources(&self) -> Value {
        let ads = json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
        let services = match self.node {
            None => {
                let token = self.token.map_or("", Secret::expose);
                json!({
                    "initial_metadata": [{ "key": "x-consul-token", "value": token }],
                    "envoy_grpc": { "cluster_name": AGENT_CLUSTER },
                })
            }
            // By default, Envoy waits up to half a second before it opens a stream again.
            Some(_) => json!({ "envoy_grpc": {
                "cluster_name": AGENT_CLUSTER,
                "retry_policy": { "retry_back_off": { "base_interval": "0.010s", "max_interval": "1s" } },
            } }),
        };
        json!({
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": { "api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": services },
        })
    }
}

/// A cluster with one fixed endpoint; `protocol` is the field of Envoy's `HttpProtocolOptions.ExplicitHttpConfig`.
fn static_cluster(name: &str, connect_timeout: &str, protocol: &str, address: Value) -> Value {
    json!({
        "name": name,
        "ignore_health_on_host_removal": false,
        "connect_timeout": connect_timeout,
        "type": "STATIC",
        "typed_extension_protocol_options": protocol_options(protocol),
        "loadAssignment": load_assignment(name, address),
    })
}

fn protocol_options(protocol: &str) -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { protocol: {} },
        },
    })
}

fn load_assignment(cluster: &str, address: Value) -> Value {
    json!({ "clusterName": cluster, "endpoints": [{ "lbEndpoints": [{ "endpoint": { "address": address } }] }] })
}

fn socket_address((address, port): (IpAddr, u16)) -> Value {
    json!({ "socket_address": { "address": address.to_string(), "port_value": port } })
}

/// JSON values, separated by commas. The template writes the brackets around them.
fn joined(values: &[Value]) -> Datum {
    Datum::Text(values.iter().map(Value::to_string).collect::<Vec<_>>().join(","))
}

/// The name of a namespace or partition, by default `default`.
fn or_default(name: Option<&str>) -> &str {
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

#[cfg(test)]
mod tests;
