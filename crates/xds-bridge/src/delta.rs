//! Decides what one Envoy gets next, from what it has and what it wants. This is a state machine without I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::messages::{DeltaRequest, DeltaResponse};
use crate::resource::{Kind, Resource};

/// The name with which a request asks for all resources.
/// (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return>)
const WILDCARD: &str = "*";

/// The state of one ADS stream of one Envoy.
///
/// A response waits until Envoy has answered the last response of its kind. Listeners also wait for the answers to clusters and
/// endpoints. Routes and removals wait for all answers. Endpoints do not wait for clusters: Envoy acknowledges clusters only
/// when all have their endpoints (`ClusterManagerImpl::updateClusterCounts` in Envoy's `cluster_manager_impl.cc`). A refused
/// resource counts as sent, so it is not sent again until Consul changes it.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    states: [KindState; 4],
    responses: u64,
}

/// The state of one kind.
#[derive(Debug, Default)]
struct KindState {
    /// Whether Envoy has asked for the kind on this stream.
    asked: bool,
    /// Whether Envoy wants all resources.
    wildcard: bool,
    /// The names that Envoy asked for.
    names: BTreeSet<String>,
    /// The versions that Envoy has or has refused.
    sent: BTreeMap<String, String>,
    /// The resources that must be sent again, even if Envoy has the same version.
    owed: BTreeSet<String>,
    /// Whether Envoy has nothing yet and waits for a response, even an empty one.
    first_answer_due: bool,
    /// The nonce of the response that Envoy has not answered yet.
    under_way: Option<String>,
    /// All resources that Consul has; `None` before its first response.
    consul: Option<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    version: String,
    resources: BTreeMap<String, Resource>,
}

/// What the relay must do for a request of Envoy, before it calls [`Delta::respond`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing.
    Nothing,
    /// Ask Consul for this kind: Envoy asks for it for the first time.
    Subscribed(Kind),
    /// Log the refusal of the last response of this kind, with Envoy's reason.
    Refused(Kind, String),
}

impl KindState {
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
    /// Handles a request of Envoy about `kind`.
    pub(crate) fn envoy(&mut self, kind: Kind, request: DeltaRequest) -> Outcome {
        let state = &mut self.states[kind as usize];
        let first = !state.asked;
        if first {
            state.asked = true;
            // A first request without names asks for all resources, as older clients do.
            state.wildcard = kind.is_wildcard() && request.subscribe.is_empty();
            state.first_answer_due = kind.is_wildcard() && request.initial_versions.is_empty();
            state.sent = request.initial_versions;
        }
        for name in request.subscribe {
            if name == WILDCARD {
                state.wildcard = true;
            } else {
                // A second request for a resource of this stream asks for it again.
                if !first && state.sent.contains_key(&name) {
                    state.owed.insert(name.clone());
                }
                state.names.insert(name);
            }
        }
        for name in request.unsubscribe {
            if name == WILDCARD {
                state.wildcard = false;
            }
            state.names.remove(&name);
            if !state.wildcard {
                state.sent.remove(&name);
                state.owed.remove(&name);
            }
        }
        let answered = state.under_way.as_ref().is_some_and(|nonce| *nonce == request.nonce);
        if answered {
            state.under_way = None;
        }
        match request.error {
            Some(reason) if answered => Outcome::Refused(kind, reason),
            _ if first => Outcome::Subscribed(kind),
            _ => Outcome::Nothing,
        }
    }

    /// Handles a response of Consul: all resources of a kind. `version` is Consul's.
    pub(crate) fn consul(&mut self, kind: Kind, version: String, resources: Vec<Resource>) {
        let mut by_name = BTreeMap::new();
        for resource in resources {
            // Consul 1.8.7 sends a cluster once for each upstream that uses it. Envoy uses the first.
            by_name.entry(resource.name.clone()).or_insert(resource);
        }
        self.states[kind as usize].consul = Some(Snapshot { version, resources: by_name });
    }

    /// The next response to Envoy, if one can be sent now. It counts as sent.
    pub(crate) fn respond(&mut self) -> Option<DeltaResponse> {
        for kind in Kind::ALL {
            if self.is_blocked(kind) {
                continue;
            }
            let state = &mut self.states[kind as usize];
            let changed = state.changed();
            let empty_answer = state.first_answer_due && state.consul.is_some();
            if changed.is_empty() && !empty_answer {
                continue;
            }
            state.first_answer_due = false;
            for resource in &changed {
                state.owed.remove(&resource.name);
                state.sent.insert(resource.name.clone(), resource.version.clone());
            }
            // The needed resources are sent again: Envoy warms the new cluster or listener until it gets them, but does not ask for
            // resources that it already has.
            if let Some(needed) = kind.needs() {
                let names = changed.iter().flat_map(|resource| resource.needs.iter().cloned());
                self.states[needed as usize].owed.extend(names);
            }
            return Some(self.send(kind, changed, Vec::new()));
        }
        if !self.is_whole() || self.states.iter().any(|state| state.under_way.is_some()) {
            return None;
        }
        // Only clusters and listeners are removed. Envoy drops endpoints and routes with the cluster or listener that named
        // them, and ignores their removal. Consul also leaves out endpoints that it does not know yet.
        for kind in [Kind::Listener, Kind::Cluster] {
            let state = &mut self.states[kind as usize];
            let gone = state.gone();
            if !gone.is_empty() {
                state.sent.retain(|name, _| !gone.contains(name));
                return Some(self.send(kind, Vec::new(), gone));
            }
        }
        None
    }

    fn is_blocked(&self, kind: Kind) -> bool {
        let for_these: &[Kind] = match kind {
            Kind::Cluster => &[Kind::Cluster],
            Kind::Endpoint => &[Kind::Endpoint],
            Kind::Listener => &[Kind::Cluster, Kind::Endpoint, Kind::Listener],
            Kind::Route => &Kind::ALL,
        };
        for_these.iter().any(|kind| self.states[*kind as usize].under_way.is_some())
    }

    /// Whether clusters and listeners are of the same configuration. Consul 1.8.7 sends clusters first and listeners last
    /// (`agent/xds/server.go`). Between the two, a listener may still use a removed cluster.
    fn is_whole(&self) -> bool {
        let version = |kind: Kind| self.states[kind as usize].consul.as_ref().map(|snapshot| &snapshot.version);
        version(Kind::Cluster).is_some() && version(Kind::Cluster) == version(Kind::Listener)
    }

    fn send(&mut self, kind: Kind, resources: Vec<Resource>, removed: Vec<String>) -> DeltaResponse {
        self.responses += 1;
        let nonce = self.responses.to_string();
        self.states[kind as usize].under_way = Some(nonce.clone());
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

    /// Acknowledges every response and lists them as `cluster +a +b` or `cluster -a`.
    fn drain(delta: &mut Delta) -> Vec<String> {
        let mut log = Vec::new();
        while let Some(response) = delta.respond() {
            let mut line = response.kind.to_string();
            response.resources.iter().for_each(|resource| line += &format!(" +{}", resource.name));
            response.removed.iter().for_each(|name| line += &format!(" -{name}"));
            log.push(line);
            assert!(log.len() < 10, "endless: {log:?}");
            let ack = DeltaRequest { nonce: response.nonce, ..Default::default() };
            assert_eq!(delta.envoy(response.kind, ack), Outcome::Nothing);
        }
        log
    }

    #[test]
    fn kinds_are_sent_in_the_order_that_envoy_needs() {
        let mut delta = Delta::default();
        assert_eq!(delta.envoy(Kind::Cluster, subscribe(&[])), Outcome::Subscribed(Kind::Cluster));
        assert_eq!(delta.envoy(Kind::Listener, subscribe(&[])), Outcome::Subscribed(Kind::Listener));
        assert_eq!(delta.envoy(Kind::Route, subscribe(&["r"])), Outcome::Subscribed(Kind::Route));
        assert_eq!(delta.envoy(Kind::Endpoint, subscribe(&["a"])), Outcome::Subscribed(Kind::Endpoint));
        assert_eq!(delta.envoy(Kind::Endpoint, subscribe(&["b"])), Outcome::Nothing);
        delta.consul(Kind::Route, "1".into(), vec![resource("r", "r1", &[]), resource("not asked for", "x", &[])]);
        delta.consul(Kind::Listener, "1".into(), vec![resource("l", "l1", &["r"])]);
        delta.consul(Kind::Endpoint, "1".into(), vec![resource("a", "ea1", &[]), resource("b", "eb1", &[])]);
        delta.consul(Kind::Cluster, "1".into(), vec![resource("a", "a1", &["a"]), resource("b", "b1", &["b"])]);
        assert_eq!(drain(&mut delta), ["cluster +a +b", "endpoint +a +b", "listener +l", "route +r"]);
    }

    #[test]
    fn until_clusters_are_acknowledged_only_endpoints_follow() {
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
    fn only_the_changed_resource_is_sent() {
        let mut delta = settled();
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[]), resource("b", "eb2", &[])]);
        assert_eq!(drain(&mut delta), ["endpoint +b"]);
        delta.consul(Kind::Endpoint, "3".into(), vec![resource("b", "eb2", &[]), resource("a", "ea1", &[])]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn a_resent_resource_brings_its_endpoints_or_routes() {
        let mut delta = settled();
        delta.consul(Kind::Cluster, "2".into(), vec![resource("a", "a1", &["a"]), resource("b", "b2", &["b"])]);
        assert_eq!(drain(&mut delta), ["cluster +b", "endpoint +b"]);
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "l2", &["r"])]);
        assert_eq!(drain(&mut delta), ["listener +l", "route +r"]);
    }

    #[test]
    fn removals_wait_for_listeners_of_their_configuration() {
        let mut delta = settled();
        delta.consul(Kind::Cluster, "2".into(), vec![resource("a", "a2", &["a"])]);
        assert_eq!(drain(&mut delta), ["cluster +a", "endpoint +a"], "Consul has not said which listeners stay");
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[])]);
        delta.consul(Kind::Listener, "2".into(), vec![resource("m", "m1", &[])]);
        assert_eq!(drain(&mut delta), ["listener +m", "listener -l", "cluster -b"]);
    }

    #[test]
    fn a_resource_that_returns_is_sent_again() {
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
    fn endpoints_that_consul_leaves_out_are_not_removed() {
        let mut delta = settled();
        delta.consul(Kind::Endpoint, "2".into(), vec![resource("a", "ea1", &[])]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn an_unsubscribed_resource_is_sent_only_on_request() {
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
    fn a_reconnect_sends_no_resource_that_envoy_has() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b1")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), [""; 0]);
    }

    #[test]
    fn a_reconnect_sends_changed_clusters_and_endpoints() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b0")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), ["endpoint +b"], "after the cluster");
    }

    #[test]
    fn a_reconnect_removes_what_consul_no_longer_has() {
        let mut delta = reconnected(&[("a", "a1"), ("b", "b1"), ("c", "c1")], &[("a", "ea1"), ("b", "eb1")]);
        assert_eq!(drain(&mut delta), ["cluster -c"]);
    }

    #[test]
    fn a_refused_version_is_not_sent_again_but_a_later_one_is() {
        let mut delta = settled();
        delta.consul(Kind::Listener, "2".into(), vec![resource("l", "bad", &[])]);
        let response = delta.respond().unwrap();
        let stale = DeltaRequest { nonce: "another".into(), error: Some("late".into()), ..Default::default() };
        assert_eq!(delta.envoy(Kind::Listener, stale), Outcome::Nothing);
        let nack = DeltaRequest { nonce: response.nonce, error: Some("no such filter".into()), ..Default::default() };
        assert_eq!(delta.envoy(Kind::Listener, nack), Outcome::Refused(Kind::Listener, "no such filter".into()));
        assert_eq!(drain(&mut delta), [""; 0]);
        delta.consul(Kind::Listener, "3".into(), vec![resource("l", "l1", &[])]);
        assert_eq!(drain(&mut delta), ["listener +l"], "back to what Envoy had is a change too");
    }

    #[test]
    fn only_the_first_empty_answer_is_sent() {
        let mut delta = Delta::default();
        delta.envoy(Kind::Cluster, subscribe(&[]));
        assert_eq!(drain(&mut delta), [""; 0], "Consul has not answered");
        delta.consul(Kind::Cluster, "1".into(), Vec::new());
        assert_eq!(drain(&mut delta), ["cluster"]);
        delta.consul(Kind::Cluster, "2".into(), Vec::new());
        assert_eq!(drain(&mut delta), [""; 0]);
    }
}
