//! Converts a resource from xDS v2 to v3, as a pure function.
//!
//! Most fields have the same number in both versions and are copied. This module names only the fields that differ, and those that
//! contain them. In its comments, "`match` (1)" is the field `match` with the number 1.
//!
//! Consul's users can replace a listener or a cluster by JSON of their own (`envoy_public_listener_json` and others). Consul's
//! documentation calls this an escape hatch, so "escape-hatch JSON" here. It may have fields and extensions that Consul itself does not
//! send.
//!
//! The numbers are those of Envoy's own `.proto` files, v2 as of Envoy 1.14 and v3 as of 1.40
//! (<https://github.com/envoyproxy/envoy/tree/main/api>).

mod extension;
pub mod structs;

use self::extension::Place;
pub(crate) use self::extension::pack;
use crate::copies;
use crate::resource::{Kind, Resource};
use crate::wire::{self, Malformed, Value, put_bytes, put_varint};

/// `envoy.config.core.v3.ApiVersion.V3`.
pub const API_V3: u64 = 2;

const UPSTREAM_TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM_TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// `Cluster.DiscoveryType.EDS`.
const EDS: u64 = 3;
/// `TrafficDirection`.
const INBOUND: u64 = 1;
const OUTBOUND: u64 = 2;

/// Converts one resource from Consul for Envoy. An error means that it is no protobuf message, or that it has no name.
pub fn resource(kind: Kind, v2: &[u8]) -> Result<Resource, Malformed> {
    let mut needs = Vec::new();
    let body = match kind {
        Kind::Cluster => cluster(v2, &mut needs)?,
        Kind::Endpoint => copies::without_copies(v2)?,
        Kind::Listener => listener(v2, &mut needs)?,
        Kind::Route => route_configuration(v2)?,
    };
    // The name is field 1 of each of them.
    let name = text(v2, 1)?.ok_or(Malformed)?.to_owned();
    Ok(Resource::new(name, body, needs))
}

fn cluster(v2: &[u8], needs: &mut Vec<String>) -> Result<Vec<u8>, Malformed> {
    let name = text(v2, 1)?.unwrap_or_default();
    let (mut eds, mut service, mut hosts) = (false, name, Vec::new());
    let mut out = wire::rewrite(v2, |field, out| {
        match field.number {
            2 => {
                eds = field.value == Value::Varint(EDS);
                out.extend_from_slice(field.raw);
            }
            3 => put_bytes(out, 3, &eds_cluster_config(field.bytes()?)?),
            // `hosts`, only in escape-hatch JSON.
            7 => hosts.push(field.bytes()?.to_vec()),
            11 => put_bytes(out, 24, &transport_socket(UPSTREAM_TLS, field.bytes()?)),
            24 => put_bytes(out, 24, &extension::convert_encoded(Place::Transport, field.bytes()?)?.0),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })?;
    if !hosts.is_empty() {
        put_bytes(&mut out, 33, &load_assignment(name, &hosts));
    }
    if let Some(config) = message(v2, 3)?
        && let Some(asked) = text(config, 2)?
        && !asked.is_empty()
    {
        service = asked;
    }
    if eds {
        needs.push(service.to_owned());
    }
    Ok(out)
}

/// Converts an EdsClusterConfig: its `eds_config` (1).
fn eds_cluster_config(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            1 => put_bytes(out, 1, &config_source(field.bytes()?)),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Sets `resource_api_version` (6) of a ConfigSource. The last value of a field counts, so this appends it.
fn config_source(v2: &[u8]) -> Vec<u8> {
    let mut out = v2.to_vec();
    put_varint(&mut out, 6, API_V3);
    out
}

/// Makes a ClusterLoadAssignment: `endpoints` (2), in it `lb_endpoints` (2), in it `endpoint` (1), in it `address` (1).
fn load_assignment(cluster: &str, hosts: &[Vec<u8>]) -> Vec<u8> {
    let mut locality = Vec::new();
    for address in hosts {
        let (mut endpoint, mut lb_endpoint) = (Vec::new(), Vec::new());
        put_bytes(&mut endpoint, 1, address);
        put_bytes(&mut lb_endpoint, 1, &endpoint);
        put_bytes(&mut locality, 2, &lb_endpoint);
    }
    let mut out = Vec::new();
    put_bytes(&mut out, 1, cluster.as_bytes());
    put_bytes(&mut out, 2, &locality);
    out
}

/// Makes a TransportSocket: `name` (1) and `typed_config` (3).
fn transport_socket(type_url: &str, context: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, b"tls");
    put_bytes(&mut out, 3, &extension::pack(type_url, context));
    out
}

fn listener(v2: &[u8], needs: &mut Vec<String>) -> Result<Vec<u8>, Malformed> {
    let name = text(v2, 1)?.unwrap_or_default();
    let (mut directed, mut chains) = (false, Vec::new());
    let mut out = wire::rewrite(v2, |field, out| {
        match field.number {
            3 => chains.push(filter_chain(field.bytes()?, needs)?),
            9 => put_bytes(out, 9, &extension::convert_encoded(Place::Listener, field.bytes()?)?.0),
            22 => put_bytes(out, 22, &access_log(field.bytes()?)?),
            _ => {
                directed |= field.number == 16;
                out.extend_from_slice(field.raw);
            }
        }
        Ok(())
    })?;
    // Envoy uses the chain that matches best, so their order does not matter. Consul writes the chains of a terminating gateway in
    // random order, and each order would make a new version.
    chains.sort();
    for chain in chains {
        put_bytes(&mut out, 3, &chain);
    }
    if !directed {
        let inbound = name.starts_with("public_listener") || name.starts_with("exposed_path_");
        put_varint(&mut out, 16, if inbound { INBOUND } else { OUTBOUND });
    }
    Ok(out)
}

fn filter_chain(v2: &[u8], needs: &mut Vec<String>) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            2 => put_bytes(out, 6, &transport_socket(DOWNSTREAM_TLS, field.bytes()?)),
            3 => {
                let (filter, routes) = extension::convert_encoded(Place::Network, field.bytes()?)?;
                put_bytes(out, 3, &filter);
                needs.extend(routes);
            }
            6 => put_bytes(out, 6, &extension::convert_encoded(Place::Transport, field.bytes()?)?.0),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts an AccessLog, which is an extension.
fn access_log(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    Ok(extension::convert_encoded(Place::AccessLog, v2)?.0)
}

/// Converts an HttpConnectionManager of escape-hatch JSON, and adds the names of its RouteConfigurations to `routes`.
fn http_connection_manager(v2: &[u8], routes: &mut Vec<String>) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            3 => {
                let rds = wire::rewrite(field.bytes()?, |field, out| {
                    match field.number {
                        1 => put_bytes(out, 1, &config_source(field.bytes()?)),
                        _ => out.extend_from_slice(field.raw),
                    }
                    Ok(())
                })?;
                routes.extend(text(&rds, 2)?.map(str::to_owned));
                put_bytes(out, 3, &rds);
            }
            4 => put_bytes(out, 4, &route_configuration(field.bytes()?)?),
            5 => put_bytes(out, 5, &extension::convert_encoded(Place::Http, field.bytes()?)?.0),
            // Without `operation_name` (1) of `tracing`: in v3 the listener's direction replaces it.
            7 => put_bytes(out, 7, &without(field.bytes()?, 1)?),
            13 => put_bytes(out, 13, &access_log(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a TcpProxy of escape-hatch JSON: its `access_log` (5).
fn tcp_proxy(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            5 => put_bytes(out, 5, &access_log(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a RouteConfiguration: its `virtual_hosts` (2), in them `routes` (3).
fn route_configuration(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            2 => {
                let host = wire::rewrite(field.bytes()?, |field, out| {
                    match field.number {
                        3 => put_bytes(out, 3, &route(field.bytes()?)?),
                        _ => out.extend_from_slice(field.raw),
                    }
                    Ok(())
                })?;
                put_bytes(out, 2, &host);
            }
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a Route: its `match` (1).
fn route(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            1 => put_bytes(out, 1, &route_match(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a RouteMatch. The old `regex` (3) becomes `safe_regex` (10).
fn route_match(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            3 => put_bytes(out, 10, &regex(field.bytes()?)),
            6 => put_bytes(out, 6, &header_matcher(field.bytes()?)?),
            7 => put_bytes(out, 7, &query_parameter_matcher(field.bytes()?)?),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a HeaderMatcher. The old `regex_match` (5) becomes `safe_regex_match` (11).
fn header_matcher(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(v2, |field, out| {
        match field.number {
            5 => put_bytes(out, 11, &regex(field.bytes()?)),
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Converts a QueryParameterMatcher. The old `value` (3) becomes `string_match` (5). The old `regex` (4), a BoolValue, decides whether
/// `string_match` has `safe_regex` (5) or `exact` (1).
fn query_parameter_matcher(v2: &[u8]) -> Result<Vec<u8>, Malformed> {
    let is_regex = match message(v2, 4)? {
        Some(bool) => wire::fields(bool).any(|field| field.is_ok_and(|field| field.value == Value::Varint(1))),
        None => false,
    };
    wire::rewrite(v2, |field, out| {
        match field.number {
            3 => {
                let mut string_match = Vec::new();
                match is_regex {
                    true => put_bytes(&mut string_match, 5, &regex(field.bytes()?)),
                    false => put_bytes(&mut string_match, 1, field.bytes()?),
                }
                put_bytes(out, 5, &string_match);
            }
            4 => {}
            _ => out.extend_from_slice(field.raw),
        }
        Ok(())
    })
}

/// Makes a RegexMatcher: `regex` (2).
fn regex(pattern: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 2, pattern);
    out
}

fn without(message: &[u8], number: u32) -> Result<Vec<u8>, Malformed> {
    wire::rewrite(message, |field, out| {
        if field.number != number {
            out.extend_from_slice(field.raw);
        }
        Ok(())
    })
}

/// The embedded message in the field `number`. If the field is repeated, the last one counts.
fn message(of: &[u8], number: u32) -> Result<Option<&[u8]>, Malformed> {
    let mut found = None;
    for field in wire::fields(of) {
        let field = field?;
        if field.number == number {
            found = Some(field.bytes()?);
        }
    }
    Ok(found)
}

/// The string in the field `number`.
fn text(of: &[u8], number: u32) -> Result<Option<&str>, Malformed> {
    message(of, number)?.map(|bytes| std::str::from_utf8(bytes).map_err(|_| Malformed)).transpose()
}
