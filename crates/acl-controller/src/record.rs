//! What the controllers of one cluster note in Consul beside their lock, so that the next one knows it.

use std::collections::{BTreeMap, HashMap};

use consul_api::{KeyValue, KeyWrite};
use futures_util::stream::{self, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::consul::Consul;
use crate::error::Error;
use crate::owner::{Names, TokenOwner};
use crate::term::Term;

/// How many accessor IDs are kept of one owner: somebody may put an earlier value of the secret back.
const KEPT: usize = 16;

/// What is noted of one token owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The accessor IDs of tokens that were stored in the owner's secret, the latest last. A secret that holds one which Consul
    /// doesn't list holds a token that somebody deleted, and may be overwritten.
    #[serde(default)]
    pub accessors: Vec<String>,
}

/// All notes, as they are to be and as Consul has them.
#[derive(Debug, Default)]
pub struct Record {
    notes: HashMap<TokenOwner, Note>,
    written: HashMap<TokenOwner, Note>,
}

impl Record {
    /// What earlier controllers have noted. A note that can't be read counts as none.
    ///
    /// # Errors
    /// When Consul can't be asked.
    pub async fn read(consul: &Consul, names: &Names) -> Result<Self, Error> {
        let below = names.key("owners/");
        let mut notes = HashMap::new();
        for KeyValue { key, value } in consul.keys_below(&below).await? {
            let owner = match key.strip_prefix(&below).map(|rest| rest.split_once('/')) {
                Some(None) if key.ends_with("/clients") => TokenOwner::Clients,
                Some(Some(("services", name))) => TokenOwner::Service(name.to_owned()),
                _ => continue,
            };
            if let Ok(note) = serde_json::from_str(&value) {
                notes.insert(owner, note);
            }
        }
        Ok(Self { written: notes.clone(), notes })
    }

    /// What is noted of an owner.
    #[must_use]
    pub fn of(&self, owner: &TokenOwner) -> Option<&Note> {
        self.notes.get(owner)
    }

    /// Whether a token was stored in an owner's secret.
    #[must_use]
    pub fn has(&self, owner: &TokenOwner, accessor: &str) -> bool {
        self.of(owner).is_some_and(|note| note.accessors.iter().any(|noted| noted == accessor))
    }

    /// Notes that a token is stored in an owner's secret.
    pub fn stored(&mut self, owner: &TokenOwner, accessor: &str) {
        let note = self.notes.entry(owner.clone()).or_default();
        if note.accessors.last().is_some_and(|last| last == accessor) {
            return;
        }
        note.accessors.retain(|noted| noted != accessor);
        note.accessors.push(accessor.to_owned());
        let surplus = note.accessors.len().saturating_sub(KEPT);
        note.accessors.drain(..surplus);
    }

    /// Forgets an owner.
    pub fn remove(&mut self, owner: &TokenOwner) {
        self.notes.remove(owner);
    }

    /// Writes what has changed since the last time.
    ///
    /// # Errors
    /// When Consul doesn't take it; the next call tries again.
    pub async fn write(&mut self, consul: &Consul, term: &Term, names: &Names) -> Result<(), Error> {
        let owners = self.notes.keys().chain(self.written.keys());
        let changed = owners.filter(|owner| self.notes.get(owner) != self.written.get(owner));
        let changed = changed.map(|owner| (owner.clone(), self.notes.get(owner).cloned())).collect::<BTreeMap<_, _>>();
        let writes = changed.iter().map(|(owner, note)| KeyWrite {
            key: match owner {
                TokenOwner::Clients => names.key("owners/clients"),
                TokenOwner::Service(name) => names.key(&format!("owners/services/{name}")),
            },
            value: note.as_ref().map(|note| serde_json::to_string(note).expect("a note is JSON")),
        });
        let writes = writes.collect::<Vec<_>>();
        stream::iter(writes.chunks(consul_api::Client::MOST_WRITES).map(Ok))
            .try_for_each_concurrent(8, |batch| async { consul.write_keys(term, batch).await.map_err(Error::from) })
            .await?;
        for (owner, note) in changed {
            match note {
                Some(note) => self.written.insert(owner, note),
                None => self.written.remove(&owner),
            };
        }
        Ok(())
    }
}
