//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::entries::Ingress;

/// Prepares Consul and Secrets Manager for the local mesh. A second run changes nothing.
///
/// Bootstraps Consul's ACLs and keeps the management token in Secrets Manager. Gives each server its own token. Makes the secrets
/// that tasks read, and empty secrets for acl-controller to fill. Makes acl-controller's token. Writes service-defaults, the
/// entries of ingress gateways, and intentions.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-setup",
    version,
    after_help = "Variables: those of the flags; Consul's own (CONSUL_CACERT and others); AWS_ENDPOINT_URL_SECRETS_MANAGER, \
                  AWS_REGION; LOG_LEVEL, LOG_FORMAT.\n\nExit codes: 0 done, 1 failed, 2 wrong command line."
)]
pub struct Options {
    /// A service of the mesh that speaks HTTP. May be given more than once.
    #[arg(long, env = "HTTP_SERVICES", value_delimiter = ',', value_name = "SERVICE")]
    pub(crate) http_service: Vec<String>,
    /// A service of the mesh for which no protocol is set, so it has Consul's default, TCP. May be given more than once.
    #[arg(long, env = "SERVICES", value_delimiter = ',', value_name = "SERVICE")]
    pub(crate) service: Vec<String>,
    /// A gateway, which gets a secret for its token. May be given more than once.
    #[arg(long, env = "GATEWAYS", value_delimiter = ',', value_name = "GATEWAY")]
    pub(crate) gateway: Vec<String>,
    /// A listener of an ingress gateway, as GATEWAY:PORT:SERVICE. May be given more than once.
    #[arg(long, env = "INGRESS", value_delimiter = ',', value_name = "GATEWAY:PORT:SERVICE", value_parser = Ingress::parse)]
    pub(crate) ingress: Vec<Ingress>,
    /// A service that may call another, as SOURCE:DESTINATION. May be given more than once.
    #[arg(long, env = "ALLOW", value_delimiter = ',', value_name = "SOURCE:DESTINATION", value_parser = pair)]
    pub(crate) allow: Vec<(String, String)>,
    /// A Consul server. Each server gets its own token. May be given more than once.
    #[arg(long, env = "SERVERS", value_delimiter = ',', value_name = "ADDRESS", required = true)]
    pub(crate) server: Vec<String>,
    /// The directory with the servers' configuration and the CA certificate.
    #[arg(long, env = "KEYS", value_name = "DIRECTORY", default_value = "/consul/config")]
    pub(crate) keys: PathBuf,
    /// The directory for a copy of the management token: moto loses its secrets when it restarts.
    #[arg(long, env = "STATE", value_name = "DIRECTORY", default_value = "/state")]
    pub(crate) state: PathBuf,
    /// How long to wait for Consul, and for Secrets Manager.
    #[arg(long, env = "WAIT", default_value = "3m", value_parser = sidecar_kit::exit::parse_duration)]
    pub(crate) wait: Duration,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once(':').filter(|(source, destination)| !source.is_empty() && !destination.is_empty());
    pair.map(|(source, destination)| (source.to_owned(), destination.to_owned()))
        .ok_or("expected SOURCE:DESTINATION".to_owned())
}
