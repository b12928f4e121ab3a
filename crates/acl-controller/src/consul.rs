//! The calls to Consul. Each call is counted, and a refusal names the missing permission.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consul_api::{
    AccessorId, AuthMethod, BindingRule, Client, HealthNode, HealthService, KeyValue, KeyWrite, NewPolicy, NewSession,
    NodeServices, Policy, Role, ServiceId, SessionId, Token, TokenEntry, TokenGrants,
};

use sidecar_kit::secret::Secret;

use crate::metrics::Metrics;
use crate::term::{NotLeader, Term};

const ACL: &str = "acl = \"write\"";
/// Consul shows this in place of a secret ID that the token may not read.
const HIDDEN: &str = "<hidden>";
const GATEWAYS: &str = "service_prefix \"\" { policy = \"read\" }";
const SESSION: &str = "session_prefix \"\" { policy = \"write\" }";
const KEY: &str = "key_prefix \"ecs-mesh/acl-controller/\" { policy = \"write\" }";
const NODE: &str =
    "node \"ARN of the ECS cluster\" { policy = \"write\" } and service_prefix \"\" { policy = \"read\" }";
const NODES: &str = "node_prefix \"\" { policy = \"write\" } and service_prefix \"\" { policy = \"read\" }";

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller's own token is unknown.
    #[error(
        "Consul does not know the controller's token (CONSUL_HTTP_TOKEN): it was deleted, or it belongs to another Consul"
    )]
    UnknownToken(#[source] consul_api::Error),
    /// The token may not do this.
    #[error("the Consul policy of the controller's token (CONSUL_HTTP_TOKEN) must have {needs}")]
    Denied {
        /// The rule that would allow it.
        needs: &'static str,
        /// What Consul said.
        source: consul_api::Error,
    },
    /// The token to change was deleted.
    #[error("the token {accessor} was deleted in the meantime")]
    Gone {
        /// Its accessor ID.
        accessor: AccessorId,
    },
    /// This Consul lacks the auth method's type.
    #[error("auth methods of the type aws-iam need Consul 1.12 or later; with an earlier one, leave out --auth-method")]
    OldConsul(#[source] consul_api::Error),
    /// Any other failure.
    #[error(transparent)]
    Failed(consul_api::Error),
    /// The client for the primary datacenter cannot be created.
    #[error(transparent)]
    Config(consul_api::ConfigError),
    /// This controller does not hold the lock.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

/// The calls to Consul. Writing tokens, policies or nodes needs a [`Term`].
#[derive(Debug)]
pub struct Consul {
    client: Arc<Client>,
    /// The client for tokens and policies, which are written in the primary datacenter.
    acls: Mutex<Arc<Client>>,
    /// Tokens that this controller created and that no list has shown yet.
    unlisted: Mutex<HashSet<AccessorId>>,
    metrics: Arc<Metrics>,
}

impl Consul {
    /// Uses this client.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        let client = Arc::new(client);
        Self { acls: Mutex::new(client.clone()), client, unlisted: Mutex::default(), metrics }
    }

    /// Finds out the datacenter in which tokens and policies are written. A secondary datacenter has copies, which may be hours late. With
    /// these, the controller would create the same token again and again.
    pub async fn locate_acls(&self) -> Result<(), Error> {
        let source = self.counted("ReadReplication", ACL, self.client.acl_source_datacenter()).await?;
        if source.as_deref() == self.acls().config().datacenter() {
            return Ok(());
        }
        let client = match source {
            Some(primary) => {
                tracing::info!("tokens and policies are read in {primary}, the primary datacenter");
                Arc::new(self.client.in_datacenter(&primary).map_err(Error::Config)?)
            }
            None => self.client.clone(),
        };
        *self.acls.lock().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    /// Whether this datacenter is where tokens and policies are written.
    pub fn is_primary(&self) -> bool {
        Arc::ptr_eq(&self.acls(), &self.client)
    }

    fn acls(&self) -> Arc<Client> {
        self.acls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unlisted(&self) -> MutexGuard<'_, HashSet<AccessorId>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn counted<T>(
        &self,
        call: &'static str,
        needs: &'static str,
        answer: impl Future<Output = Result<T, consul_api::Error>>,
    ) -> Result<T, Error> {
        let answer = answer.await;
        let result = match &answer {
            Ok(_) => "ok",
            Err(consul_api::Error::PermissionDenied { .. }) => "denied",
            Err(consul_api::Error::Unreachable { .. } | consul_api::Error::TimedOut { .. }) => "unreachable",
            Err(consul_api::Error::Refused { status, .. }) if status.as_u16() == 429 => "throttled",
            Err(_) => "error",
        };
        self.metrics.called("consul", call, result);
        answer.map_err(|source| match source {
            source if source.is_unknown_token() => Error::UnknownToken(source),
            consul_api::Error::PermissionDenied { .. } => Error::Denied { needs, source },
            source => Error::Failed(source),
        })
    }

    /// All tokens, including those that this controller created and that the list does not show yet.
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, Error> {
        let mut tokens = self.counted("ListTokens", ACL, self.acls().tokens()).await?;
        let missing = {
            let mut unlisted = self.unlisted();
            for token in &tokens {
                unlisted.remove(&token.accessor_id);
            }
            unlisted.iter().cloned().collect::<Vec<_>>()
        };
        for accessor_id in missing {
            match self.token(&accessor_id).await? {
                Some(token) => tokens.push(token.entry),
                None => {
                    self.unlisted().remove(&accessor_id);
                }
            }
        }
        Ok(tokens)
    }

    /// A token with its secret ID; none if there is no such token.
    pub async fn token(&self, accessor_id: &AccessorId) -> Result<Option<Token>, Error> {
        let read = async {
            match self.acls().token(accessor_id).await {
                // Consul hides secret IDs from a token with acl:read. If the controller stored the text `<hidden>`, it would replace good
                // tokens.
                Ok(token) if token.secret_id.expose() == HIDDEN => Err(consul_api::Error::PermissionDenied {
                    request: format!("GET /v1/acl/token/{accessor_id}"),
                    body: "the secret ID is hidden".to_owned(),
                }),
                Ok(token) => Ok(Some(token)),
                // Consul has just answered the list, so the unknown token is not the controller's own.
                Err(error) if error.is_missing_token() => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.counted("ReadToken", ACL, read).await
    }

    /// Creates a token.
    pub async fn create_token(&self, term: &Term, grants: &TokenGrants) -> Result<Token, Error> {
        let token = term.hold(self.counted("CreateToken", ACL, self.acls().create_token(grants))).await??;
        self.unlisted().insert(token.entry.accessor_id.clone());
        Ok(token)
    }

    /// Creates a token with these IDs.
    pub async fn create_token_as(
        &self,
        term: &Term,
        grants: &TokenGrants,
        accessor_id: &AccessorId,
        secret_id: &Secret,
    ) -> Result<Token, Error> {
        let acls = self.acls();
        let created = acls.create_token_as(grants, accessor_id, secret_id);
        let token = term.hold(self.counted("CreateToken", ACL, created)).await??;
        self.unlisted().insert(accessor_id.clone());
        Ok(token)
    }

    /// Replaces a token's grants, and returns the new token.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such token.
    pub async fn update_token(
        &self,
        term: &Term,
        accessor_id: &AccessorId,
        grants: &TokenGrants,
    ) -> Result<Token, Error> {
        let updated = async {
            match self.acls().update_token(accessor_id, grants).await {
                Ok(token) => Ok(Some(token)),
                // Consul has just answered the list, so the unknown token is not the controller's own.
                Err(error) if error.is_missing_token() => Ok(None),
                Err(error) => Err(error),
            }
        };
        let updated = term.hold(self.counted("UpdateToken", ACL, updated)).await??;
        updated.ok_or_else(|| Error::Gone { accessor: accessor_id.clone() })
    }

    /// Deletes a token. It succeeds if there is no such token.
    pub async fn delete_token(&self, term: &Term, accessor_id: &AccessorId) -> Result<(), Error> {
        self.delete_token_at(term, &self.acls(), accessor_id).await
    }

    async fn delete_token_at(&self, term: &Term, client: &Client, accessor_id: &AccessorId) -> Result<(), Error> {
        let deleted = async {
            match client.delete_token(accessor_id).await {
                // Consul 1.8 answers 200, later versions 404.
                Err(consul_api::Error::NotFound { .. }) => Ok(()),
                deleted => deleted,
            }
        };
        term.hold(self.counted("DeleteToken", ACL, deleted)).await?
    }

    /// All policies, without their rules.
    pub async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.counted("ListPolicies", ACL, self.acls().policies()).await
    }

    /// A policy with its rules.
    pub async fn policy(&self, id: &str) -> Result<Policy, Error> {
        self.counted("ReadPolicy", ACL, self.acls().policy(id)).await
    }

    /// Creates a policy.
    pub async fn create_policy(&self, term: &Term, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        term.hold(self.counted("CreatePolicy", ACL, self.acls().create_policy(policy))).await?
    }

    /// Replaces a policy.
    pub async fn update_policy(&self, term: &Term, id: &str, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        term.hold(self.counted("UpdatePolicy", ACL, self.acls().update_policy(id, policy))).await?
    }

    /// Deletes a policy.
    pub async fn delete_policy(&self, term: &Term, id: &str) -> Result<(), Error> {
        term.hold(self.counted("DeletePolicy", ACL, self.acls().delete_policy(id))).await?
    }

    /// All roles.
    pub async fn roles(&self) -> Result<Vec<Role>, Error> {
        self.counted("ListRoles", ACL, self.acls().roles()).await
    }

    /// Creates or replaces a role.
    pub async fn put_role(&self, term: &Term, role: &Role) -> Result<(), Error> {
        term.hold(self.counted("WriteRole", ACL, self.acls().put_role(role))).await?
    }

    /// An auth method of this datacenter; none if there is none of this name.
    pub async fn auth_method(&self, name: &str) -> Result<Option<AuthMethod>, Error> {
        self.counted("ReadAuthMethod", ACL, self.client.auth_method(name)).await
    }

    /// Creates or replaces an auth method of this datacenter.
    pub async fn put_auth_method(&self, term: &Term, method: &AuthMethod) -> Result<(), Error> {
        let put = term.hold(self.counted("WriteAuthMethod", ACL, self.client.put_auth_method(method))).await?;
        put.map_err(|error| match error {
            // "Type should be one of: [jwt kubernetes]"
            Error::Failed(source) if source.to_string().contains("Type should be one of") => Error::OldConsul(source),
            error => error,
        })
    }

    /// The binding rules of an auth method of this datacenter.
    pub async fn binding_rules(&self, method: &str) -> Result<Vec<BindingRule>, Error> {
        self.counted("ListBindingRules", ACL, self.client.binding_rules(method)).await
    }

    /// Creates or replaces a binding rule of this datacenter.
    pub async fn put_binding_rule(&self, term: &Term, rule: &BindingRule) -> Result<(), Error> {
        term.hold(self.counted("WriteBindingRule", ACL, self.client.put_binding_rule(rule))).await?
    }

    /// All keys that begin with a prefix.
    pub async fn keys_below(&self, prefix: &str) -> Result<Vec<KeyValue>, Error> {
        self.counted("ReadRecord", KEY, self.client.keys_below(prefix)).await
    }

    /// Applies all of these writes, or none.
    pub async fn write_keys(&self, term: &Term, writes: &[KeyWrite]) -> Result<(), Error> {
        term.hold(self.counted("WriteRecord", KEY, self.client.write_keys(writes))).await?
    }

    /// The config entries of terminating gateways. Consul leaves out those that the token may not read.
    pub async fn terminating_gateways(&self) -> Result<Vec<serde_json::Value>, Error> {
        let entries = self.client.config_entries("terminating-gateway");
        self.counted("ListTerminatingGateways", GATEWAYS, entries).await
    }

    /// The nodes that gossip reports as failed.
    pub async fn failed_nodes(&self) -> Result<Vec<String>, Error> {
        self.counted("ListFailedNodes", NODES, self.client.failed_nodes()).await
    }

    /// A node's services.
    pub async fn node_services(&self, node: &str) -> Result<Vec<HealthService>, Error> {
        self.counted("ListNodeServices", NODES, self.client.node_services(node)).await
    }

    /// Deregisters a node.
    pub async fn deregister_node(&self, term: &Term, node: &str) -> Result<(), Error> {
        term.hold(self.counted("DeregisterNode", NODES, self.client.deregister_node(node))).await?
    }

    /// A node with its services; none if Consul does not have it.
    pub async fn node(&self, name: &str) -> Result<Option<NodeServices>, Error> {
        self.counted("ReadNode", NODE, self.client.node_with_services(name)).await
    }

    /// Registers a node, or replaces its address and meta.
    pub async fn register_node(&self, term: &Term, node: &HealthNode) -> Result<(), Error> {
        term.hold(self.counted("RegisterNode", NODE, self.client.register_node(node))).await?
    }

    /// Deregisters a service of a node. It succeeds if there is no such service.
    pub async fn deregister_service(&self, term: &Term, node: &str, id: &ServiceId) -> Result<(), Error> {
        term.hold(self.counted("DeregisterService", NODE, self.client.deregister_from_catalog(node, id))).await?
    }

    /// The tokens of this datacenter if it is a secondary one, because the tokens of its logins exist only there. None in the primary
    /// datacenter, where [`Consul::tokens`] lists them.
    pub async fn tokens_of_secondary(&self) -> Result<Option<Vec<TokenEntry>>, Error> {
        if self.is_primary() {
            return Ok(None);
        }
        self.counted("ListTokens", ACL, self.client.tokens()).await.map(Some)
    }

    /// Deletes a token of a login. It succeeds if there is no such token. The token of a login exists only in its datacenter, unless
    /// the auth method says otherwise.
    pub async fn delete_login_token(&self, term: &Term, accessor_id: &AccessorId) -> Result<(), Error> {
        self.delete_token_at(term, &self.client, accessor_id).await
    }

    /// Creates a session.
    pub async fn create_session(&self, session: NewSession<'_>, within: Duration) -> Result<SessionId, Error> {
        self.counted("CreateSession", SESSION, self.client.create_session(session, within)).await
    }

    /// Renews a session; false if it has ended.
    pub async fn renew_session(&self, id: &SessionId, within: Duration) -> Result<bool, Error> {
        self.counted("RenewSession", SESSION, self.client.renew_session(id, within)).await
    }

    /// Ends a session.
    pub async fn destroy_session(&self, id: &SessionId, within: Duration) -> Result<(), Error> {
        self.counted("DestroySession", SESSION, self.client.destroy_session(id, within)).await
    }

    /// Tries to acquire a lock; false if it cannot be acquired now.
    pub async fn acquire(&self, key: &str, id: &SessionId, value: &str, within: Duration) -> Result<bool, Error> {
        self.counted("AcquireLock", KEY, self.client.acquire(key, id, value, within)).await
    }

    /// Releases a lock.
    pub async fn release(&self, key: &str, id: &SessionId, within: Duration) -> Result<bool, Error> {
        self.counted("ReleaseLock", KEY, self.client.release(key, id, within)).await
    }

    /// The session that holds a lock.
    pub async fn lock_holder(&self, key: &str, within: Duration) -> Result<Option<SessionId>, Error> {
        self.counted("ReadLock", KEY, self.client.lock_holder(key, within)).await
    }
}
