//! Tests of acl-controller with a real Consul with ACLs, with a simulated ECS and Secrets Manager that a test controls, and with moto.
//!
//! All tests use the Consul policy in the controller's README.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http_fixture::{Answer, Pass, Relay, Server};
use mesh_tests::aws::{Aws, Made};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::moto::Moto;
use mesh_tests::process::{Process, run};
use mesh_tests::{binary, eventually, free_port, http};
use rustix::process::Signal;
use serde_json::{Value, json};

mod agentless;
mod auth_method;
mod calls;
mod datacenters;
mod gateways;
mod leader;
mod secrets;
mod takeover;
mod tokens;

const BOUND: Duration = Duration::from_secs(30);
/// 2 × TTL + lock-delay, and a reserve for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(40);
const CLUSTER: &str = "arn:aws:ecs:eu-north-1:210987654321:cluster/blue";
const CLUSTER_LINE: &str = "consul.hashicorp.com/cluster: arn:aws:ecs:eu-north-1:210987654321:cluster/blue";

/// A code block of the controller's README.
fn readme(language: &str, number: usize) -> String {
    mesh_tests::readme("acl-controller", language, number)
}

struct World {
    agent: Agent,
    aws: Aws,
    /// The controller's own token.
    token: String,
}

impl World {
    /// Starts a world with an empty client secret and an empty secret for each service.
    async fn new(services: &[&str]) -> Self {
        Self::at(Agent::start_with_acls().await, services).await
    }

    /// The same, but the controller uses this agent.
    async fn at(agent: Agent, services: &[&str]) -> Self {
        let rules = [0, 1, 2].map(|block| readme("hcl", block)).concat();
        let token = limited(&agent, "controller", &rules).await;
        let aws = Aws::start();
        aws.set_secret("p-consul-client-token", "{}");
        for service in services {
            aws.set_secret(&format!("p-{service}"), "{}");
        }
        Self { agent, aws, token }
    }

    fn command(&self, key: &str) -> Command {
        self.command_for(key, "blue")
    }

    /// The controller's command for the cluster with this name or ARN.
    fn command_for(&self, key: &str, cluster: &str) -> Command {
        let mut command = Command::new(binary("acl-controller"));
        command.env_clear().env("AWS_REGION", "eu-north-1").env("AWS_ENDPOINT_URL", &self.aws.url);
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", "b1g-s3cr3t-key");
        command.env("CONSUL_HTTP_ADDR", &self.agent.http).env("CONSUL_HTTP_TOKEN", &self.token);
        command.args(["--cluster", cluster, "--secret-name-prefix", "p"]).env("ACL_CONTROLLER_POLL_INTERVAL", "200ms");
        // With 0s, a new leader does not wait for tasks that no controller has seen.
        command.env("ACL_CONTROLLER_STOP_TIMEOUT", "0s");
        // Everything is logged, so that the test finds a secret in the log.
        command.args(["--listen", &format!("127.0.0.1:{}", free_port())]).env("LOG_LEVEL", "trace");
        command
    }

    fn start(&self) -> Process {
        Process::spawn(&mut self.command("key"))
    }

    fn start_with(&self, arguments: &[&str]) -> Process {
        Process::spawn(self.command("key").args(arguments))
    }

    /// The tokens that have an identity for a service.
    async fn tokens(&self, service: &str) -> Vec<Value> {
        let tokens = self.agent.call("GET", "/v1/acl/tokens?consistent=", &Value::Null).await;
        let has = |token: &Value| {
            let identities = token["ServiceIdentities"].as_array();
            identities.is_some_and(|identities| identities.iter().any(|identity| identity["ServiceName"] == service))
        };
        tokens.as_array().unwrap().iter().filter(|token| has(token)).cloned().collect()
    }

    /// The token in a secret, if Consul knows it under the accessor ID in the same secret.
    async fn token_of(&self, secret: &str) -> Result<Value, String> {
        let value = self.aws.secret(secret);
        let (Some(accessor), Some(token)) = (value["accessor_id"].as_str(), value["token"].as_str()) else {
            return Err(format!("{secret} is empty"));
        };
        let url = self.agent.url("/v1/acl/token/self");
        let (status, body) = http::request("GET", &url, &[("X-Consul-Token", token)], "").await?;
        let found: Value = serde_json::from_str(&body).map_err(|error| format!("{status} {body}: {error}"))?;
        if found["AccessorID"] == accessor { Ok(found) } else { Err(format!("{accessor} is {found}")) }
    }

    /// Waits until a service has one token with only its own identity, and the secret holds this token. Returns its accessor ID.
    async fn settles(&self, service: &str) -> String {
        eventually(&format!("{service} has its token"), BOUND, async || {
            let token = self.token_of(&format!("p-{service}")).await?;
            let tokens = self.tokens(service).await;
            let right = token["ServiceIdentities"] == json!([{ "ServiceName": service }])
                && token["Policies"].is_null()
                && tokens.len() == 1
                && tokens[0]["AccessorID"] == token["AccessorID"];
            if right {
                Ok(token["AccessorID"].as_str().unwrap().to_owned())
            } else {
                Err(format!("{token} {tokens:?}"))
            }
        })
        .await
    }

    /// The token with this accessor ID in Consul's list; none if there is no such token.
    async fn listed(&self, accessor: &str) -> Option<Value> {
        let tokens = self.agent.call("GET", "/v1/acl/tokens?consistent=", &Value::Null).await;
        tokens.as_array().unwrap().iter().find(|token| token["AccessorID"] == accessor).cloned()
    }

    /// Waits until the consul-clients' secret holds their token. Returns its accessor ID.
    async fn clients_settle(&self) -> String {
        let token =
            eventually("the clients' token", BOUND, async || self.token_of("p-consul-client-token").await).await;
        token["AccessorID"].as_str().unwrap().to_owned()
    }

    fn silent(&self, process: &Process) {
        let output = process.output();
        assert!(output.contains("DEBUG") || output.contains("INFO"), "it logs: {output}");
        for text in self.aws.texts() {
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(token) = value["token"].as_str() {
                assert!(!output.contains(token), "a token is in the log: {output}");
            }
        }
        assert!(!output.contains(&self.token) && !output.contains("b1g-s3cr3t"), "{output}");
    }
}

/// Creates a token with a policy with these rules.
async fn limited(agent: &Agent, name: &str, rules: &str) -> String {
    agent.call("PUT", "/v1/acl/policy", &json!({ "Name": name, "Rules": rules })).await;
    let token = agent.call("PUT", "/v1/acl/token", &json!({ "Policies": [{ "Name": name }] })).await;
    token["SecretID"].as_str().unwrap().to_owned()
}

/// The URL on which this command will listen.
fn listens(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let at = arguments.iter().position(|argument| argument == "--listen").unwrap();
    format!("http://{}", arguments[at + 1])
}

/// The counters of a controller.
async fn metrics(address: &str) -> BTreeMap<String, f64> {
    let text = eventually("metrics", BOUND, async || http::get(&format!("{address}/metrics")).await).await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, value)| (name.into(), value.parse().unwrap())).collect()
}

/// Waits until some more cycles have ended.
async fn cycles(address: &str, more: f64) {
    let all = async || {
        let metrics = metrics(address).await;
        metrics["acl_controller_cycle_seconds_count"]
    };
    let before = all().await;
    eventually("more cycles", BOUND, async || {
        let now = all().await;
        if now >= before + more { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}
