//! What we ask of a document beyond its schema: each rule with its name, on the document as it was written.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::names::PUBLIC_LISTENER_PORT;
use crate::reader::{FieldError, describe_value, whole_number};

/// A rule with its name.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its name, as messages and the reference page have it.
    pub name: &'static str,
    /// What it asks for, in a line.
    pub about: &'static str,
    /// Whether a document that breaks it is used all the same.
    pub warns: bool,
    check: fn(&Value, &mut Broken),
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        name: "service-or-gateway",
        about: "`service` or `gateway` must be there.",
        warns: false,
        check: service_or_gateway,
    },
    Rule {
        name: "gateway-first",
        about: "Beside `gateway` nothing of `service`, `proxy` and `healthSyncContainers` is used: the gateway is \
                registered, with `gateway.proxy`.",
        warns: true,
        check: gateway_first,
    },
    Rule {
        name: "wan-address",
        about: "`gateway.wanAddress` has an `address`: a port without one is not used.",
        warns: true,
        check: wan_address,
    },
    Rule {
        name: "one-kind-of-checks",
        about: "A service has `service.checks` or `healthSyncContainers`, not both. Not asked where a gateway is registered.",
        warns: false,
        check: one_kind_of_checks,
    },
    Rule {
        name: "port-range",
        about: "Ports are 1 to 65535. 0 is the same as absent for `proxy.publicListenerPort` and the addresses of a \
                gateway, and no port at all for `service.port`.",
        warns: false,
        check: port_range,
    },
    Rule {
        name: "port-once",
        about: "No port stands twice: the service's, the public listener's, those of upstreams and exposed paths. Not for a gateway.",
        warns: false,
        check: port_once,
    },
    Rule {
        name: "upstream-name",
        about: "`destinationName` of an upstream is not empty.",
        warns: false,
        check: upstream_name,
    },
    Rule {
        name: "exposed-path",
        about: "An exposed path has `listenerPort`, `localPathPort`, and a `path` that begins with `/`.",
        warns: false,
        check: exposed_path,
    },
    Rule {
        name: "weight-range",
        about: "`service.weights.passing` is 1 to 65535, `warning` 0 to 65535.",
        warns: false,
        check: weight_range,
    },
    Rule {
        name: "check-count",
        about: "`successBeforePassing` and `failuresBeforeCritical` of a check are 0 to 65535.",
        warns: false,
        check: check_count,
    },
];

/// Where a document breaks a rule.
#[derive(Debug, Default)]
struct Broken(Vec<(String, Option<String>, String)>);

impl Broken {
    fn got(&mut self, path: impl Into<String>, got: impl Into<String>, expected: impl Into<String>) {
        self.0.push((path.into(), Some(got.into()), expected.into()));
    }

    fn missing(&mut self, path: impl Into<String>, expected: impl Into<String>) {
        self.0.push((path.into(), None, expected.into()));
    }

    /// An integer is in this range. What is no integer is the schema's business.
    fn range(&mut self, path: impl Into<String>, value: &Value, range: RangeInclusive<i64>) {
        if whole_number(value).is_some_and(|number| !range.contains(&number)) {
            self.got(path, describe_value(value), format!("an integer from {} to {}", range.start(), range.end()));
        }
    }
}

/// Holds the rules to a document, also one that the schema refuses: where and how it breaks them, in the rules' order.
/// Each finding has its rule's name.
#[must_use]
pub fn broken(document: &Value) -> Vec<(&'static Rule, FieldError)> {
    let mut all = Vec::new();
    for rule in RULES {
        let mut broken = Broken::default();
        (rule.check)(document, &mut broken);
        let errors = broken
            .0
            .into_iter()
            .map(|(path, got, expected)| (rule, FieldError { path, got, expected, rule: Some(rule.name) }));
        all.extend(errors);
    }
    all
}

const PORT: RangeInclusive<i64> = 1..=65535;
const PORT_OR_NONE: RangeInclusive<i64> = 0..=65535;

fn each(array: &Value) -> impl Iterator<Item = (usize, &Value)> {
    array.as_array().into_iter().flatten().enumerate()
}

fn upstreams(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    each(&document["proxy"]["upstreams"]).map(|(index, value)| (format!("proxy.upstreams[{index}]"), value))
}

fn exposed(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    each(&document["proxy"]["expose"]["paths"]).map(|(index, value)| (format!("proxy.expose.paths[{index}]"), value))
}

fn service_or_gateway(document: &Value, broken: &mut Broken) {
    if document.get("service").is_none() && document.get("gateway").is_none() {
        broken.missing("service", "an object with at least port, or gateway with at least kind");
    }
}

fn gateway_first(document: &Value, broken: &mut Broken) {
    let unused = [
        ("service", document["service"].is_object()),
        ("proxy", !document["proxy"].is_null()),
        ("healthSyncContainers", filled(&document["healthSyncContainers"])),
    ];
    let unused = unused.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>();
    if document["gateway"].is_object() && !unused.is_empty() {
        let expected =
            "no service, proxy or healthSyncContainers beside it; the gateway is registered, with gateway.proxy";
        broken.got("gateway", unused.join(", "), expected);
    }
}

fn wan_address(document: &Value, broken: &mut Broken) {
    let wan = &document["gateway"]["wanAddress"];
    let port = whole_number(&wan["port"]).is_some_and(|port| port != 0);
    if port && (wan["address"].is_null() || wan["address"] == "") {
        broken.missing("gateway.wanAddress.address", "an IP address or a name; the port alone is not used");
    }
}

fn filled(array: &Value) -> bool {
    array.as_array().is_some_and(|array| !array.is_empty())
}

fn one_kind_of_checks(document: &Value, broken: &mut Broken) {
    let both = filled(&document["service"]["checks"]) && filled(&document["healthSyncContainers"]);
    if both && document.get("gateway").is_none() {
        broken.got("service.checks", "both", "checks here or healthSyncContainers");
    }
}

fn port_range(document: &Value, broken: &mut Broken) {
    broken.range("service.port", &document["service"]["port"], PORT_OR_NONE);
    broken.range("proxy.publicListenerPort", &document["proxy"]["publicListenerPort"], PORT_OR_NONE);
    for (path, upstream) in upstreams(document) {
        broken.range(format!("{path}.localBindPort"), &upstream["localBindPort"], PORT);
    }
    for (path, exposed) in exposed(document) {
        broken.range(format!("{path}.listenerPort"), &exposed["listenerPort"], PORT);
        broken.range(format!("{path}.localPathPort"), &exposed["localPathPort"], PORT);
    }
    for address in ["lanAddress", "wanAddress"] {
        broken.range(format!("gateway.{address}.port"), &document["gateway"][address]["port"], PORT_OR_NONE);
    }
}

/// App and Envoy share the task's network namespace: the second of two listeners on the same port would not start, or silently get
/// nothing.
fn port_once(document: &Value, broken: &mut Broken) {
    if document["gateway"].is_object() {
        return;
    }
    let public = whole_number(&document["proxy"]["publicListenerPort"]).filter(|port| *port != 0);
    let mut taken = vec![public.unwrap_or(PUBLIC_LISTENER_PORT.into())];
    let service = std::iter::once(("service.port".to_owned(), &document["service"]["port"]));
    let upstreams = upstreams(document).map(|(path, value)| (format!("{path}.localBindPort"), &value["localBindPort"]));
    let exposed = exposed(document).map(|(path, value)| (format!("{path}.listenerPort"), &value["listenerPort"]));
    for (path, port) in service.chain(upstreams).chain(exposed) {
        let Some(port) = whole_number(port).filter(|port| PORT.contains(port)) else { continue };
        if taken.contains(&port) {
            broken.got(path, port.to_string(), "a port that no other listener of this task has");
        }
        taken.push(port);
    }
}

fn upstream_name(document: &Value, broken: &mut Broken) {
    for (path, upstream) in upstreams(document) {
        if upstream["destinationName"] == "" {
            broken.got(format!("{path}.destinationName"), "\"\"", "a string that is not empty");
        }
    }
}

fn exposed_path(document: &Value, broken: &mut Broken) {
    for (path, exposed) in exposed(document).filter(|(_, exposed)| exposed.is_object()) {
        for port in ["listenerPort", "localPathPort"] {
            if exposed[port].is_null() {
                broken.missing(format!("{path}.{port}"), "an integer from 1 to 65535");
            }
        }
        let expected = "a string that begins with /";
        match &exposed["path"] {
            Value::Null => broken.missing(format!("{path}.path"), expected),
            Value::String(text) if !text.starts_with('/') => {
                broken.got(format!("{path}.path"), describe_value(&exposed["path"]), expected);
            }
            _ => {}
        }
    }
}

fn weight_range(document: &Value, broken: &mut Broken) {
    let weights = &document["service"]["weights"];
    broken.range("service.weights.passing", &weights["passing"], 1..=65535);
    broken.range("service.weights.warning", &weights["warning"], 0..=65535);
}

fn check_count(document: &Value, broken: &mut Broken) {
    for (index, check) in each(&document["service"]["checks"]) {
        for count in ["successBeforePassing", "failuresBeforeCritical"] {
            broken.range(format!("service.checks[{index}].{count}"), &check[count], 0..=65535);
        }
    }
}
