//! A platform that signs the identity of a task, for Consul's auth method of type `jwt`, which every Consul has.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::consul::Agent;

/// The name of the auth method.
pub const METHOD: &str = "platform";

/// A platform that signs the identity of a task as a JSON Web Token.
pub struct Platform {
    pair: KeyPair,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Platform {
    /// A platform with a new key.
    ///
    /// # Panics
    /// When the key cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let pair = KeyPair::generate().expect("a key can be made");
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der(), &random);
        Self { pair, key: key.expect("the key is valid"), random }
    }

    /// The auth method that trusts it, for `PUT /v1/acl/auth-method`.
    #[must_use]
    pub fn method(&self, max_token_ttl: &str) -> Value {
        json!({
            "Name": METHOD, "Type": "jwt", "MaxTokenTTL": max_token_ttl,
            "Config": { "JWTValidationPubKeys": [self.pair.public_key_pem()], "JWTSupportedAlgs": ["ES256"],
                        "BoundAudiences": ["consul"], "ClaimMappings": { "service": "service" } }
        })
    }

    /// The binding rule of the method, for `PUT /v1/acl/binding-rule`. `identity` is the service identity of a token.
    #[must_use]
    pub fn rule(identity: &str) -> Value {
        json!({ "AuthMethod": METHOD, "BindType": "service", "BindName": identity, "Selector": "value.service != nobody" })
    }

    /// Creates a platform, and in Consul an auth method that trusts it. The claim `service` decides the service identity of a token.
    pub async fn trusted_by(agent: &Agent, identity: &str) -> Self {
        let platform = Self::new();
        agent.call("PUT", "/v1/acl/auth-method", &platform.method("1h")).await;
        agent.call("PUT", "/v1/acl/binding-rule", &Self::rule(identity)).await;
        platform
    }

    /// A token for this service, good for an hour from `at`.
    ///
    /// # Panics
    /// When it cannot be signed.
    #[must_use]
    pub fn signed_at(&self, service: &str, at: u64) -> String {
        let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "aud": "consul", "service": service, "iat": at, "exp": at + 3600 });
        let text = format!("{}.{}", encode(json!({ "alg": "ES256", "typ": "JWT" })), encode(claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).expect("the key can sign");
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token for this service, good for an hour.
    ///
    /// # Panics
    /// When it cannot be signed.
    #[must_use]
    pub fn signed(&self, service: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
        self.signed_at(service, now.as_secs())
    }

    /// A file with a token for this service, good for an hour from `at`.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn proof_at(&self, service: &str, at: u64) -> tempfile::NamedTempFile {
        in_a_file(&self.signed_at(service, at))
    }

    /// A file with a token for this service, good for an hour.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn proof(&self, service: &str) -> tempfile::NamedTempFile {
        in_a_file(&self.signed(service))
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::new()
    }
}

fn in_a_file(token: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(file.path(), token).expect("it can be written");
    file
}

/// The tokens that logins have created, of Consul's answer to `GET /v1/acl/tokens`.
#[must_use]
pub fn of_logins(tokens: &Value) -> Vec<Value> {
    let tokens = tokens.as_array().into_iter().flatten();
    tokens.filter(|token| token["AuthMethod"] == METHOD).cloned().collect()
}

/// The tokens in Consul that logins have created.
pub async fn logins(agent: &Agent) -> Vec<Value> {
    of_logins(&agent.call("GET", "/v1/acl/tokens", &Value::Null).await)
}
