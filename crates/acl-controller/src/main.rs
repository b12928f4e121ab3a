//! Gives every service of an ECS cluster its Consul ACL token, keeps it right, and takes it back.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Duration;

use acl_controller::controller::Rules;
use acl_controller::{Cluster, Options};
use clap::Parser;
use sidecar_kit::env::Env;
use sidecar_kit::exit;

/// Gives every service of an ECS cluster its Consul ACL token, keeps it right, and takes it back.
///
/// A task is in the mesh if its tag consul.hashicorp.com/mesh is true; its service is the tag consul.hashicorp.com/service-name,
/// else its family. The service's token is stored in the AWS secret PREFIX-SERVICE, that of all consul-clients in
/// PREFIX-consul-client-token; both must exist, with the value {} or none. Any number may run: one works, the others stand by.
///
/// Consul is in Consul's own variables: CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE, CONSUL_CACERT, CONSUL_CACERT_PEM and so on;
/// AWS in the AWS SDK's: AWS_REGION (else the region of the task's ARN; that of a cluster's ARN wins), AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_ECS,
/// AWS_ENDPOINT_URL_SECRETS_MANAGER; its credentials are the task role's, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The
/// task is in ECS_CONTAINER_METADATA_URI_V4. LOG_LEVEL and LOG_FORMAT (text, json) say how to log. An empty variable counts as
/// not set.
#[derive(Debug, Parser)]
#[command(
    name = "acl-controller",
    version,
    after_help = "Exit codes: 0 after TERM or INT; 1 it could not start: no cluster, region, credentials or port, or a variable that \
                  cannot be used; 2 wrong command line. Once started it does not end by itself: what fails is logged and tried again."
)]
struct Arguments {
    /// The ECS cluster, by name or ARN; without, the one this task runs in. Tokens carry its ARN.
    #[arg(long, env = "ACL_CONTROLLER_CLUSTER", value_name = "NAME|ARN")]
    cluster: Option<Cluster>,
    /// What the names of the secrets and of the consul-clients' policy begin with.
    #[arg(long, env = "ACL_CONTROLLER_SECRET_NAME_PREFIX", value_name = "PREFIX", value_parser = prefix)]
    secret_name_prefix: String,
    /// Consul's servers: host:port, http://… or https://…, with commas between; another is asked when one fails.
    #[arg(long, env = "CONSUL_HTTP_ADDR", value_name = "ADDRESSES", default_value = "127.0.0.1:8500")]
    consul_http_addr: String,
    /// How often a cycle begins.
    #[arg(long, env = "ACL_CONTROLLER_POLL_INTERVAL", default_value = "10s", value_name = "DURATION",
          value_parser = exit::parse_duration)]
    poll_interval: Duration,
    /// How long a service without tasks keeps its token, at most 400days; longer than any stop timeout, and, without
    /// --keep-secrets, than the time between two runs of a scheduled task.
    #[arg(long, env = "ACL_CONTROLLER_GRACE", default_value = "10m", value_name = "DURATION", value_parser = grace)]
    grace: Duration,
    /// After the grace delete the token alone: the secret keeps its value, and a task that starts later has the token made again
    /// with the same IDs.
    #[arg(long, env = "ACL_CONTROLLER_KEEP_SECRETS")]
    keep_secrets: bool,
    /// The longest stop timeout of the cluster's tasks. ECS deletes the tags of a task that is being stopped; after a controller
    /// has taken over, a token that was in a secret lives for at least this long, since such a task may use it.
    #[arg(long, env = "ACL_CONTROLLER_STOP_TIMEOUT", default_value = "120s", value_name = "DURATION",
          value_parser = exit::parse_delay)]
    stop_timeout: Duration,
    /// At what age a service's token is replaced, such as 30days; without, never.
    #[arg(long, env = "ACL_CONTROLLER_ROTATE_AFTER", value_name = "DURATION", value_parser = age)]
    rotate_after: Option<Duration>,
    /// How many services are worked on at a time.
    #[arg(long, env = "ACL_CONTROLLER_CONCURRENCY", default_value = "32", value_name = "NUMBER")]
    concurrency: NonZeroU16,
    /// Remove failed nodes from Consul whose tasks are gone: a task killed hard would leave one for 72 hours.
    #[arg(long, env = "ACL_CONTROLLER_DEREGISTER_NODES")]
    deregister_nodes: bool,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "ACL_CONTROLLER_LISTEN", default_value = "0.0.0.0:9641", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
}

/// What the name of a policy may have in it, of which Consul takes 128 characters ("ACL Policies HTTP API"): secrets may be named
/// more freely.
fn prefix(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !text.is_empty() && text.len() <= 100 && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits, _ and -, at most 100, since Consul's policy is named so too".to_owned())
    }
}

/// A grace, which may be longer than a year for what runs once a year.
fn grace(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(400 * 24 * 60 * 60);
    let expected = "expected a duration such as 10m, 36h or 400days, at most 400days";
    let grace = humantime::parse_duration(text).ok();
    grace.filter(|grace| !grace.is_zero() && *grace <= most).ok_or_else(|| expected.to_owned())
}

/// A token's age, which may be longer than a day.
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
        listen,
    } = exit::parse_arguments();
    let concurrency = usize::from(concurrency.get());
    let rules = Rules { grace, keep_secrets, stop_timeout, rotate_after, concurrency, deregister_nodes };
    let options = Options { cluster, secret_name_prefix, consul_http_addr, poll_interval, rules, listen };
    exit::run("acl-controller", acl_controller::run(options, &Env::of_process()))
}
