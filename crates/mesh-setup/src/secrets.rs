//! The secrets of the local mesh in Secrets Manager.

use std::path::{Path, PathBuf};

use consul_api::Token;
use ecs_local::secrets_manager::{CallError, SecretsManager};
use serde_json::{Value, json};
use sidecar_kit::secret::Secret;

use crate::keys;

/// The prefix of the secrets that acl-controller fills.
pub const PREFIX: &str = "ecs-mesh";
/// The management token. In the mesh, only `mesh-setup` uses it. `xtask` and the tests use it from outside.
pub const BOOTSTRAP_TOKEN: &str = "consul-bootstrap-token";
/// The token of acl-controller.
pub const ACL_CONTROLLER_TOKEN: &str = "consul-acl-controller-token";
/// The gossip key.
pub const GOSSIP_KEY: &str = "consul-gossip-key";
/// The CA certificate of Consul's servers.
pub const CA_SECRET: &str = "consul-ca";

/// Why the secrets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Secrets Manager refused a call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The servers' configuration has no gossip key.
    #[error("{} has no gossip key: expected the field `encrypt`", .0.display())]
    NoGossipKey(PathBuf),
}

/// The value of a secret that holds this token.
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

/// Makes the secrets that every task reads, and an empty secret for each token that acl-controller makes.
pub(crate) async fn make(secrets: &SecretsManager, keys: &Path, services: &[String]) -> Result<(), SecretsError> {
    let read = |file: &str| {
        let path = keys.join(file);
        std::fs::read_to_string(&path).map_err(|source| SecretsError::Read { path, source })
    };
    let config = serde_json::from_str::<Value>(&read(keys::CONFIG)?).unwrap_or_default();
    let no_key = || SecretsError::NoGossipKey(keys.join(keys::CONFIG));
    let gossip_key = config["encrypt"].as_str().ok_or_else(no_key)?;
    secrets.create(GOSSIP_KEY, &Secret::new(gossip_key)).await?;
    secrets.create(CA_SECRET, &Secret::new(read(keys::CA_FILE)?)).await?;
    let empty = Secret::new("{}");
    for name in services.iter().map(String::as_str).chain(["consul-client-token"]) {
        if secrets.create(&format!("{PREFIX}-{name}"), &empty).await? {
            tracing::info!("made the empty secret {PREFIX}-{name}");
        }
    }
    Ok(())
}
