//! The flags.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use consul_login::BEARER_TOKEN;
use envoy_bootstrap::{Prometheus, PrometheusAuthority, PrometheusTls};
use sidecar_kit::exit::{parse_delay, parse_duration};
use supervise::envoy;

use crate::tokens::TOKEN;

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// The file that mesh-init writes. Envoy's bootstrap and the socket for Envoy go into the same directory.
    #[arg(
        long,
        env = "MESH_DATAPLANE_CONFIG",
        value_name = "FILE",
        default_value = "/consul/dataplane.json",
        global = true
    )]
    pub(crate) config: PathBuf,
    /// How long to wait for Consul's servers before Envoy starts.
    #[arg(long, env = "MESH_DATAPLANE_TIMEOUT", value_name = "DURATION", default_value = "90s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// How long Envoy may run without listeners from Consul; then mesh-dataplane ends it. 0s: no limit, for an ingress gateway, which
    /// has no listeners before its config entry. An Envoy that has had listeners from Consul is never ended for this reason.
    #[arg(long, env = "MESH_DATAPLANE_LISTENER_TIMEOUT", value_name = "DURATION", default_value = "90s", value_parser = parse_delay)]
    pub(crate) listener_timeout: Duration,
    /// A container that Envoy need not wait for, beside the sidecars; may be repeated, or separated by commas.
    #[arg(long, env = "MESH_DATAPLANE_IGNORE_CONTAINERS", value_name = "NAME", value_delimiter = ',', value_parser = trimmed)]
    ignore_container: Vec<String>,
    /// The longest time that Envoy runs on after TERM.
    #[arg(long, env = "MESH_DATAPLANE_GRACE", value_name = "DURATION", default_value = "120s", value_parser = parse_delay)]
    grace: Duration,
    /// Drain Envoy's inbound listeners when the task stops: each answer closes its connection, and Envoy accepts new connections
    /// until it ends. Start Envoy with --drain-strategy immediate.
    #[arg(long, env = "MESH_DATAPLANE_DRAIN")]
    drain: bool,
    /// This Envoy is a gateway. It waits for no app and runs on for this long after TERM, at most for --grace, until other proxies
    /// know that the gateway stops. With --drain all of its listeners drain, not only the inbound ones.
    #[arg(long, env = "MESH_DATAPLANE_GATEWAY_DELAY", value_name = "DURATION", value_parser = parse_delay)]
    gateway_delay: Option<Duration>,
    /// Envoy's worker threads. Replaces --concurrency in Envoy's command.
    #[arg(long, env = "MESH_DATAPLANE_CONCURRENCY", value_name = "N")]
    concurrency: Option<NonZeroU32>,
    /// How many times Envoy is started again if it ends by itself before TERM.
    #[arg(long, env = "MESH_DATAPLANE_RESTARTS", value_name = "N", default_value = "0")]
    restarts: u32,
    /// How long to wait before the first restart; twice as long before each that follows, at most 30s.
    #[arg(long, env = "MESH_DATAPLANE_RESTART_DELAY", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    restart_delay: Duration,
    /// Where to serve DNS to the task's apps, by UDP and TCP.
    #[arg(long, env = "MESH_DATAPLANE_DNS_BIND", value_name = "IP:PORT", default_value = "127.0.0.1:8600")]
    pub(crate) dns_bind: SocketAddr,
    /// Where to serve /ready and /metrics.
    #[arg(long, env = "MESH_DATAPLANE_STATUS_BIND", value_name = "IP:PORT", default_value = "127.0.0.1:20300")]
    pub(crate) status_bind: SocketAddr,
    /// If no server of Consul can be used for this long, /ready answers 503.
    #[arg(long, env = "MESH_DATAPLANE_READY_OUTAGE", value_name = "DURATION", default_value = "60s", value_parser = parse_delay)]
    pub(crate) ready_outage: Duration,
    /// The address of Envoy's admin interface.
    #[arg(long, env = "MESH_DATAPLANE_ADMIN_BIND", value_name = "IP:PORT", default_value = "127.0.0.1:19000")]
    pub(crate) admin_bind: SocketAddr,
    /// Where Envoy logs requests to its admin interface, unless proxy-defaults have access logs.
    #[arg(long, env = "MESH_DATAPLANE_ADMIN_ACCESS_LOG_PATH", value_name = "FILE", default_value = "/dev/null")]
    pub(crate) admin_access_log_path: String,
    /// The port that the Prometheus listener forwards to, on the admin interface's address [default: the admin interface].
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_BACKEND_PORT", value_name = "PORT")]
    prometheus_backend_port: Option<u16>,
    /// The path that Prometheus requests.
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_SCRAPE_PATH", value_name = "PATH", default_value = "/metrics")]
    prometheus_scrape_path: String,
    /// The file with the CA certificate for Prometheus's client certificates.
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_CA_FILE", value_name = "FILE", conflicts_with = "prometheus_ca_path")]
    prometheus_ca_file: Option<String>,
    /// The directory with the CA certificates for Prometheus's client certificates.
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_CA_PATH", value_name = "DIRECTORY")]
    prometheus_ca_path: Option<String>,
    /// The file with the certificate of the metrics listener.
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_CERT_FILE", value_name = "FILE")]
    prometheus_cert_file: Option<String>,
    /// The file with the private key of the metrics listener.
    #[arg(long, env = "MESH_DATAPLANE_PROMETHEUS_KEY_FILE", value_name = "FILE")]
    prometheus_key_file: Option<String>,
}

/// The variables that Envoy does not get. It needs no token, because the relay adds it.
const SECRETS: &[&str] = &[TOKEN, BEARER_TOKEN];

#[allow(clippy::unnecessary_wraps, reason = "clap wants a parser that may fail")]
fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
}

/// Some flags for TLS to Prometheus are set, and others not.
#[derive(Debug, thiserror::Error)]
#[error(
    "TLS for Prometheus needs all of --prometheus-ca-file or --prometheus-ca-path, --prometheus-cert-file and --prometheus-key-file"
)]
pub struct IncompleteTls;

impl Flags {
    /// How Envoy runs.
    pub(crate) fn envoy(&self) -> envoy::Options {
        envoy::Options {
            ignore_container: self.ignore_container.clone(),
            grace: self.grace,
            drain: self.drain,
            gateway_delay: self.gateway_delay,
            admin: Some(self.admin_bind),
            concurrency: self.concurrency,
            listener_timeout: self.listener_timeout,
            restarts: self.restarts,
            restart_delay: self.restart_delay,
            signal_group: false,
            hidden: SECRETS,
        }
    }

    /// The listener for Prometheus.
    pub(crate) fn prometheus(&self) -> Result<Prometheus, IncompleteTls> {
        let file = self.prometheus_ca_file.clone().map(PrometheusAuthority::File);
        let authority = self.prometheus_ca_path.clone().map(PrometheusAuthority::Path).or(file);
        let tls = match (authority, self.prometheus_cert_file.clone(), self.prometheus_key_file.clone()) {
            (None, None, None) => None,
            (Some(authority), Some(cert_file), Some(key_file)) => {
                Some(PrometheusTls { authority, cert_file, key_file })
            }
            _ => return Err(IncompleteTls),
        };
        let scrape_path = self.prometheus_scrape_path.clone();
        Ok(Prometheus { backend_port: self.prometheus_backend_port, scrape_path, tls })
    }
}
