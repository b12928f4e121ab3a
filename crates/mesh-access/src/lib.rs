//! How the programs of a task without a Consul agent reach Consul's servers, and log in there, as the configuration document says.

use std::net::Ipv6Addr;
use std::time::Duration;

use consul_api::{Builder, Client, ConfigError};
use consul_login::{Login, LoginError, Settings};
use mesh_config::{Config, ConsulLogin, ConsulServers, Role};
use sidecar_kit::env::Env;

/// The variable of consul-ecs with the CA certificate of the servers' HTTP API, in PEM.
pub const HTTP_CA_PEM: &str = "CONSUL_HTTPS_CACERT_PEM";

/// The document or a variable cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AccessError {
    #[error("cannot use the HTTP API of Consul's servers")]
    Servers(#[from] ConfigError),
    #[error("consulLogin")]
    Login(#[from] LoginError),
}

/// The servers' HTTP API, and the login there.
#[derive(Debug)]
pub struct Access {
    /// A client with the token of the variables, if they have one.
    pub consul: Client,
    /// The login. There is none if the variables have a token, or if the document enables none.
    pub login: Option<Login>,
}

impl Access {
    /// Checks what is given, without a request. Each wait of the login takes at most `bound`.
    ///
    /// # Errors
    /// If the document or a variable cannot be used.
    pub fn of(
        config: &Config,
        servers: &ConsulServers,
        role: Role<'_>,
        bound: Duration,
        env: &Env,
    ) -> Result<Self, AccessError> {
        let address = http_address(servers);
        let (namespace, partition) = role.namespace_and_partition();
        let consul = Client::new(builder(servers, &address, env).build()?.within(namespace, partition))?;
        let enabled = config.consul_login.as_ref().filter(|login| login.enabled);
        // As in consul-ecs, a token that is given makes a login unnecessary.
        let Some(settings) = enabled.filter(|_| consul.config().token().is_none()) else {
            return Ok(Self { consul, login: None });
        };
        let place = consul_login::servers(builder(servers, &address, env), partition)?;
        let place = match &settings.datacenter {
            Some(datacenter) => place.in_datacenter(datacenter)?,
            None => place,
        };
        let login = Login::new(login_settings(settings), place, None, bound, env)?;
        Ok(Self { consul, login: Some(login) })
    }
}

/// The settings of a login, as the document has them.
#[must_use]
pub fn login_settings(login: &ConsulLogin) -> Settings {
    Settings {
        method: login.method.clone(),
        include_entity: login.include_entity,
        meta: login.meta.clone(),
        region: login.region.clone(),
        sts_endpoint: login.sts_endpoint.clone(),
        server_id: login.server_id_header_value.clone(),
    }
}

/// The servers' HTTP addresses, separated by commas.
fn http_address(servers: &ConsulServers) -> String {
    let endpoint = servers.http_endpoint();
    let scheme = if endpoint.tls { "https" } else { "http" };
    let address = |host: &str| match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("{scheme}://[{ip}]:{}", endpoint.port),
        Err(_) => format!("{scheme}://{host}:{}", endpoint.port),
    };
    servers.hosts().map(address).collect::<Vec<_>>().join(",")
}

fn builder<'a>(servers: &'a ConsulServers, address: &'a str, env: &'a Env) -> Builder<'a> {
    let endpoint = servers.http_endpoint();
    consul_api::Config::builder(env)
        .address("consulServers.hosts (CONSUL_ECS_CONFIG_JSON)", Some(address))
        .ca_file("consulServers (CONSUL_ECS_CONFIG_JSON): caCertFile", endpoint.ca_file)
        .ca_pem(HTTP_CA_PEM, env.get(HTTP_CA_PEM))
        .server_name(endpoint.server_name)
}
