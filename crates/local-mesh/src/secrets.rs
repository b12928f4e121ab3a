//! The local mesh's secrets in Secrets Manager, by name, and the one that its drivers read.

use consul_api::Token;
use ecs_local::secrets_manager::{CallError, SecretsManager, SettingsError, Version};
use serde_json::{Value, json};
use sidecar_kit::env::Env;
use sidecar_kit::secret::Secret;

/// What the secrets that acl-controller fills begin with.
pub const PREFIX: &str = "ecs-mesh";
/// The management token. Nothing in the mesh runs on it but `setup`; `xtask` and the tests look through its eyes.
pub const BOOTSTRAP_TOKEN: &str = "consul-bootstrap-token";
/// The token with which acl-controller runs.
pub const ACL_CONTROLLER_TOKEN: &str = "consul-acl-controller-token";
/// The gossip key.
pub const GOSSIP_KEY: &str = "consul-gossip-key";
/// The certificate of the authority that the servers' certificates are of.
pub const AUTHORITY: &str = "consul-ca";

/// Secrets Manager, as the host sees it.
pub const ENDPOINT: &str = "http://127.0.0.1:5000";
/// Where the cluster is.
pub const REGION: &str = "us-east-1";

/// No token to look into Consul with.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Where Secrets Manager is can't be said.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// It doesn't give it.
    #[error("the secret {BOOTSTRAP_TOKEN}: does the mesh run? `cargo xtask up` starts it")]
    Get(#[from] CallError),
    /// It holds something else.
    #[error("the secret {BOOTSTRAP_TOKEN} holds no token")]
    NoToken,
}

/// A token as a secret holds it.
#[must_use]
pub fn token_value(token: &Token) -> Secret {
    let (accessor_id, token) = (&token.entry.accessor_id, token.secret_id.expose());
    Secret::new(json!({ "accessor_id": accessor_id, "token": token }).to_string())
}

/// The token in a secret's value.
#[must_use]
pub fn token_in(value: &Secret) -> Option<Secret> {
    let value = serde_json::from_str::<Value>(value.expose()).ok()?;
    value["token"].as_str().map(Secret::new)
}

/// The local mesh's Secrets Manager.
///
/// # Errors
/// See [`SettingsError`].
pub fn manager() -> Result<SecretsManager, SettingsError> {
    let variables = [("AWS_ENDPOINT_URL_SECRETS_MANAGER", ENDPOINT), ("AWS_REGION", REGION)];
    SecretsManager::from_env(&Env::from_iter(variables))
}

/// The management token.
///
/// # Errors
/// See [`SecretsError`].
pub async fn bootstrap_token() -> Result<Secret, SecretsError> {
    let value = manager()?.get(&Version::current(BOOTSTRAP_TOKEN)).await?;
    token_in(&value).ok_or(SecretsError::NoToken)
}
