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
        for service in services.filter_map(|service| service["Name"].as_str()) {
            if may_be_identity(service) {
                links.entry(gateway.to_owned()).or_default().insert(service.to_owned());
            } else {
                unlinked.insert((gateway.to_owned(), service.to_owned()));
            }
        }
    }
    for (gateway, service) in unlinked.difference(told) {
        tracing::warn!(
            "service {gateway}: its terminating gateway links {service:?}, which no service identity can name: link each \
             service by its name in lower case, or give the gateway a token of your own"
        );
    }
    *told = unlinked;
    links
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
        ]);
        let mut told = Unlinked::new();
        let links = links(entries.as_array().unwrap(), &mut told);
        let of = ["billing", "legacy"].map(str::to_owned).into();
        assert_eq!(links, Links::from([("tgw".to_owned(), of)]));
        let unlinked = told.iter().map(|(_, service)| service.as_str()).collect::<Vec<_>>();
        assert_eq!(unlinked, ["*", "Old"]);
    }
}
