//! Prepares Consul and Secrets Manager for the local mesh: ACLs, tokens, secrets, config entries and intentions.

mod acl;
mod entries;
mod intentions;
pub mod keys;
mod options;
pub mod secrets;

use consul_api::{Client, Config};
use ecs_local::secrets_manager::{SecretsManager, SettingsError};
use serde_json::json;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::secret::{Secret, SecretSource};
use sidecar_kit::wait::{Attempt, WaitError, until};

pub use acl::AclError;
pub use options::Options;
pub use secrets::SecretsError;

/// Why the set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of Consul's is wrong.
    #[error(transparent)]
    Config(#[from] consul_api::ConfigError),
    /// A variable of Secrets Manager's is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A token could not be made.
    #[error(transparent)]
    Acl(#[from] AclError),
    /// A secret could not be made.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// Consul refused a config entry or an intention.
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    /// Consul's servers did not accept everything in time.
    #[error(transparent)]
    Unfinished(#[from] Box<WaitError<Error>>),
}

impl Error {
    /// Whether a retry may help: Consul's servers may refuse a request while they elect a leader.
    fn may_pass_at_start(&self) -> bool {
        match self {
            Self::Consul(error) | Self::Acl(AclError::Consul(error)) => error.may_pass_at_start(),
            _ => false,
        }
    }
}

/// Prepares Consul and Secrets Manager. A second run changes nothing.
pub async fn run(env: &Env, options: Options) -> Result<(), Error> {
    let secrets = SecretsManager::from_env(env)?;
    let client = |server: &str, token: Option<&Secret>| {
        let config = Config::builder(env).address("--server", Some(server));
        let config = match token {
            Some(token) => config.token(SecretSource::Value(token.clone())),
            None => config,
        };
        Ok::<_, Error>(Client::new(config.build()?)?)
    };
    let first = &options.server[0];
    let management = acl::bootstrap(&client(first, None)?, &secrets, &options.state, options.wait).await?;
    let all = async || {
        let consul = client(first, Some(&management))?;
        for address in &options.server {
            acl::give_server_its_token(&client(address, Some(&management))?, address).await?;
        }
        let names = [&options.http_service[..], &options.service, &options.gateway].concat();
        secrets::make(&secrets, &options.keys, &names).await?;
        acl::make_token_of_acl_controller(&consul, &secrets).await?;
        for service in &options.http_service {
            entries::write(&consul, &json!({ "Kind": "service-defaults", "Name": service, "Protocol": "http" }))
                .await?;
        }
        // Consul accepts an HTTP listener only for a service whose protocol is HTTP.
        for entry in entries::of_ingress_gateways(&options.ingress) {
            entries::write(&consul, &entry).await?;
        }
        intentions::allow(&consul, &options.allow).await?;
        Ok(())
    };
    let done = until("Consul's servers", options.wait, Backoff::default(), async || match all().await {
        Ok(()) => Attempt::Done(()),
        Err(error) if Error::may_pass_at_start(&error) => Attempt::Again(error),
        Err(error) => Attempt::Final(error),
    });
    Ok(done.await.map_err(Box::new)?)
}
