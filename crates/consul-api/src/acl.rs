//! ACL tokens and policies ("ACL Tokens - HTTP API", "ACL Policies - HTTP API").

use consul_types::{AccessorId, null_as_empty};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sidecar_kit::secret::Secret;

use crate::client::{Call, Client};
use crate::error::Error;

/// A service identity: its token may register this service and its proxy, and read what a proxy needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceIdentity {
    /// The service's name. Consul accepts only lower case.
    pub service_name: String,
    /// The datacenters in which it applies; all of them if empty.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub datacenters: Vec<String>,
}

/// A policy or role that a token has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AclLink {
    /// The ID. It may be absent if the name is given.
    #[serde(rename = "ID", default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// The writable part of a token: its description, its rights, and whether it is local.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TokenGrants {
    /// The description, for operators.
    #[serde(default)]
    pub description: String,
    /// Its policies.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<AclLink>,
    /// Its roles.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<AclLink>,
    /// Its service identities.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub service_identities: Vec<ServiceIdentity>,
    /// Its node identities, as Consul writes them.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub node_identities: Vec<serde_json::Value>,
    /// Its templated policies, as Consul writes them (Consul 1.17 and later).
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub templated_policies: Vec<serde_json::Value>,
    /// Whether it exists in only one datacenter. This cannot be changed later.
    #[serde(default)]
    pub local: bool,
}

/// A token in a list, which does not show secret IDs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TokenEntry {
    /// Its accessor ID, which gives no access.
    #[serde(rename = "AccessorID")]
    pub accessor_id: AccessorId,
    /// Its description and rights.
    #[serde(flatten)]
    pub grants: TokenGrants,
    /// When it was created, in RFC 3339 with the time zone of the server.
    #[serde(default)]
    pub create_time: String,
    /// Tokens that are created later have a higher index.
    #[serde(default)]
    pub create_index: u64,
    /// Grows when the token changes.
    #[serde(default)]
    pub modify_index: u64,
}

/// A token with its secret ID.
#[derive(Debug, Clone, Deserialize)]
pub struct Token {
    /// The token.
    #[serde(flatten)]
    pub entry: TokenEntry,
    /// The secret that a request sends.
    #[serde(rename = "SecretID", deserialize_with = "secret")]
    pub secret_id: Secret,
}

/// A policy. In a list it has no rules.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    /// Its ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// The description, for operators.
    #[serde(default)]
    pub description: String,
    /// The rules, in HCL or JSON.
    #[serde(default)]
    pub rules: String,
    /// The datacenters in which it applies; all of them if empty.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub datacenters: Vec<String>,
    /// Grows when it changes.
    #[serde(default)]
    pub modify_index: u64,
}

/// A role with the policies that it links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Role {
    /// Its ID; empty for a new role.
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its policies.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub policies: Vec<AclLink>,
    /// All other keys, such as `Description` and `ServiceIdentities`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The writable part of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewPolicy<'a> {
    /// Its name.
    pub name: &'a str,
    /// The description, for operators.
    pub description: &'a str,
    /// The rules, in HCL.
    pub rules: &'a str,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

impl Client {
    /// Creates the first token, which may do everything ("Bootstrap ACLs"). Returns none if the ACLs are bootstrapped already.
    ///
    /// # Errors
    /// In a new cluster, Consul answers 500 for some seconds.
    pub async fn bootstrap_acls(&self) -> Result<Option<Token>, Error> {
        match self.fetch(Call::new(Method::PUT, "/v1/acl/bootstrap")).await {
            Ok(token) => Ok(Some(token)),
            Err(Error::PermissionDenied { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the token with which the agent updates its own node in the catalog ("Update ACL Tokens"). The agent keeps the token across
    /// restarts if token persistence is enabled.
    pub async fn set_agent_token(&self, token: &Secret) -> Result<(), Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            token: &'a str,
        }
        self.execute(Call::new(Method::PUT, "/v1/agent/token/agent").json(&Body { token: token.expose() })).await
    }

    /// All tokens. The leader first confirms with its peers that it is the leader (`?consistent`): with an outdated list, a caller would
    /// create a token that exists already.
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/tokens").query("consistent", "")).await
    }

    /// A token by its accessor ID, with its secret ID.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] with `ACL not found` if the token does not exist.
    pub async fn token(&self, accessor_id: &AccessorId) -> Result<Token, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/token").segment(accessor_id.as_str()).query("consistent", "")).await
    }

    /// Creates a token.
    pub async fn create_token(&self, grants: &TokenGrants) -> Result<Token, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/token").json(grants)).await
    }

    /// Creates a token with this accessor ID and this secret ID, which are UUIDs of no other token.
    pub async fn create_token_as(
        &self,
        grants: &TokenGrants,
        accessor_id: &AccessorId,
        secret_id: &Secret,
    ) -> Result<Token, Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            grants: &'a TokenGrants,
            #[serde(rename = "AccessorID")]
            accessor_id: &'a AccessorId,
            #[serde(rename = "SecretID")]
            secret_id: &'a str,
        }
        let body = Body { grants, accessor_id, secret_id: secret_id.expose() };
        self.fetch(Call::new(Method::PUT, "/v1/acl/token").json(&body)).await
    }

    /// Replaces a token's description and rights, and returns the token.
    ///
    /// # Errors
    /// [`Error::is_missing_token`] if no token has this accessor ID.
    pub async fn update_token(&self, accessor_id: &AccessorId, grants: &TokenGrants) -> Result<Token, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/token").segment(accessor_id.as_str()).json(grants)).await
    }

    /// Deletes a token.
    pub async fn delete_token(&self, accessor_id: &AccessorId) -> Result<(), Error> {
        self.execute(Call::new(Method::DELETE, "/v1/acl/token").segment(accessor_id.as_str())).await
    }

    /// All policies, without their rules.
    pub async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/policies").query("consistent", "")).await
    }

    /// A policy by its ID, with its rules.
    pub async fn policy(&self, id: &str) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/policy").segment(id).query("consistent", "")).await
    }

    /// Creates a policy.
    pub async fn create_policy(&self, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/policy").json(policy)).await
    }

    /// Replaces a policy.
    pub async fn update_policy(&self, id: &str, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/policy").segment(id).json(policy)).await
    }

    /// Deletes a policy. A token that links it keeps its other rights.
    pub async fn delete_policy(&self, id: &str) -> Result<(), Error> {
        self.execute(Call::new(Method::DELETE, "/v1/acl/policy").segment(id)).await
    }

    /// Creates a role, or replaces the one with this ID.
    pub async fn put_role(&self, role: &Role) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/acl/role");
        let call = if role.id.is_empty() { call } else { call.segment(&role.id) };
        self.execute(call.json(role)).await
    }

    /// All roles.
    pub async fn roles(&self) -> Result<Vec<Role>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/roles").query("consistent", "")).await
    }
}
