//! The demand for tokens: which owners need theirs, and which are gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use crate::aws::Tasks;
use crate::controller::Rules;
use crate::memory::Memory;
use crate::observe::Lists;
use crate::owner::{Names, TokenOwner};
use crate::plan::Demand;
use crate::record::Record;
use crate::rotation::Running;
use crate::tasks::Desired;

/// The demand of each owner: of the consul-clients, and of each service that has or had tasks or has a token. Records when an owner lost
/// its last task, and removes the records of services that no longer exist.
pub(crate) fn demands(
    rules: &Rules,
    names: &Names,
    memory: &mut Memory,
    record: &mut Record,
    tasks: &Tasks,
    lists: &Lists,
    desired: &Desired,
) -> BTreeMap<TokenOwner, Demand> {
    // A stopping task that the controller never saw with its tags may have any of the tokens.
    let known = tasks.complete && memory.listings.complete_for(rules.stop_timeout);
    let running = |starts: &Vec<_>| if known { Running::These(starts.clone()) } else { Running::Unknown };
    let mut demands = BTreeMap::from([(TokenOwner::Clients, Demand::Needed(Running::Unknown))]);
    let service = |name: &String| TokenOwner::Service(name.clone());
    demands.extend(desired.services.iter().map(|(name, starts)| (service(name), Demand::Needed(running(starts)))));
    demands.extend(desired.refused.keys().map(|name| (service(name), Demand::Needed(Running::Unknown))));
    for owner in demands.keys() {
        record.set_without_tasks_since(owner, None);
    }
    // Include owners whose token somebody deleted, because their secrets still hold it.
    let mut without = memory.known.keys().chain(record.without_tasks()).cloned().collect::<BTreeSet<_>>();
    without.extend(lists.tokens.iter().filter_map(|token| names.owner(&token.grants)));
    without.retain(|owner| !demands.contains_key(owner));
    if !tasks.complete {
        // ECS lists a task without describing it, and the task may belong to one of these owners.
        demands.extend(without.into_iter().map(|owner| (owner, Demand::Idle)));
        return demands;
    }
    let now = SystemTime::now();
    let pause = memory.listings.take_incomplete();
    let listed = lists.tokens.iter().map(|token| token.accessor_id.as_str()).collect::<HashSet<_>>();
    for owner in without {
        let since = record.without_tasks_since(&owner);
        if since.is_none() {
            let grace = humantime::format_duration(rules.grace);
            tracing::info!("{owner}: has no tasks; if none starts, its token will be deleted after {grace}");
        }
        let since = since.map_or(now, |since| (since + pause).min(now));
        record.set_without_tasks_since(&owner, Some(since));
        let over = known && now.duration_since(since).unwrap_or_default() >= rules.grace;
        let gone = over && (!rules.keep_secrets || record.keep(&owner, &listed));
        demands.insert(owner, if gone { Demand::Gone } else { Demand::Idle });
    }
    record.retain(|owner| demands.contains_key(owner) || lists.secrets.contains_key(&names.secret(owner)));
    demands
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consul_api::TokenEntry;
    use tokio::time::advance;

    use super::*;
    use crate::gateways::Links;

    const SECOND: Duration = Duration::from_secs(1);
    const RULES: Rules = Rules {
        secrets: true,
        grace: Duration::from_secs(60),
        keep_secrets: false,
        stop_timeout: Duration::from_secs(30),
        rotate_after: None,
        concurrency: 1,
        deregister_nodes: false,
    };

    /// A cluster without tasks whose service web has the token `a`, also in its secret.
    struct Case {
        rules: Rules,
        names: Names,
        memory: Memory,
        record: Record,
        tasks: Tasks,
        lists: Lists,
    }

    impl Case {
        fn new(rules: Rules) -> Self {
            let names = Names {
                cluster: "arn:aws:ecs:eu-north-1:210987654321:cluster/blue".parse().unwrap(),
                prefix: "p".into(),
            };
            let token = TokenEntry {
                accessor_id: "a".into(),
                grants: names.grants(&web(), &BTreeSet::new()),
                create_time: "1970-01-01T00:00:00Z".into(),
                create_index: 1,
                modify_index: 1,
            };
            let mut record = Record::default();
            record.stored(&web(), &"a".into());
            let lists = Lists {
                secrets: BTreeMap::from([("p-web".to_owned(), Some("1".to_owned()))]),
                tokens: vec![token],
                policies: Vec::new(),
                links: Links::default(),
            };
            Self { rules, names, memory: Memory::of_new_term(SECOND), record, tasks: Tasks::default(), lists }
        }

        /// The demand of web in the next cycle.
        fn web(&mut self) -> Option<Demand> {
            self.memory.listings.listed(self.tasks.complete);
            let Self { rules, names, memory, record, tasks, lists } = self;
            demands(rules, names, memory, record, tasks, lists, &Desired::default()).remove(&web())
        }

        /// Records that web has had no tasks for this long.
        fn without_tasks_for(&mut self, time: Duration) {
            self.record.set_without_tasks_since(&web(), Some(SystemTime::now() - time));
        }
    }

    fn web() -> TokenOwner {
        TokenOwner::Service("web".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_keeps_tokens_until_the_stop_timeout() {
        let mut case = Case::new(RULES);
        case.without_tasks_for(2 * RULES.grace);
        advance(RULES.stop_timeout).await;
        assert_eq!(case.web(), Some(Demand::Idle), "no task was listed before");
        advance(RULES.stop_timeout - SECOND).await;
        assert_eq!(case.web(), Some(Demand::Idle));
        advance(SECOND).await;
        assert_eq!(case.web(), Some(Demand::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_pauses_while_the_task_list_is_incomplete() {
        let mut case = Case::new(Rules { stop_timeout: Duration::ZERO, ..RULES });
        case.without_tasks_for(40 * SECOND);
        assert_eq!(case.web(), Some(Demand::Idle));
        let since = case.record.without_tasks_since(&web()).unwrap();
        case.tasks.complete = false;
        for _ in 0..2 {
            advance(5 * SECOND).await;
            assert_eq!(case.web(), Some(Demand::Idle));
        }
        case.tasks.complete = true;
        advance(5 * SECOND).await;
        assert_eq!(case.web(), Some(Demand::Idle));
        assert_eq!(case.record.without_tasks_since(&web()), Some(since + 15 * SECOND));
        assert_eq!(case.web(), Some(Demand::Idle));
        assert_eq!(case.record.without_tasks_since(&web()), Some(since + 15 * SECOND), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_keeps_its_value_only_if_the_controller_deleted_the_token() {
        let mut case = Case::new(Rules { keep_secrets: true, stop_timeout: Duration::ZERO, ..RULES });
        let kept = |case: &Case| case.record.of(&web()).unwrap().kept.clone();
        case.without_tasks_for(2 * RULES.grace);
        assert_eq!(case.web(), Some(Demand::Idle), "Consul has no note yet");
        assert_eq!(kept(&case), Some("a".into()));
        // Consul has deleted it since: that was the controller.
        case.lists.tokens.clear();
        let _ = case.web();
        assert_eq!(kept(&case), Some("a".into()));

        let mut case = Case::new(case.rules);
        case.without_tasks_for(2 * RULES.grace);
        case.lists.tokens.clear();
        let _ = case.web();
        assert_eq!(kept(&case), None, "somebody deleted it within the grace");
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_is_removed_with_the_last_task_token_and_secret() {
        let mut case = Case::new(Rules { keep_secrets: true, ..RULES });
        let has = |case: &Case| case.record.of(&web()).is_some();
        case.lists.secrets.clear();
        assert_eq!(case.web(), Some(Demand::Idle));
        assert!(has(&case), "it has a token");
        case.record.set_without_tasks_since(&web(), None);
        case.lists.tokens.clear();
        case.lists.secrets.insert("p-web".into(), None);
        assert_eq!(case.web(), None);
        assert!(has(&case), "it has a secret");
        case.lists.secrets.clear();
        case.tasks.complete = false;
        assert_eq!(case.web(), None);
        assert!(has(&case), "it may have a task");
        case.tasks.complete = true;
        assert_eq!(case.web(), None);
        assert!(!has(&case));
    }
}
