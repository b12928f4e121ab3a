//! Applies the actions of a plan.

use std::time::SystemTime;

use consul_api::{AccessorId, TokenEntry, TokenGrants};
use sidecar_kit::secret::Secret;

use crate::controller::Controller;
use crate::error::Error;
use crate::memory::Known;
use crate::metrics::Change;
use crate::observe::{Lists, Value};
use crate::owner::{TokenOwner, is_described};
use crate::plan::{Action, Stored, corrected};
use crate::rotation::{is_superseded, superseded};
use crate::term::Term;

impl Controller {
    /// Applies one action of the plan, and updates `known`, what the controller knows of the secret.
    pub(crate) async fn apply(
        &self,
        term: &Term,
        (owner, grants): (&TokenOwner, &TokenGrants),
        lists: &Lists,
        action: Action,
        tokens: &[&TokenEntry],
        known: &mut Known,
    ) -> Result<(), Error> {
        let name = &*self.names.secret(owner);
        let vanished = |accessor: &AccessorId| Error::Vanished { accessor: accessor.clone() };
        let entry = |accessor: &AccessorId| {
            tokens.iter().find(|token| token.accessor_id == *accessor).ok_or_else(|| vanished(accessor))
        };
        match action {
            Action::Correct(accessor) => {
                let found = &entry(&accessor)?.grants;
                self.consul.update_token(term, &accessor, &corrected(grants, found)).await?;
                if is_described(grants, found) {
                    tracing::warn!("{owner}: token {accessor} did not have the rights that it should have; repaired");
                } else {
                    tracing::info!(
                        "{owner}: token {accessor} had another description, such as that of consul-ecs; repaired"
                    );
                }
                self.metrics.changed(Change::Repaired);
            }
            Action::Create => {
                let token = self.consul.create_token(term, grants).await?;
                tracing::info!("{owner}: token {} created", token.entry.accessor_id);
                self.metrics.changed(Change::Created);
                self.end_window(term, &token.entry.accessor_id, tokens, known).await?;
                self.store(term, name, &token, known).await?;
            }
            Action::Remake(accessor) => {
                let value = self.value(name, lists).await?.filter(|(_, value)| value.accessor_id == accessor);
                let (_, value) = value.ok_or_else(|| vanished(&accessor))?;
                let secret_id = Secret::new(value.token);
                let token = self.consul.create_token_as(term, grants, &accessor, &secret_id).await?;
                known.agrees_with(&token.entry);
                tracing::info!("{owner}: token {accessor} created again with the IDs that the secret {name} holds");
                self.metrics.changed(Change::Created);
            }
            Action::Store(accessor) => {
                let token = self.consul.token(&accessor).await?.ok_or_else(|| vanished(&accessor))?;
                self.end_window(term, &accessor, tokens, known).await?;
                self.store(term, name, &token, known).await?;
                tracing::warn!("{owner}: the secret {name} did not hold token {accessor}; repaired");
                self.metrics.changed(Change::Repaired);
            }
            Action::Rotate(accessor) => {
                let old = entry(&accessor)?;
                let token = self.consul.create_token(term, grants).await?;
                let by = &token.entry.accessor_id;
                // Mark the old token first: otherwise the next cycle would delete it as a duplicate while tasks use it.
                self.consul.update_token(term, &accessor, &superseded(&old.grants, by, SystemTime::now())).await?;
                self.store(term, name, &token, known).await?;
                tracing::info!("{owner}: token {accessor} superseded by {by}; the old token stays while tasks use it");
                self.metrics.changed(Change::Rotated);
            }
            Action::Clear => {
                known.version = Some(self.aws.put_secret_value(term, name, &Secret::new("{}")).await?);
                known.stored = Stored::Nothing;
                tracing::info!("{owner}: the secret {name} was set to {{}}");
            }
            Action::Delete(accessor) => {
                self.consul.delete_token(term, &accessor).await?;
                tracing::info!("{owner}: token {accessor} deleted");
                self.metrics.changed(Change::Deleted);
            }
        }
        Ok(())
    }

    /// Corrects `superseded-at` after an interrupted rotation: the secret held the old token until now.
    async fn end_window(
        &self,
        term: &Term,
        by: &AccessorId,
        tokens: &[&TokenEntry],
        known: &Known,
    ) -> Result<(), Error> {
        let Stored::Token { accessor, .. } = &known.stored else { return Ok(()) };
        let held = tokens.iter().find(|token| token.accessor_id == *accessor && is_superseded(token));
        match held {
            Some(held) => {
                let grants = superseded(&held.grants, by, SystemTime::now());
                self.consul.update_token(term, accessor, &grants).await?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Stores a token in the secret.
    async fn store(&self, term: &Term, name: &str, token: &consul_api::Token, known: &mut Known) -> Result<(), Error> {
        let accessor = token.entry.accessor_id.clone();
        let value = Value { accessor_id: accessor.clone(), token: token.secret_id.expose().to_owned() };
        let text = Secret::new(serde_json::to_string(&value).expect("two strings are JSON"));
        known.version = Some(self.aws.put_secret_value(term, name, &text).await?);
        known.stored = Stored::Token { accessor, agrees: true, since: SystemTime::now(), foreign: false };
        known.index = Some(token.entry.modify_index);
        Ok(())
    }
}
