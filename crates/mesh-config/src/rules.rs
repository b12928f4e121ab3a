//! The rules for a document beyond its schema. Each rule has a name and checks the document as it was written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::agentless::{HEALTH_CHECK_PORT, hosts};
use crate::document::Mode;
use crate::gateway::GATEWAY_PORT;
use crate::names::PUBLIC_LISTENER_PORT;
use crate::reader::{FieldError, describe_value, whole_number};

/// A rule with its name.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its name in messages and on the reference page.
    pub name: &'static str,
    /// What it requires, in a line.
    pub about: &'static str,
    /// Whether a document that breaks the rule is still used.
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
        about: "A document with `gateway` registers only the gateway, with `gateway.proxy`. `service`, `proxy` and \
                `healthSyncContainers` are not used.",
        warns: true,
        check: gateway_first,
    },
    Rule {
        name: "wan-address",
        about: "`gateway.wanAddress` has an `address`. A port alone is not used.",
        warns: true,
        check: wan_address,
    },
    Rule {
        name: "one-kind-of-checks",
        about: "A service has `service.checks` or `healthSyncContainers`, not both. The rule does not apply to a gateway.",
        warns: false,
        check: one_kind_of_checks,
    },
    Rule {
        name: "port-range",
        about: "Ports are 1 to 65535. For `proxy.publicListenerPort`, `healthCheckPort` and the addresses of a gateway, 0 is \
                the same as an absent field. For `service.port`, 0 means that the app listens on no port.",
        warns: false,
        check: port_range,
    },
    Rule {
        name: "port-once",
        about: "No two of these listen on the same address and port: the app (127.0.0.1 and `service.port`), the public \
                listener, each upstream, each exposed path, and `envoy_prometheus_bind_addr` and `envoy_stats_bind_addr` in \
                `proxy.config`. The public listener and exposed paths listen on all addresses, like `0.0.0.0` and `::`. \
                A task without an agent also listens on 127.0.0.1 and `healthCheckPort`. A gateway has only its own \
                listener and, without an agent, that of `healthCheckPort`.",
        warns: false,
        check: port_once,
    },
    Rule {
        name: "port-of-a-sidecar",
        about: "No listener has a default port of the task's Consul agent or of Envoy's admin page: 8301 on any address, \
                or 8500, 8502, 8600 or 19000 on loopback. Without an agent: 8600 or 19000 on loopback. The rule does not \
                check 20300, the default port of mesh-dataplane's status.",
        warns: true,
        check: port_of_a_sidecar,
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
    Rule {
        name: "server-hosts",
        about: "`consulServers.hosts` has names and IP addresses only, without ports. `exec=COMMAND`, which consul-ecs runs \
                to find the servers, is not supported.",
        warns: false,
        check: server_hosts,
    },
    Rule {
        name: "transparent-proxy",
        about: "If a service has `transparentProxy`, its `enabled` is there and is false. Transparent proxying is not \
                supported: the app reaches others through `proxy.upstreams`. The rule does not apply to a gateway.",
        warns: false,
        check: transparent_proxy,
    },
    Rule {
        name: "transparent-proxy-default",
        about: "The document of a service without an agent should have `\"transparentProxy\": {\"enabled\": false}`. In \
                consul-ecs 0.8 to 0.10, an absent `transparentProxy` turns transparent proxying on. Here it stays off.",
        warns: true,
        check: transparent_proxy_default,
    },
    Rule {
        name: "api-gateway",
        about: "`gateway.kind` is not `api-gateway`, which is not supported.",
        warns: false,
        check: api_gateway,
    },
    Rule {
        name: "outlier-range",
        about: "Numbers in `service.networkResilienceConfig.outlierDetection` are at most 4294967295, `interval` at most \
                86400000000000 ns (a day).",
        warns: false,
        check: outlier_range,
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

    /// Reports an integer outside of this range. The schema reports a value that is not an integer.
    fn range(&mut self, path: impl Into<String>, value: &Value, range: RangeInclusive<i64>) {
        if whole_number(value).is_some_and(|number| !range.contains(&number)) {
            self.got(path, describe_value(value), format!("an integer from {} to {}", range.start(), range.end()));
        }
    }
}

/// Checks the rules, also for a document that the schema refuses. Returns each broken rule with its name and place, in the order of the
/// rules.
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
        let expected = "no service, proxy or healthSyncContainers beside it: mesh-init registers only the gateway, and uses only gateway.proxy";
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
    if Mode::of(document) == Mode::Agentless {
        for interface in ["http", "grpc"] {
            let port = &document["consulServers"][interface]["port"];
            broken.range(format!("consulServers.{interface}.port"), port, PORT);
        }
        for owner in ["proxy", "gateway"] {
            // The schema allows anything here.
            let port = &document[owner]["healthCheckPort"];
            let is_port = port.is_null() || whole_number(port).is_some_and(|port| PORT_OR_NONE.contains(&port));
            if !is_port {
                let path = format!("{owner}.healthCheckPort");
                broken.got(path, describe_value(port), "an integer from 0 to 65535");
            }
        }
    }
}

/// Where a listener of the task is.
struct Listener {
    path: String,
    host: Host,
    port: i64,
}

/// The host part of a listener's address.
#[derive(PartialEq)]
enum Host {
    All,
    Ip(IpAddr),
    /// Envoy accepts only addresses. Two equal names count as the same address.
    Name(String),
}

const LOOPBACK: Host = Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

impl Host {
    fn of(text: &str) -> Self {
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() => Self::All,
            Ok(ip) => Self::Ip(ip),
            Err(_) if text.is_empty() || text == "localhost" => LOOPBACK,
            Err(_) => Self::Name(text.to_owned()),
        }
    }

    fn meets(&self, other: &Self) -> bool {
        *self == Self::All || *other == Self::All || self == other
    }
}

impl Listener {
    fn at(path: impl Into<String>, host: Host, port: &Value) -> Option<Self> {
        let port = whole_number(port).filter(|port| PORT.contains(port))?;
        Some(Self { path: path.into(), host, port })
    }

    fn shown(&self) -> String {
        match &self.host {
            Host::All => self.port.to_string(),
            Host::Ip(ip @ IpAddr::V6(_)) => format!("[{ip}]:{}", self.port),
            Host::Ip(ip) => format!("{ip}:{}", self.port),
            Host::Name(name) => format!("{}:{}", describe_value(&name.as_str().into()), self.port),
        }
    }
}

/// The port, or the default if it is absent or 0.
fn port_or(port: &Value, default: u16) -> Value {
    if whole_number(port).unwrap_or(0) == 0 { default.into() } else { port.clone() }
}

/// The listener of a gateway.
fn gateway_listener(gateway: &Value) -> Option<Listener> {
    let lan = &gateway["lanAddress"];
    let host = lan["address"].as_str().filter(|host| !host.is_empty()).map_or(Host::All, Host::of);
    Listener::at("gateway.lanAddress.port", host, &port_or(&lan["port"], GATEWAY_PORT))
}

/// The listener on which Envoy says that it is ready, in a task without an agent.
fn readiness_listener(document: &Value) -> Option<Listener> {
    let owner = if document["gateway"].is_object() { "gateway" } else { "proxy" };
    let port = port_or(&document[owner]["healthCheckPort"], HEALTH_CHECK_PORT);
    let listener = Listener::at(format!("{owner}.healthCheckPort"), LOOPBACK, &port);
    listener.filter(|_| Mode::of(document) == Mode::Agentless)
}

/// The task's listeners: first Envoy's public one, then the app's, then the others.
fn listeners(document: &Value) -> Vec<Listener> {
    let (service, proxy) = (&document["service"], &document["proxy"]);
    let readiness = readiness_listener(document);
    if document["gateway"].is_object() {
        return gateway_listener(&document["gateway"]).into_iter().chain(readiness).collect();
    }
    let public = port_or(&proxy["publicListenerPort"], PUBLIC_LISTENER_PORT);
    let upstreams = upstreams(document).map(|(path, upstream)| {
        let host = Host::of(upstream["localBindAddress"].as_str().unwrap_or_default());
        Listener::at(format!("{path}.localBindPort"), host, &upstream["localBindPort"])
    });
    let exposed = exposed(document)
        .map(|(path, exposed)| Listener::at(format!("{path}.listenerPort"), Host::All, &exposed["listenerPort"]));
    // The options' names are valid in any case.
    let options = proxy["config"].as_object().into_iter().flatten().filter(|(option, _)| {
        ["envoy_prometheus_bind_addr", "envoy_stats_bind_addr"].iter().any(|name| option.eq_ignore_ascii_case(name))
    });
    let options = options.map(|(option, address)| {
        let (host, port) = address.as_str()?.rsplit_once(':')?;
        let host = Host::of(host.trim_start_matches('[').trim_end_matches(']'));
        Listener::at(format!("proxy.config.{option}"), host, &port.parse::<i64>().ok()?.into())
    });
    let public = Listener::at("proxy.publicListenerPort", Host::All, &public);
    let service = Listener::at("service.port", LOOPBACK, &service["port"]);
    let all = [public, service].into_iter().chain(upstreams).chain(exposed).chain(options);
    all.chain([readiness]).flatten().collect()
}

/// App and Envoy share the task's network namespace. If two listeners have the same address and port, the second one does not start, or
/// silently gets no connections.
fn port_once(document: &Value, broken: &mut Broken) {
    let listeners = listeners(document);
    for (index, listener) in listeners.iter().enumerate() {
        let same = |other: &Listener| other.port == listener.port && other.host.meets(&listener.host);
        if listeners[..index].iter().any(same) {
            broken.got(&listener.path, listener.shown(), "an address and port that no other listener of this task has");
        }
    }
}

/// The other listeners of a task: port, address and owner.
const SIDECARS: [(i64, Host, &str); 5] = [
    (8301, Host::All, "the gossip of the task's Consul agent"),
    (8500, LOOPBACK, "the HTTP API of the task's Consul agent"),
    (8502, LOOPBACK, "gRPC of the task's Consul agent"),
    (8600, LOOPBACK, "DNS of the task's Consul agent"),
    (19000, LOOPBACK, "Envoy's admin interface"),
];

/// The same in a task without an agent.
const AGENTLESS_SIDECARS: [(i64, Host, &str); 2] =
    [(8600, LOOPBACK, "Consul's DNS in the task"), (19000, LOOPBACK, "Envoy's admin interface")];

fn port_of_a_sidecar(document: &Value, broken: &mut Broken) {
    let sidecars: &[_] = match Mode::of(document) {
        Mode::Agent => &SIDECARS,
        Mode::Agentless => &AGENTLESS_SIDECARS,
    };
    let loopback_v6 = Host::Ip(Ipv6Addr::LOCALHOST.into());
    for listener in listeners(document) {
        let taken = sidecars.iter().find(|(port, host, _)| {
            *port == listener.port && (host.meets(&listener.host) || *host == LOOPBACK && listener.host == loopback_v6)
        });
        if let Some((port, _, whose)) = taken {
            broken.got(listener.path.as_str(), listener.shown(), format!("another port: {port} is that of {whose}"));
        }
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

fn server_hosts(document: &Value, broken: &mut Broken) {
    let Some(text) = document["consulServers"]["hosts"].as_str() else { return };
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_host = |host: &str| host.parse::<IpAddr>().is_ok() || !host.is_empty() && host.chars().all(part);
    let expected = if text.starts_with("exec=") {
        "names or IP addresses of the servers: a command, as in consul-ecs, is not supported"
    } else if hosts(text).all(is_host) {
        return;
    } else {
        "names or IP addresses of the servers, separated by commas, without ports: these belong in consulServers.http.port \
         and consulServers.grpc.port"
    };
    // A command may hold a secret.
    let got = if text.starts_with("exec=") { "exec=…".to_owned() } else { describe_value(&text.into()) };
    broken.got("consulServers.hosts", got, expected);
}

fn is_agentless_service(document: &Value) -> bool {
    Mode::of(document) == Mode::Agentless && document.get("gateway").is_none()
}

fn transparent_proxy(document: &Value, broken: &mut Broken) {
    let transparent = &document["transparentProxy"];
    let enabled = transparent.is_object() && transparent["enabled"] != false;
    if is_agentless_service(document) && enabled {
        let got =
            if transparent["enabled"].is_null() { "no enabled, which is true".to_owned() } else { "true".to_owned() };
        broken.got("transparentProxy", got, "enabled false: transparent proxying is not supported");
    }
}

fn transparent_proxy_default(document: &Value, broken: &mut Broken) {
    if is_agentless_service(document) && document["transparentProxy"].is_null() {
        broken.missing(
            "transparentProxy",
            "{\"enabled\": false}: without it, consul-ecs 0.8 to 0.10 turn transparent proxying on; here it is off",
        );
    }
}

fn api_gateway(document: &Value, broken: &mut Broken) {
    if Mode::of(document) == Mode::Agentless && document["gateway"]["kind"] == "api-gateway" {
        broken.got(
            "gateway.kind",
            "\"api-gateway\"",
            "mesh-gateway or terminating-gateway: API gateways are not supported",
        );
    }
}

fn outlier_range(document: &Value, broken: &mut Broken) {
    if Mode::of(document) == Mode::Agent {
        return;
    }
    let outlier = &document["service"]["networkResilienceConfig"]["outlierDetection"];
    for (name, value) in outlier.as_object().into_iter().flatten() {
        let most = if name == "interval" { 86_400_000_000_000 } else { i64::from(u32::MAX) };
        broken.range(format!("service.networkResilienceConfig.outlierDetection.{name}"), value, 0..=most);
    }
}
