//! Routes: what they match, where they lead, retries and timeouts.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::entries::Entries;
use super::field::{Field, Resource};
use super::input::Input;
use super::services::protocol_of_node;
use super::values::{consul_name, shares, timeout};

/// The kinds of routes, with their protocols.
const KINDS: [(&str, &str); 4] =
    [("httpRoute", "http"), ("http2Route", "http2"), ("grpcRoute", "grpc"), ("tcpRoute", "tcp")];

/// The statuses that App Mesh's API reference names for its events.
const EVENTS: [(&str, &[u64]); 3] = [
    ("server-error", &[500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511]),
    ("gateway-error", &[502, 503, 504]),
    ("client-error", &[409]),
];

const LEFT_OUT: &str = "Consul cannot match this, so the whole route is left out";

/// A route of a virtual router.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// A lower number comes first. Routes without a number come last, those with a longer path first.
    order: (u64, std::cmp::Reverse<usize>),
    pub(super) protocol: &'static str,
    /// The criteria, as `Match.HTTP` of a `service-router` has them.
    pub(super) criteria: Map<String, Value>,
    /// The `Destination` of a `service-router`.
    pub(super) destination: Map<String, Value>,
    /// The services at which the requests may arrive.
    pub(super) nodes: Vec<String>,
}

impl Route {
    /// Whether the route matches every request.
    pub(super) fn takes_all(&self) -> bool {
        takes_all(&self.criteria)
    }

    /// The route as an element of `Routes` in a `service-router`.
    pub(super) fn entry(&self) -> Value {
        json!({ "Match": { "HTTP": self.criteria }, "Destination": self.destination })
    }
}

/// Whether these criteria match every request.
pub(super) fn takes_all(criteria: &Map<String, Value>) -> bool {
    criteria.iter().all(|(name, value)| name == "PathPrefix" && value == "/")
}

/// A key by which routes are sorted, see [`Route::order`].
pub(super) fn order(spec: &Field<'_>, criteria: &Map<String, Value>) -> (u64, std::cmp::Reverse<usize>) {
    let path = ["PathExact", "PathPrefix", "PathRegex"].iter().find_map(|name| criteria.get(*name)?.as_str());
    (spec.field("priority").number().unwrap_or(u64::MAX), std::cmp::Reverse(path.unwrap_or_default().len()))
}

/// The routes of a virtual router, in the order in which they are tried.
pub(super) fn of_router(input: &Input<'_>, router: &str, port: Option<u64>, entries: &mut Entries<'_>) -> Vec<Route> {
    let of_router = input.routes.iter().filter(|((of, _), _)| of == router);
    let mut routes: Vec<_> =
        of_router.filter_map(|((_, name), route)| read(input, route, router, name, port, entries)).collect();
    routes.sort_by_key(|route| route.order);
    routes
}

fn read(
    input: &Input<'_>,
    route: &Resource<'_>,
    router: &str,
    name: &str,
    port: Option<u64>,
    entries: &mut Entries<'_>,
) -> Option<Route> {
    let spec = route.spec();
    let Some((kind, of_kind)) = spec.one_of(&KINDS.map(|(kind, _)| kind)) else {
        spec.error("expected one of httpRoute, http2Route, grpcRoute, tcpRoute");
        return None;
    };
    let protocol = KINDS.iter().find(|(known, _)| *known == kind).map_or("tcp", |(_, protocol)| *protocol);
    let Some(criteria) = criteria(&of_kind.field("match"), port) else {
        spec.mark_read();
        return None;
    };
    let targets = of_kind.field("action").field("weightedTargets");
    let weighted = weighted(input, &targets, protocol);
    let nodes: Vec<String> = weighted.iter().map(|(node, _)| node.clone()).collect();
    let service = match nodes.as_slice() {
        [] => return None,
        [node] => node.clone(),
        _ if protocol == "tcp" => {
            targets.lost("Consul splits no TCP between services, so the whole route is left out");
            spec.mark_read();
            return None;
        }
        _ => split(&weighted, &targets, &consul_name(&format!("{router}-{name}")), protocol, entries)?,
    };
    let mut destination = Map::from_iter([("Service".to_owned(), json!(service))]);
    timeouts(&of_kind.field("timeout"), protocol, &mut destination);
    retries(&of_kind.field("retryPolicy"), &mut destination);
    Some(Route { order: order(&spec, &criteria), protocol, criteria, destination, nodes })
}

/// The targets with their weights. A node that is there twice, with two ports, has the sum of both.
fn weighted(input: &Input<'_>, targets: &Field<'_>, protocol: &str) -> Vec<(String, u64)> {
    let mut weighted = Vec::<(String, u64)>::new();
    for target in targets.items() {
        let name = target.field("virtualNode");
        let Some(node) = input.named(&input.nodes, "virtual node", &name) else { continue };
        let listener = node.spec().field("listeners").field_at(0).field("portMapping");
        if let Some(port) = target.get("port").filter(|port| port.number() != listener.field("port").number()) {
            port.lost("a service has one port in Consul, that of the node's first listener");
        }
        let of_node = protocol_of_node(node);
        if of_node != protocol {
            name.error(&format!(
                "the route has the protocol {protocol}, and the node {of_node}: Consul needs the same protocol in both"
            ));
        }
        let weight = target.field("weight").number().unwrap_or(0);
        let service = consul_name(name.required_text());
        match weighted.iter_mut().find(|(known, _)| *known == service) {
            Some((_, sum)) => *sum += weight,
            None => weighted.push((service, weight)),
        }
    }
    weighted
}

/// Adds a `service-splitter` with a name of its own, and returns the name.
fn split(
    weighted: &[(String, u64)],
    targets: &Field<'_>,
    name: &str,
    protocol: &str,
    entries: &mut Entries<'_>,
) -> Option<String> {
    let weights: Vec<u64> = weighted.iter().map(|(_, weight)| *weight).collect();
    let Some(shares) = shares(&weights) else {
        targets.error("expected a weight above 0");
        return None;
    };
    let split = |((service, _), share): (&(String, u64), f64)| json!({ "Weight": share, "Service": service });
    let splits: Vec<Value> = weighted.iter().zip(shares).map(split).collect();
    entries.claim(name, &targets.place());
    entries.put_protocol(name, protocol);
    entries.put("service-splitter", name, Map::from_iter([("Splits".to_owned(), splits.into())]));
    Some(name.to_owned())
}

fn timeouts(timeouts: &Field<'_>, protocol: &str, destination: &mut Map<String, Value>) {
    for (name, of_consul) in [("perRequest", "RequestTimeout"), ("idle", "IdleTimeout")] {
        if protocol != "tcp"
            && let Some(duration) = timeout(&timeouts.field(name))
        {
            destination.insert(of_consul.to_owned(), duration.into());
        }
    }
}

fn retries(policy: &Field<'_>, destination: &mut Map<String, Value>) {
    let retries = policy.field("maxRetries").number();
    if policy.is_there() && retries == Some(0) {
        policy.mark_read();
    }
    let Some(retries) = retries.filter(|retries| *retries > 0) else { return };
    destination.insert("NumRetries".to_owned(), retries.into());
    let (mut statuses, mut conditions) = (BTreeSet::new(), Vec::new());
    for event in policy.field("httpRetryEvents").items() {
        let name = event.required_text();
        match EVENTS.iter().find(|(known, _)| *known == name) {
            Some((_, of_event)) => statuses.extend(of_event.iter().copied()),
            None if name == "stream-error" => conditions.push("refused-stream"),
            None => event.lost("Consul knows no such reason for a retry"),
        }
    }
    // Envoy's names, which both App Mesh and Consul use.
    conditions.extend(policy.field("grpcRetryEvents").items().iter().map(Field::required_text));
    for event in policy.field("tcpRetryEvents").items() {
        if event.required_text() == "connection-error" {
            destination.insert("RetryOnConnectFailure".to_owned(), true.into());
        } else {
            event.lost("Consul knows no such reason for a retry");
        }
    }
    if !conditions.is_empty() {
        destination.insert("RetryOn".to_owned(), conditions.into());
    }
    if !statuses.is_empty() {
        destination.insert("RetryOnStatusCodes".to_owned(), statuses.into_iter().collect());
    }
}

/// The criteria for a `service-router`. None if Consul has no counterpart of one criterion, because without it the route would match more
/// requests. `port` is the port at which the requests arrive.
pub(super) fn criteria(given: &Field<'_>, port: Option<u64>) -> Option<Map<String, Value>> {
    if let Some(scheme) = given.get("scheme") {
        scheme.lost(LEFT_OUT);
        return None;
    }
    if let Some(given) = given.get("port").filter(|given| given.number() != port) {
        given.lost(LEFT_OUT);
        return None;
    }
    let mut criteria = Map::new();
    let mut put = |name: &str, value: Value| criteria.insert(name.to_owned(), value);
    if let Some(prefix) = given.field("prefix").text() {
        put("PathPrefix", prefix.into());
    }
    let path = given.field("path");
    if let Some(exact) = path.field("exact").text() {
        put("PathExact", exact.into());
    }
    if let Some(regex) = path.field("regex").text() {
        put("PathRegex", regex.into());
    }
    if let Some(service) = given.field("serviceName").text() {
        match given.field("methodName").text() {
            Some(method) => put("PathExact", format!("/{service}/{method}").into()),
            None => put("PathPrefix", format!("/{service}/").into()),
        };
    }
    if let Some(method) = given.field("method").text() {
        put("Methods", json!([method]));
    }
    let headers = [given.field("headers").items(), given.field("metadata").items()].concat();
    let headers = headers.iter().map(header).collect::<Option<Vec<_>>>()?;
    if !headers.is_empty() {
        put("Header", headers.into());
    }
    let parameters: Vec<Value> = given.field("queryParameters").items().iter().map(parameter).collect();
    if !parameters.is_empty() {
        put("QueryParam", parameters.into());
    }
    Some(criteria)
}

fn header(header: &Field<'_>) -> Option<Value> {
    let mut entry = Map::from_iter([("Name".to_owned(), json!(header.field("name").required_text()))]);
    let given = header.field("match");
    if let Some(range) = given.get("range") {
        range.lost(LEFT_OUT);
        return None;
    }
    let kinds = [("exact", "Exact"), ("prefix", "Prefix"), ("suffix", "Suffix"), ("regex", "Regex")];
    let found = kinds.iter().find_map(|(name, of_consul)| Some((*of_consul, json!(given.field(name).text()?))));
    let (kind, value) = found.unwrap_or(("Present", true.into()));
    entry.insert(kind.to_owned(), value);
    if header.field("invert").is_true() {
        entry.insert("Invert".to_owned(), true.into());
    }
    Some(entry.into())
}

fn parameter(parameter: &Field<'_>) -> Value {
    let name = parameter.field("name").required_text();
    match parameter.field("match").field("exact").text() {
        Some(exact) => json!({ "Name": name, "Exact": exact }),
        None => json!({ "Name": name, "Present": true }),
    }
}
