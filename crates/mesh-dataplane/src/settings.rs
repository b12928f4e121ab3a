//! The file that mesh-init writes for this program. It has the keys of consul-dataplane's file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use mesh_config::HEALTH_CHECK_PORT;
use serde::Deserialize;
use sidecar_kit::json::{self, JsonError};
use sidecar_kit::secret::{Secret, shown_path};

use crate::keys::without_effect;

/// Consul's gRPC port with TLS.
const GRPC_PORT: u16 = 8503;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read {file}: expected the file that mesh-init writes in a task without an agent")]
    Read { file: String, source: std::io::Error },
    #[error("{file}")]
    Json { file: String, source: JsonError },
    #[error("{file}: {key} is not set: expected {expected}")]
    Missing { file: String, key: &'static str, expected: &'static str },
    #[error("{file}: {key} has no effect in mesh-dataplane: {cure}")]
    WithoutEffect { file: String, key: String, cure: &'static str },
}

/// The content of the file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    pub(crate) consul: Consul,
    pub(crate) proxy: Proxy,
    #[serde(default)]
    pub(crate) envoy: Envoy,
    #[serde(default)]
    pub(crate) logging: Logging,
}

/// How to reach Consul's servers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Consul {
    #[serde(default)]
    addresses: String,
    #[serde(default = "grpc_port")]
    pub(crate) grpc_port: u16,
    #[serde(default)]
    pub(crate) server_watch_disabled: bool,
    #[serde(default)]
    pub(crate) tls: Tls,
    /// The HTTP API. It says when the token of a login expires.
    pub(crate) http: Option<Http>,
    #[serde(default)]
    pub(crate) credentials: Credentials,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Http {
    pub(crate) port: u16,
    #[serde(default)]
    pub(crate) tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Tls {
    pub(crate) disabled: bool,
    pub(crate) ca_certs_path: Option<PathBuf>,
    /// consul-ecs writes `tlsServerName`, which consul-dataplane ignores.
    #[serde(alias = "tlsServerName")]
    pub(crate) server_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Credentials {
    #[serde(rename = "static")]
    pub(crate) given: Given,
    pub(crate) login: Option<Login>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Given {
    #[serde(deserialize_with = "secret")]
    pub(crate) token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Login {
    pub(crate) auth_method: String,
    #[serde(default)]
    pub(crate) datacenter: String,
    #[serde(default)]
    pub(crate) partition: String,
    #[serde(default)]
    pub(crate) meta: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) aws: Aws,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Aws {
    pub(crate) include_entity: bool,
    pub(crate) region: Option<String>,
    pub(crate) sts_endpoint: Option<String>,
    pub(crate) server_id_header_value: Option<String>,
}

impl Default for Aws {
    /// The settings with which consul-ecs logs in. The file that it writes has none for AWS.
    fn default() -> Self {
        Self { include_entity: true, region: None, sts_endpoint: None, server_id_header_value: None }
    }
}

/// Which proxy Envoy is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Proxy {
    #[serde(default)]
    pub(crate) node_name: String,
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    partition: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Envoy {
    pub(crate) ready_bind_address: IpAddr,
    pub(crate) ready_bind_port: u16,
}

impl Default for Envoy {
    fn default() -> Self {
        Self { ready_bind_address: Ipv4Addr::LOCALHOST.into(), ready_bind_port: HEALTH_CHECK_PORT }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Logging {
    pub(crate) log_level: Option<String>,
}

fn grpc_port() -> u16 {
    GRPC_PORT
}

fn secret<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(value)?.filter(|text| !text.trim().is_empty()).map(Secret::new))
}

impl Settings {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, SettingsError> {
        let file = shown_path(path);
        let text = std::fs::read(path).map_err(|source| SettingsError::Read { file: file.clone(), source })?;
        let no_json = |source| SettingsError::Json { file: file.clone(), source };
        if let Some((key, cure)) = without_effect(&json::decode(&text).map_err(no_json)?) {
            return Err(SettingsError::WithoutEffect { file, key, cure });
        }
        let settings: Self = json::decode(&text).map_err(no_json)?;
        let missing = |key, expected| Err(SettingsError::Missing { file, key, expected });
        if settings.consul.hosts().next().is_none() {
            return missing("consul.addresses", "the names or addresses of Consul's servers");
        }
        if settings.proxy.node_name.is_empty() {
            return missing("proxy.nodeName", "the name of the node in Consul's catalog");
        }
        if settings.proxy.id.is_empty() {
            return missing("proxy.id", "the ID of the proxy in Consul's catalog");
        }
        Ok(settings)
    }
}

impl Consul {
    /// The hosts, one by one.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.addresses.split(',').map(str::trim).filter(|host| !host.is_empty())
    }
}

impl Proxy {
    /// The namespace and the admin partition (Consul Enterprise).
    pub(crate) fn namespace_and_partition(&self) -> (Option<&str>, Option<&str>) {
        let set = |name: &str| !name.is_empty();
        (Some(&*self.namespace).filter(|name| set(name)), Some(&*self.partition).filter(|name| set(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::read(file.path())
    }

    #[test]
    fn both_keys_of_the_server_name_are_read() {
        for key in ["serverName", "tlsServerName"] {
            let text = format!(
                r#"{{ "consul": {{ "addresses": "a, b", "tls": {{ "{key}": "server.dc1.consul" }} }},
                      "proxy": {{ "nodeName": "n", "id": "p" }}, "xdsServer": {{ "bindAddress": "127.0.0.1" }} }}"#
            );
            let settings = read(&text).unwrap();
            assert_eq!(settings.consul.tls.server_name.as_deref(), Some("server.dc1.consul"));
            assert_eq!(settings.consul.hosts().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!((settings.consul.grpc_port, settings.envoy.ready_bind_port), (8503, 22000));
        }
    }

    #[test]
    fn file_that_cannot_be_used_is_one_line_without_its_secrets() {
        let consul = r#""consul": { "addresses": "a", "credentials": { "static": { "token": "5ec3e7" } } }"#;
        for (text, expected) in [
            (r#"{ "consul": {}, "proxy": {} }"#.to_owned(), "consul.addresses is not set"),
            (format!(r#"{{ {consul}, "proxy": {{ "id": "p" }} }}"#), "proxy.nodeName is not set"),
            (format!(r#"{{ {consul}, "proxy": {{ "nodeName": "n" }} }}"#), "proxy.id is not set"),
            (format!(r#"{{ {consul}, "proxy": 5 }}"#), "JSON of another form"),
            (
                format!(r#"{{ {consul}, "proxy": {{ "nodeID": "5" }} }}"#),
                "proxy.nodeID has no effect in mesh-dataplane: set proxy",
            ),
            ("5ec3e7".to_owned(), "not JSON"),
        ] {
            let error = read(&text).unwrap_err();
            let line = sidecar_kit::exit::one_line(&error);
            assert!(line.contains(expected) && !line.contains("5ec3e7"), "{expected} is not in {line}");
        }
    }
}
