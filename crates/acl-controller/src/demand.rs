//! Which token owners need their tokens, and which no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use tokio::time::Instant;

use crate::cycle::{Controller, Memory};
use crate::observe::Lists;
use crate::owner::TokenOwner;
use crate::plan::Demand;
use crate::tasks::Desired;

impl Controller {
    /// Every token owner to work on: each service that has tasks, had some or has a token, and the consul-clients. Remembers since
    /// when an owner has no tasks.
    pub(crate) fn demands(
        &self,
        memory: &mut Memory,
        lists: &Lists,
        desired: &Desired,
    ) -> BTreeMap<TokenOwner, Demand> {
        let mut demands = BTreeMap::from([(TokenOwner::Clients, Demand::Since(SystemTime::UNIX_EPOCH))]);
        demands.extend(
            desired.services.iter().map(|(name, since)| (TokenOwner::Service(name.clone()), Demand::Since(*since))),
        );
        let refused =
            desired.refused.keys().map(|name| (TokenOwner::Service(name.clone()), Demand::Since(SystemTime::now())));
        demands.extend(refused);
        // Also those whose token somebody has deleted: their secrets hold it still.
        let mut without = memory.known.keys().chain(memory.without_tasks.keys()).cloned().collect::<BTreeSet<_>>();
        without.extend(lists.tokens.iter().filter_map(|token| self.names.owner(&token.grants)));
        without.retain(|owner| !demands.contains_key(owner));
        memory.without_tasks.retain(|owner, _| without.contains(owner));
        if !lists.tasks.complete {
            // What was not told may be a task, and an old one.
            memory.without_tasks.values_mut().for_each(|since| *since = Instant::now());
            for demand in demands.values_mut() {
                *demand = Demand::Since(SystemTime::UNIX_EPOCH);
            }
            demands.extend(without.into_iter().map(|owner| (owner, Demand::Idle)));
            return demands;
        }
        for owner in without {
            let since = memory.without_tasks.entry(owner.clone()).or_insert_with(|| {
                let grace = humantime::format_duration(self.rules.grace);
                tracing::info!("{owner}: has no tasks; its token goes in {grace}");
                Instant::now()
            });
            let over = since.elapsed() >= self.rules.grace;
            demands.insert(owner, if over { Demand::Gone } else { Demand::Idle });
        }
        demands
    }
}
