//! Stats tags and sinks.

use std::net::IpAddr;

use serde_json::{Value, json};
use sidecar_kit::env::Env;

use super::{BootstrapError, socket_address};

/// The parts of the name that Consul gives a cluster, each with its separator. After them the name ends with `consul`. Envoy puts the
/// cluster's name into the names of its metrics. `S` stands for one segment, and a part in `(?:…)?` may be missing.
const CLUSTER: [(&str, &str); 8] = [
    ("custom_hash", r"(?:S~)?"),
    ("service_subset", r"(?:S\.)?"),
    ("service", r"S\."),
    ("namespace", r"S\."),
    ("partition", r"(?:S\.)?"),
    ("datacenter", r"S\."),
    ("routing_type", r"S\."),
    ("trust_domain", r"S\."),
];
const SEGMENT: &str = "[^.]+";
/// The prefix of a cluster for traffic that bypasses the mesh's routing.
const PASSTHROUGH: &str = "(?:passthrough~)?";
const ROUTING_TYPE: usize = 6;

/// The names of an upstream's listener: service, namespace, partition, and datacenter or peer.
const UPSTREAM: [(&str, &str); 5] = [
    ("service", r"^(?:tcp|http)\.upstream(?:_peered)?\.((S)(?:\.S)?(?:\.S)?\.S\.)"),
    ("datacenter", r"^(?:tcp|http)\.upstream\.(S(?:\.S)?(?:\.S)?\.(S)\.)"),
    ("peer", r"^(?:tcp|http)\.upstream_peered\.(S(?:\.S)?\.(S)\.)"),
    ("namespace", r"^(?:tcp|http)\.upstream(?:_peered)?\.(S(?:\.(S))?(?:\.S)?\.S\.)"),
    ("partition", r"^(?:tcp|http)\.upstream\.(S(?:\.S)?(?:\.(S))?\.S\.)"),
];

/// All stats tags: the user's fixed tags, tags from names, and the default tags that the user did not set. In each pattern, Envoy removes
/// the outer group from the metric's name and uses the inner group as the tag's value.
pub(super) fn tags(user: &[String], ours: &[(&str, Option<&str>)]) -> Vec<Value> {
    let user: Vec<(String, &str)> = user
        .iter()
        .map(|tag| {
            let (name, value) = tag.split_once('=').unwrap_or((tag, "1"));
            (name.to_lowercase(), value)
        })
        .collect();
    let fixed = |name: &str, value: &str| json!({ "tag_name": name, "fixed_value": value });
    let mut tags: Vec<Value> = user.iter().map(|(name, value)| fixed(name, value)).collect();

    let mut pattern = |name: String, regex: &str| {
        tags.push(json!({ "tag_name": name, "regex": regex.replace('S', SEGMENT) }));
    };
    for (index, (name, _)) in CLUSTER.iter().enumerate() {
        if index == ROUTING_TYPE {
            pattern("consul.destination.peer".to_owned(), r"^cluster\.(S\.(?:S\.)?(S)\.external\.S\.consul\.)");
        }
        pattern(format!("consul.destination.{name}"), &cluster(PASSTHROUGH, index));
    }
    for (name, parts) in TARGETS {
        pattern(format!("consul.destination.{name}"), &target(PASSTHROUGH, parts));
    }
    for (name, regex) in UPSTREAM {
        pattern(format!("consul.upstream.{name}"), regex);
    }
    // The tag names from before Consul 1.9. Consul still writes them. There is none for the partition, which is newer.
    for (index, (name, _)) in CLUSTER.iter().enumerate().filter(|(_, (name, _))| *name != "partition") {
        pattern(format!("consul.{name}"), &cluster("", index));
    }
    for (name, parts) in TARGETS {
        pattern(format!("consul.{name}"), &target("", parts));
    }

    for (name, value) in ours {
        let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
        if user.iter().all(|(set, _)| set != name) {
            tags.push(fixed(name, value));
        }
    }
    tags
}

/// The tags that hold several parts of a cluster's name: `target` the parts up to the datacenter, `full_target` all of them.
const TARGETS: [(&str, usize); 2] = [("target", ROUTING_TYPE), ("full_target", CLUSTER.len())];

/// The pattern that captures one part of a cluster's name.
fn cluster(start: &str, captured: usize) -> String {
    let parts = CLUSTER.iter().enumerate().map(|(index, (_, part))| match index {
        _ if index == captured => part.replace('S', "(S)"),
        // For external traffic, the name has a peer in place of the datacenter.
        ROUTING_TYPE if ["partition", "datacenter"].contains(&CLUSTER[captured].0) => r"internal[^.]*\.".to_owned(),
        _ => (*part).to_owned(),
    });
    format!(r"^cluster\.{start}({}consul\.)", parts.collect::<String>())
}

/// The pattern that captures the first `count` parts of a cluster's name together.
fn target(start: &str, count: usize) -> String {
    let join = |parts: &[(&str, &str)]| parts.iter().map(|(_, part)| *part).collect::<String>();
    let head = join(&CLUSTER[..count]);
    let head = head.strip_suffix(r"\.").unwrap_or(&head);
    format!(r"^cluster\.{start}(({head})\.{}consul\.)", join(&CLUSTER[count..]))
}

pub(super) fn statsd(url: &str, env: &Env) -> Result<Value, BootstrapError> {
    let config = "type.googleapis.com/envoy.config.metrics.v3.StatsdSink";
    sink("envoy_statsd_url", "envoy.stat_sinks.statsd", config, url, env)
}

pub(super) fn dogstatsd(url: &str, env: &Env) -> Result<Value, BootstrapError> {
    let config = "type.googleapis.com/envoy.config.metrics.v3.DogStatsdSink";
    sink("envoy_dogstatsd_url", "envoy.stat_sinks.dog_statsd", config, url, env)
}

fn sink(option: &'static str, name: &str, config: &str, url: &str, env: &Env) -> Result<Value, BootstrapError> {
    let expected = "udp://<ip>:<port> or unix:///<path>, or $<variable> that holds one";
    // The value of a variable, and the user information of a URL, may be secrets.
    let got = if url.starts_with('$') { url } else { "another string (not shown)" };
    let wrong = || BootstrapError::Option { option, expected, got: got.to_owned() };
    let url = expand(url, env);
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let address = match scheme.to_ascii_lowercase().as_str() {
        "udp" => {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
            socket_address(split_ip_port(authority).ok_or_else(wrong)?)
        }
        "unix" if rest.starts_with('/') => {
            json!({ "pipe": { "path": rest.split(['?', '#']).next().unwrap_or(rest) } })
        }
        _ => return Err(wrong()),
    };
    Ok(json!({ "name": name, "typedConfig": { "@type": config, "address": address } }))
}

pub(super) fn telemetry_sink(cluster: &str) -> Value {
    json!({
        "name": "envoy.stat_sinks.metrics_service",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig",
            "transport_api_version": "V3",
            "grpc_service": { "envoy_grpc": { "cluster_name": cluster } },
            "emit_tags_as_labels": true,
        },
    })
}

/// If the whole value is `$NAME`, that variable holds the URL. Inside a URL, Consul expands only `$HOST_IP` and `${HOST_IP}`.
fn expand(url: &str, env: &Env) -> String {
    if let Some(name) = url.strip_prefix('$').filter(|name| name.len() > 1) {
        return env.get(name).unwrap_or_default().to_owned();
    }
    let address = env.get("HOST_IP").unwrap_or_default();
    let url = url.replace("${HOST_IP}", address);
    let mut parts = url.split("$HOST_IP");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let longer = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        expanded.push_str(if longer { "$HOST_IP" } else { address });
        expanded.push_str(part);
    }
    expanded
}

/// `ip:port` or `[ip]:port`: Envoy resolves no names there.
pub(super) fn split_ip_port(text: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[') {
        Some(host) => IpAddr::V6(host.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    Some((ip, port.parse().ok()?))
}
