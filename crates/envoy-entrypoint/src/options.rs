//! The flags of `run`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use sidecar_kit::exit::{parse_delay, parse_duration};
use supervise::envoy::Options;

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// A container that Envoy need not wait for, beside the sidecars; may be repeated, or separated by commas.
    #[arg(long, env = "ENVOY_ENTRYPOINT_IGNORE_CONTAINERS", value_name = "NAME", value_delimiter = ',', value_parser = trimmed)]
    ignore_container: Vec<String>,
    /// The longest time that Envoy runs on after TERM.
    #[arg(long, env = "ENVOY_ENTRYPOINT_GRACE", value_name = "DURATION", default_value = "120s", value_parser = parse_delay)]
    grace: Duration,
    /// Drain Envoy's inbound listeners when the task stops: each answer closes its connection, and Envoy accepts new connections
    /// until it ends. Start Envoy with --drain-strategy immediate.
    #[arg(long, env = "ENVOY_ENTRYPOINT_DRAIN")]
    drain: bool,
    /// This Envoy is a gateway. It waits for no app and runs on for this long after TERM, at most for --grace, until other proxies
    /// know that the gateway stops. With --drain all of its listeners drain, not only the inbound ones.
    #[arg(long, env = "ENVOY_ENTRYPOINT_GATEWAY_DELAY", value_name = "DURATION", value_parser = parse_delay)]
    gateway_delay: Option<Duration>,
    /// Where Envoy's admin page is. [default: the address in the bootstrap of Envoy's --config-path or -c FILE.json, else
    /// 127.0.0.1:19000]
    #[arg(long, env = "ENVOY_ENTRYPOINT_ADMIN", value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// Envoy's worker threads. Replaces --concurrency in Envoy's command.
    #[arg(long, env = "ENVOY_ENTRYPOINT_CONCURRENCY", value_name = "N")]
    concurrency: Option<NonZeroU32>,
    /// How long Envoy may run without listeners from Consul; then envoy-entrypoint ends it. 0s: no limit, for an ingress gateway,
    /// which has no listeners before its config entry. An Envoy that has had listeners from Consul is never ended for this reason.
    #[arg(long, env = "ENVOY_ENTRYPOINT_LISTENER_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = parse_delay)]
    listener_timeout: Duration,
    /// How many times Envoy is started again if it ends by itself before TERM.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTARTS", value_name = "N", default_value = "0")]
    restarts: u32,
    /// How long to wait before the first restart; twice as long before each that follows, at most 30s.
    #[arg(long, env = "ENVOY_ENTRYPOINT_RESTART_DELAY", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    restart_delay: Duration,
    /// Send signals to Envoy's whole process group, not to Envoy alone.
    #[arg(long, env = "ENVOY_ENTRYPOINT_SIGNAL_GROUP")]
    signal_group: bool,
}

#[allow(clippy::unnecessary_wraps, reason = "clap wants a parser that may fail")]
fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
}

impl From<Flags> for Options {
    fn from(flags: Flags) -> Self {
        Self {
            ignore_container: flags.ignore_container,
            grace: flags.grace,
            drain: flags.drain,
            gateway_delay: flags.gateway_delay,
            admin: flags.admin,
            concurrency: flags.concurrency,
            listener_timeout: flags.listener_timeout,
            restarts: flags.restarts,
            restart_delay: flags.restart_delay,
            signal_group: flags.signal_group,
            hidden: &[],
        }
    }
}
