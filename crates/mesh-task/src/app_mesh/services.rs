//! Virtual nodes, virtual services and virtual routers.

use serde_json::{Map, Value, json};

use super::entries::Entries;
use super::field::{Field, Resource};
use super::input::Input;
use super::routes::{self, Route};
use super::values::{consul_name, milliseconds};

/// Where the requests to a virtual service go.
pub(super) enum Target {
    /// To one node.
    Node(String),
    /// To the targets of the virtual router's routes.
    Routes(Vec<Route>),
}

impl Target {
    /// The services at which the requests may arrive.
    pub(super) fn nodes(&self) -> Vec<String> {
        match self {
            Self::Node(node) => vec![node.clone()],
            Self::Routes(routes) => routes.iter().flat_map(|route| route.nodes.clone()).collect(),
        }
    }
}

/// The protocol of a node's first listener. Consul's default is tcp.
pub(super) fn protocol_of_node<'r>(node: &'r Resource<'_>) -> &'r str {
    protocol(&node.spec().field("listeners").field_at(0)).unwrap_or("tcp")
}

pub(super) fn protocol<'r>(listener: &Field<'r>) -> Option<&'r str> {
    listener.field("portMapping").field("protocol").text()
}

pub(super) fn convert(input: &Input<'_>, entries: &mut Entries<'_>) {
    for (name, node) in &input.nodes {
        let name = consul_name(name);
        entries.claim(&name, &node.root().place());
        let listener = node.spec().field("listeners").field_at(0);
        if listener.is_there() {
            let defaults = defaults_of_node(&listener);
            entries.put("service-defaults", &name, defaults);
        }
    }
    for (name, service) in &input.services {
        convert_service(input, &consul_name(name), service, entries);
    }
    for (name, node) in &input.nodes {
        for backend in node.spec().field("backends").items() {
            backend_of(input, &consul_name(name), &backend.field("virtualService"), entries);
        }
    }
    for route in input.routes.iter().filter(|((router, _), _)| !input.routers.contains_key(router)) {
        route.1.root().field("virtualRouterName").error("expected a virtual router of the given files");
    }
}

/// The service's own side: protocol, limits and timeouts of its proxy.
fn defaults_of_node(listener: &Field<'_>) -> Map<String, Value> {
    let protocol = protocol(listener).unwrap_or("tcp");
    let mut defaults = Map::from_iter([("Protocol".to_owned(), json!(protocol))]);
    listener.field("portMapping").field("port").mark_read();
    let pool = listener.field("connectionPool");
    let connections = ["http", "tcp"].iter().find_map(|kind| pool.field(kind).field("maxConnections").number());
    if let Some(connections) = connections {
        defaults.insert("MaxInboundConnections".to_owned(), connections.into());
    }
    if let Some((_, timeouts)) = listener.field("timeout").one_of(&["http", "http2", "grpc"]) {
        let request = timeouts.field("perRequest");
        match milliseconds(&request) {
            Some(0) => request.lost("0 switches the timeout off. Consul can't: give a long timeout"),
            Some(timeout) => drop(defaults.insert("LocalRequestTimeoutMs".to_owned(), timeout.into())),
            None => {}
        }
    }
    tls_of_listener(&listener.field("tls"));
    defaults
}

fn tls_of_listener(tls: &Field<'_>) {
    let mode = tls.field("mode");
    if let Some("PERMISSIVE" | "DISABLED") = mode.text() {
        mode.report("Consul's proxies accept only mutual TLS. A caller outside of the mesh needs a gateway, or calls the app's own port");
    }
}

fn convert_service(input: &Input<'_>, name: &str, service: &Resource<'_>, entries: &mut Entries<'_>) {
    let id = service.root().place();
    let Some(target) = target(input, service, entries) else { return };
    let node = input.nodes.iter().find(|(node, _)| consul_name(node) == name).map(|(_, node)| node);
    match &target {
        Target::Node(only) if only == name => return,
        Target::Routes(_) if node.is_some() && target.nodes().iter().any(|target| target == name) => {}
        _ => entries.claim(name, &id),
    }
    match target {
        Target::Node(node) => redirect(name, &node, protocol_of(input, &node), entries),
        Target::Routes(routes) => match routes.as_slice() {
            [] => service.spec().report("none of its routes could be converted, so it has no entry"),
            [route, ..] if route.protocol == "tcp" => {
                if route.nodes.iter().all(|node| node != name) {
                    redirect(name, &route.nodes[0], "tcp", entries);
                }
            }
            [route, ..] => {
                if !routes.iter().any(Route::takes_all) {
                    service.spec().report(&format!(
                        "no route takes all requests. App Mesh answers the others with 404, Consul sends them to the service {name:?}"
                    ));
                }
                entries.put_protocol(name, route.protocol);
                let list: Vec<Value> = routes.iter().map(Route::entry).collect();
                entries.put("service-router", name, Map::from_iter([("Routes".to_owned(), list.into())]));
            }
        },
    }
}

fn protocol_of<'i>(input: &'i Input<'_>, name: &str) -> &'i str {
    let node = input.nodes.iter().find(|(node, _)| consul_name(node) == name);
    node.map_or("tcp", |(_, node)| protocol_of_node(node))
}

/// A virtual service that stands for one node.
fn redirect(name: &str, node: &str, protocol: &str, entries: &mut Entries<'_>) {
    entries.put_protocol(name, protocol);
    let redirect = json!({ "Service": node });
    entries.put("service-resolver", name, Map::from_iter([("Redirect".to_owned(), redirect)]));
}

/// Where the requests to a virtual service go; none if it has no provider.
pub(super) fn target(input: &Input<'_>, service: &Resource<'_>, entries: &mut Entries<'_>) -> Option<Target> {
    let provider = service.spec().field("provider");
    if let Some(node) = provider.get("virtualNode") {
        let name = node.field("virtualNodeName");
        input.named(&input.nodes, "virtual node", &name)?;
        return Some(Target::Node(consul_name(name.required_text())));
    }
    let Some(router) = provider.get("virtualRouter") else {
        service.spec().field("provider").report("missing, so the virtual service has no target and no entry");
        return None;
    };
    let name = router.field("virtualRouterName");
    let router = input.named(&input.routers, "virtual router", &name)?;
    let listener = router.spec().field("listeners").field_at(0);
    let port = listener.field("portMapping").field("port").number();
    let routes = routes::of_router(input, name.required_text(), port, entries);
    if let Some(of_router) = protocol(&listener)
        && let Some(route) = routes.iter().find(|route| route.protocol != of_router)
    {
        let expected = format!("expected {}, the protocol of its routes, got {of_router}", route.protocol);
        listener.field("portMapping").field("protocol").error(&expected);
    }
    Some(Target::Routes(routes))
}

/// A node calls a virtual service.
fn backend_of(input: &Input<'_>, caller: &str, backend: &Field<'_>, entries: &mut Entries<'_>) {
    let name = backend.field("virtualServiceName");
    let called = name.required_text();
    let Some(service) = input.services.get(called) else {
        name.lost("no such virtual service among the given files, so there is no intention for this call");
        return;
    };
    if let Some(target) = target(input, service, entries) {
        entries.allow(caller, &target.nodes());
    }
    name.report(&format!(
        "add {{\"destinationName\": {:?}, \"localBindPort\": PORT}} to `proxy.upstreams` in the settings of {caller}. The app then calls \
         127.0.0.1:PORT instead of {called}",
        consul_name(called)
    ));
}
