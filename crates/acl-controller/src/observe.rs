//! What is: the lists, and the secrets that have changed.

use std::collections::{BTreeMap, BTreeSet};

use consul_api::{AccessorId, Policy, TokenEntry, TokenGrants};
use serde::{Deserialize, Serialize};
use sidecar_kit::secret::Secret;

use crate::aws::{self, SecretValue, Tasks};
use crate::controller::Controller;
use crate::error::Error;
use crate::gateways::{self, Links};
use crate::memory::{Known, Memory};
use crate::owner::TokenOwner;
use crate::plan::Stored;

/// A secret's value. Both fields are empty before first use, where the value is `{}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Value {
    #[serde(default)]
    pub(crate) accessor_id: AccessorId,
    #[serde(default)]
    pub(crate) token: String,
}

/// What the lists say.
pub(crate) struct Lists {
    pub(crate) tasks: Tasks,
    pub(crate) secrets: BTreeMap<String, Option<String>>,
    pub(crate) tokens: Vec<TokenEntry>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) links: Links,
}

impl Lists {
    /// A secret's current version; none where there is no such secret, or it has no value.
    pub(crate) fn version(&self, secret: &str) -> Option<&String> {
        self.secrets.get(secret).and_then(Option::as_ref)
    }
}

impl Controller {
    /// What ECS, Secrets Manager and Consul have now.
    pub(crate) async fn lists(&self, memory: &mut Memory) -> Result<Lists, Error> {
        let Memory { followed, tagged, listings, unlinked, .. } = memory;
        let (tasks, secrets, tokens, policies, gateways) = tokio::try_join!(
            async {
                let mut tasks = self.aws.tasks(followed).await?;
                // At once: ECS may not show the same tags again, and another list may fail.
                tagged.restore(&mut tasks.tasks, tasks.complete);
                listings.listed(tasks.complete);
                Ok(tasks)
            },
            async { self.aws.secrets().await.map_err(Error::from) },
            async { self.consul.tokens().await.map_err(Error::from) },
            async { self.consul.policies().await.map_err(Error::from) },
            async { self.consul.terminating_gateways().await.map_err(Error::from) },
        )?;
        let links = gateways::links(&gateways, unlinked);
        Ok(Lists { tasks, secrets, tokens, policies, links })
    }

    /// What a secret holds and since when; no value where it is empty or has none yet.
    pub(crate) async fn value(&self, name: &str, lists: &Lists) -> Result<Option<(SecretValue, Value)>, Error> {
        let mut secret = match self.aws.secret_value(name).await {
            Ok(secret) => secret,
            Err(aws::Error::NoValue { .. }) => return Ok(None),
            // Listed without a version: there is a secret, and nobody has given it a value.
            Err(aws::Error::NotFound { .. }) if lists.secrets.get(name) == Some(&None) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let not_ours = || Error::NotOurs { name: name.to_owned() };
        let text = secret.text.take().ok_or_else(not_ours)?;
        // The parser's own message would show a part of the text.
        let value: Value = serde_json::from_str(text.expose()).map_err(|_| not_ours())?;
        if value.accessor_id.is_empty() != value.token.is_empty() {
            return Err(not_ours());
        }
        Ok(Some((secret, value)))
    }

    /// Reads a secret, and the token that it names.
    pub(crate) async fn read(&self, name: &str, lists: &Lists, tokens: &[&TokenEntry]) -> Result<Known, Error> {
        let mut known = Known::new(lists.version(name), Stored::Nothing);
        let (secret, value) = match self.value(name, lists).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(known),
            Err(Error::Aws(aws::Error::NotFound { .. })) => {
                return Ok(Known::new(lists.version(name), Stored::Missing));
            }
            Err(error) => return Err(error),
        };
        known.version = Some(secret.version);
        if value.accessor_id.is_empty() {
            return Ok(known);
        }
        let mut agrees = false;
        if let Some(entry) = tokens.iter().find(|token| token.accessor_id == value.accessor_id) {
            let token = self.consul.token(&entry.accessor_id).await?;
            agrees = token.is_some_and(|token| token.secret_id == Secret::new(&value.token));
            known.index = Some(entry.modify_index);
        }
        known.stored = Stored::Token { accessor: value.accessor_id, agrees, since: secret.created, foreign: false };
        Ok(known)
    }

    /// What an owner's token is to be.
    pub(crate) fn grants(&self, owner: &TokenOwner, lists: &Lists) -> TokenGrants {
        let links = match owner {
            TokenOwner::Service(service) => lists.links.get(service),
            TokenOwner::Clients => None,
        };
        self.names.grants(owner, links.unwrap_or(&BTreeSet::new()))
    }
}
