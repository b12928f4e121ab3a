//! Reads the lists of a cycle, and the secrets that have changed.

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

/// A secret's value. Both fields are empty before the first use, when the value is `{}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Value {
    #[serde(default)]
    pub(crate) accessor_id: AccessorId,
    #[serde(default)]
    pub(crate) token: String,
}

/// Everything that a cycle lists beside the tasks.
pub(crate) struct Lists {
    pub(crate) secrets: BTreeMap<String, Option<String>>,
    pub(crate) tokens: Vec<TokenEntry>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) links: Links,
}

impl Lists {
    /// A secret's current version; none if there is no such secret or it has no value.
    pub(crate) fn version(&self, secret: &str) -> Option<&String> {
        self.secrets.get(secret).and_then(Option::as_ref)
    }
}

impl Controller {
    /// Lists what ECS, Secrets Manager and Consul have now. The tasks are returned separately, because the work for tasks without an agent
    /// needs only them.
    ///
    /// # Errors
    /// When the tasks cannot be listed.
    pub(crate) async fn lists(&self, memory: &mut Memory) -> Result<(Tasks, Result<Lists, Error>), Error> {
        let Memory { followed, tagged, listings, unlinked, acls_located, .. } = memory;
        let tasks = async {
            let mut tasks = self.aws.tasks(followed).await?;
            // Remember the tags now: another list may fail, and ECS may not show them again.
            tagged.restore(&mut tasks.tasks, tasks.complete);
            listings.listed(tasks.complete);
            Ok::<_, Error>(tasks)
        };
        let others = async {
            if !*acls_located {
                self.consul.locate_acls().await?;
                *acls_located = true;
            }
            let (secrets, tokens, policies, gateways) = tokio::try_join!(
                async { self.aws.secrets().await.map_err(Error::from) },
                async { self.consul.tokens().await.map_err(Error::from) },
                async { self.consul.policies().await.map_err(Error::from) },
                async { self.consul.terminating_gateways().await.map_err(Error::from) },
            )
            .inspect_err(|_| *acls_located = false)?;
            let links = gateways::links(&gateways, unlinked);
            Ok(Lists { secrets, tokens, policies, links })
        };
        let (tasks, others) = tokio::join!(tasks, others);
        Ok((tasks?, others))
    }

    /// Reads a secret's value; none if the secret has no value yet.
    pub(crate) async fn value(&self, name: &str, lists: &Lists) -> Result<Option<(SecretValue, Value)>, Error> {
        let mut secret = match self.aws.secret_value(name).await {
            Ok(secret) => secret,
            Err(aws::Error::NoValue { .. }) => return Ok(None),
            // A secret without a version exists and has no value yet.
            Err(aws::Error::NotFound { .. }) if lists.secrets.get(name) == Some(&None) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let not_ours = || Error::NotOurs { name: name.to_owned() };
        let text = secret.text.take().ok_or_else(not_ours)?;
        // The parser's error would show a part of the secret.
        let value: Value = serde_json::from_str(text.expose()).map_err(|_| not_ours())?;
        if value.accessor_id.is_empty() != value.token.is_empty() {
            return Err(not_ours());
        }
        Ok(Some((secret, value)))
    }

    /// Reads a secret, and the token with its accessor ID.
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

    /// The grants that an owner's token should have.
    pub(crate) fn grants(&self, owner: &TokenOwner, lists: &Lists) -> TokenGrants {
        let links = match owner {
            TokenOwner::Service(service) => lists.links.get(service),
            TokenOwner::Clients => None,
        };
        self.names.grants(owner, links.unwrap_or(&BTreeSet::new()))
    }
}
