//! The local mesh's Secrets Manager, and the management token in it.

use ecs_local::secrets_manager::{CallError, SecretsManager, SettingsError, Version};
pub use mesh_setup::secrets::{ACL_CONTROLLER_TOKEN, BOOTSTRAP_TOKEN, PREFIX, token_in};
use sidecar_kit::env::Env;
use sidecar_kit::secret::Secret;

/// Secrets Manager's address on the host.
const ENDPOINT: &str = "http://127.0.0.1:5000";
const REGION: &str = "us-east-1";

/// Why the management token could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The address of Secrets Manager is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Secrets Manager did not give the secret.
    #[error("cannot read the secret {BOOTSTRAP_TOKEN}: `cargo xtask up` makes it")]
    Get(#[from] CallError),
    /// The secret holds something else.
    #[error("the secret {BOOTSTRAP_TOKEN} holds no token")]
    NoToken,
}

/// The local mesh's Secrets Manager.
pub fn manager() -> Result<SecretsManager, SettingsError> {
    let variables = [("AWS_ENDPOINT_URL_SECRETS_MANAGER", ENDPOINT), ("AWS_REGION", REGION)];
    SecretsManager::from_env(&Env::from_iter(variables))
}

/// The management token.
pub async fn bootstrap_token() -> Result<Secret, SecretsError> {
    let value = manager()?.get(&Version::current(BOOTSTRAP_TOKEN)).await?;
    token_in(&value).ok_or(SecretsError::NoToken)
}
