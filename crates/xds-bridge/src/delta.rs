//! What one Envoy has and wants, and so what to send it next: a state machine without input or output of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::messages::{DeltaRequest, DeltaResponse};
use crate::resource::{Kind, Resource};

/// The name by which a request asks for everything.
/// (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return>)
const WILDCARD: &str = "*";

/// One ADS stream of one Envoy.
///
/// A response goes out when Envoy has answered the last one of its kind, and those of the kinds it builds on: listeners
/// and routes wait for clusters and endpoints, removals for everything. Endpoints alone don't wait for clusters: Envoy
/// acknowledges clusters only when none is left warming, and they warm until they have their endpoints
/// (`ClusterManagerImpl::updateClusterCounts` in Envoy's `cluster_manager_impl.cc`). What Envoy refused counts as sent,
/// so it is not sent again until Consul changes it.
#[derive(Debug, Default)]
pub struct Delta {
    sides: [Side; 4],
    responses: u64,
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Side {
    /// Envoy has asked for the kind on this stream.
    asked: bool,
    /// Envoy takes all there are.
    wildcard: bool,
    /// What Envoy asked for by name.
    names: BTreeSet<String>,
    /// The versions Envoy has, or refused.
    sent: BTreeMap<String, String>,
    /// Sent again whatever version Envoy has.
    owed: BTreeSet<String>,
    /// Envoy has nothing yet and waits for an answer, even an empty one.
    waiting: bool,
    /// The response that Envoy has not answered yet.
    under_way: Option<String>,
    /// All that Consul has; none until it said.
    consul: Option<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    version: String,
    resources: BTreeMap<String, Resource>,
}

/// What a request of Envoy's comes to, besides what [`Delta::respond`] makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// The first request for a kind: Consul has to be asked for it.
    Asks(Kind),
    /// The response under way was refused, and why.
    Refuses(Kind, String),
}

impl Side {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn stale(&self, resource: &Resource) -> bool {
        self.owed.contains(&resource.name) || self.sent.get(&resource.name) != Some(&resource.version)
    }

    fn changed(&self) -> Vec<Resource> {
        let resources = self.consul.iter().flat_map(|snapshot| snapshot.resources.values());
        resources.filter(|resource| self.wants(&resource.name) && self.stale(resource)).cloned().collect()
    }

    fn gone(&self) -> Vec<String> {
        let Some(snapshot) = &self.consul else { return Vec::new() };
        self.sent.keys().filter(|name| !snapshot.resources.contains_key(*name)).cloned().collect()
    }
}

impl Delta {
    /// Envoy said something about `kind`.
    pub fn envoy(&mut self, kind: Kind, request: DeltaRequest) -> Heard {
        let side = &mut self.sides[kind as usize];
        let first = !side.asked;
        if first {
            side.asked = true;
            // Naming nothing in the first request is how older clients ask for everything.
            side.wildcard = kind.is_wildcard() && request.subscribe.is_empty();
            side.waiting = kind.is_wildcard() && request.initial_versions.is_empty();
            side.sent = request.initial_versions;
        }
        for name in request.subscribe {
            if name == WILDCARD {
                side.wildcard = true;
            } else {
                // Asking again for what it has had on this stream means that it wants it again.
                if !first && side.sent.contains_key(&name) {
                    side.owed.insert(name.clone());
                }
                side.names.insert(name);
            }
        }
        for name in request.unsubscribe {
            if name == WILDCARD {
                side.wildcard = false;
            }
            side.names.remove(&name);
            if !side.wildcard {
                side.sent.remove(&name);
                side.owed.remove(&name);
            }
        }
        let answered = side.under_way.as_ref().is_some_and(|nonce| *nonce == request.nonce);
        if answered {
            side.under_way = None;
        }
        match request.error {
            Some(reason) if answered => Heard::Refuses(kind, reason),
            _ if first => Heard::Asks(kind),
            _ => Heard::Nothing,
        }
    }

    /// Consul has these resources of a kind, and no others. `version` is Consul's.
    pub fn consul(&mut self, kind: Kind, version: String, resources: Vec<Resource>) {
        let mut by_name = BTreeMap::new();
        for resource in resources {
            // Consul 1.8.7 sends a cluster once for each upstream that leads to it. Envoy always took the first.
            by_name.entry(resource.name.clone()).or_insert(resource);
        }
        self.sides[kind as usize].consul = Some(Snapshot { version, resources: by_name });
    }

    /// The next response to Envoy, if there is one to send now. It counts as sent.
    pub fn respond(&mut self) -> Option<DeltaResponse> {
        for kind in Kind::ALL {
            if self.waits(kind) {
                continue;
            }
            let side = &mut self.sides[kind as usize];
            let changed = side.changed();
            let empty_answer = side.waiting && side.consul.is_some();
            if changed.is_empty() && !empty_answer {
                continue;
            }
            side.waiting = false;
            for resource in &changed {
                side.owed.remove(&resource.name);
                side.sent.insert(resource.name.clone(), resource.version.clone());
            }
            // Envoy warms the new cluster or listener until it gets these, but doesn't ask for what it has.
            if let Some(needed) = kind.needs() {
                let names = changed.iter().flat_map(|resource| resource.needs.iter().cloned());
                self.sides[needed as usize].owed.extend(names);
            }
            return Some(self.send(kind, changed, Vec::new()));
        }
        if !self.is_whole() || self.sides.iter().any(|side| side.under_way.is_some()) {
            return None;
        }
        // Only what Envoy takes all of: it drops endpoints and routes by itself with the cluster or listener that asked
        // for them, and ignores a removal. Consul leaves endpoints out as long as it doesn't know them.
        for kind in [Kind::Listener, Kind::Cluster] {
            let side = &mut self.sides[kind as usize];
            let gone = side.gone();
            if !gone.is_empty() {
                side.sent.retain(|name, _| !gone.contains(name));
                return Some(self.send(kind, Vec::new(), gone));
            }
        }
        None
    }

    fn waits(&self, kind: Kind) -> bool {
        let for_these: &[Kind] = match kind {
            Kind::Cluster => &[Kind::Cluster],
            Kind::Endpoint => &[Kind::Endpoint],
            Kind::Listener => &[Kind::Cluster, Kind::Endpoint, Kind::Listener],
            Kind::Route => &Kind::ALL,
        };
        for_these.iter().any(|kind| self.sides[*kind as usize].under_way.is_some())
    }

    /// Whether clusters and listeners are of the same configuration. Consul 1.8.7 sends clusters first and listeners last
    /// (`agent/xds/server.go`); in between, a listener may still use a cluster that is gone.
    fn is_whole(&self) -> bool {
        let version = |kind: Kind| self.sides[kind as usize].consul.as_ref().map(|snapshot| &snapshot.version);
        version(Kind::Cluster).is_some() && version(Kind::Cluster) == version(Kind::Listener)
    }

    fn send(&mut self, kind: Kind, resources: Vec<Resource>, removed: Vec<String>) -> DeltaResponse {
        self.responses += 1;
        let nonce = self.responses.to_string();
        self.sides[kind as usize].under_way = Some(nonce.clone());
        DeltaResponse { kind, nonce, resources, removed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, body: &str, needs: &[&str]) -> Resource {
        Resource::new(name.into(), body.into(), needs.iter().map(|name| (*name).into()).collect())
    }

    fn version(body: &str) -> String {
        resource("", body, &[]).version
    }

    fn subscribe(names: &[&str]) -> DeltaRequest {
        DeltaRequest { subscribe: names.iter().map(|name| (*name).into()).collect(), ..Default::default() }
    }

    /// An Envoy with two clusters, their endpoints, a listener and its route, all acknowledged.
    fn settled() -> Delta {
        let mut delta = Delta::default();
        delta.envoy(Kind::Cluster, subscribe(&[]));
        delta.envoy(Kind::Endpoint, subscribe(&["a", "b"]));
        delta.envoy(Kind::Listener, subscribe(&["*"]));
        delta.envoy(Kind::Route, subscribe(&["r"]));
        delta.consul(Kind::Cluster, "1".into(), vec![resource("a", "a1", &["a"]), resource("b", "b1", &["b"])]);
        delta.consul(Kind::Endpoint, "1".into(), vec![resource("a", "ea1", &[]), resource("b", "eb1", &[])]);
        delta.consul(Kind::Listener, "1".into(), vec![resource("l", "l1", &["r"])]);
        delta.consul(Kind::Route, "1".into(), vec![resource("r", "r1", &[])]);
        drain(&mut delta);
        delta
    }

    /// Acknowledges all there is; `cluster +a +b` or `cluster -a` for each response.
    fn drain(delta: &mut Delta) -> Vec<String> {
        let mut log = Vec::new();
        while let Some(response) = delta.respond() {
            let mut line = response.kind.to_string();
            response.resources.iter().for_each(|resource| line += &format!(" +{}", resource.name));
            response.removed.iter().for_each(|name| line += &format!(" -{name}"));
            log.push(line);
            assert!(log.len() < 10, "endless: {log:?}");
            let ack = DeltaRequest { nonce: response.nonce, ..Default::default() };
            assert_eq!(delta.envoy(response.kind, ack), Heard::Nothing);
        }
        log
    }

    #[test]
    fn first_comes_what_others_name() {
        let mut delta = Delta::default();
        assert_eq!(delta.envoy(Kind::Cluster, subscribe(&[])), Heard::Asks(Kind::Cluster));
        assert_eq!(delta.envoy(Kind::Listener, subscribe(&[])), Heard::Asks(Kind::Listener));
        assert_eq!(delta.envoy(Kind::Route, subscribe(&["r"])), Heard::Asks(Kind::Route));
        assert_eq!(delta.envoy(Kind::Endpoint, subscribe(&["a"])), Heard::Asks(Kind::Endpoint));
        assert_eq!(delta.envoy(Kind::Endpoint, subscribe(&["b"])), Heard::Nothing);
        delta.consul(Kind::Route, "1".into(), vec![resource("r", "r1", &[]), resource("not asked for", "x", &[])]);
        delta.consul(Kind::Listener, "1".into(), vec![resource("l", "l1", &["r"])]);
        delta.consul(Kind::Endpoint, "1".into(), vec![resource("a", "ea1", &[]), resource("b", "eb1", &[])]);
        delta.consul(Kind::Cluster, "1".into(), vec![resource("a", "a1", &["a"]), resource("b", "b1", &["b"])]);
        assert_eq!(drain(&mut delta), ["cluster +a +b", "endpoint +a +b", "listener +l", "route +r"]);
    }

    #[test]
    fn endpoints_follow_clusters_that_envoy_has_not_acknowledged_and_the_rest_waits() {
        let mut delta = settled();
        delta.consul(Kind::Cluster, "2".into(), vec![resource("a", "a2", &["a"])]);
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "l2", &["r"])]);
        let clusters = delta.respond().unwrap();
        let endpoints = delta.respond().unwrap();
        assert_eq!((clusters.kind, endpoints.kind), (Kind::Cluster, Kind::Endpoint));
        assert_eq!(delta.respond(), None);
        delta.consul(Kind::Cluster, "3".into(), vec![resource("a", "a3", &["a"])]);
        delta.consul(Kind::Listener, "3".into(), vec![resource("l", "l2", &["r"])]);
        let ack = |response: DeltaResponse| DeltaRequest { nonce: response.nonce, ..Default::default() };
        delta.envoy(Kind::Endpoint, ack(endpoints));
        assert_eq!(delta.respond(), None, "one response of a kind at a time");
        delta.envoy(Kind::Cluster, ack(clusters));
        assert_eq!(drain(&mut delta), ["cluster +a", "endpoint +a", "listener +l", "route +r", "cluster -b"]);
    }

    #[test]
    fn one_changed_resource_is_sent_alone() {
        let mut delta = settled();
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[]), resource("b", "eb2", &[])]);
        assert_eq!(drain(&mut delta), ["endpoint +b"]);
        delta.consul(Kind::Endpoint, "3".into(), vec![resource("b", "eb2", &[]), resource("a", "ea1", &[])]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn a_cluster_that_is_sent_again_brings_its_endpoints_and_a_listener_its_routes() {
        let mut delta = settled();
        delta.consul(Kind::Cluster, "2".into(), vec![resource("a", "a1", &["a"]), resource("b", "b2", &["b"])]);
        assert_eq!(drain(&mut delta), ["cluster +b", "endpoint +b"]);
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "l2", &["r"])]);
        assert_eq!(drain(&mut delta), ["listener +l", "route +r"]);
    }

    #[test]
    fn removals_come_last_and_only_when_the_listeners_that_go_with_the_clusters_are_known() {
        let mut delta = settled();
        delta.consul(Kind::Cluster, "2".into(), vec![resource("a", "a2", &["a"])]);
        assert_eq!(drain(&mut delta), ["cluster +a", "endpoint +a"], "Consul has not said which listeners stay");
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[])]);
        delta.consul(Kind::Listener, "2".into(), vec![resource("m", "m1", &[])]);
        assert_eq!(drain(&mut delta), ["listener +m", "listener -l", "cluster -b"]);
    }

    #[test]
    fn a_resource_that_comes_back_is_sent_again() {
        let mut delta = settled();
        let all = || vec![resource("a", "a1", &["a"]), resource("b", "b1", &["b"])];
        delta.consul(Kind::Cluster, "2".into(), all()[..1].to_vec());
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "l1", &["r"])]);
        assert_eq!(drain(&mut delta), ["cluster -b"]);
        let gone = DeltaRequest { unsubscribe: vec!["b".into()], ..Default::default() };
        delta.envoy(Kind::Endpoint, gone);
        delta.consul(Kind::Cluster, "3".into(), all());
        assert_eq!(drain(&mut delta), ["cluster +b"], "its endpoints when Envoy asks for them");
        delta.envoy(Kind::Endpoint, subscribe(&["b"]));
        assert_eq!(drain(&mut delta), ["endpoint +b"]);
    }

    #[test]
    fn endpoints_that_consul_does_not_know_yet_are_not_removed() {
        let mut delta = settled();
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[])]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn after_unsubscribing_nothing_comes_until_it_is_asked_for_again() {
        let mut delta = settled();
        let request = DeltaRequest { unsubscribe: vec!["b".into()], ..Default::default() };
        delta.envoy(Kind::Endpoint, request);
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea2", &[]), resource("b", "eb2", &[])]);
        assert_eq!(drain(&mut delta), ["endpoint +a"]);
        delta.envoy(Kind::Endpoint, subscribe(&["b"]));
        assert_eq!(drain(&mut delta), ["endpoint +b"]);
        delta.envoy(Kind::Endpoint, subscribe(&["b"]));
        assert_eq!(drain(&mut delta), ["endpoint +b"], "asked for once more");
    }

    fn reconnected(clusters: &[(&str, &str)], endpoints: &[(&str, &str)]) -> Delta {
        let known = |versions: &[(&str, &str)]| {
            versions.iter().map(|(name, body)| ((*name).to_owned(), version(body))).collect()
        };
        let mut delta = Delta::default();
        let request = DeltaRequest { initial_versions: known(clusters), ..subscribe(&[]) };
        delta.envoy(Kind::Cluster, request);
        delta.consul(Kind::Cluster, "1".into(), vec![resource("a", "a1", &["a"]), resource("b", "b1", &["b"])]);
        let first = delta.respond();
        let request = DeltaRequest { initial_versions: known(endpoints), ..subscribe(&["a", "b"]) };
        delta.envoy(Kind::Endpoint, request);
        let request = DeltaRequest { initial_versions: known(&[("l", "l1")]), ..subscribe(&[]) };
        delta.envoy(Kind::Listener, request);
        delta.consul(Kind::Endpoint, "1".into(), vec![resource("a", "ea1", &[]), resource("b", "eb1", &[])]);
        delta.consul(Kind::Listener, "1".into(), vec![resource("l", "l1", &[])]);
        if let Some(first) = first {
            let ack = DeltaRequest { nonce: first.nonce, ..Default::default() };
            delta.envoy(Kind::Cluster, ack);
        }
        delta
    }

    #[test]
    fn a_reconnect_sends_nothing_that_envoy_has() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b1")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn a_reconnect_sends_what_changed_meanwhile_with_what_it_needs_even_if_envoy_has_that() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b0")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), ["endpoint +b"], "after the cluster");
    }

    #[test]
    fn a_reconnect_removes_what_went_meanwhile() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b1"), ("c", "c1")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), ["cluster -c"]);
    }

    #[test]
    fn what_envoy_refused_is_not_repeated_and_a_later_version_is_sent() {
        let mut delta = settled();
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "bad", &[])]);
        let response = delta.respond().unwrap();
        let stale = DeltaRequest { nonce: "another".into(), error: Some("late".into()), ..Default::default() };
        assert_eq!(delta.envoy(Kind::Listener, stale), Heard::Nothing);
        let nack = DeltaRequest { nonce: response.nonce, error: Some("no such filter".into()), ..Default::default() };
        assert_eq!(delta.envoy(Kind::Listener, nack), Heard::Refuses(Kind::Listener, "no such filter".into()));
        assert_eq!(drain(&mut delta), [""; 0]);
        delta.consul(Kind::Listener, "3".into(), vec![resource("l", "l1", &[])]);
        assert_eq!(drain(&mut delta), ["listener +l"], "back to what Envoy had is a change too");
    }

    #[test]
    fn an_envoy_that_starts_hears_that_there_is_nothing_and_one_that_comes_back_does_not() {
        let mut delta = Delta::default();
        delta.envoy(Kind::Cluster, subscribe(&[]));
        assert_eq!(drain(&mut delta), [""; 0], "Consul has not answered");
        delta.consul(Kind::Cluster, "1".into(), Vec::new());
        assert_eq!(drain(&mut delta), ["cluster"]);
        delta.consul(Kind::Cluster, "2".into(), Vec::new());
        assert_eq!(drain(&mut delta), [""; 0]);
    }
}
