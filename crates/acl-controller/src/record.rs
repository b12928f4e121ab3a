//! The record that the controllers of one cluster keep in Consul, so that a new leader knows it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use consul_api::{AccessorId, KeyValue, KeyWrite};
use futures_util::stream::{self, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::consul::Consul;
use crate::error::Error;
use crate::owner::{Names, TokenOwner};
use crate::term::Term;

/// How many accessor IDs the record keeps for one owner. Somebody may restore an earlier value of the secret.
const KEPT: usize = 16;

/// The record of one token owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The accessor IDs of the tokens that were stored in the owner's secret, the latest last. If the secret holds one of them and
    /// Consul does not list it, somebody deleted that token, and the secret may be overwritten.
    #[serde(default)]
    pub accessors: Vec<AccessorId>,
    /// When the owner lost its last task.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339")]
    pub without_tasks_since: Option<SystemTime>,
    /// The accessor ID of the token that the controller deletes while the secret keeps it (`--keep-secrets`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<AccessorId>,
}

pub(crate) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(&humantime::format_rfc3339_millis(*time)),
            None => serializer.serialize_none(),
        }
    }

    /// A malformed time counts as none.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(text.and_then(|text| humantime::parse_rfc3339(&text).ok()))
    }
}

/// The notes of all owners: as they should be, and as Consul has them.
#[derive(Debug, Default)]
pub struct Record {
    notes: HashMap<TokenOwner, Note>,
    written: HashMap<TokenOwner, Note>,
}

impl Record {
    /// Reads the record. A malformed note counts as none.
    ///
    /// # Errors
    /// When Consul does not answer.
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

    /// The note of an owner.
    #[must_use]
    pub fn of(&self, owner: &TokenOwner) -> Option<&Note> {
        self.notes.get(owner)
    }

    /// Whether the record has this token for an owner.
    #[must_use]
    pub fn has(&self, owner: &TokenOwner, accessor: &AccessorId) -> bool {
        self.of(owner).is_some_and(|note| note.accessors.iter().any(|noted| noted == accessor))
    }

    /// Records that an owner's secret holds this token.
    pub fn stored(&mut self, owner: &TokenOwner, accessor: &AccessorId) {
        let note = self.notes.entry(owner.clone()).or_default();
        if note.accessors.last().is_some_and(|last| last == accessor) {
            return;
        }
        note.accessors.retain(|noted| noted != accessor);
        note.accessors.push(accessor.clone());
        let surplus = note.accessors.len().saturating_sub(KEPT);
        note.accessors.drain(..surplus);
    }

    /// The owners that the record says have no tasks.
    pub fn without_tasks(&self) -> impl Iterator<Item = &TokenOwner> {
        self.notes.iter().filter(|(_, note)| note.without_tasks_since.is_some()).map(|(owner, _)| owner)
    }

    /// When an owner lost its last task.
    #[must_use]
    pub fn without_tasks_since(&self, owner: &TokenOwner) -> Option<SystemTime> {
        self.of(owner)?.without_tasks_since
    }

    /// Records when an owner lost its last task; none if it has tasks or is gone.
    pub fn set_without_tasks_since(&mut self, owner: &TokenOwner, since: Option<SystemTime>) {
        if since.is_some() || self.notes.contains_key(owner) {
            self.notes.entry(owner.clone()).or_default().without_tasks_since = since;
        }
    }

    /// Notes that the controller is about to delete the token in an owner's secret, and that the secret keeps its value. A token that
    /// Consul does not list is not noted: somebody else deleted it, so it is never created again. Returns whether Consul already has
    /// this note. Only then may the token be deleted: without the note, the controller could not create it again with the same IDs.
    pub fn keep(&mut self, owner: &TokenOwner, listed: &HashSet<&str>) -> bool {
        let Some(note) = self.notes.get_mut(owner) else { return true };
        if let Some(accessor) = note.accessors.last().filter(|accessor| listed.contains(accessor.as_str())) {
            note.kept = Some(accessor.clone());
        }
        self.written.get(owner).is_some_and(|written| written.kept == note.kept)
    }

    /// Removes the note of [`Record::keep`], because the token exists again.
    pub fn exists_again(&mut self, owner: &TokenOwner, accessor: &AccessorId) {
        if let Some(note) = self.notes.get_mut(owner)
            && note.kept.as_ref() == Some(accessor)
        {
            note.kept = None;
        }
    }

    /// Removes an owner.
    pub fn remove(&mut self, owner: &TokenOwner) {
        self.notes.remove(owner);
    }

    /// Removes the services for which `exists` is false. The consul-clients stay.
    pub fn retain(&mut self, exists: impl Fn(&TokenOwner) -> bool) {
        self.notes.retain(|owner, _| *owner == TokenOwner::Clients || exists(owner));
    }

    /// Writes what has changed since the last write.
    ///
    /// # Errors
    /// When Consul refuses it. The next call tries again.
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
