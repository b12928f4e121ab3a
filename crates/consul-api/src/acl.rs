//! ACL tokens and policies ("ACL Tokens - HTTP API", "ACL Policies - HTTP API").

use consul_types::{AccessorId, null_as_empty};
use hyper::Method;
use serde::{Deserialize, Serialize};
use sidecar_kit::secret::Secret;

use crate::client::{Call, Client};
use crate::error::Error;

/// A service that a token speaks for: it may register it and its proxy, and read what a proxy needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceIdentity {
    /// The service's name; Consul takes lower case alone.
    pub service_name: String,
    /// Where it holds; everywhere if empty.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub datacenters: Vec<String>,
}

/// A policy or role that a token has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AclLink {
    /// The ID; may be left out where the name is given.
    #[serde(rename = "ID", default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// What a token may do and what is said of it: the part of it that can be written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TokenGrants {
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Its policies.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<AclLink>,
    /// Its roles.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<AclLink>,
    /// The services it speaks for.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub service_identities: Vec<ServiceIdentity>,
    /// The nodes it speaks for, as Consul gives them.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub node_identities: Vec<serde_json::Value>,
    /// What it may do by templates, as Consul gives it (1.17 and later).
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub templated_policies: Vec<serde_json::Value>,
    /// Whether it exists in one datacenter alone; can't be changed.
    #[serde(default)]
    pub local: bool,
}

/// A token as a list has it: without its secret ID.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TokenEntry {
    /// Its public name, which gives no access.
    #[serde(rename = "AccessorID")]
    pub accessor_id: AccessorId,
    /// What it may do.
    #[serde(flatten)]
    pub grants: TokenGrants,
    /// When it was made: RFC 3339 with the zone of the server that made it.
    #[serde(default)]
    pub create_time: String,
    /// Grows with each token, in the order in which they were made.
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
    /// What a request carries.
    #[serde(rename = "SecretID", deserialize_with = "secret")]
    pub secret_id: Secret,
}

/// A policy; a list has it without its rules.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    /// Its ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The rules, in HCL or JSON.
    #[serde(default)]
    pub rules: String,
    /// Where it holds; everywhere if empty.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub datacenters: Vec<String>,
    /// Grows when it changes.
    #[serde(default)]
    pub modify_index: u64,
}

/// A role, as far as it says which policies it links.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Its policies.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub policies: Vec<AclLink>,
}

/// What of a policy can be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NewPolicy<'a> {
    /// Its name.
    pub name: &'a str,
    /// For people.
    pub description: &'a str,
    /// The rules, in HCL.
    pub rules: &'a str,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

impl Client {
    /// Makes the first token, which may do everything; none if that has been done before ("Bootstrap ACLs").
    ///
    /// # Errors
    /// See [`Error`]; while the cluster has just come up, also a 500 that passes.
    pub async fn bootstrap_acls(&self) -> Result<Option<Token>, Error> {
        match self.fetch(Call::new(Method::PUT, "/v1/acl/bootstrap")).await {
            Ok(token) => Ok(Some(token)),
            Err(Error::PermissionDenied { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the agent that is asked the token for what it does itself, such as keeping its node in the catalog ("Update ACL
    /// Tokens"). It keeps it across restarts where token persistence is enabled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_agent_token(&self, token: &Secret) -> Result<(), Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            token: &'a str,
        }
        self.execute(Call::new(Method::PUT, "/v1/agent/token/agent").json(&Body { token: token.expose() })).await
    }

    /// All tokens, as the leader has them after it has asked its peers (`?consistent`): a list that is behind would make a
    /// caller create what is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/tokens").query("consistent", "")).await
    }

    /// A token by its accessor ID, with its secret ID.
    ///
    /// # Errors
    /// See [`Error`]; one that isn't there is [`Error::PermissionDenied`] with `ACL not found`.
    pub async fn token(&self, accessor_id: &AccessorId) -> Result<Token, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/token").segment(accessor_id.as_str()).query("consistent", "")).await
    }

    /// Makes a token.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_token(&self, grants: &TokenGrants) -> Result<Token, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/token").json(grants)).await
    }

    /// Makes a token with this accessor ID and this secret ID, both UUIDs that no token has.
    ///
    /// # Errors
    /// See [`Error`].
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

    /// Replaces what a token may do, and returns the token as it is then.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_unknown_token`] where no token has this accessor ID.
    pub async fn update_token(&self, accessor_id: &AccessorId, grants: &TokenGrants) -> Result<Token, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/token").segment(accessor_id.as_str()).json(grants)).await
    }

    /// Removes a token.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_token(&self, accessor_id: &AccessorId) -> Result<(), Error> {
        self.execute(Call::new(Method::DELETE, "/v1/acl/token").segment(accessor_id.as_str())).await
    }

    /// All policies, without their rules.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/policies").query("consistent", "")).await
    }

    /// A policy by its ID, with its rules.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn policy(&self, id: &str) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/policy").segment(id).query("consistent", "")).await
    }

    /// Makes a policy.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_policy(&self, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/policy").json(policy)).await
    }

    /// Replaces a policy's text.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_policy(&self, id: &str, policy: &NewPolicy<'_>) -> Result<Policy, Error> {
        self.fetch(Call::new(Method::PUT, "/v1/acl/policy").segment(id).json(policy)).await
    }

    /// Removes a policy. A token that links it keeps its other rights.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_policy(&self, id: &str) -> Result<(), Error> {
        self.execute(Call::new(Method::DELETE, "/v1/acl/policy").segment(id)).await
    }

    /// All roles.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn roles(&self) -> Result<Vec<Role>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/acl/roles").query("consistent", "")).await
    }
}
