//! What a controller remembers between cycles.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use consul_api::TokenEntry;
use sidecar_kit::backoff::Backoff;
use tokio::time::Instant;

use crate::aws::Followed;
use crate::gateways::Unlinked;
use crate::listings::Listings;
use crate::owner::TokenOwner;
use crate::plan::Stored;
use crate::policies::RightPolicies;
use crate::record::Record;
use crate::registered::Registered;
use crate::takeover::Former;
use crate::tasks::Tagged;

/// The first and the longest pause before a service is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What a controller remembers between the cycles of one term. A new leader has only the record, so it reads each secret once.
#[derive(Debug)]
pub struct Memory {
    /// When the tasks were listed, and whether completely.
    pub(crate) listings: Listings,
    /// The tags of running tasks.
    pub(crate) tagged: Tagged,
    /// What the controller knows of each secret.
    pub(crate) known: HashMap<TokenOwner, Known>,
    /// The owners whose last attempt failed.
    pub(crate) failures: HashMap<TokenOwner, Failure>,
    /// The services without a secret, whose tasks log in.
    pub(crate) without_secret: BTreeSet<TokenOwner>,
    /// The tasks of the last cycle.
    pub(crate) followed: Followed,
    /// The record in Consul; none before the first cycle has read it.
    pub(crate) record: Option<Record>,
    /// What consul-ecs left in Consul.
    pub(crate) former: Former,
    /// Prefixes of other controllers that collide with this one's and have been reported.
    pub(crate) colliding: BTreeSet<String>,
    /// Whether the controller knows the datacenter in which tokens and policies are written.
    pub(crate) acls_located: bool,
    /// The links of terminating gateways that have been reported, because Consul allows no service identity for the linked service.
    pub(crate) unlinked: Unlinked,
    /// The policies whose rules were right when they were last read.
    pub(crate) policies: RightPolicies,
    /// Which services without an agent are old; none before they were first needed.
    pub(crate) registered: Option<Registered>,
}

impl Memory {
    /// The memory of a controller that has just taken the lock, and that begins a cycle at this interval.
    #[must_use]
    pub fn of_new_term(poll_interval: Duration) -> Self {
        Self {
            listings: Listings::each(poll_interval),
            tagged: Tagged::default(),
            known: HashMap::new(),
            failures: HashMap::new(),
            without_secret: BTreeSet::new(),
            followed: Followed::default(),
            record: None,
            former: Former::default(),
            colliding: BTreeSet::new(),
            acls_located: false,
            unlinked: Unlinked::new(),
            policies: RightPolicies::new(),
            registered: None,
        }
    }
}

/// An owner whose last attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) backoff: Backoff,
    /// When the next attempt is due.
    pub(crate) again: Instant,
    /// The secret's version in the list at that time. If somebody has changed the secret since, the next attempt is due at once.
    pub(crate) listed: Option<String>,
}

impl Failure {
    pub(crate) fn new() -> Self {
        Self { backoff: Backoff::new(RETRY.0, RETRY.1), again: Instant::now(), listed: None }
    }
}

/// What the controller found when it last read or wrote a secret and its token.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The current version in the list at that time. The list may be late.
    pub(crate) listed: Option<String>,
    /// The version that was read or written; none if there is no secret.
    pub(crate) version: Option<String>,
    pub(crate) stored: Stored,
    /// The token's modify index; none if the secret holds another owner's token.
    pub(crate) index: Option<u64>,
}

impl Known {
    pub(crate) fn new(listed: Option<&String>, stored: Stored) -> Self {
        Self { listed: listed.cloned(), version: None, stored, index: None }
    }

    /// Notes that the secret holds this token.
    pub(crate) fn agrees_with(&mut self, token: &TokenEntry) {
        if let Stored::Token { agrees, .. } = &mut self.stored {
            *agrees = true;
        }
        self.index = Some(token.modify_index);
    }

    /// Whether the lists show no change since then.
    pub(crate) fn covers(&self, listed: Option<&String>, tokens: &[&TokenEntry]) -> bool {
        let Stored::Token { accessor, .. } = &self.stored else { return self.is_version(listed) };
        let index = tokens.iter().find(|token| token.accessor_id == *accessor).map(|token| token.modify_index);
        // No index: the token was deleted. The controller knows the secret's content without reading it again.
        self.is_version(listed) && (index.is_none() || index == self.index)
    }

    fn is_version(&self, listed: Option<&String>) -> bool {
        listed == self.listed.as_ref() || listed == self.version.as_ref()
    }
}
