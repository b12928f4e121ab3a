//! Fields that the agent's Consul does not have: the agent refuses them, or drops them silently.

use consul_api::{AgentService, Config, Error, ServiceRegistration};

const NAMESPACE: &str = "Namespace";
const PARTITION: &str = "Partition";

/// The field that the agent refused. None if the error has another reason.
pub(crate) fn refused(error: &Error) -> Option<String> {
    match error {
        Error::UnknownField { field, .. } => Some(field.clone()),
        // Consul without Enterprise refuses this query parameter.
        Error::Refused { status, body, .. } if status.as_u16() == 400 => {
            let parameter = body.split_once("Invalid query parameter: \"")?.1.split_once('"')?.0;
            [("ns", NAMESPACE), ("partition", PARTITION)]
                .into_iter()
                .find(|(name, _)| *name == parameter)
                .map(|(_, field)| field.to_owned())
        }
        _ => None,
    }
}

/// A field that the agent has ignored silently, so that its answer lacks the namespace or the partition. A Consul without namespaces would
/// connect an upstream of another namespace to the service of the same name in the task's own namespace. Consul 1.11 and later without
/// partitions would do the same with an upstream of another partition. An agent before Consul 1.11 ignores the query parameter `partition`.
pub(crate) fn dropped(
    asked: &Config,
    registrations: &[ServiceRegistration],
    registered: &AgentService,
) -> Option<&'static str> {
    let given = |name: Option<&str>| name.is_some_and(|name| !name.is_empty() && !name.eq_ignore_ascii_case("default"));
    let upstreams =
        || registrations.iter().filter_map(|service| service.proxy.as_ref()).flat_map(|proxy| &proxy.upstreams);
    if given(asked.namespace()) && registered.namespace.is_none() {
        Some(NAMESPACE)
    } else if given(asked.partition()) && registered.partition.is_none() {
        Some(PARTITION)
    } else if registered.namespace.is_none()
        && upstreams().any(|upstream| given(upstream.destination_namespace.as_deref()))
    {
        Some("DestinationNamespace")
    } else if registered.partition.is_none()
        && upstreams().any(|upstream| given(upstream.destination_partition.as_deref()))
    {
        Some("DestinationPartition")
    } else {
        None
    }
}

/// The fields that not every Consul knows, and the version that each needs. docs/config.md and docs/compatibility.md have the same
/// versions.
const CURES: [(&str, &str); 8] = [
    ("TLSServerName", "the TLS server name of a check needs Consul 1.10 or later"),
    ("H2PING", "h2ping checks need Consul 1.10 or later"),
    ("H2PingUseTLS", "h2ping checks with a choice of TLS need Consul 1.11 or later"),
    ("UDP", "UDP checks need Consul 1.13 or later"),
    (NAMESPACE, "namespaces need Consul Enterprise 1.7 or later"),
    ("DestinationNamespace", "namespaces need Consul Enterprise 1.7 or later"),
    (PARTITION, "admin partitions need Consul Enterprise 1.11 or later"),
    ("DestinationPartition", "admin partitions need Consul Enterprise 1.11 or later"),
];

/// What to do if the agent does not know a field.
pub(crate) fn cure(field: &str) -> &'static str {
    let known = CURES.iter().find(|(name, _)| *name == field);
    known.map_or("remove it from the configuration or use a later Consul", |(_, cure)| cure)
}

#[cfg(test)]
mod tests {
    use consul_api::{Proxy, Upstream};
    use serde_json::json;
    use sidecar_kit::env::Env;

    use super::*;

    fn forgets(variables: &[(&'static str, &'static str)], upstream: Upstream, answer: &str) -> Option<&'static str> {
        let asked = Config::from_env(&Env::from_iter(variables.iter().copied())).unwrap();
        let proxy = Proxy { upstreams: vec![upstream], ..Proxy::default() };
        let proxy = ServiceRegistration { proxy: Some(proxy), ..ServiceRegistration::default() };
        let mut service = json!({ "ID": "p", "Service": "p" });
        service.as_object_mut().unwrap().extend(serde_json::from_str::<serde_json::Map<_, _>>(answer).unwrap());
        dropped(&asked, &[proxy], &serde_json::from_value(service).unwrap())
    }

    #[test]
    fn a_missing_namespace_or_partition_is_reported() {
        let local = Upstream::default;
        let namespace = |name: &str| Upstream { destination_namespace: Some(name.to_owned()), ..local() };
        let partition = |name: &str| Upstream { destination_partition: Some(name.to_owned()), ..local() };
        let enterprise = r#"{"Partition":"default","Namespace":"default"}"#;

        assert_eq!(forgets(&[("CONSUL_PARTITION", "ap1")], local(), "{}"), Some("Partition"));
        assert_eq!(forgets(&[("CONSUL_PARTITION", "ap1")], local(), r#"{"Partition":"ap1"}"#), None);
        assert_eq!(forgets(&[("CONSUL_NAMESPACE", "a")], local(), "{}"), Some("Namespace"));
        assert_eq!(forgets(&[], namespace("a"), "{}"), Some("DestinationNamespace"));
        assert_eq!(forgets(&[], namespace("a"), enterprise), None);
        assert_eq!(forgets(&[], partition("a"), "{}"), Some("DestinationPartition"));
        assert_eq!(forgets(&[], partition("a"), enterprise), None);
        for harmless in [local(), namespace(""), namespace("default"), partition("Default")] {
            assert_eq!(forgets(&[("CONSUL_PARTITION", "default")], harmless.clone(), "{}"), None, "{harmless:?}");
        }
    }

    #[test]
    fn a_field_has_the_same_version_in_code_and_documents() {
        let table = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
        let table = std::fs::read_to_string(table).unwrap();
        let reference = mesh_config::schema::reference();
        for (field, cure) in CURES {
            let version = cure.split_once("Consul ").unwrap().1.strip_suffix(" or later").unwrap();
            let row =
                table.lines().find(|row| row.contains(&format!("| `{field}`"))).unwrap_or_else(|| panic!("{field}"));
            assert!(row.contains(&format!("| {version} |")), "{version} is not in {row}");
            let start = format!("| `{field}` |").to_lowercase();
            // Servers without an agent have fields of the same names.
            let described = reference.lines().filter(|line| line.to_lowercase().starts_with(&start));
            let described = described.filter(|line| !line.contains("| without an agent |")).collect::<Vec<_>>();
            assert!(!described.is_empty(), "{field}");
            for line in described {
                assert!(line.ends_with(&format!("(Consul {version}). |")), "{version} is not in {line}");
            }
        }
    }
}
