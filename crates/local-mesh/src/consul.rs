//! A client of the local mesh's Consul servers.

use consul_api::{Client, Config};
use sidecar_kit::env::Env;

use crate::secrets::{SecretsError, bootstrap_token};

/// The HTTP API of the first server, on the host.
pub const ADDRESS: &str = "http://127.0.0.1:8500";

/// Why Consul could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    /// There is no management token.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The client could not be made.
    #[error(transparent)]
    Config(#[from] consul_api::ConfigError),
    /// Consul refused a request.
    #[error(transparent)]
    Request(#[from] consul_api::Error),
}

/// A client with the management token. It ignores Consul's variables in the environment.
pub async fn client() -> Result<Client, ConsulError> {
    let token = bootstrap_token().await?;
    let variables = [("CONSUL_HTTP_ADDR", ADDRESS), ("CONSUL_HTTP_TOKEN", token.expose())];
    Ok(Client::new(Config::from_env(&Env::from_iter(variables))?)?)
}
