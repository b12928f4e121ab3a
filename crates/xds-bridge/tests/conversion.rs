//! The conversion of recorded responses of Consul 1.8.7.

mod common;

use std::collections::BTreeSet;

use common::{converted, fixture, scenarios};
use xds_bridge::convert;
use xds_bridge::convert::structs::{self, Object, Value};
use xds_bridge::messages::Response;
use xds_bridge::resource::{Kind, Resource};
use xds_bridge::wire::{self, Value as Wire, put_bytes};

/// All payloads at a path of field numbers.
fn all<'a>(message: &'a [u8], path: &[u32]) -> Vec<&'a [u8]> {
    let Some((number, rest)) = path.split_first() else { return vec![message] };
    let fields = wire::fields(message).map(|field| field.expect("well-formed"));
    fields.filter(|field| field.number == *number).flat_map(|field| all(field.bytes().unwrap(), rest)).collect()
}

fn texts(message: &[u8], path: &[u32]) -> Vec<String> {
    all(message, path).into_iter().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect()
}

/// The last number in a field.
fn number(message: &[u8], number: u32) -> Option<u64> {
    let fields = wire::fields(message).map(|field| field.unwrap()).filter(|field| field.number == number);
    fields.filter_map(|field| if let Wire::Varint(value) = field.value { Some(value) } else { None }).last()
}

fn originals(scenario: &str, kind: Kind) -> Vec<Vec<u8>> {
    fixture(scenario, kind).map_or(Vec::new(), |message| Response::decode(&message).unwrap().resources)
}

fn named(scenario: &str, kind: Kind, prefix: &str) -> Resource {
    converted(scenario, kind).into_iter().find(|resource| resource.name.starts_with(prefix)).unwrap()
}

/// The v3 types and Structs of a listener's network filters.
fn structs(listener: &Resource) -> Vec<(String, Object)> {
    let typed = all(&listener.body, &[3, 3, 4]);
    let typed = typed.into_iter().filter(|any| texts(any, &[1]) == ["type.googleapis.com/xds.type.v3.TypedStruct"]);
    typed.map(|any| (texts(any, &[2, 1]).concat(), structs::decode(all(any, &[2, 2])[0]).unwrap())).collect()
}

fn get<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (key, rest) = path.split_first()?;
    match (object.get(*key)?, rest) {
        (value, []) => Some(value),
        (Value::Object(object), rest) => get(object, rest),
        _ => None,
    }
}

#[test]
fn a_tls_context_becomes_a_transport_socket_unchanged() {
    let mut contexts = 0;
    for scenario in scenarios() {
        for (v2, v3) in originals(&scenario, Kind::Cluster).iter().zip(converted(&scenario, Kind::Cluster)) {
            assert!(all(&v3.body, &[11]).is_empty());
            assert_eq!(all(&v3.body, &[24, 3, 2]), all(v2, &[11]), "{scenario} {}", v3.name);
            for context in all(&v3.body, &[24]) {
                contexts += 1;
                assert_eq!(texts(context, &[1]), ["tls"]);
                let upstream = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
                assert_eq!(texts(context, &[3, 1]), [upstream]);
            }
        }
        for (v2, v3) in originals(&scenario, Kind::Listener).iter().zip(converted(&scenario, Kind::Listener)) {
            assert!(all(&v3.body, &[3, 2]).is_empty());
            let sorted = |contexts: Vec<&[u8]>| contexts.into_iter().map(<[u8]>::to_vec).collect::<BTreeSet<_>>();
            assert_eq!(sorted(all(&v3.body, &[3, 6, 3, 2])), sorted(all(v2, &[3, 2])), "{scenario} {}", v3.name);
            for url in texts(&v3.body, &[3, 6, 3, 1]) {
                contexts += 1;
                assert_eq!(url, "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext");
            }
        }
    }
    assert!(contexts > 20, "only {contexts} in the fixtures");
}

#[test]
fn endpoints_are_not_changed() {
    for scenario in scenarios() {
        let v3 = converted(&scenario, Kind::Endpoint).into_iter().map(|resource| resource.body);
        assert_eq!(v3.collect::<Vec<_>>(), originals(&scenario, Kind::Endpoint));
    }
}

#[test]
fn clusters_name_their_endpoints_and_ask_for_them_with_v3() {
    let cluster = named("tcp", Kind::Cluster, "db.");
    assert_eq!(cluster.needs, [&*cluster.name]);
    assert_eq!(number(all(&cluster.body, &[3, 1])[0], 6), Some(convert::API_V3));
    assert_eq!(named("tcp", Kind::Cluster, "local_app").needs, [""; 0]);
    let names = |kind| converted("tcp", kind).into_iter();
    let needs: BTreeSet<_> = names(Kind::Cluster).flat_map(|cluster| cluster.needs).collect();
    assert_eq!(needs, names(Kind::Endpoint).map(|endpoint| endpoint.name).collect());
}

#[test]
fn listeners_name_their_routes_and_ask_for_them_with_v3() {
    for scenario in ["http", "grpc", "ingress-gateway"] {
        let needs: BTreeSet<_> = converted(scenario, Kind::Listener).into_iter().flat_map(|one| one.needs).collect();
        let routes: BTreeSet<_> = converted(scenario, Kind::Route).into_iter().map(|route| route.name).collect();
        assert!(!routes.is_empty());
        assert_eq!(needs, routes, "{scenario}");
    }
    let [(_, manager)] = &structs(&named("http", Kind::Listener, "api:"))[..] else { panic!("one filter") };
    assert_eq!(get(manager, &["rds", "config_source", "resource_api_version"]), Some(&Value::text("V3")));
}

#[test]
fn every_extension_gets_its_v3_name_and_type() {
    let mut extensions = BTreeSet::new();
    for listener in scenarios().iter().flat_map(|scenario| converted(scenario, Kind::Listener)) {
        for (path, typed) in [(&[3, 3][..], 4), (&[9], 3)] {
            for extension in all(&listener.body, path) {
                assert!(all(extension, &[2]).is_empty(), "v2's config is left");
                let mut url = texts(extension, &[typed, 1]).concat();
                if url.ends_with("TypedStruct") {
                    url = texts(extension, &[typed, 2, 1]).concat();
                }
                extensions.insert((texts(extension, &[1]).concat(), url));
            }
        }
        for (_, manager) in structs(&listener) {
            for filter in match get(&manager, &["http_filters"]) {
                Some(Value::List(filters)) => filters.clone(),
                _ => Vec::new(),
            } {
                let Value::Object(filter) = filter else { panic!("a filter is an object") };
                assert!(!filter.contains_key("config"), "v2's config is left");
                let text = |path: &[&str]| match get(&filter, path) {
                    Some(Value::Text(text)) => text.clone(),
                    _ => String::new(),
                };
                let url = match text(&["typed_config", "type_url"]) {
                    url if url.is_empty() => text(&["typed_config", "@type"]),
                    url => url,
                };
                extensions.insert((text(&["name"]), url));
            }
        }
    }
    let expected = [
        ("envoy.filters.http.grpc_http1_bridge", "http.grpc_http1_bridge.v3.Config"),
        ("envoy.filters.http.router", "http.router.v3.Router"),
        ("envoy.filters.listener.tls_inspector", "listener.tls_inspector.v3.TlsInspector"),
        ("envoy.filters.network.ext_authz", "network.ext_authz.v3.ExtAuthz"),
        ("envoy.filters.network.http_connection_manager", "network.http_connection_manager.v3.HttpConnectionManager"),
        ("envoy.filters.network.sni_cluster", "network.sni_cluster.v3.SniCluster"),
        ("envoy.filters.network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy"),
    ];
    let expected =
        expected.map(|(name, of)| (name.into(), format!("type.googleapis.com/envoy.extensions.filters.{of}")));
    assert_eq!(extensions, BTreeSet::from(expected));
}

#[test]
fn inbound_is_authorised_with_v3_and_the_token() {
    for scenario in ["tcp", "http", "grpc", "escape-hatches"] {
        let public = named(scenario, Kind::Listener, "public_listener");
        let (url, authz) = &structs(&public)[0];
        assert!(url.ends_with("ExtAuthz"), "it comes first");
        assert_eq!(get(authz, &["transport_api_version"]), Some(&Value::text("V3")));
        assert_eq!(get(authz, &["grpc_service", "timeout"]), Some(&Value::text("5s")));
        let Some(Value::List(metadata)) = get(authz, &["grpc_service", "initial_metadata"]) else {
            panic!("no metadata")
        };
        let token = Value::text("the-token-of-the-recording");
        assert!(matches!(&metadata[..], [Value::Object(pair)] if pair.get("value") == Some(&token)));
    }
}

#[test]
fn tracing_has_no_operation_name() {
    let managers = scenarios().into_iter().flat_map(|scenario| converted(&scenario, Kind::Listener));
    let managers =
        managers.flat_map(|listener| structs(&listener)).filter(|(url, _)| url.ends_with("HttpConnectionManager"));
    let tracing: Vec<_> = managers.filter_map(|(_, manager)| manager.get("tracing").cloned()).collect();
    assert!(tracing.len() > 5);
    assert!(
        tracing
            .iter()
            .all(|tracing| !matches!(tracing, Value::Object(fields) if fields.contains_key("operation_name")))
    );
}

#[test]
fn listeners_of_the_app_are_inbound_and_others_outbound() {
    let mut inbound = BTreeSet::new();
    for scenario in scenarios() {
        for listener in converted(&scenario, Kind::Listener) {
            let direction = number(&listener.body, 16).unwrap();
            let name = listener.name.split(':').next().unwrap().to_owned();
            match direction {
                1 => drop(inbound.insert(name)),
                2 => assert!(!name.starts_with("public") && !name.starts_with("exposed"), "{name}"),
                other => panic!("{name}: {other}"),
            }
        }
    }
    let expected = [
        "exposed_path_grpc",
        "exposed_path_grpchealthv1HealthCheck",
        "exposed_path_healthz",
        "exposed_path_metrics",
        "public_listener",
    ];
    assert_eq!(inbound, BTreeSet::from(expected.map(String::from)));
}

/// A user's own listener may have a direction.
#[test]
fn a_given_direction_is_kept() {
    let mut v2 = originals("tcp", Kind::Listener).remove(0);
    wire::put_varint(&mut v2, 16, 2);
    assert_eq!(number(&convert::resource(Kind::Listener, &v2).unwrap().body, 16), Some(2));
}

#[test]
fn old_route_matchers_become_v3_matchers() {
    let listener = named("escape-hatches", Kind::Listener, "own_upstream");
    // …filters[0].typed_config.value.route_config.virtual_hosts[0].routes[0].match
    let matches = all(&listener.body, &[3, 3, 4, 2, 4, 2, 3, 1]);
    let first = matches[0];
    assert!(all(first, &[3]).is_empty() && texts(first, &[10, 2]) == ["/old.*"], "path");
    assert!(all(first, &[6, 5]).is_empty() && texts(first, &[6, 11, 2]) == ["y.*"], "header");
    assert!(all(first, &[7, 3]).is_empty() && all(first, &[7, 4]).is_empty(), "query parameters");
    assert_eq!(texts(first, &[7, 5, 1]), ["b"]);
    assert_eq!(texts(first, &[7, 5, 5, 2]), ["d.*"]);
}

#[test]
fn hosts_of_a_users_cluster_become_its_load_assignment() {
    let cluster = named("escape-hatches", Kind::Cluster, "local_app");
    assert!(all(&cluster.body, &[7]).is_empty());
    let addresses = all(&cluster.body, &[33, 2, 2, 1, 1]);
    let original = originals("escape-hatches", Kind::Cluster).into_iter().find(|v2| texts(v2, &[1]) == ["local_app"]);
    assert_eq!(addresses, all(&original.unwrap(), &[7]));
    assert_eq!(addresses.len(), 2);
}

#[test]
fn unknown_fields_are_copied() {
    for scenario in scenarios() {
        for kind in Kind::ALL {
            for mut v2 in originals(&scenario, kind) {
                put_bytes(&mut v2, 5000, b"from the future");
                let v3 = convert::resource(kind, &v2).unwrap();
                assert_eq!(texts(&v3.body, &[5000]), ["from the future"]);
            }
        }
    }
}

/// Reverses the order of the repeated field at a path.
fn reversed(message: &[u8], path: &[u32]) -> Vec<u8> {
    let (number, rest) = path.split_first().unwrap();
    let fields: Vec<_> = wire::fields(message).map(|field| field.unwrap()).collect();
    let mut out = Vec::new();
    let (chosen, others): (Vec<_>, Vec<_>) = fields.into_iter().partition(|field| field.number == *number);
    others.iter().for_each(|field| out.extend_from_slice(field.raw));
    match rest {
        [] => chosen.iter().rev().for_each(|field| out.extend_from_slice(field.raw)),
        rest => chosen.iter().for_each(|field| put_bytes(&mut out, *number, &reversed(field.bytes().unwrap(), rest))),
    }
    out
}

#[test]
fn another_order_of_the_same_fields_makes_no_new_version() {
    // The paths of filter chains, and of the fields of a filter's Struct.
    for path in [&[3][..], &[3, 3, 2, 1]] {
        let mut differed = 0;
        for v2 in originals("terminating-gateway", Kind::Listener) {
            let other = reversed(&v2, path);
            differed += usize::from(other != v2);
            let versions = [v2, other].map(|v2| convert::resource(Kind::Listener, &v2).unwrap().version);
            assert_eq!(versions[0], versions[1]);
        }
        assert!(differed > 0);
    }
    let mut changed = originals("tcp", Kind::Endpoint).remove(0);
    let before = convert::resource(Kind::Endpoint, &changed).unwrap().version;
    put_bytes(&mut changed, 2, &[]);
    assert_ne!(convert::resource(Kind::Endpoint, &changed).unwrap().version, before);
}

#[test]
fn a_truncated_resource_never_panics() {
    for scenario in scenarios() {
        for kind in Kind::ALL {
            for v2 in originals(&scenario, kind) {
                for end in 0..v2.len() {
                    let _ = convert::resource(kind, &v2[..end]);
                }
            }
        }
    }
    assert!(convert::resource(Kind::Cluster, b"").is_err(), "without a name");
}

#[test]
fn debug_output_shows_no_secrets() {
    let message = fixture("tcp", Kind::Listener).unwrap();
    let printed = format!("{:?} {:?}", Response::decode(&message).unwrap(), converted("tcp", Kind::Listener));
    assert!(!printed.contains("token") && !printed.contains("PRIVATE"), "{printed}");
}

#[test]
fn an_unhealthy_endpoint_with_the_address_of_another_one_is_left_out() {
    let endpoint = |address: &[u8], health: u64| {
        let (mut endpoint, mut lb_endpoint) = (Vec::new(), Vec::new());
        put_bytes(&mut endpoint, 1, address);
        put_bytes(&mut lb_endpoint, 1, &endpoint);
        wire::put_varint(&mut lb_endpoint, 2, health);
        lb_endpoint
    };
    let (healthy, copy) = (endpoint(b"10.0.0.1", 1), endpoint(b"10.0.0.1", 2));
    let (other, alone) = (endpoint(b"10.0.0.2", 1), endpoint(b"10.0.0.3", 2));
    let mut locality = Vec::new();
    [&copy, &healthy, &other, &alone].into_iter().for_each(|one| put_bytes(&mut locality, 2, one));
    let mut assignment = Vec::new();
    put_bytes(&mut assignment, 1, b"api");
    put_bytes(&mut assignment, 2, &locality);
    let converted = convert::resource(Kind::Endpoint, &assignment).unwrap();
    assert_eq!(all(&converted.body, &[2, 2]), [healthy, other, alone]);
}
