//! Which services the terminating gateways speak for, by their config entries.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::tasks::may_be_identity;

/// The linked services of each terminating gateway.
pub type Links = BTreeMap<String, BTreeSet<String>>;

/// Gateways with services that can't be linked, told already.
pub type Unlinked = BTreeSet<(String, String)>;

/// The links in the config entries. What can't be linked is told once.
pub fn links(entries: &[Value], told: &mut Unlinked) -> Links {
    let (mut links, mut unlinked) = (Links::new(), Unlinked::new());
    for entry in entries {
        let gateway = entry["Name"].as_str().unwrap_or_default();
        let services = entry["Services"].as_array().into_iter().flatten();
        let own = namespace_of(&entry["Namespace"], "default");
        let services = services.filter_map(|service| Some((service["Name"].as_str()?, &service["Namespace"])));
        for (service, namespace) in services {
            // An identity holds in the token's namespace alone: there the name is that of another service.
            if namespace_of(namespace, own) != own {
                let service = format!("{service} in the namespace {}", namespace.as_str().unwrap_or_default());
                unlinked.insert((gateway.to_owned(), service));
            } else if may_be_identity(service) {
                links.entry(gateway.to_owned()).or_default().insert(service.to_owned());
            } else {
                unlinked.insert((gateway.to_owned(), service.to_owned()));
            }
        }
    }
    for (gateway, service) in unlinked.difference(told) {
        tracing::warn!(
            "service {gateway}: its terminating gateway links {service:?}, which no service identity can name: link each \
             service by its name in lower case and in the gateway's own namespace, or give the gateway a token of your own"
        );
    }
    *told = unlinked;
    links
}

fn namespace_of<'a>(namespace: &'a Value, default: &'a str) -> &'a str {
    namespace.as_str().filter(|namespace| !namespace.is_empty()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_gateway_has_what_it_links_by_name() {
        let entries = json!([
            { "Name": "tgw", "Services": [{ "Name": "legacy" }, { "Name": "billing" }, { "Name": "*" }, { "Name": "Old" }] },
            { "Name": "empty", "Services": null },
            { "Name": "spaced", "Namespace": "red", "Services": [
                { "Name": "same", "Namespace": "red" }, { "Name": "unsaid" }, { "Name": "local", "Namespace": "blue" },
            ] },
            { "Name": "default", "Services": [
                { "Name": "same", "Namespace": "default" }, { "Name": "local", "Namespace": "blue" },
            ] },
        ]);
        let mut told = Unlinked::new();
        let links = links(entries.as_array().unwrap(), &mut told);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let expected = [
            ("tgw", names(&["billing", "legacy"])),
            ("spaced", names(&["same", "unsaid"])),
            ("default", names(&["same"])),
        ];
        assert_eq!(links, expected.map(|(gateway, services)| (gateway.to_owned(), services)).into());
        let unlinked = told.iter().map(|(_, service)| service.as_str()).collect::<Vec<_>>();
        assert_eq!(unlinked, ["local in the namespace blue", "local in the namespace blue", "*", "Old"]);
    }
}
