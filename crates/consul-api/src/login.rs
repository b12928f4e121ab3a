//! Tokens from an auth method ("ACL - HTTP API", login and logout).

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use sidecar_kit::secret::Secret;

use crate::acl::Token;
use crate::client::{Call, Client};
use crate::error::Error;

/// Who asks for a token.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The auth method's name.
    pub method: &'a str,
    /// What the auth method takes as proof.
    pub bearer_token: &'a Secret,
    /// Goes into the token's description.
    pub meta: &'a BTreeMap<String, String>,
}

impl Client {
    /// Trades the proof for a token. Not repeated by itself where it may have arrived: each login makes a token.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::PermissionDenied`] with `ACL not found` means that there is no such auth method, with
    /// `Permission denied` that it has no role or service for who asks.
    pub async fn login(&self, login: Login<'_>) -> Result<Token, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            auth_method: &'a str,
            bearer_token: &'a str,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            meta: &'a BTreeMap<String, String>,
        }
        let Login { method, bearer_token, meta } = login;
        let body = Body { auth_method: method, bearer_token: bearer_token.expose(), meta };
        self.fetch(Call::new(Method::POST, "/v1/acl/login").json(&body)).await
    }

    /// Destroys a token that a login made. One that is gone already is as good.
    ///
    /// # Errors
    /// See [`Error`]; also when there is no answer within `within`.
    pub async fn logout(&self, token: &Secret, within: Duration) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/v1/acl/logout").token(token).within(within);
        match self.execute(call).await {
            Err(error) if error.is_unknown_token() => Ok(()),
            other => other,
        }
    }

    /// Whether the server that answers knows the token, as far as it has come itself (`?stale`). An agent asks one of its
    /// servers and keeps nothing of the answer, unlike when it meets an unknown token in any other request.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_unknown_token`] where it doesn't.
    pub async fn knows_token(&self, token: &Secret) -> Result<(), Error> {
        self.execute(Call::new(Method::GET, "/v1/acl/token/self").query("stale", "").token(token)).await
    }
}
