//! What a task asks for and its agent's Consul does not have: refused by the agent, or let pass and forgotten.

use consul_api::{AgentService, Config, Error, ServiceRegistration};

const NAMESPACE: &str = "Namespace";
const PARTITION: &str = "Partition";

/// The field that an agent refuses, if that is why it refuses.
pub(crate) fn refused(error: &Error) -> Option<String> {
    match error {
        Error::UnknownField { field, .. } => Some(field.clone()),
        // Without the Enterprise edition the query parameter is refused.
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

/// The field that an agent has taken and forgotten. One without namespaces answers without a namespace: it would connect
/// an upstream of another namespace to the service of that name in its own (tried, 1.8). One before Consul 1.11 ignores
/// the query parameter `partition` (tried, 1.8).
pub(crate) fn forgotten(
    asked: &Config,
    registrations: &[ServiceRegistration],
    registered: &AgentService,
) -> Option<&'static str> {
    let given = |name: Option<&str>| name.is_some_and(|name| !name.is_empty() && !name.eq_ignore_ascii_case("default"));
    let mut upstreams =
        registrations.iter().filter_map(|service| service.proxy.as_ref()).flat_map(|proxy| &proxy.upstreams);
    if given(asked.namespace()) && registered.namespace.is_none() {
        Some(NAMESPACE)
    } else if given(asked.partition()) && registered.partition.is_none() {
        Some(PARTITION)
    } else if registered.namespace.is_none()
        && upstreams.any(|upstream| given(upstream.destination_namespace.as_deref()))
    {
        Some("DestinationNamespace")
    } else {
        None
    }
}

/// What to do where an agent does not know a field. docs/compatibility.md has the same table.
pub(crate) fn cure(field: &str) -> &'static str {
    match field {
        "TLSServerName" => "the TLS server name of a check needs Consul 1.10 or later",
        "H2PING" => "h2ping checks need Consul 1.10 or later",
        "H2PingUseTLS" => "h2ping checks with a choice of TLS need Consul 1.11 or later",
        "UDP" => "UDP checks need Consul 1.13 or later",
        "Namespace" | "DestinationNamespace" => "namespaces need Consul Enterprise 1.7 or later",
        "Partition" | "DestinationPartition" => "admin partitions need Consul Enterprise 1.11 or later",
        _ => "remove it from the configuration or use a later Consul",
    }
}

#[cfg(test)]
mod tests {
    use consul_api::{Proxy, Upstream};
    use serde_json::json;
    use sidecar_kit::env::Env;

    use super::*;

    fn forgets(
        variables: &[(&'static str, &'static str)],
        destination: Option<&str>,
        answer: &str,
    ) -> Option<&'static str> {
        let asked = Config::from_env(&Env::from_iter(variables.iter().copied())).unwrap();
        let upstream = Upstream { destination_namespace: destination.map(str::to_owned), ..Upstream::default() };
        let proxy = Proxy { upstreams: vec![upstream], ..Proxy::default() };
        let proxy = ServiceRegistration { proxy: Some(proxy), ..ServiceRegistration::default() };
        let mut service = json!({ "ID": "p", "Service": "p" });
        service.as_object_mut().unwrap().extend(serde_json::from_str::<serde_json::Map<_, _>>(answer).unwrap());
        forgotten(&asked, &[proxy], &serde_json::from_value(service).unwrap())
    }

    #[test]
    fn an_answer_without_the_place_that_was_asked_for_has_forgotten_it() {
        let partition = [("CONSUL_PARTITION", "ap1")];
        assert_eq!(forgets(&partition, None, "{}"), Some("Partition"));
        assert_eq!(forgets(&partition, None, r#"{"Partition":"ap1","Namespace":"default"}"#), None);
        assert_eq!(forgets(&[("CONSUL_NAMESPACE", "a")], None, "{}"), Some("Namespace"));
        assert_eq!(forgets(&[], Some("a"), "{}"), Some("DestinationNamespace"));
        assert_eq!(forgets(&[], Some("a"), r#"{"Namespace":"default"}"#), None);
        for harmless in [None, Some(""), Some("default")] {
            assert_eq!(forgets(&[("CONSUL_PARTITION", "default")], harmless, "{}"), None, "{harmless:?}");
        }
    }
}
