//! What to do about the fields that no config entry has.

/// For each kind of resource: the end of a path, without list indexes, and the advice for this field. The first row that fits is used.
const ADVICE: &[(&str, &str, &str)] = &[
    ("mesh", "spec.egressFilter", "Consul's sidecars limit no outgoing calls of an app: use security groups"),
    ("mesh", "spec.serviceDiscovery", "Consul has no such preference: an agent advertises one address"),
    (
        "virtualNode",
        "spec.serviceDiscovery",
        "not needed, since each task registers itself in Consul. If the node is outside of the mesh, use a terminating gateway",
    ),
    (
        "virtualNode",
        "healthCheck",
        "no config entry has health checks: give the container a `healthCheck`, or write `service.checks` in the settings of mesh-task",
    ),
    (
        "virtualNode",
        "outlierDetection",
        "write `UpstreamConfig.Overrides[].PassiveHealthCheck` into the service-defaults entry of each caller (Consul 1.10)",
    ),
    (
        "",
        "connectionPool",
        "write `UpstreamConfig.Overrides[].Limits` into the service-defaults entry of each caller (Consul 1.10)",
    ),
    (
        "",
        "maxPendingRequests",
        "write `UpstreamConfig.Overrides[].Limits` into the service-defaults entry of each caller (Consul 1.10)",
    ),
    ("virtualNode", "listeners", "a service has one port in Consul: give this port to a service of its own"),
    ("virtualRouter", "listeners", "a service has one port in Consul: give this port to a service of its own"),
    ("", "tls.certificate", "not needed, since Consul's CA issues and renews the certificates of the mesh"),
    ("", "tls.validation", "not needed, since the proxies trust Consul's CA, and intentions say who may call"),
    (
        "",
        "clientPolicy",
        "not needed, since Consul's proxies use mutual TLS for each call, and intentions say who may be called",
    ),
    ("", "backendDefaults", "not needed, since Consul's proxies use mutual TLS for each call"),
    ("", "logging", "write `AccessLogs` into the proxy-defaults entry, which is for all proxies (Consul 1.15)"),
    (
        "virtualNode",
        "timeout",
        "no config entry has this: write `local_idle_timeout_ms` into `proxy.config` of the settings of mesh-task",
    ),
    (
        "virtualNode",
        "idle",
        "no config entry has this: write `local_idle_timeout_ms` into `proxy.config` of the settings of mesh-task",
    ),
    ("route", "timeout", "Consul has no idle timeout for TCP"),
    (
        "",
        "perRetryTimeout",
        "Consul has no timeout for a single attempt: `RequestTimeout` is for all attempts together",
    ),
    ("", "tags", "not copied: a config entry has `Meta`, for keys and values of your own"),
];

const NONE: &str = "no counterpart in Consul's config entries";

/// The advice for a field of a resource.
pub(super) fn of(resource: &str, path: &str) -> &'static str {
    let kind = resource.split('[').next().unwrap_or_default();
    let plain: String = path.split(']').filter_map(|part| part.split('[').next()).collect();
    let fits = |(of, end, _): &&(&str, &str, &str)| {
        let ends = plain.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        ends && (of.is_empty() || *of == kind)
    };
    ADVICE.iter().find(fits).map_or(NONE, |(.., advice)| advice)
}
