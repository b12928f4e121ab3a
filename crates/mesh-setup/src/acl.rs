//! Consul's ACLs: the bootstrap, the servers' tokens, and acl-controller's token.

use std::path::Path;
use std::time::Duration;

use consul_api::{AclLink, Client, NewPolicy, Token, TokenGrants, at_start};
use ecs_local::secrets_manager::{CallError, SecretsManager, Version};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::file::{WriteError, write_atomically};
use sidecar_kit::secret::Secret;
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::secrets::{ACL_CONTROLLER_TOKEN, BOOTSTRAP_TOKEN, token_in, token_value};

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// Consul refused.
    #[error(transparent)]
    Consul(#[from] consul_api::Error),
    /// Consul had no leader in time.
    #[error(transparent)]
    NoLeader(#[from] WaitError<consul_api::Error>),
    /// Secrets Manager did not answer in time.
    #[error("no Secrets Manager")]
    NoSecretsManager(#[from] WaitError<CallError>),
    /// Secrets Manager refused a call.
    #[error(transparent)]
    Secrets(#[from] CallError),
    /// The copy of the management token could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Consul's ACLs are bootstrapped, and neither Secrets Manager nor the copy has the management token.
    #[error(
        "Consul's ACLs are bootstrapped, but the management token is lost: run `cargo xtask down`, then `cargo xtask up`"
    )]
    TokenLost,
}

/// The management token. The first run makes it and stores it in Secrets Manager and in a file of `state`. A later run reads it
/// from there.
pub(crate) async fn bootstrap(
    consul: &Client,
    secrets: &SecretsManager,
    state: &Path,
    wait: Duration,
) -> Result<Secret, AclError> {
    let copy = &state.join(BOOTSTRAP_TOKEN);
    // Secrets Manager must answer before the bootstrap: Consul shows the new token only once.
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
            write_atomically(copy, value.expose().as_bytes(), 0o600)?;
            tracing::info!("bootstrapped Consul's ACLs; the management token is in the secret {BOOTSTRAP_TOKEN}");
            value
        }
        None => Secret::new(std::fs::read_to_string(copy).map_err(|_| AclError::TokenLost)?),
    };
    secrets.create(BOOTSTRAP_TOKEN, &value).await?;
    token_in(&value).ok_or(AclError::TokenLost)
}

/// Gives a server the token with which it keeps its own node in the catalog. The server keeps the token across restarts.
///
/// The request goes to the server itself. A server of Consul 1.8 refuses it while its ACLs are in legacy mode, for some seconds
/// after the start. So set-up ends only when no server is in legacy mode.
pub(crate) async fn give_server_its_token(server: &Client, address: &str) -> Result<(), AclError> {
    const NAME: &str = "consul-servers";
    let rules = r#"node_prefix "consul-server-" { policy = "write" } service_prefix "" { policy = "read" }"#;
    let token = ensure_token(server, NAME, rules, &format!("{NAME}: {address}")).await?;
    Ok(server.set_agent_token(&token.secret_id).await?)
}

/// Makes the token of acl-controller and stores it. Its rules are the least that acl-controller needs here; see its README.
pub(crate) async fn make_token_of_acl_controller(consul: &Client, secrets: &SecretsManager) -> Result<(), AclError> {
    const RULES: &str = r#"
        acl = "write"
        session_prefix "" { policy = "write" }
        key_prefix "ecs-mesh/acl-controller/" { policy = "write" }
        node_prefix "" { policy = "write" }
        service_prefix "" { policy = "read" }"#;
    let token = ensure_token(consul, "acl-controller", RULES, "acl-controller").await?;
    let value = token_value(&token);
    if !secrets.create(ACL_CONTROLLER_TOKEN, &value).await? {
        // The secret may hold a token that was deleted in Consul.
        let stored = secrets.get(&Version::current(ACL_CONTROLLER_TOKEN)).await?;
        if stored != value {
            secrets.put(ACL_CONTROLLER_TOKEN, &value).await?;
            tracing::warn!("the secret {ACL_CONTROLLER_TOKEN} did not hold acl-controller's token; repaired");
        }
    }
    Ok(())
}

/// The token with this description. If Consul has none, this makes it, with a policy `name` of these rules.
async fn ensure_token(consul: &Client, name: &str, rules: &str, description: &str) -> Result<Token, consul_api::Error> {
    if let Some(entry) = consul.tokens().await?.iter().find(|token| token.grants.description == description) {
        return consul.token(&entry.accessor_id).await;
    }
    if !consul.policies().await?.iter().any(|policy| policy.name == name) {
        consul.create_policy(&NewPolicy { name, description: "made by mesh-setup of the local mesh", rules }).await?;
    }
    let policies = vec![AclLink { name: name.to_owned(), ..AclLink::default() }];
    let grants = TokenGrants { description: description.to_owned(), policies, ..TokenGrants::default() };
    let token = consul.create_token(&grants).await?;
    tracing::info!("made the token of {description}");
    Ok(token)
}
