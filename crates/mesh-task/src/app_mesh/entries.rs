//! The config entries, as they are collected.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::field::Log;

/// The kinds, in the order in which Consul needs them: it refuses a router before it knows the protocol of its service.
const KINDS: [&str; 6] = [
    "service-defaults",
    "service-resolver",
    "service-splitter",
    "service-router",
    "ingress-gateway",
    "service-intentions",
];

pub(super) struct Entries<'a> {
    log: &'a Log,
    list: BTreeMap<(usize, String), Map<String, Value>>,
    /// For each name in Consul, the resource of App Mesh that has it.
    names: BTreeMap<String, String>,
    /// The callers of each service.
    callers: BTreeMap<String, BTreeSet<String>>,
}

impl<'a> Entries<'a> {
    pub(super) fn new(log: &'a Log) -> Self {
        Self { log, list: BTreeMap::new(), names: BTreeMap::new(), callers: BTreeMap::new() }
    }

    /// Reserves a name in Consul for a resource. Reports an error if another resource has the name.
    pub(super) fn claim(&mut self, name: &str, of: &str) {
        if let Some(other) = self.names.get(name).filter(|other| *other != of) {
            self.log.error(format!(
                "{of}: its name in Consul is {name:?}, and {other} has the same one: rename one of the two"
            ));
        }
        self.names.insert(name.to_owned(), of.to_owned());
    }

    pub(super) fn report(&self, line: &str) {
        self.log.report(line);
    }

    pub(super) fn put(&mut self, kind: &str, name: &str, fields: Map<String, Value>) {
        let order = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len());
        self.list.insert((order, name.to_owned()), fields);
    }

    /// A `service-defaults` entry with only a protocol, unless there is one.
    pub(super) fn put_protocol(&mut self, name: &str, protocol: &str) {
        if !self.list.contains_key(&(0, name.to_owned())) {
            self.put("service-defaults", name, Map::from_iter([("Protocol".to_owned(), json!(protocol))]));
        }
    }

    /// Lets a service call others.
    pub(super) fn allow(&mut self, caller: &str, called: &[String]) {
        for service in called {
            self.callers.entry(service.clone()).or_default().insert(caller.to_owned());
        }
    }

    pub(super) fn into_list(mut self) -> Vec<Value> {
        for (service, callers) in std::mem::take(&mut self.callers) {
            let source = |caller: &String| json!({ "Name": caller, "Action": "allow" });
            let sources = callers.iter().map(source).collect::<Vec<_>>();
            self.put("service-intentions", &service, Map::from_iter([("Sources".to_owned(), sources.into())]));
        }
        let entry = |((order, name), fields): ((usize, String), Map<String, Value>)| {
            let mut entry =
                Map::from_iter([("Kind".to_owned(), json!(KINDS[order])), ("Name".to_owned(), name.into())]);
            entry.extend(fields);
            entry.into()
        };
        self.list.into_iter().map(entry).collect()
    }
}
