//! The configuration of the task's Consul agent, for `consul agent -config-dir` ("Agent Configuration File Reference").

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use consul_login::{Login, LoginError, Settings};
use ecs_meta::{MetadataClient, Task};
use serde_json::{Value, json};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::file::{WriteError, remove_temporaries, write_if_changed};
use sidecar_kit::log;
use sidecar_kit::secret::{Secret, SecretFileError, shown_path};
use sidecar_kit::tls::{CertificatesPem, PemError};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::address::DEFAULT_PORT;
use crate::consul_version::ConsulVersion;

/// The file holds the client token and the gossip key. Its owner and the volume's group may read it.
const MODE: u32 = 0o640;
/// The authority's certificate, in a directory beside the configuration. Consul accepts no certificate in the configuration
/// itself. It warns of a file in `-config-dir` that is neither `.json` nor `.hcl`.
const AUTHORITY_FILE: &str = "tls/ca.pem";
/// How soon the servers may forget the node if it does not leave. A killed task never comes back.
const RECONNECT_TIMEOUT: &str = "15m";

/// The values of the flags.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file to write; it must end in `.json` for Consul to read it.
    pub output: PathBuf,
    /// The directory for the agent's state.
    pub data_dir: PathBuf,
    /// The servers, separated by commas: addresses or cloud auto-join strings, which may hold keys.
    pub retry_join: Option<Secret>,
    /// The datacenter; else Consul's default, `dc1`.
    pub datacenter: Option<String>,
    /// The admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// The agent's version of Consul, if it is not a current one.
    pub consul_version: Option<ConsulVersion>,
    /// How long to wait for the metadata, and then for the login.
    pub timeout: Duration,
    /// How to log in for the client token, and the file for it. health-sync reads the file to log out.
    pub login: Option<(Settings, PathBuf)>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AgentConfigError {
    #[error("cannot start logging")]
    Log(#[from] log::LogError),
    #[error("CONSUL_RETRY_JOIN is not set: expected the servers' addresses, separated by commas")]
    NoServers,
    #[error("--output (MESH_INIT_AGENT_CONFIG) is {}: expected a name that ends in .json, because Consul would not read JSON from another file", shown_path(.0))]
    Output(PathBuf),
    #[error("{variable}_FILE")]
    Secret { variable: &'static str, source: SecretFileError },
    #[error("{0} is empty: expected the secret, or the variable unset")]
    EmptySecret(&'static str),
    #[error("CONSUL_GOSSIP_KEY is not a gossip key: expected 16, 24 or 32 bytes in base64, as `consul keygen` prints")]
    GossipKey,
    #[error("--output (MESH_INIT_AGENT_CONFIG): cannot make the directory {}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("CONSUL_CACERT: cannot read {file}")]
    Authority { file: String, source: std::io::Error },
    #[error("{variable}: {what} cannot be used")]
    Pem { variable: &'static str, what: String, source: PemError },
    #[error("CONSUL_LOGIN and CONSUL_CLIENT_TOKEN are both set: expected one of the two")]
    TwoTokens,
    #[error(
        "CONSUL_LOGIN needs CONSUL_HTTP_ADDR: expected the address of Consul's servers, since the agent is not up yet"
    )]
    NoAddress,
    #[error("CONSUL_LOGIN")]
    Login(#[from] LoginError),
    #[error("no task metadata")]
    Variable(#[from] ecs_meta::Error),
    #[error("no task metadata")]
    Metadata(#[from] WaitError<NoAddress>),
    #[error("cannot write the agent's configuration")]
    Write(#[from] WriteError),
}

/// The task's address is not known.
#[derive(Debug, thiserror::Error)]
pub enum NoAddress {
    /// The metadata could not be fetched.
    #[error(transparent)]
    Metadata(ecs_meta::Error),
    /// No container has an address yet.
    #[error("no container of the task has an address yet")]
    None,
}

/// The secrets in the environment.
#[derive(Debug, Default)]
struct Secrets {
    client_token: Option<Secret>,
    gossip_key: Option<Secret>,
    authority: Option<CertificatesPem>,
}

/// Writes the configuration. A second run changes nothing.
pub async fn write(options: Options, env: &Env) -> Result<ExitCode, AgentConfigError> {
    log::init(env, None)?;
    if options.output.extension().is_none_or(|extension| extension != "json") {
        return Err(AgentConfigError::Output(options.output));
    }
    let servers = options.retry_join.iter().flat_map(|text| text.expose().split(',')).map(str::trim);
    let servers: Vec<&str> = servers.filter(|server| !server.is_empty()).collect();
    if servers.is_empty() {
        return Err(AgentConfigError::NoServers);
    }
    let mut secrets = Secrets::read(env)?;
    let login = options.login.as_ref().map(|login| prepare(login, &secrets, options.timeout, env)).transpose()?;
    let client = MetadataClient::from_env(env)?;
    let task = until("the task's address", options.timeout, Backoff::default(), async || match client.task().await {
        Ok(task) => match address(&task) {
            Some(ip) => Attempt::Done((task, ip)),
            None => Attempt::Again(NoAddress::None),
        },
        Err(error) if error.may_pass() => Attempt::Again(NoAddress::Metadata(error)),
        Err(error) => Attempt::Final(NoAddress::Metadata(error)),
    });
    let (task, ip) = task.await?;

    let login_token = match &login {
        Some(login) => Some(login.token(&task, None).await?),
        None => None,
    };
    if let Some(token) = &login_token {
        secrets.client_token = Some(token.secret().clone());
    }
    let authority_file = options.output.with_file_name(AUTHORITY_FILE);
    let config = configuration(&options, &servers, &secrets, &task, ip, &authority_file);
    let written = write_files(&options.output, &config, &authority_file, secrets.authority.as_ref());
    if let (Err(_), Some(login), Some(token)) = (&written, &login, &login_token) {
        login.log_out(token).await;
    }
    written.map(|()| ExitCode::SUCCESS)
}

fn write_files(
    output: &Path,
    config: &Value,
    authority_file: &Path,
    authority: Option<&CertificatesPem>,
) -> Result<(), AgentConfigError> {
    remove_temporaries_of(output);
    if let Some(pem) = authority {
        make_directory_of(authority_file)?;
        remove_temporaries_of(authority_file);
        write_if_changed(authority_file, pem.as_str().as_bytes(), MODE)?;
    }
    Ok(write_if_changed(output, format!("{config:#}\n").as_bytes(), MODE)?)
}

/// Removes what a killed run left of this file.
fn remove_temporaries_of(file: &Path) {
    if let (Some(directory), Some(name)) = (file.parent(), file.file_name()) {
        remove_temporaries(directory, &[&name.to_string_lossy()]);
    }
}

/// Prepares the login. The servers' HTTPS may have another CA certificate than their RPC: `CONSUL_LOGIN_CACERT` names its file, and
/// `CONSUL_LOGIN_CACERT_PEM` holds its text.
fn prepare(
    (settings, file): &(Settings, PathBuf),
    secrets: &Secrets,
    bound: Duration,
    env: &Env,
) -> Result<Login, AgentConfigError> {
    if secrets.client_token.is_some() {
        return Err(AgentConfigError::TwoTokens);
    }
    if env.get("CONSUL_HTTP_ADDR").is_none() {
        return Err(AgentConfigError::NoAddress);
    }
    let ca_file = env.get("CONSUL_LOGIN_CACERT").map(Path::new);
    let config = consul_api::Config::builder(env)
        .ca_file("CONSUL_LOGIN_CACERT", ca_file)
        .ca_pem("CONSUL_LOGIN_CACERT_PEM", env.get("CONSUL_LOGIN_CACERT_PEM"));
    let servers = consul_login::servers(config, None);
    Ok(Login::new(settings.clone(), servers.map_err(LoginError::from)?, Some(file.clone()), bound, env)?)
}

fn address(task: &Task) -> Option<IpAddr> {
    task.private_ip()?.parse().ok()
}

impl Secrets {
    fn read(env: &Env) -> Result<Self, AgentConfigError> {
        let gossip_key = secret(env, "CONSUL_GOSSIP_KEY")?;
        if gossip_key.as_ref().is_some_and(|key| !is_gossip_key(key.expose())) {
            return Err(AgentConfigError::GossipKey);
        }
        // It is copied to a volume, so it must not hold a private key.
        let checked = |variable, what: String, pem: &str| {
            CertificatesPem::new(pem).map_err(|source| AgentConfigError::Pem { variable, what, source })
        };
        let authority = match (env.get("CONSUL_CACERT_PEM"), env.get("CONSUL_CACERT").map(Path::new)) {
            (Some(pem), _) => Some(checked("CONSUL_CACERT_PEM", "its text".to_owned(), pem)?),
            (None, Some(path)) => {
                let read = std::fs::read_to_string(path);
                let pem = read.map_err(|source| AgentConfigError::Authority { file: shown_path(path), source })?;
                Some(checked("CONSUL_CACERT", shown_path(path), &pem)?)
            }
            (None, None) => None,
        };
        Ok(Self { client_token: secret(env, "CONSUL_CLIENT_TOKEN")?, gossip_key, authority })
    }
}

fn secret(env: &Env, variable: &'static str) -> Result<Option<Secret>, AgentConfigError> {
    let Some(source) = env.secret(variable) else { return Ok(None) };
    let secret = source.read().map_err(|source| AgentConfigError::Secret { variable, source })?;
    if secret.expose().is_empty() { Err(AgentConfigError::EmptySecret(variable)) } else { Ok(Some(secret)) }
}

fn is_gossip_key(key: &str) -> bool {
    let digits = key.trim_end_matches('=');
    // The lengths of the base64 text for 16, 24 and 32 bytes, without and with padding (`=`).
    matches!((digits.len(), key.len()), (22, 24) | (32, 32) | (43, 44))
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn configuration(
    options: &Options,
    servers: &[&str],
    secrets: &Secrets,
    task: &Task,
    ip: IpAddr,
    authority_file: &Path,
) -> Value {
    let mut config = json!({
        "node_name": format!("{}-{}", task.family, task.task_id()),
        // With this ID, an agent that lost its data is the same node again. The servers would refuse another node of this name as
        // long as they believe that the first one is alive.
        "node_id": node_id(task.task_id().as_str()),
        "data_dir": options.data_dir,
        // All containers of the task share its network namespace, and only they use this agent.
        "client_addr": if ip.is_ipv4() { "127.0.0.1" } else { "127.0.0.1 ::1" },
        "bind_addr": if ip.is_ipv4() { "0.0.0.0" } else { "::" },
        "advertise_addr": ip.to_string(),
        // With HTTPS on, Consul 1.8 would serve gRPC with TLS, under a certificate of Connect's CA.
        "ports": { "grpc": DEFAULT_PORT, "https": -1 },
        "retry_join": servers,
        "leave_on_terminate": true,
        // It is off by default in Consul 1.8. Without it, service-defaults and proxy-defaults never reach a proxy.
        "enable_central_service_config": true,
        "disable_update_check": true,
    });
    let knows = |since| options.consul_version.is_none_or(|version| version >= since);
    if knows(ConsulVersion::RECONNECT_TIMEOUT) {
        config["advertise_reconnect_timeout"] = RECONNECT_TIMEOUT.into();
    }
    if let Some(datacenter) = &options.datacenter {
        config["datacenter"] = datacenter.as_str().into();
    }
    // Consul without Enterprise refuses the key. In Consul Enterprise, `default` is the same as no key.
    if let Some(partition) = options.partition.as_ref().filter(|partition| !partition.eq_ignore_ascii_case("default")) {
        config["partition"] = partition.as_str().into();
    }
    if let Some(key) = &secrets.gossip_key {
        config["encrypt"] = key.expose().into();
    }
    if let Some(token) = &secrets.client_token {
        config["acl"] = json!({ "enabled": true, "default_policy": "deny", "tokens": { "agent": token.expose() } });
    }
    if secrets.authority.is_some() {
        let tls = json!({ "ca_file": authority_file, "verify_outgoing": true });
        if knows(ConsulVersion::TLS_STANZA) {
            config["tls"] = json!({ "defaults": tls });
        } else if let (Value::Object(config), Value::Object(tls)) = (&mut config, tls) {
            config.extend(tls);
        }
        config["auto_encrypt"] = json!({ "tls": true, "ip_san": [ip.to_string()] });
    }
    config
}

/// A UUID for the task's ID: its 32 hexadecimal digits, or a hash of any other ID.
fn node_id(task_id: &str) -> String {
    let digits = task_id.replace('-', "").to_lowercase();
    let digits = if digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        digits
    } else {
        let hash = ring::digest::digest(&ring::digest::SHA256, task_id.as_bytes());
        hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    };
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    parts.join("-")
}

/// The group may enter the directory: Consul runs as another user of the volume's group.
fn make_directory_of(file: &Path) -> Result<(), AgentConfigError> {
    match file.parent() {
        Some(directory) if !directory.is_dir() => {
            let made = std::fs::DirBuilder::new().mode(0o750).create(directory);
            made.map_err(|source| AgentConfigError::Directory { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(address: &str) -> Task {
        serde_json::from_value(json!({
            "Cluster": "blue", "Family": "Shop", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "Containers": [{ "Name": "app", "Networks": [{ "IPv4Addresses": [address] }] }],
        }))
        .unwrap()
    }

    fn made(secrets: &Secrets) -> Value {
        made_at("10.1.2.3", secrets)
    }

    fn made_at(ip: &str, secrets: &Secrets) -> Value {
        made_in(None, ip, secrets)
    }

    fn made_in(partition: Option<&str>, ip: &str, secrets: &Secrets) -> Value {
        made_for(None, partition, ip, secrets)
    }

    fn made_for(version: Option<&str>, partition: Option<&str>, ip: &str, secrets: &Secrets) -> Value {
        let options = Options {
            output: "/consul/config/agent.json".into(),
            data_dir: "/consul/data".into(),
            retry_join: None,
            datacenter: None,
            partition: partition.map(str::to_owned),
            consul_version: version.map(|version| version.parse().unwrap()),
            timeout: Duration::ZERO,
            login: None,
        };
        let task = task(ip);
        let ip = address(&task).unwrap();
        configuration(&options, &["server-1"], secrets, &task, ip, Path::new("/consul/config/tls/ca.pem"))
    }

    #[test]
    fn without_secrets_there_are_no_acls_and_no_encryption() {
        let config = made(&Secrets::default());
        assert_eq!(config["node_name"], "Shop-f1a2");
        assert_eq!(config["advertise_addr"], "10.1.2.3");
        assert_eq!((&config["bind_addr"], &config["client_addr"]), (&json!("0.0.0.0"), &json!("127.0.0.1")));
        assert_eq!(config["retry_join"], json!(["server-1"]));
        for absent in ["acl", "encrypt", "tls", "auto_encrypt", "datacenter", "partition"] {
            assert!(config.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn the_agent_of_an_ipv6_task_listens_on_both_loopbacks() {
        let config = made_at("2001:db8::7", &Secrets::default());
        assert_eq!(config["advertise_addr"], "2001:db8::7");
        assert_eq!((&config["bind_addr"], &config["client_addr"]), (&json!("::"), &json!("127.0.0.1 ::1")));
    }

    #[test]
    fn each_secret_enables_its_own_feature() {
        let secrets = Secrets {
            client_token: Some(Secret::new("t0k3n")),
            gossip_key: Some(Secret::new("k3y")),
            authority: Some(authority()),
        };
        let config = made(&secrets);
        assert_eq!(config["acl"]["tokens"]["agent"], "t0k3n");
        assert_eq!(config["encrypt"], "k3y");
        assert_eq!(config["tls"]["defaults"]["ca_file"], "/consul/config/tls/ca.pem");
        assert_eq!(config["auto_encrypt"]["ip_san"], json!(["10.1.2.3"]));
        assert!(!format!("{secrets:?}").contains("t0k3n"));
    }

    #[test]
    fn an_old_consul_gets_the_keys_that_it_knows() {
        let secrets = Secrets { authority: Some(authority()), ..Secrets::default() };
        let made = |version| made_for(Some(version), None, "10.1.2.3", &secrets);
        let old = made("1.8.7");
        assert_eq!((&old["ca_file"], &old["verify_outgoing"]), (&json!("/consul/config/tls/ca.pem"), &json!(true)));
        assert!(old.get("tls").is_none() && old.get("advertise_reconnect_timeout").is_none());
        assert_eq!(made("1.11.0")["advertise_reconnect_timeout"], "15m");
        assert!(made("1.11.0").get("tls").is_none());
        assert!(made("1.12.0").get("ca_file").is_none());
        assert_eq!(made("1.12.0"), made("1.22.0-dev"));
    }

    fn authority() -> CertificatesPem {
        CertificatesPem::new(rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap().cert.pem()).unwrap()
    }

    #[test]
    fn the_node_id_comes_from_the_task_id() {
        assert_eq!(node_id("1234567890ABCDEF1234567890abcdef"), "12345678-90ab-cdef-1234-567890abcdef");
        assert_eq!(node_id("12345678-90ab-cdef-1234-567890abcdef"), "12345678-90ab-cdef-1234-567890abcdef");
        let hashed = made(&Secrets::default())["node_id"].as_str().unwrap().to_owned();
        assert_eq!(hashed, node_id("f1a2"));
        assert_ne!(hashed, node_id("f1a3"));
        let lengths = hashed.split('-').map(str::len).collect::<Vec<_>>();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{hashed}");
    }

    #[test]
    fn the_agent_gets_every_partition_except_default() {
        let partition = |name| made_in(Some(name), "10.1.2.3", &Secrets::default()).get("partition").cloned();
        assert_eq!(partition("team"), Some(json!("team")));
        assert_eq!(partition("Default"), None);
    }

    #[test]
    fn only_certificates_are_copied_and_errors_show_no_text() {
        let made = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let read = |variable: &str, value: &str| Secrets::read(&Env::from_iter([(variable, value)]));
        let refused = |pem: &str| {
            std::fs::write(path, pem).unwrap();
            let lines = [("CONSUL_CACERT", path), ("CONSUL_CACERT_PEM", pem)].map(|(variable, value)| {
                let line = sidecar_kit::exit::one_line(&read(variable, value).unwrap_err());
                assert!(line.starts_with(&format!("{variable}: ")), "{line}");
                assert!(!line.contains(&key.lines().nth(1).unwrap()[20..50]), "{line}");
                line
            });
            lines.join("\n")
        };
        assert_eq!(refused(&format!("{certificate}{key}")).matches("it holds a private key").count(), 2);
        assert_eq!(refused(&certificate.replace('\n', "\\n")).matches("written as \\n").count(), 2);
        assert_eq!(refused(&certificate.replace('\n', " ")).matches("line breaks are missing").count(), 2);
        assert_eq!(refused("hello").matches("it holds no certificate").count(), 2);
        let swapped = sidecar_kit::exit::one_line(&read("CONSUL_CACERT", &key).unwrap_err());
        assert!(swapped.starts_with("CONSUL_CACERT: cannot read a file: the variable holds a text"), "{swapped}");

        std::fs::write(path, &certificate).unwrap();
        let secrets = read("CONSUL_CACERT", path).unwrap();
        assert_eq!(secrets.authority.as_ref().unwrap().as_str(), certificate);
        assert!(!format!("{secrets:?}").contains(&certificate[40..80]), "{secrets:?}");
    }

    #[test]
    fn a_gossip_key_is_16_24_or_32_bytes_in_base64() {
        for key in ["pUqJrVyVRj5jsiYEkM/tFQ==", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert!(is_gossip_key(key), "{key}");
        }
        assert!(is_gossip_key(&format!("{}=", "A".repeat(43))));
        for key in ["", "pUqJrVyVRj5jsiYEkM/tFQ", "p!qJrVyVRj5jsiYEkM/tFQ==", "t0k3n"] {
            assert!(!is_gossip_key(key), "{key}");
        }
    }
}
