//! Keys and their values ("KV Store Endpoints", "Transaction HTTP API").

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::client::{Call, Client};
use crate::error::Error;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyValue {
    /// The whole key.
    pub key: String,
    /// Its value as text. Bytes that are not UTF-8 are replaced.
    #[serde(default, deserialize_with = "base64_text")]
    pub value: String,
}

/// One write of [`Client::write_keys`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyWrite {
    /// The whole key.
    pub key: String,
    /// Its new value; none removes the key.
    pub value: Option<String>,
}

#[derive(Serialize)]
struct Operation<'a> {
    #[serde(rename = "KV")]
    kv: Kv<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kv<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

fn base64_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let Some(encoded) = Option::<String>::deserialize(deserializer)? else { return Ok(String::new()) };
    let bytes = BASE64_STANDARD.decode(encoded).map_err(de::Error::custom)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Client {
    /// All keys with this prefix. The leader first confirms with its peers that it is the leader (`?consistent`).
    pub async fn keys_below(&self, prefix: &str) -> Result<Vec<KeyValue>, Error> {
        match self.fetch(key_call(Method::GET, prefix).query("recurse", "").query("consistent", "")).await {
            Err(Error::NotFound { .. }) => Ok(Vec::new()),
            keys => keys,
        }
    }

    /// How many writes one transaction may have.
    pub const MOST_WRITES: usize = 64;

    /// Makes at most [`Client::MOST_WRITES`] writes in one transaction. If it fails, it makes none of them.
    pub async fn write_keys(&self, writes: &[KeyWrite]) -> Result<(), Error> {
        let operations = writes.iter().map(|KeyWrite { key, value }| {
            let value = value.as_ref().map(|value| BASE64_STANDARD.encode(value));
            let verb = if value.is_some() { "set" } else { "delete" };
            Operation { kv: Kv { verb, key, value } }
        });
        let operations = operations.collect::<Vec<_>>();
        self.execute(Call::new(Method::PUT, "/v1/txn").json(&operations)).await
    }

    /// Sets a key.
    pub async fn set_key(&self, key: &str, value: &str) -> Result<(), Error> {
        self.execute(key_call(Method::PUT, key).text(value)).await
    }

    /// Removes a key, if it is there.
    pub async fn delete_key(&self, key: &str) -> Result<(), Error> {
        self.execute(key_call(Method::DELETE, key)).await
    }
}

/// A call for a key. Slashes in the key separate segments of the path.
pub(crate) fn key_call(method: Method, key: &str) -> Call {
    key.split('/').fold(Call::new(method, "/v1/kv"), Call::segment)
}
