//! Gives each service of an ECS cluster its Consul ACL token, repairs it, and deletes it when the service is gone.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Duration;

use acl_controller::auth_method::AuthMethodOptions;
use acl_controller::controller::Rules;
use acl_controller::{Cluster, Options};
use clap::Parser;
use sidecar_kit::env::Env;
use sidecar_kit::exit;

/// Gives each service of an ECS cluster its Consul ACL token, repairs it, and deletes it when the service is gone.
///
/// A task is in the mesh if its tag consul.hashicorp.com/mesh is true. The name of its service is the tag
/// consul.hashicorp.com/service-name, otherwise the family. The controller stores a service's token in the AWS secret PREFIX-SERVICE,
/// and the token of all consul-clients in PREFIX-consul-client-token. The secrets must exist, with the value {} or none. Several
/// controllers may run: one works, the others wait.
///
/// The controller reads Consul's own variables: CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, CONSUL_CACERT, CONSUL_CACERT_PEM and so on. It
/// also reads variables of the AWS SDK: AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_ECS, AWS_ENDPOINT_URL_SECRETS_MANAGER. The region is that of the
/// cluster's ARN, otherwise AWS_REGION, otherwise that of the task's ARN. The AWS credentials come from AWS_ACCESS_KEY_ID and
/// AWS_SECRET_ACCESS_KEY, otherwise from the task role. ECS sets ECS_CONTAINER_METADATA_URI_V4. LOG_LEVEL and LOG_FORMAT (text, json)
/// configure the log. An empty variable counts as not set.
#[derive(Debug, Parser)]
#[command(
    name = "acl-controller",
    version,
    after_help = "Exit codes: 0 after TERM or INT; 1 if it could not start: no cluster, region, credentials or port, or a wrong \
                  variable; 2 for a wrong command line. Once it has started, it logs each failure and tries again."
)]
struct Arguments {
    /// The ECS cluster, by name or ARN; by default the cluster of this task. Tokens carry its ARN.
    #[arg(long, env = "ACL_CONTROLLER_CLUSTER", value_name = "NAME|ARN")]
    cluster: Option<Cluster>,
    /// The start of the names of the secrets and policies. With --agentless it may be absent: then the controller uses no secrets.
    #[arg(long, env = "ACL_CONTROLLER_SECRET_NAME_PREFIX", value_name = "PREFIX", value_parser = prefix,
          required_unless_present = "agentless")]
    secret_name_prefix: Option<String>,
    /// Consul's servers: host:port, http://… or https://…, separated by commas. If one fails, the controller asks another one.
    #[arg(long, env = "CONSUL_HTTP_ADDR", value_name = "ADDRESSES", default_value = "127.0.0.1:8500")]
    consul_http_addr: String,
    /// How often a cycle begins.
    #[arg(long, env = "ACL_CONTROLLER_POLL_INTERVAL", default_value = "10s", value_name = "DURATION",
          value_parser = exit::parse_duration)]
    poll_interval: Duration,
    /// How long a service without tasks keeps its token, at most 400days. It must be longer than every stop timeout and, without
    /// --keep-secrets, longer than the time between two runs of a scheduled task.
    #[arg(long, env = "ACL_CONTROLLER_GRACE", default_value = "10m", value_name = "DURATION", value_parser = grace)]
    grace: Duration,
    /// After the grace, delete only the token. The secret keeps its value. When a task starts later, the controller creates the token
    /// again with the same IDs.
    #[arg(long, env = "ACL_CONTROLLER_KEEP_SECRETS")]
    keep_secrets: bool,
    /// The longest stop timeout of the cluster's tasks. ECS deletes the tags of a stopping task, so a new leader does not know its
    /// service. For this long, the new leader deletes no token that was in a secret.
    #[arg(long, env = "ACL_CONTROLLER_STOP_TIMEOUT", default_value = "120s", value_name = "DURATION",
          value_parser = exit::parse_delay)]
    stop_timeout: Duration,
    /// The age at which a service's token is replaced, such as 30days; by default never.
    #[arg(long, env = "ACL_CONTROLLER_ROTATE_AFTER", value_name = "DURATION", value_parser = age)]
    rotate_after: Option<Duration>,
    /// How many services are processed at the same time.
    #[arg(long, env = "ACL_CONTROLLER_CONCURRENCY", default_value = "32", value_name = "NUMBER")]
    concurrency: NonZeroU16,
    /// Remove failed nodes from Consul if their tasks are gone. Otherwise Consul keeps the failed node of a killed task: for 15 minutes if
    /// mesh-init wrote the agent's configuration for Consul 1.10 or later, for 72 hours with other agents.
    #[arg(long, env = "ACL_CONTROLLER_DEREGISTER_NODES")]
    deregister_nodes: bool,
    /// Also work for tasks without an agent: register and repair the Consul node that has their services, and remove the services and the
    /// login tokens of tasks that have stopped.
    #[arg(long, env = "ACL_CONTROLLER_AGENTLESS")]
    agentless: bool,
    /// The address of the node of the tasks without an agent; by default that of this task. Nobody connects to it.
    #[arg(long, env = "ACL_CONTROLLER_NODE_ADDRESS", value_name = "IP")]
    node_address: Option<IpAddr>,
    /// Create and repair the AWS IAM auth method with which tasks log in, and its binding rules, roles and policies. The value is the auth
    /// method's name, such as iam-ecs-service-token. It needs --agentless.
    #[arg(long, env = "ACL_CONTROLLER_AUTH_METHOD", value_name = "NAME", requires = "agentless")]
    auth_method: Option<String>,
    /// The path of the IAM roles that may log in, with --auth-method.
    #[arg(long, env = "ACL_CONTROLLER_IAM_ROLE_PATH", default_value = "/consul-ecs/", value_name = "PATH")]
    iam_role_path: String,
    /// The address that serves /metrics, /healthz and /readyz.
    #[arg(long, env = "ACL_CONTROLLER_LISTEN", default_value = "0.0.0.0:9641", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
}

/// Parses a prefix. Policies carry it too, and their names have at most 128 of these characters ("ACL Policies HTTP API").
fn prefix(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !text.is_empty() && text.len() <= 100 && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits, _ and -, at most 100 characters, because Consul's policies carry it too"
            .to_owned())
    }
}

/// Parses a grace. Some tasks run once a year.
fn grace(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(400 * 24 * 60 * 60);
    let expected = "expected a duration such as 10m, 36h or 400days, at most 400days";
    let grace = humantime::parse_duration(text).ok();
    grace.filter(|grace| !grace.is_zero() && *grace <= most).ok_or_else(|| expected.to_owned())
}

/// Parses a token's age.
fn age(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(10 * 366 * 24 * 60 * 60);
    let expected = "expected a duration such as 12h or 30days, at most 10 years";
    let age = humantime::parse_duration(text).ok();
    age.filter(|age| !age.is_zero() && *age <= most).ok_or_else(|| expected.to_owned())
}

fn main() -> ExitCode {
    let Arguments {
        cluster,
        secret_name_prefix,
        consul_http_addr,
        poll_interval,
        grace,
        keep_secrets,
        stop_timeout,
        rotate_after,
        concurrency,
        deregister_nodes,
        agentless,
        node_address,
        auth_method,
        iam_role_path,
        listen,
    } = exit::parse_arguments();
    let auth_method = auth_method.map(|name| AuthMethodOptions { name, iam_role_path });
    let concurrency = usize::from(concurrency.get());
    let secrets = secret_name_prefix.is_some();
    let secret_name_prefix = secret_name_prefix.unwrap_or_default();
    let rules = Rules { secrets, grace, keep_secrets, stop_timeout, rotate_after, concurrency, deregister_nodes };
    let options = Options {
        cluster,
        secret_name_prefix,
        consul_http_addr,
        poll_interval,
        rules,
        agentless,
        node_address,
        auth_method,
        listen,
    };
    exit::run("acl-controller", acl_controller::run(options, &Env::of_process()))
}
