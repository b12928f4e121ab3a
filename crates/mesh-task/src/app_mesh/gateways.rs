//! Virtual gateways and their routes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::entries::Entries;
use super::field::{Field, Resource};
use super::input::Input;
use super::routes::{criteria, order, takes_all};
use super::services::{Target, protocol, target};
use super::values::consul_name;

/// A gateway route.
struct GatewayRoute {
    order: (u64, std::cmp::Reverse<usize>),
    /// The port of the only listener for which the route is; none if it is for all listeners.
    port: Option<u64>,
    host: Option<String>,
    criteria: Map<String, Value>,
    /// The path or prefix in the request that the service gets. It replaces the one that the route matches.
    rewrite: Option<String>,
    /// The virtual service.
    service: String,
    target: Target,
    /// The path of the route in the input, for messages.
    place: String,
}

impl GatewayRoute {
    /// Whether the ingress gateway can send the requests to the virtual service as they are.
    fn is_direct(&self) -> bool {
        takes_all(&self.criteria) && self.rewrite.is_none()
    }
}

pub(super) fn convert(input: &Input<'_>, entries: &mut Entries<'_>) {
    for (name, gateway) in &input.gateways {
        let service = consul_name(name);
        entries.claim(&service, &gateway.root().place());
        let of_gateway = input.gateway_routes.iter().filter(|((of, _), _)| of == name);
        let mut routes: Vec<_> = of_gateway.filter_map(|(_, route)| read(input, route, entries)).collect();
        routes.sort_by_key(|route| route.order);
        convert_gateway(gateway, &service, &routes, entries);
        for route in &routes {
            entries.allow(&service, &route.target.nodes());
        }
    }
    for ((gateway, _), route) in &input.gateway_routes {
        if !input.gateways.contains_key(gateway) {
            route.root().field("virtualGatewayName").error("expected a virtual gateway of the given files");
        }
    }
}

fn convert_gateway(gateway: &Resource<'_>, name: &str, routes: &[GatewayRoute], entries: &mut Entries<'_>) {
    let mut listeners = Vec::new();
    let mut with_tls = false;
    for listener in gateway.spec().field("listeners").items() {
        let tls = has_tls(&listener.field("tls"));
        with_tls |= tls;
        let port = listener.field("portMapping").field("port").number();
        let protocol = protocol(&listener).unwrap_or("http");
        let of_listener: Vec<_> = routes.iter().filter(|route| route.port.is_none() || route.port == port).collect();
        let mut services = services(name, protocol, &of_listener, tls, entries);
        if services.is_empty() {
            listener.lost("no gateway route could be converted for this listener, so it is left out");
            continue;
        }
        if protocol != "http" && services.len() > 1 {
            listener.report(&format!(
                "Consul has one service for a listener with the protocol {protocol}: only {} is kept",
                services[0]["Name"]
            ));
            services.truncate(1);
        }
        listeners.push(json!({ "Port": port, "Protocol": protocol, "Services": services }));
    }
    if listeners.is_empty() {
        return;
    }
    let mut entry = Map::from_iter([("Listeners".to_owned(), listeners.into())]);
    if with_tls {
        entry.insert("TLS".to_owned(), json!({ "Enabled": true }));
    }
    entries.put("ingress-gateway", name, entry);
}

fn has_tls(tls: &Field<'_>) -> bool {
    let mode = tls.field("mode");
    if mode.text() == Some("PERMISSIVE") {
        mode.report("Consul switches TLS on or off for a whole ingress gateway, so this one accepts only TLS");
    }
    if tls.is_there() && mode.text() != Some("DISABLED") {
        tls.report(
            "TLS is on for the whole gateway, with a certificate of Consul's CA. For another certificate, end TLS at a load balancer",
        );
        return true;
    }
    false
}

/// The `Services` of a listener: one for each host name.
fn services(
    gateway: &str,
    protocol: &str,
    routes: &[&GatewayRoute],
    tls: bool,
    entries: &mut Entries<'_>,
) -> Vec<Value> {
    let mut by_host = BTreeMap::<Option<&str>, Vec<&GatewayRoute>>::new();
    for route in routes {
        by_host.entry(route.host.as_deref()).or_default().push(route);
    }
    let for_all = by_host.get(&None).cloned().unwrap_or_default();
    let mut hosts = BTreeMap::<String, Vec<&str>>::new();
    for (host, mut routes) in by_host {
        if host.is_some() {
            routes.extend(&for_all);
            routes.sort_by_key(|route| route.order);
        }
        let service = match routes.as_slice() {
            [first, ..] if first.is_direct() => first.service.clone(),
            _ => router(gateway, host, protocol, &routes, entries),
        };
        hosts.entry(service).or_default().push(host.unwrap_or("*"));
    }
    let entry = |(service, hosts): (String, Vec<&str>)| {
        // Consul refuses `*` with TLS. Without hosts, it takes `SERVICE.ingress.DOMAIN`.
        let hosts: Vec<_> = hosts.into_iter().filter(|host| !tls || *host != "*").collect();
        if hosts.is_empty() { json!({ "Name": service }) } else { json!({ "Name": service, "Hosts": hosts }) }
    };
    hosts.into_iter().map(entry).collect()
}

/// Adds a `service-router` that distinguishes paths and headers, and returns its name. An ingress gateway itself distinguishes only host
/// names.
fn router(
    gateway: &str,
    host: Option<&str>,
    protocol: &str,
    routes: &[&GatewayRoute],
    entries: &mut Entries<'_>,
) -> String {
    let name = format!("{gateway}-{}", consul_name(host.unwrap_or("routes")));
    entries.claim(&name, &format!("the gateway routes of {name}"));
    entries.put_protocol(&name, protocol);
    let list: Vec<Value> = routes.iter().flat_map(|route| route_entries(route, entries)).collect();
    entries.put("service-router", &name, Map::from_iter([("Routes".to_owned(), list.into())]));
    name
}

fn route_entries(route: &GatewayRoute, entries: &Entries<'_>) -> Vec<Value> {
    let Some(mut destination) = destination(route, entries) else { return Vec::new() };
    if let Some(rewrite) = &route.rewrite {
        destination.insert("PrefixRewrite".to_owned(), rewrite.clone().into());
    }
    let entry = |criteria: &Map<String, Value>| json!({ "Match": { "HTTP": criteria }, "Destination": destination });
    let mut list = Vec::new();
    // Envoy replaces exactly the prefix: with `/a` alone, `/a/b` would become `//b`.
    if let (Some(rewrite), Some(prefix)) = (&route.rewrite, route.criteria.get("PathPrefix").and_then(Value::as_str))
        && rewrite.ends_with('/')
        && !prefix.ends_with('/')
    {
        let mut with_slash = route.criteria.clone();
        with_slash.insert("PathPrefix".to_owned(), format!("{prefix}/").into());
        list.push(entry(&with_slash));
    }
    list.push(entry(&route.criteria));
    list
}

fn destination(route: &GatewayRoute, entries: &Entries<'_>) -> Option<Map<String, Value>> {
    let routes = match &route.target {
        Target::Node(node) => return Some(Map::from_iter([("Service".to_owned(), json!(node))])),
        Target::Routes(routes) => routes,
    };
    let of_all = routes.iter().find(|route| route.takes_all());
    if routes.len() > 1 || of_all.is_none() {
        let rest = match of_all {
            Some(_) => "only the one for all requests applies here",
            None => "none applies here. There is none for all requests, so this gateway route is left out",
        };
        entries.report(&format!(
            "{}: Consul uses only one service-router for a request. So of the routes of {:?}, {rest}",
            route.place, route.service
        ));
    }
    of_all.map(|route| route.destination.clone())
}

fn read(input: &Input<'_>, route: &Resource<'_>, entries: &mut Entries<'_>) -> Option<GatewayRoute> {
    let spec = route.spec();
    let Some((_, of_kind)) = spec.one_of(&["httpRoute", "http2Route", "grpcRoute"]) else {
        spec.error("expected one of httpRoute, http2Route, grpcRoute");
        return None;
    };
    let given = of_kind.field("match");
    let port = given.field("port").number();
    let Some(criteria) = criteria(&given, port) else {
        spec.mark_read();
        return None;
    };
    let action = of_kind.field("action");
    let rewrite = rewrite(&action.field("rewrite"), given.field("prefix").text());
    let of_target = action.field("target");
    if let Some(port) = of_target.get("port") {
        port.lost("a service has one port in Consul");
    }
    let name = of_target.field("virtualService").field("virtualServiceName");
    let service = input.named(&input.services, "virtual service", &name)?;
    Some(GatewayRoute {
        order: order(&spec, &criteria),
        port,
        host: host(&given.field("hostname")),
        criteria,
        rewrite,
        service: consul_name(name.required_text()),
        target: target(input, service, entries)?,
        place: route.root().place(),
    })
}

fn host(hostname: &Field<'_>) -> Option<String> {
    if let Some(exact) = hostname.field("exact").text() {
        return Some(exact.to_owned());
    }
    let suffix = hostname.field("suffix");
    let text = suffix.text()?;
    let domain = text.trim_start_matches('*').trim_start_matches('.');
    if !text.starts_with(['*', '.']) {
        suffix.report(&format!("Consul matches whole labels: *.{domain}, without {domain} itself"));
    }
    Some(format!("*.{domain}"))
}

/// App Mesh by default replaces the prefix by `/`, and the host by the name of the virtual service.
fn rewrite(rewrite: &Field<'_>, prefix: Option<&str>) -> Option<String> {
    let of_host = rewrite.field("hostname");
    if of_host.field("defaultTargetHostname").text() != Some("DISABLED") {
        of_host.report("Consul leaves the header Host as it is. App Mesh sets it to the name of the virtual service");
    }
    if let Some(exact) = rewrite.field("path").field("exact").text() {
        return Some(exact.to_owned());
    }
    let of_prefix = rewrite.field("prefix");
    if let Some(value) = of_prefix.field("value").text() {
        return Some(value.to_owned());
    }
    let kept = of_prefix.field("defaultPrefix").text() == Some("DISABLED");
    prefix.filter(|prefix| !kept && *prefix != "/").map(|_| "/".to_owned())
}
