//! Tokens from an auth method ("ACL - HTTP API", login and logout).

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use sidecar_kit::secret::Secret;

use crate::acl::Token;
use crate::client::{Call, Client};
use crate::error::Error;

/// Longer than for other calls, because Consul's server may have to ask STS or an issuer first. A second login would create a
/// second token.
const LOGIN_TIME: Duration = Duration::from_secs(30);

/// A request for a token.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The auth method's name.
    pub method: &'a str,
    /// The proof for the auth method.
    pub bearer_token: &'a Secret,
    /// Goes into the token's description.
    pub meta: &'a BTreeMap<String, String>,
}

impl Client {
    /// Logs in, within 30 s. A login that may have arrived is not repeated ([`Error::may_have_arrived`]), because each login creates
    /// a token.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] with `ACL not found` if the auth method does not exist, with `Permission denied` if its binding
    /// rules have no role or service for the caller.
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
        self.fetch(Call::new(Method::POST, "/v1/acl/login").json(&body).proof(bearer_token).within(LOGIN_TIME)).await
    }

    /// Deletes a token that a login created. A token that no longer exists is no error.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if there is no answer within `within`.
    pub async fn logout(&self, token: &Secret, within: Duration) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/v1/acl/logout").token(token).within(within);
        match self.execute(call).await {
            Err(error) if error.is_unknown_token() => Ok(()),
            other => other,
        }
    }

    /// When a token expires, in RFC 3339 with the time zone of the server; none if it never does.
    ///
    /// # Errors
    /// [`Error::is_unknown_token`] if the server does not know the token.
    pub async fn token_expiration(&self, token: &Secret) -> Result<Option<String>, Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Expiring {
            #[serde(default)]
            expiration_time: Option<String>,
        }
        let call = Call::new(Method::GET, "/v1/acl/token/self").query("stale", "").token(token);
        Ok(self.fetch::<Expiring>(call).await?.expiration_time)
    }

    /// Succeeds if the server that answers knows the token. With `?stale`, that is any server and not only the leader. An agent
    /// passes this request on and does not cache the answer. For other requests, it caches that a token is unknown.
    ///
    /// # Errors
    /// [`Error::is_unknown_token`] if the server does not know the token.
    pub async fn knows_token(&self, token: &Secret) -> Result<(), Error> {
        self.execute(Call::new(Method::GET, "/v1/acl/token/self").query("stale", "").token(token)).await
    }
}

#[cfg(test)]
mod tests {
    use sidecar_kit::env::Env;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;
    use crate::Config;

    #[tokio::test(start_paused = true)]
    async fn a_login_has_more_time_than_another_call() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await;
                    sleep(Duration::from_secs(25)).await;
                    let token = r#"{"AccessorID":"a","SecretID":"s","Description":""}"#;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", token.len());
                    let _ = stream.write_all(format!("{head}\r\n\r\n{token}").as_bytes()).await;
                });
            }
        });
        let env = Env::from_iter([("CONSUL_HTTP_ADDR", address.as_str())]);
        let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
        let (proof, meta) = (Secret::new("proof"), BTreeMap::new());
        let login = Login { method: "m", bearer_token: &proof, meta: &meta };
        assert_eq!(client.login(login).await.unwrap().secret_id.expose(), "s");
        let error = client.knows_token(&proof).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }) && error.may_have_arrived(), "{error}");
    }
}
