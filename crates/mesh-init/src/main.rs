//! The arguments of `mesh-init`, `mesh-init agent-config` and `mesh-init validate`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use consul_login::Settings;
use envoy_bootstrap::{Prometheus, PrometheusAuthority, PrometheusTls};
use mesh_config::CheckTtl;
use mesh_init::consul_version::ConsulVersion;
use mesh_init::{agent_config, run, validate};
use sidecar_kit::env::Env;
use sidecar_kit::exit::{self, parse_duration};
use sidecar_kit::secret::Secret;
use sidecar_kit::signals::end_on_signals;

/// Registers the task's service and its sidecar proxy, or its gateway, with the task's Consul agent, and writes Envoy's bootstrap to
/// <bootstrapDir>/envoy-bootstrap.json.
///
/// If the document has consulServers, the task has no agent. Then mesh-init registers with Consul's servers, in their catalog, and writes
/// <bootstrapDir>/dataplane.json for mesh-dataplane.
///
/// CONSUL_ECS_CONFIG_JSON says what to register. ECS_CONTAINER_METADATA_URI_V4, which ECS sets, is the URL of the task metadata. Consul's
/// own variables say how to reach the agent: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, CONSUL_CACERT and so on. If the
/// document enables consulLogin, mesh-init logs in for the token. For a method other than AWS IAM, the proof is in
/// CONSUL_LOGIN_BEARER_TOKEN or CONSUL_LOGIN_BEARER_TOKEN_FILE. LOG_LEVEL and LOG_FORMAT (text, json) set the logging. An empty variable is
/// the same as an unset one.
#[derive(Debug, Parser)]
#[command(name = "mesh-init", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the configuration of the task's Consul agent.
    ///
    /// Secrets come from the environment. CONSUL_CLIENT_TOKEN turns ACLs on. CONSUL_GOSSIP_KEY turns gossip encryption on. Each may also be
    /// in a file: CONSUL_CLIENT_TOKEN_FILE, CONSUL_GOSSIP_KEY_FILE. CONSUL_CACERT (a file) or CONSUL_CACERT_PEM (the text) turns TLS
    /// with auto-encrypt on.
    ///
    /// With --login, the client token comes from an auth method of the servers at CONSUL_HTTP_ADDR. The CA certificate for their
    /// HTTPS is in CONSUL_LOGIN_CACERT (a file) or CONSUL_LOGIN_CACERT_PEM (the text), else in CONSUL_CACERT. The proof comes from
    /// the task role. For a method other than AWS IAM, it is in CONSUL_LOGIN_BEARER_TOKEN or CONSUL_LOGIN_BEARER_TOKEN_FILE.
    AgentConfig(Box<AgentConfigArguments>),
    /// Checks a configuration document and changes nothing.
    ///
    /// Each error and each warning is a line on standard error. If there is no error, a line on standard output says what
    /// mesh-init would register. The exit code is 0 without an error, else 1.
    Validate(ValidateArguments),
}

#[derive(Debug, Args)]
struct RunArguments {
    /// How long to wait for the metadata, and then for the agent.
    #[arg(long, value_name = "DURATION", env = "MESH_INIT_TIMEOUT", default_value = "90s", value_parser = parse_duration)]
    timeout: Duration,
    /// If health-sync does not refresh a check for this long, Consul sets the check critical. health-sync needs the same value. At
    /// most 100000h.
    #[arg(long, value_name = "DURATION", env = "CONSUL_ECS_CHECK_TTL", default_value_t)]
    check_ttl: CheckTtl,
    /// The agent's gRPC address: <host>:<port>, http://…, https://… or unix://<path> [default: the port that the agent
    /// reports, else 8502, on the loopback address].
    #[arg(long, value_name = "ADDRESS", env = "CONSUL_GRPC_ADDR")]
    grpc_addr: Option<String>,
    /// The file with the CA certificate for the agent's gRPC [default: for https://, CONSUL_CACERT_PEM or CONSUL_CACERT; for
    /// unix://, none: plain text].
    #[arg(long, value_name = "FILE", env = "CONSUL_GRPC_CACERT")]
    grpc_ca_file: Option<String>,
    /// The directory with the CA certificates for the agent's gRPC [default: for https://, CONSUL_CAPATH; for unix://, none: plain
    /// text].
    #[arg(long, value_name = "DIRECTORY", env = "CONSUL_GRPC_CAPATH")]
    grpc_ca_path: Option<String>,
    /// The address of Envoy's admin interface [default: the loopback address, port 19000].
    #[arg(long, value_name = "HOST:PORT", env = "MESH_INIT_ADMIN_BIND")]
    admin_bind: Option<String>,
    /// Where Envoy logs requests to its admin interface, unless proxy-defaults have access logs.
    #[arg(long, value_name = "FILE", env = "MESH_INIT_ADMIN_ACCESS_LOG_PATH", default_value = "/dev/null")]
    admin_access_log_path: String,
    /// The address at which Envoy serves /ready [default: none; for an ingress gateway, its own port].
    #[arg(long, value_name = "IP:PORT", env = "MESH_INIT_READY_BIND")]
    ready_bind: Option<String>,
    /// The port that the Prometheus listener forwards to, on the admin interface's address [default: the admin interface].
    #[arg(long, value_name = "PORT", env = "MESH_INIT_PROMETHEUS_BACKEND_PORT")]
    prometheus_backend_port: Option<u16>,
    /// The path that Prometheus requests.
    #[arg(long, value_name = "PATH", env = "MESH_INIT_PROMETHEUS_SCRAPE_PATH", default_value = "/metrics")]
    prometheus_scrape_path: String,
    /// The file in Envoy's container with the CA certificate for Prometheus's client certificates.
    #[arg(long, value_name = "FILE", env = "MESH_INIT_PROMETHEUS_CA_FILE")]
    prometheus_ca_file: Option<String>,
    /// The directory in Envoy's container with the CA certificates for Prometheus's client certificates.
    #[arg(long, value_name = "DIRECTORY", env = "MESH_INIT_PROMETHEUS_CA_PATH")]
    prometheus_ca_path: Option<String>,
    /// The file in Envoy's container with the certificate of the metrics listener.
    #[arg(long, value_name = "FILE", env = "MESH_INIT_PROMETHEUS_CERT_FILE")]
    prometheus_cert_file: Option<String>,
    /// The file in Envoy's container with the private key of the metrics listener.
    #[arg(long, value_name = "FILE", env = "MESH_INIT_PROMETHEUS_KEY_FILE")]
    prometheus_key_file: Option<String>,
}

#[derive(Debug, Args)]
struct AgentConfigArguments {
    /// The file to write. A CA certificate goes beside it as tls/ca.pem.
    #[arg(long, value_name = "FILE", env = "MESH_INIT_AGENT_CONFIG", default_value = "/consul/config/agent.json")]
    output: PathBuf,
    /// The directory for the agent's state.
    #[arg(long, value_name = "DIRECTORY", env = "MESH_INIT_AGENT_DATA_DIR", default_value = "/consul/data")]
    data_dir: PathBuf,
    /// The servers: addresses or cloud auto-join strings, separated by commas.
    #[arg(long, value_name = "SERVERS", env = "CONSUL_RETRY_JOIN", value_parser = secret)]
    retry_join: Option<Secret>,
    /// The datacenter [default: Consul's, dc1].
    #[arg(long, value_name = "NAME", env = "CONSUL_DATACENTER")]
    datacenter: Option<String>,
    /// The agent's admin partition (Consul Enterprise) [default: Consul's, default].
    #[arg(long, value_name = "NAME", env = "CONSUL_PARTITION")]
    partition: Option<String>,
    /// The agent's version of Consul, such as 1.8: a Consul older than 1.12 refuses some keys [default: 1.12 or later].
    #[arg(long, value_name = "VERSION", env = "MESH_INIT_CONSUL_VERSION")]
    consul_version: Option<ConsulVersion>,
    /// How long to wait for the metadata, and then for the login.
    #[arg(long, value_name = "DURATION", env = "MESH_INIT_TIMEOUT", default_value = "90s", value_parser = parse_duration)]
    timeout: Duration,
    /// Log in for the client token.
    #[arg(long, env = "CONSUL_LOGIN")]
    login: bool,
    /// The auth method.
    #[arg(long, value_name = "NAME", env = "CONSUL_LOGIN_METHOD", default_value = "iam-ecs-client-token")]
    login_method: String,
    /// The file for the login's token. At the task's end, health-sync destroys this token only if the file is `client-token` in the
    /// bootstrap directory.
    #[arg(long, value_name = "FILE", env = "CONSUL_LOGIN_TOKEN_SINK", default_value = "/consul/client-token")]
    login_token_sink: PathBuf,
    /// Give the AWS IAM auth method the role's path and tags. The task role needs the permission iam:GetRole.
    #[arg(long, env = "CONSUL_LOGIN_INCLUDE_ENTITY", default_value_t = true, action = clap::ArgAction::Set)]
    login_include_entity: bool,
    /// The AWS region of STS [default: AWS_REGION, else the task's].
    #[arg(long, value_name = "REGION", env = "CONSUL_LOGIN_REGION")]
    login_region: Option<String>,
    /// The URL of STS [default: the region's].
    #[arg(long, value_name = "URL", env = "CONSUL_LOGIN_STS_ENDPOINT")]
    login_sts_endpoint: Option<String>,
    /// The value of X-Consul-IAM-ServerID, if the auth method needs one.
    #[arg(long, value_name = "VALUE", env = "CONSUL_LOGIN_SERVER_ID")]
    login_server_id: Option<String>,
}

#[derive(Debug, Args)]
struct ValidateArguments {
    /// The file with the document, or - for standard input [default: the document in CONSUL_ECS_CONFIG_JSON].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// The servers may be cloud auto-join strings, which may hold keys.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    // A run has its own handlers, because it may have to log out.
    if arguments.command.is_some()
        && let Err(error) = end_on_signals()
    {
        exit::fail("mesh-init", &exit::one_line(&error), exit::FAILURE)
    }
    let env = Env::of_process();
    match arguments.command {
        Some(Command::AgentConfig(arguments)) => {
            exit::run("mesh-init", agent_config::write(agent_config_options(*arguments), &env))
        }
        Some(Command::Validate(ValidateArguments { file })) => {
            exit::run("mesh-init", async { validate::run(file.as_deref(), &env) })
        }
        None => match run_options(arguments.run) {
            Ok(options) => exit::run("mesh-init", run::run(options, &env)),
            Err(line) => exit::fail("mesh-init", &format!("{line} (see --help)"), exit::USAGE),
        },
    }
}

fn agent_config_options(arguments: AgentConfigArguments) -> agent_config::Options {
    let AgentConfigArguments {
        output,
        data_dir,
        retry_join,
        datacenter,
        partition,
        consul_version,
        timeout,
        login,
        login_method,
        login_token_sink,
        login_include_entity,
        login_region,
        login_sts_endpoint,
        login_server_id,
    } = arguments;
    let settings = Settings {
        method: login_method,
        include_entity: login_include_entity,
        region: login_region,
        sts_endpoint: login_sts_endpoint,
        server_id: login_server_id,
        ..Settings::default()
    };
    let login = login.then_some((settings, login_token_sink));
    agent_config::Options { output, data_dir, retry_join, datacenter, partition, consul_version, timeout, login }
}

fn run_options(arguments: RunArguments) -> Result<run::Options, &'static str> {
    let RunArguments {
        timeout,
        check_ttl,
        grpc_addr,
        grpc_ca_file,
        grpc_ca_path,
        admin_bind,
        admin_access_log_path,
        ready_bind,
        prometheus_backend_port,
        prometheus_scrape_path,
        prometheus_ca_file,
        prometheus_ca_path,
        prometheus_cert_file,
        prometheus_key_file,
    } = arguments;
    let authority = match (prometheus_ca_path, prometheus_ca_file) {
        (Some(path), _) => Some(PrometheusAuthority::Path(path)),
        (None, Some(file)) => Some(PrometheusAuthority::File(file)),
        (None, None) => None,
    };
    let tls = match (authority, prometheus_cert_file, prometheus_key_file) {
        (None, None, None) => None,
        (Some(authority), Some(cert_file), Some(key_file)) => Some(PrometheusTls { authority, cert_file, key_file }),
        _ => {
            return Err("TLS for Prometheus needs all of --prometheus-ca-file or --prometheus-ca-path, \
                        --prometheus-cert-file and --prometheus-key-file");
        }
    };
    Ok(run::Options {
        timeout,
        check_ttl,
        admin_bind,
        admin_access_log_path,
        grpc_addr,
        grpc_ca_file,
        grpc_ca_path,
        ready_bind,
        prometheus: Prometheus { backend_port: prometheus_backend_port, scrape_path: prometheus_scrape_path, tls },
    })
}
