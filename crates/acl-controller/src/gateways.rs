//! The services that terminating gateways link, from their config entries.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::tasks::may_be_identity;

/// The linked services of each terminating gateway.
pub type Links = BTreeMap<String, BTreeSet<String>>;

/// The links that have been reported, each with its gateway: Consul allows no service identity for the linked service.
pub type Unlinked = BTreeSet<(String, String)>;

/// The links in the config entries. If Consul allows no service identity for a linked service, the link is left out and reported once.
pub fn links(entries: &[Value], reported: &mut Unlinked) -> Links {
    let (mut links, mut unlinked) = (Links::new(), Unlinked::new());
    for entry in entries {
        let gateway = entry["Name"].as_str().unwrap_or_default();
        let services = entry["Services"].as_array().into_iter().flatten();
        let own = namespace_of(&entry["Namespace"], "default");
        let services = services.filter_map(|service| Some((service["Name"].as_str()?, &service["Namespace"])));
        for (service, namespace) in services {
            // A service identity is valid only in the token's namespace, where this name belongs to another service.
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
    for (gateway, service) in unlinked.difference(reported) {
        tracing::warn!(
            "service {gateway}: its terminating gateway links {service:?}, and its token gets no right for this service: a service \
             identity needs a name in lower case, in the gateway's own namespace. Link such a service, or create the gateway's token \
             yourself"
        );
    }
    *reported = unlinked;
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
    fn links_that_no_identity_can_name_are_left_out() {
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
        let mut reported = Unlinked::new();
        let links = links(entries.as_array().unwrap(), &mut reported);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let expected = [
            ("tgw", names(&["billing", "legacy"])),
            ("spaced", names(&["same", "unsaid"])),
            ("default", names(&["same"])),
        ];
        assert_eq!(links, expected.map(|(gateway, services)| (gateway.to_owned(), services)).into());
        let unlinked = reported.iter().map(|(_, service)| service.as_str()).collect::<Vec<_>>();
        assert_eq!(unlinked, ["local in the namespace blue", "local in the namespace blue", "*", "Old"]);
    }
}
