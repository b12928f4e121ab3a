//! Which token owners need their tokens, and which no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::cycle::{Controller, Memory};
use crate::observe::Lists;
use crate::owner::TokenOwner;
use crate::plan::Demand;
use crate::record::Record;
use crate::rotation::Running;
use crate::tasks::Desired;

impl Controller {
    /// Every token owner to work on: each service that has tasks, had some or has a token, and the consul-clients. Notes since when
    /// an owner has no tasks.
    pub(crate) fn demands(
        &self,
        memory: &mut Memory,
        record: &mut Record,
        lists: &Lists,
        desired: &Desired,
    ) -> BTreeMap<TokenOwner, Demand> {
        // A stopping task that the controller never saw with its tags may have any of the replaced tokens.
        let known = lists.tasks.complete && memory.began.elapsed() >= self.rules.stop_timeout;
        let running = |starts: &Vec<_>| if known { Running::These(starts.clone()) } else { Running::Unknown };
        let mut demands = BTreeMap::from([(TokenOwner::Clients, Demand::Needed(Running::Unknown))]);
        let service = |name: &String| TokenOwner::Service(name.clone());
        demands.extend(desired.services.iter().map(|(name, starts)| (service(name), Demand::Needed(running(starts)))));
        demands.extend(desired.refused.keys().map(|name| (service(name), Demand::Needed(Running::Unknown))));
        for owner in demands.keys() {
            record.set_without_tasks_since(owner, None);
        }
        // Also those whose token somebody has deleted: their secrets hold it still.
        let mut without = memory.known.keys().chain(record.without_tasks()).cloned().collect::<BTreeSet<_>>();
        without.extend(lists.tokens.iter().filter_map(|token| self.names.owner(&token.grants)));
        without.retain(|owner| !demands.contains_key(owner));
        if !lists.tasks.complete {
            // What was not told may be a task.
            memory.incomplete = true;
            demands.extend(without.into_iter().map(|owner| (owner, Demand::Idle)));
            return demands;
        }
        let now = SystemTime::now();
        let anew = std::mem::take(&mut memory.incomplete);
        for owner in without {
            let since = record.without_tasks_since(&owner);
            if since.is_none() {
                let grace = humantime::format_duration(self.rules.grace);
                tracing::info!("{owner}: has no tasks; its token goes in {grace}");
            }
            let since = since.filter(|_| !anew).unwrap_or(now);
            record.set_without_tasks_since(&owner, Some(since));
            let over = now.duration_since(since).unwrap_or_default() >= self.rules.grace;
            let gone = over && (!self.rules.keep_secrets || record.keep(&owner));
            demands.insert(owner, if gone { Demand::Gone } else { Demand::Idle });
        }
        demands
    }
}
