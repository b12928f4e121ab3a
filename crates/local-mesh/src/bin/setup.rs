//! Makes the local mesh secure and writes its config entries: a one-shot container, safe to run again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use consul_api::{AclLink, Client, Config, IntentionAction, NewPolicy, TokenGrants, at_start};
use ecs_local::secrets_manager::{CallError, SecretsManager, SettingsError, Version};
use local_mesh::keys;
use local_mesh::secrets::{
    ACL_CONTROLLER_TOKEN, AUTHORITY, BOOTSTRAP_TOKEN, GOSSIP_KEY, PREFIX, token_in, token_value,
};
use serde_json::{Value, json};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::file::{WriteError, write_atomically};
use sidecar_kit::secret::Secret;
use sidecar_kit::wait::{Attempt, WaitError, until};
use sidecar_kit::{exit, log};

/// Makes the local mesh secure and writes its config entries; a second run changes nothing.
///
/// Bootstraps Consul's ACLs once and keeps the token in Secrets Manager; gives the servers tokens of their own; makes the
/// secrets that the tasks read, those of service tokens empty; makes the token with which acl-controller runs; allows the
/// intentions; says which services speak HTTP and what enters through ingress gateways.
#[derive(Debug, Parser)]
#[command(
    name = "setup",
    version,
    after_help = "Variables: those of the flags; Consul's own (CONSUL_CACERT and its kind); AWS_ENDPOINT_URL_SECRETS_MANAGER, \
                  AWS_REGION; LOG_LEVEL, LOG_FORMAT.\n\nExit codes: 0 done, 1 failed, 2 wrong command line."
)]
struct Arguments {
    /// A service of the mesh, which speaks HTTP; may be given more than once.
    #[arg(long, env = "HTTP_SERVICES", value_delimiter = ',', value_name = "SERVICE")]
    http_service: Vec<String>,
    /// A gateway, which has a secret for its token; may be given more than once.
    #[arg(long, env = "GATEWAYS", value_delimiter = ',', value_name = "GATEWAY")]
    gateway: Vec<String>,
    /// What enters through an ingress gateway, as GATEWAY:PORT:SERVICE; may be given more than once.
    #[arg(long, env = "INGRESS", value_delimiter = ',', value_name = "GATEWAY:PORT:SERVICE", value_parser = ingress)]
    ingress: Vec<Ingress>,
    /// A service that may call another, as SOURCE:DESTINATION; may be given more than once.
    #[arg(long, env = "ALLOW", value_delimiter = ',', value_name = "SOURCE:DESTINATION", value_parser = pair)]
    allow: Vec<(String, String)>,
    /// Consul's servers, one after the other: each gets its own token.
    #[arg(long, env = "SERVERS", value_delimiter = ',', value_name = "ADDRESS", required = true)]
    server: Vec<String>,
    /// Where the servers' configuration and the authority's certificate are.
    #[arg(long, env = "KEYS", value_name = "DIRECTORY", default_value = "/consul/config")]
    keys: PathBuf,
    /// Where the first token is kept too: moto forgets, Consul doesn't.
    #[arg(long, env = "STATE", value_name = "DIRECTORY", default_value = "/state")]
    state: PathBuf,
    /// How long to wait for Consul, and for Secrets Manager.
    #[arg(long, env = "WAIT", default_value = "3m", value_parser = sidecar_kit::exit::parse_duration)]
    wait: Duration,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once(':').filter(|(source, destination)| !source.is_empty() && !destination.is_empty());
    pair.map(|(source, destination)| (source.to_owned(), destination.to_owned()))
        .ok_or("expected SOURCE:DESTINATION".to_owned())
}

/// A listener of an ingress gateway, for all requests that come to its port.
#[derive(Debug, Clone)]
struct Ingress {
    gateway: String,
    port: u16,
    service: String,
}

fn ingress(text: &str) -> Result<Ingress, String> {
    let mut parts = text.splitn(3, ':').filter(|part| !part.is_empty()).map(str::to_owned);
    let read = |gateway: String, port: String, service| Some(Ingress { gateway, port: port.parse().ok()?, service });
    let parts = (parts.next(), parts.next(), parts.next());
    let (Some(gateway), Some(port), Some(service)) = parts else {
        return Err("expected GATEWAY:PORT:SERVICE".to_owned());
    };
    read(gateway, port, service).ok_or("expected GATEWAY:PORT:SERVICE".to_owned())
}

impl Ingress {
    fn entry(&self) -> Value {
        let services = json!([{ "Name": self.service, "Hosts": ["*"] }]);
        let listeners = json!([{ "Port": self.port, "Protocol": "http", "Services": services }]);
        json!({ "Kind": "ingress-gateway", "Name": self.gateway, "Listeners": listeners })
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Config(#[from] consul_api::ConfigError),
    #[error(transparent)]
    Wait(#[from] sidecar_kit::wait::WaitError<consul_api::Error>),
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Secrets(#[from] CallError),
    #[error(transparent)]
    Unfinished(#[from] Box<WaitError<Error>>),
    #[error("no Secrets Manager")]
    WaitSecrets(#[from] WaitError<CallError>),
    #[error("Consul's ACLs are bootstrapped, but the token is lost: `cargo xtask down`, and up again")]
    TokenLost,
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} has no gossip key", .0.display())]
    NoGossipKey(PathBuf),
}

fn main() -> ExitCode {
    let arguments = exit::parse_arguments();
    exit::run("setup", setup(arguments))
}

async fn setup(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { http_service, gateway, ingress, allow, server: servers, keys, state, wait } = arguments;
    let env = Env::of_process();
    log::init(&env, None)?;
    let secrets = SecretsManager::from_env(&env)?;
    let client = |server: &str, token: &str| {
        let env = env.clone().with("CONSUL_HTTP_ADDR", server.to_owned()).with("CONSUL_HTTP_TOKEN", token.to_owned());
        Ok::<_, Error>(Client::new(Config::from_env(&env)?)?)
    };
    let bootstrap = bootstrap(&client(&servers[0], "")?, &secrets, &state.join(BOOTSTRAP_TOKEN), wait).await?;
    let all = async || {
        let consul = client(&servers[0], bootstrap.expose())?;
        for address in &servers {
            give_server_its_token(&client(address, bootstrap.expose())?, address).await?;
        }
        make_secrets(&secrets, &keys, &[&http_service[..], &gateway].concat()).await?;
        make_controller_s_token(&consul, &secrets).await?;
        for service in &http_service {
            write(&consul, &json!({ "Kind": "service-defaults", "Name": service, "Protocol": "http" })).await?;
        }
        // It needs to know by then that the service speaks HTTP.
        for ingress in &ingress {
            write(&consul, &ingress.entry()).await?;
        }
        allow_calls(&consul, &allow).await
    };
    // Each of it may be done again, and servers that change their leader refuse for a while.
    let done = until("Consul's servers", wait, Backoff::default(), async || match all().await {
        Ok(()) => Attempt::Done(()),
        Err(Error::Consul(error)) if error.may_pass_at_start() => Attempt::Again(Error::Consul(error)),
        Err(error) => Attempt::Final(error),
    });
    done.await.map_err(Box::new)?;
    Ok(ExitCode::SUCCESS)
}

async fn allow_calls(consul: &Client, allow: &[(String, String)]) -> Result<(), Error> {
    let known = consul.intentions().await?;
    for (source, destination) in allow {
        if !known.iter().any(|one| one.source_name == *source && one.destination_name == *destination) {
            consul.create_intention(source, destination, IntentionAction::Allow).await?;
            tracing::info!("{source} may call {destination}");
        }
    }
    Ok(())
}

/// The token of Consul's bootstrap: made by the first run, kept in Secrets Manager for all others, and in a file in case that
/// forgets.
async fn bootstrap(consul: &Client, secrets: &SecretsManager, kept: &Path, wait: Duration) -> Result<Secret, Error> {
    // Before there is a token that could be lost.
    let stored = until("Secrets Manager", wait, Backoff::default(), async || {
        match secrets.get(&Version::current(BOOTSTRAP_TOKEN)).await {
            Ok(value) => Attempt::Done(Some(value)),
            Err(error) if error.is_missing() => Attempt::Done(None),
            Err(error) if error.may_pass() => Attempt::Again(error),
            Err(error) => Attempt::Final(error),
        }
    })
    .await?;
    if let Some(token) = stored.as_ref().and_then(token_in) {
        return Ok(token);
    }
    let value = match at_start("Consul's leader", wait, async || consul.bootstrap_acls().await).await? {
        Some(token) => {
            let value = token_value(&token);
            write_atomically(kept, value.expose().as_bytes(), 0o600)?;
            tracing::info!("bootstrapped Consul's ACLs; the token is the secret {BOOTSTRAP_TOKEN}");
            value
        }
        None => Secret::new(std::fs::read_to_string(kept).map_err(|_| Error::TokenLost)?),
    };
    secrets.create(BOOTSTRAP_TOKEN, &value).await?;
    token_in(&value).ok_or(Error::TokenLost)
}

/// With ACLs a server needs a token to keep its own node in the catalog. It keeps the token across restarts.
///
/// The server itself is asked to make it: for a while after its start each of Consul 1.8's is in the legacy mode of ACLs, and refuses.
/// So setup ends when none is any more.
async fn give_server_its_token(server: &Client, address: &str) -> Result<(), Error> {
    const NAME: &str = "consul-servers";
    let rules = r#"node_prefix "consul-server-" { policy = "write" } service_prefix "" { policy = "read" }"#;
    let token = token(server, NAME, rules, &format!("{NAME}: {address}")).await?;
    Ok(server.set_agent_token(&token.secret_id).await?)
}

/// The token with this description, made if it isn't there, with one policy of its own.
async fn token(consul: &Client, name: &str, rules: &str, description: &str) -> Result<consul_api::Token, Error> {
    if let Some(entry) = consul.tokens().await?.iter().find(|token| token.grants.description == description) {
        return Ok(consul.token(&entry.accessor_id).await?);
    }
    if !consul.policies().await?.iter().any(|policy| policy.name == name) {
        consul.create_policy(&NewPolicy { name, description: "made by the local mesh's setup", rules }).await?;
    }
    let policies = vec![AclLink { name: name.to_owned(), ..AclLink::default() }];
    let grants = TokenGrants { description: description.to_owned(), policies, ..TokenGrants::default() };
    let token = consul.create_token(&grants).await?;
    tracing::info!("made the token of {description}");
    Ok(token)
}

/// What every task reads, and the secrets that acl-controller fills.
async fn make_secrets(secrets: &SecretsManager, keys: &Path, services: &[String]) -> Result<(), Error> {
    let read = |file: &str| {
        let path = keys.join(file);
        std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
    };
    let config = serde_json::from_str::<Value>(&read(keys::CONFIG)?).unwrap_or_default();
    let gossip_key = config["encrypt"].as_str().ok_or_else(|| Error::NoGossipKey(keys.join(keys::CONFIG)))?;
    secrets.create(GOSSIP_KEY, &Secret::new(gossip_key)).await?;
    secrets.create(AUTHORITY, &Secret::new(read(keys::AUTHORITY)?)).await?;
    let empty = Secret::new("{}");
    for name in services.iter().map(String::as_str).chain(["consul-client-token"]) {
        if secrets.create(&format!("{PREFIX}-{name}"), &empty).await? {
            tracing::info!("secret {PREFIX}-{name} made, for acl-controller to fill");
        }
    }
    Ok(())
}

/// The least with which acl-controller does all it does here; see its README.
async fn make_controller_s_token(consul: &Client, secrets: &SecretsManager) -> Result<(), Error> {
    const RULES: &str = r#"
        acl = "write"
        session_prefix "" { policy = "write" }
        key_prefix "ecs-mesh/acl-controller/" { policy = "write" }
        node_prefix "" { policy = "write" }
        service_prefix "" { policy = "read" }"#;
    let token = token(consul, "acl-controller", RULES, "acl-controller").await?;
    let value = token_value(&token);
    if !secrets.create(ACL_CONTROLLER_TOKEN, &value).await? {
        // It may hold one that was deleted in Consul.
        let kept = secrets.get(&Version::current(ACL_CONTROLLER_TOKEN)).await?;
        if kept != value {
            secrets.put(ACL_CONTROLLER_TOKEN, &value).await?;
            tracing::warn!("the secret {ACL_CONTROLLER_TOKEN} did not hold acl-controller's token; repaired");
        }
    }
    Ok(())
}

/// Writes an entry unless Consul has it: even an equal one would get a new index and wake all who watch.
async fn write(client: &Client, entry: &Value) -> Result<(), consul_api::Error> {
    let (kind, name) = (entry["Kind"].as_str().unwrap_or_default(), entry["Name"].as_str().unwrap_or_default());
    let written = match client.config_entry(kind, name).await {
        Ok(written) => written,
        Err(consul_api::Error::NotFound { .. }) => Value::Null,
        Err(error) => return Err(error),
    };
    if holds(&written, entry) {
        tracing::info!("{kind} of {name} is as it should be");
        return Ok(());
    }
    client.put_config_entry(entry).await?;
    tracing::info!("wrote {kind} of {name}");
    Ok(())
}

/// Whether Consul has what is wanted, whatever fields it adds.
fn holds(written: &Value, wanted: &Value) -> bool {
    match (written, wanted) {
        (Value::Object(written), Value::Object(wanted)) => {
            wanted.iter().all(|(field, value)| written.get(field).is_some_and(|written| holds(written, value)))
        }
        (Value::Array(written), Value::Array(wanted)) => {
            written.len() == wanted.len() && written.iter().zip(wanted).all(|(written, wanted)| holds(written, wanted))
        }
        _ => written == wanted,
    }
}
