//! Auth methods and binding rules ("ACL Auth Methods - HTTP API", "ACL Binding Rules - HTTP API").

use consul_types::null_as_empty;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::{Call, Client};
use crate::error::Error;

/// An auth method. A task that logs in with it gets the rights that its binding rules give.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuthMethod {
    /// Its name.
    pub name: String,
    /// Such as `jwt` or `aws-iam`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The settings of this type.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub config: Map<String, Value>,
    /// All other keys, such as `MaxTokenTTL`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A binding rule: which logins get which right.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindingRule {
    /// Its ID; empty for a new rule.
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The description, for operators.
    #[serde(default)]
    pub description: String,
    /// The auth method.
    pub auth_method: String,
    /// The logins to which it applies; all of them if empty.
    #[serde(default)]
    pub selector: String,
    /// Such as `service` or `role`.
    pub bind_type: String,
    /// The name of the service identity or role.
    pub bind_name: String,
}

impl Client {
    /// An auth method; none if there is no method of this name.
    pub async fn auth_method(&self, name: &str) -> Result<Option<AuthMethod>, Error> {
        let call = Call::new(Method::GET, "/v1/acl/auth-method").segment(name).query("consistent", "");
        match self.fetch(call).await {
            Ok(method) => Ok(Some(method)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an auth method, or replaces the one of the same name.
    pub async fn put_auth_method(&self, method: &AuthMethod) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/acl/auth-method").json(method)).await
    }

    /// The binding rules of an auth method.
    pub async fn binding_rules(&self, method: &str) -> Result<Vec<BindingRule>, Error> {
        let call = Call::new(Method::GET, "/v1/acl/binding-rules").query("authmethod", method);
        self.fetch(call.query("consistent", "")).await
    }

    /// Creates a binding rule, or replaces the one with this ID.
    pub async fn put_binding_rule(&self, rule: &BindingRule) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/acl/binding-rule");
        let call = if rule.id.is_empty() { call } else { call.segment(&rule.id) };
        self.execute(call.json(rule)).await
    }
}
