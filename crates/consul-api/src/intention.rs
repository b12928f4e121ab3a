//! Intentions in the form that every Consul since 1.2 has ("Intentions - Connect HTTP API", by ID).

use consul_types::null_as_empty;
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Call, Client};
use crate::error::Error;

/// What an intention does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntentionAction {
    /// The source may connect to the destination.
    Allow,
    /// The source may not connect to the destination.
    Deny,
}

/// Whether a service may connect to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Intention {
    /// Its ID, given by Consul. Empty if [`Client::put_intention`] or the UI wrote it (Consul 1.9).
    #[serde(rename = "ID", default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The connecting service, or `*`.
    pub source_name: String,
    /// The service to which it connects, or `*`.
    pub destination_name: String,
    /// Allow or deny. None for an intention with rules for paths (Consul 1.9), which this client does not write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<IntentionAction>,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

impl Client {
    /// All intentions that the token may see.
    pub async fn intentions(&self) -> Result<Vec<Intention>, Error> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct List(#[serde(deserialize_with = "null_as_empty")] Vec<Intention>);
        let List(intentions) = self.fetch(Call::new(Method::GET, "/v1/connect/intentions")).await?;
        Ok(intentions)
    }

    /// Creates an intention and returns its ID.
    ///
    /// # Errors
    /// See [`Error`]. Consul refuses a second intention for the same pair.
    pub async fn create_intention(
        &self,
        source: &str,
        destination: &str,
        action: IntentionAction,
    ) -> Result<String, Error> {
        let intention = Intention {
            id: String::new(),
            source_name: source.to_owned(),
            destination_name: destination.to_owned(),
            action: Some(action),
        };
        let created: Created = self.fetch(Call::new(Method::POST, "/v1/connect/intentions").json(&intention)).await?;
        Ok(created.id)
    }

    /// Writes the intention of a pair and replaces an existing one. Consul has this since 1.9. It also works for an intention that
    /// was edited in the UI, for which Consul refuses [`Client::create_intention`].
    pub async fn put_intention(&self, source: &str, destination: &str, action: IntentionAction) -> Result<(), Error> {
        let call = Call::new(Method::PUT, "/v1/connect/intentions/exact");
        let call = call.query("source", source).query("destination", destination);
        self.execute(call.json(&serde_json::json!({ "Action": action }))).await
    }

    /// Removes an intention: by its ID, or by its pair if it has none.
    pub async fn delete_intention(&self, intention: &Intention) -> Result<(), Error> {
        let call = if intention.id.is_empty() {
            let call = Call::new(Method::DELETE, "/v1/connect/intentions/exact");
            call.query("source", &intention.source_name).query("destination", &intention.destination_name)
        } else {
            Call::new(Method::DELETE, "/v1/connect/intentions").segment(&intention.id)
        };
        self.execute(call).await
    }
}
