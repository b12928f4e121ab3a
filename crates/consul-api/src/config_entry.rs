//! Config entries, such as `service-defaults`, `proxy-defaults` and `service-router` ("Config HTTP API").

use hyper::Method;
use serde_json::Value;

use crate::client::{Call, Client};
use crate::error::Error;

impl Client {
    /// Writes an entry. Its form is the documented one, with `Kind` and `Name`. Writing an equal entry also gives a new index.
    pub async fn put_config_entry(&self, entry: &Value) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/config").json(entry)).await
    }

    /// Writes an entry if its `ModifyIndex` is still this one. 0 stands for an entry that does not exist.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Changed`] if the entry has another index. Then nothing is written.
    pub async fn replace_config_entry(&self, entry: &Value, index: u64) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/config").query("cas", index.to_string()).json(entry);
        let request = call.named();
        let written: bool = self.fetch(call).await?;
        if written { Ok(()) } else { Err(Error::Changed { request }) }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::NotFound`] if there is no such entry.
    pub async fn config_entry(&self, kind: &str, name: &str) -> Result<Value, Error> {
        self.fetch(Call::new(Method::GET, "/v1/config").segment(kind).segment(name)).await
    }

    /// All entries of a kind.
    pub async fn config_entries(&self, kind: &str) -> Result<Vec<Value>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/config").segment(kind)).await
    }

    /// Removes an entry. If there is no such entry, this succeeds too.
    pub async fn delete_config_entry(&self, kind: &str, name: &str) -> Result<(), Error> {
        self.execute(Call::new(Method::DELETE, "/v1/config").segment(kind).segment(name)).await
    }
}
