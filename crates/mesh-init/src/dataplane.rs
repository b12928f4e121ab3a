//! The file with the settings of mesh-dataplane. Its keys are those of the file that consul-ecs writes for consul-dataplane. But it does
//! not contain a signed AWS request, only the settings to make one.

use std::path::Path;

use ecs_meta::Task;
use mesh_config::{Config, ConsulServers, DATAPLANE_FILE, HEALTH_CHECK_PORT, LogLevel, Names, Role, ServerEndpoint};
use serde_json::{Value, json};
use sidecar_kit::file::{WriteError, write_if_changed};

/// Its owner and the volume's group may read it.
const MODE: u32 = 0o640;

/// The content of the file.
pub(crate) struct File<'a> {
    pub config: &'a Config,
    pub servers: &'a ConsulServers,
    pub role: Role<'a>,
    pub task: &'a Task,
    pub names: &'a Names,
    pub node: &'a str,
    /// The CA certificate for gRPC.
    pub ca_file: Option<&'a Path>,
    /// The CA certificate for the HTTP API.
    pub http_ca_file: Option<&'a Path>,
}

impl File<'_> {
    /// Writes the file, unless it already has this content.
    pub(crate) fn write(&self) -> Result<(), WriteError> {
        let path = self.config.bootstrap_dir.join(DATAPLANE_FILE);
        write_if_changed(&path, format!("{:#}\n", self.json()).as_bytes(), MODE)
    }

    fn json(&self) -> Value {
        let (namespace, partition) = self.role.namespace_and_partition();
        let port = match self.role {
            Role::Service(_) => self.config.proxy.health_check_port,
            Role::Gateway(gateway) => gateway.health_check_port,
        };
        json!({
            "consul": self.consul(),
            "proxy": {
                "nodeName": self.node,
                "id": self.names.proxy_id,
                "namespace": namespace.unwrap_or_default(),
                "partition": partition.unwrap_or_default(),
            },
            "envoy": { "readyBindAddress": "127.0.0.1", "readyBindPort": port.unwrap_or(HEALTH_CHECK_PORT) },
            "logging": { "logLevel": self.config.log_level.unwrap_or(LogLevel::Info).as_str().to_uppercase() },
        })
    }

    fn consul(&self) -> Value {
        let endpoint = self.servers.grpc_endpoint();
        let mut consul = json!({
            "addresses": self.servers.hosts().collect::<Vec<_>>().join(","),
            "grpcPort": endpoint.port,
            "serverWatchDisabled": self.servers.skip_server_watch,
            "tls": tls(&endpoint, self.ca_file),
        });
        if let Some(login) = self.config.consul_login.as_ref().filter(|login| login.enabled) {
            // Only the HTTP API says when the token of a login expires.
            let http = self.servers.http_endpoint();
            consul["http"] = json!({ "port": http.port, "tls": tls(&http, self.http_ca_file) });
            let meta = consul_login::meta(&login.meta, self.task);
            consul["credentials"] = json!({
                "type": "login",
                "login": {
                    "authMethod": login.method,
                    "datacenter": login.datacenter.as_deref().unwrap_or_default(),
                    "partition": self.role.namespace_and_partition().1.unwrap_or_default(),
                    "meta": meta,
                    "aws": {
                        "includeEntity": login.include_entity,
                        "region": login.region,
                        "stsEndpoint": login.sts_endpoint,
                        "serverIdHeaderValue": login.server_id_header_value,
                    },
                },
            });
        }
        consul
    }
}

fn tls(endpoint: &ServerEndpoint<'_>, ca_file: Option<&Path>) -> Value {
    let mut tls = json!({ "disabled": !endpoint.tls });
    if endpoint.tls {
        if let Some(file) = ca_file {
            tls["caCertsPath"] = json!(file);
        }
        if let Some(name) = endpoint.server_name {
            tls["serverName"] = name.into();
        }
    }
    tls
}
