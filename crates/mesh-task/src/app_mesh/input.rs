//! The documents, sorted by the kind of their resource.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::field::{Field, Log, Resource};
use super::values::consul_name;

/// Resources by their names in App Mesh.
pub(super) type Named<'a> = BTreeMap<String, Resource<'a>>;

/// All resources.
#[derive(Debug, Default)]
pub(super) struct Input<'a> {
    meshes: Named<'a>,
    pub(super) nodes: Named<'a>,
    pub(super) services: Named<'a>,
    pub(super) routers: Named<'a>,
    /// The routes by router and name.
    pub(super) routes: BTreeMap<(String, String), Resource<'a>>,
    pub(super) gateways: Named<'a>,
    /// The gateway routes by gateway and name.
    pub(super) gateway_routes: BTreeMap<(String, String), Resource<'a>>,
}

/// What `describe-…` wraps a resource in.
const WRAPPERS: [&str; 7] =
    ["mesh", "virtualNode", "virtualService", "virtualRouter", "route", "virtualGateway", "gatewayRoute"];

/// Fields that AWS adds, and fields that only the API call needs.
const NOT_OF_THE_RESOURCE: [&str; 5] = ["meshName", "meshOwner", "metadata", "status", "clientToken"];

impl<'a> Input<'a> {
    pub(super) fn read(documents: &'a [(String, Value)], log: &'a Log) -> Self {
        let mut input = Self::default();
        let mut meshes = BTreeSet::new();
        for (file, document) in documents {
            let list = document.as_array().map_or(std::slice::from_ref(document), Vec::as_slice);
            for value in list {
                let unwrapped = WRAPPERS.iter().find_map(|name| value.get(name)).unwrap_or(value);
                meshes.extend(unwrapped["meshName"].as_str());
                if let Err(error) = input.add(unwrapped, log) {
                    log.error(format!("{file}: {error}"));
                }
            }
        }
        if meshes.len() > 1 {
            let names: Vec<_> = meshes.into_iter().collect();
            log.error(format!(
                "the files have resources of several meshes ({}): convert each mesh alone",
                names.join(", ")
            ));
        }
        input
    }

    fn add(&mut self, value: &'a Value, log: &'a Log) -> Result<(), String> {
        let name = |field: &str| value[field].as_str().map(str::to_owned);
        let names = ["virtualNodeName", "virtualServiceName", "virtualGatewayName", "virtualRouterName", "meshName"];
        let of_child = |kind: &str, parent: &str, child: &str| format!("{kind}[{parent}/{child}]");
        let replaced = if let (Some(router), Some(route)) = (name("virtualRouterName"), name("routeName")) {
            let resource =
                resource(of_child("route", &router, &route), value, &["routeName", "virtualRouterName"], log);
            self.routes.insert((router, route), resource)
        } else if let (Some(gateway), Some(route)) = (name("virtualGatewayName"), name("gatewayRouteName")) {
            let read = ["gatewayRouteName", "virtualGatewayName"];
            let resource = resource(of_child("gatewayRoute", &gateway, &route), value, &read, log);
            self.gateway_routes.insert((gateway, route), resource)
        } else {
            let Some((field, name)) = names.iter().find_map(|field| Some((*field, name(field)?))) else {
                return Err("expected a resource of App Mesh, such as {\"virtualNodeName\": …, \"spec\": …}".to_owned());
            };
            let kind = field.trim_end_matches("Name");
            let resource = resource(format!("{kind}[{name}]"), value, &[field], log);
            if consul_name(&name) != name && kind != "mesh" {
                resource.root().field(field).report(&format!("the name in Consul is {:?}", consul_name(&name)));
            }
            let all = match kind {
                "virtualNode" => &mut self.nodes,
                "virtualService" => &mut self.services,
                "virtualGateway" => &mut self.gateways,
                "virtualRouter" => &mut self.routers,
                _ => &mut self.meshes,
            };
            all.insert(name, resource)
        };
        replaced.map_or(Ok(()), |earlier| Err(format!("{} occurs twice", earlier.root().place())))
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &Resource<'a>> {
        let named = [&self.meshes, &self.nodes, &self.services, &self.routers, &self.gateways];
        let children = [&self.routes, &self.gateway_routes];
        named.into_iter().flat_map(BTreeMap::values).chain(children.into_iter().flat_map(BTreeMap::values))
    }

    /// The resource that a field names.
    pub(super) fn named<'i>(&self, all: &'i Named<'a>, kind: &str, field: &Field<'_>) -> Option<&'i Resource<'a>> {
        let name = field.required_text();
        let found = all.get(name);
        if found.is_none() && !name.is_empty() {
            field.error(&format!("expected a {kind} of the given files, got {name:?}"));
        }
        found
    }
}

fn resource<'a>(id: String, value: &'a Value, read: &[&str], log: &'a Log) -> Resource<'a> {
    let resource = Resource::new(id, value, log);
    for name in read.iter().chain(&NOT_OF_THE_RESOURCE) {
        resource.root().field(name).mark_read();
    }
    resource
}
