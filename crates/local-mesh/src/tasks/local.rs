//! The settings of the local mesh in place of those of production.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::text;

/// The fields of the settings that the local mesh replaces by its own.
const REPLACED: [&str; 12] = [
    "retryJoin",
    "consulServers",
    "registry",
    "images",
    "secrets",
    "datacenter",
    "tls",
    "consulVersion",
    "consulLogin",
    "consulHTTPAddr",
    "consulCACertFile",
    "logConfiguration",
];

/// The images of ecs-mesh that the local mesh builds.
const IMAGES: [&str; 9] = [
    "acl-controller",
    "app-entrypoint",
    "consul",
    "demo-app",
    "envoy-entrypoint",
    "health-sync",
    "mesh-dataplane",
    "mesh-init",
    "sidecar-proxy",
];

/// Consul's servers.
const SERVERS: [&str; 3] = ["consul-server-1", "consul-server-2", "consul-server-3"];

/// The file with the servers' CA certificate, for the sidecars of a task without an agent.
const CA_FILE: &str = "/secrets/CONSUL_HTTPS_CACERT_PEM";

fn built(image: &str) -> String {
    format!("ecs-mesh/{image}:dev")
}

/// The settings for a task of the local mesh, and what they replace.
pub(crate) fn settings(settings: &Value, service: &str, agentless: bool) -> (Value, Vec<String>) {
    let mut local = settings.clone();
    let Some(fields) = local.as_object_mut() else { return (local, Vec::new()) };
    let replaced: Vec<_> =
        REPLACED.into_iter().filter(|name| fields.remove(*name).is_some_and(|old| !old.is_null())).collect();
    let mut notes = Vec::new();
    if !replaced.is_empty() {
        notes.push(format!("settings: the local mesh has its own {}", replaced.join(", ")));
    }
    let mut images = json!({
        "meshInit": built("mesh-init"), "sidecarProxy": built("sidecar-proxy"), "meshDataplane": built("mesh-dataplane"),
        "healthSync": built("health-sync"), "appEntrypoint": built("app-entrypoint"),
    });
    let mut secrets = json!({ "serviceToken": format!("ecs-mesh-{service}:token"), "ca": "consul-ca" });
    if agentless {
        let servers = json!({ "hosts": SERVERS.join(","), "defaults": { "caCertFile": CA_FILE } });
        fields.insert("consulServers".to_owned(), servers);
    } else {
        fields.insert("retryJoin".to_owned(), json!(SERVERS));
        fields.insert("datacenter".to_owned(), json!("dc1"));
        images["consul"] = json!(built("consul"));
        secrets["clientToken"] = json!("ecs-mesh-consul-client-token:token");
        secrets["gossipKey"] = json!("consul-gossip-key");
    }
    fields.insert("images".to_owned(), images);
    fields.insert("secrets".to_owned(), secrets);
    for role in ["service", "gateway"] {
        for field in ["namespace", "partition"] {
            let of_role = fields.get_mut(role).and_then(Value::as_object_mut);
            if let Some(place) = of_role.and_then(|of_role| of_role.remove(field)).filter(|place| !place.is_null()) {
                notes.push(format!(
                    "settings.{role}.{field}: {place} is left out, since the local mesh's Consul is not Enterprise"
                ));
            }
        }
    }
    let upstreams = fields.get_mut("proxy").and_then(|proxy| proxy.get_mut("upstreams")?.as_array_mut());
    for (index, upstream) in upstreams.into_iter().flatten().enumerate() {
        for field in ["datacenter", "destinationNamespace", "destinationPartition", "destinationPeer"] {
            let removed = upstream.as_object_mut().and_then(|upstream| upstream.remove(field));
            if let Some(place) = removed.filter(|place| !place.is_null()) {
                notes.push(format!(
                    "settings.proxy.upstreams[{index}].{field}: {place} is left out, since the local mesh has one datacenter, no peers, \
                     and no Consul Enterprise"
                ));
            }
        }
    }
    (local, notes)
}

/// The ports of an ingress gateway's listeners.
pub(crate) fn listeners(settings: &Value) -> Vec<u16> {
    let ports = settings["listenerPorts"].as_array().into_iter().flatten();
    ports.filter_map(|port| u16::try_from(port.as_u64()?).ok()).collect()
}

/// A container's image: the one that is given for it. Otherwise that of the task definition. If that is an image of ecs-mesh in the
/// registry of the settings, the local mesh has built it.
pub(crate) fn image(container: &Value, registry: Option<&str>, given: &BTreeMap<String, String>) -> String {
    if let Some(image) = given.get(container["name"].as_str().unwrap_or_default()) {
        return image.clone();
    }
    let image = text(&container["image"]);
    let of_registry =
        registry.and_then(|registry| image.strip_prefix(registry.trim_end_matches('/'))?.strip_prefix('/'));
    let name = of_registry.and_then(|image| image.split([':', '@']).next());
    name.filter(|name| IMAGES.contains(name)).map_or(image.clone(), built)
}
