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
