//! Makes random documents from the shape of the document, and writes a parsed document back as JSON.

use mesh_config::shape::{Field, Kind, Shape};
use mesh_config::{
    Address, Check, CheckStatus, Config, ConsulLogin, ConsulServers, Controller, DestinationType, Expose, ExposePath,
    ExposeProtocol, Gateway, GatewayKind, GrpcServers, HttpServers, LogLevel, MeshGatewayMode, Mode, NetworkResilience,
    OutlierDetection, Proxy, ServerTls, Service, TransparentProxy, Upstream, Weights,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

/// Random documents of a mode. About half of them have a wrong value, a missing field or an unknown field.
pub fn documents(mode: Mode) -> impl Strategy<Value = Value> {
    let changes = prop_oneof![Just(Vec::new()), vec((vec(any::<Index>(), 1..6), change()), 1..3)];
    (object(&Shape::of_document(mode)), changes).prop_map(|(mut document, changes)| {
        for (way, change) in &changes {
            make(&mut document, way, change);
        }
        document
    })
}

#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Add(Value),
    Repeat,
}

fn change() -> impl Strategy<Value = Change> {
    let junk = [
        Value::Null,
        json!(true),
        json!(7),
        json!(80.0),
        json!(1.5),
        json!(-1),
        json!(70000),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!("Web"),
        json!("a\nb"),
        json!([]),
        json!(["a", "a"]),
        json!([1]),
        json!({}),
        json!({ "k": null }),
    ];
    let junk = select(junk.to_vec());
    prop_oneof![
        4 => junk.clone().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        2 => junk.prop_map(Change::Add),
        1 => Just(Change::Repeat),
    ]
}

/// Follows the way into the document as far as possible, and makes the change there.
fn make(value: &mut Value, way: &[Index], change: &Change) {
    let (step, rest) = way.split_first().expect("not empty");
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(step.index(fields.len())).expect("there").clone();
            if !rest.is_empty() && fields[&name].is_object() | fields[&name].is_array() {
                return make(&mut fields[&name], rest, change);
            }
            match change {
                Change::Replace(junk) => drop(fields.insert(name, junk.clone())),
                Change::Remove => drop(fields.remove(&name)),
                Change::Add(junk) => drop(fields.insert("another".to_owned(), junk.clone())),
                Change::Repeat => {}
            }
        }
        Value::Array(values) if !values.is_empty() => {
            let index = step.index(values.len());
            if !rest.is_empty() && values[index].is_object() {
                return make(&mut values[index], rest, change);
            }
            match change {
                Change::Replace(junk) => values[index] = junk.clone(),
                Change::Remove => drop(values.remove(index)),
                Change::Add(junk) => values.push(junk.clone()),
                Change::Repeat => values.push(values[index].clone()),
            }
        }
        _ => {}
    }
}

fn object(shape: &Shape) -> BoxedStrategy<Value> {
    let fields = shape.fields.iter().map(field).collect::<Vec<_>>();
    fields.prop_map(|fields| Value::Object(fields.into_iter().flatten().collect())).boxed()
}

fn field(field: &Field) -> BoxedStrategy<Option<(String, Value)>> {
    let name = field.name.to_owned();
    let value = match field.name {
        // Hosts are often valid, and what a rule refuses is rare: else no document would be accepted.
        "hosts" => prop_oneof![9 => "[a-z]{1,3}(,10\\.0\\.0\\.[1-9])?", 1 => "(exec=)?[a-z: /]{0,3}"]
            .prop_map(Value::from)
            .boxed(),
        "enabled" => prop_oneof![6 => Just(false), 1 => Just(true)].prop_map(Value::from).boxed(),
        _ => value(&field.kind),
    };
    let value = value.prop_map(move |value| Some((name.clone(), value)));
    if field.required {
        return value.boxed();
    }
    let null = field.nullable.then(|| (field.name.to_owned(), Value::Null));
    // Only the objects `service` and `gateway` are neither required nor nullable. They are generated more often, because a document without
    // both is refused.
    let there = if matches!(field.kind, Kind::Object(_) | Kind::Objects(_)) && !field.nullable { 6 } else { 3 };
    prop_oneof![there => value, 3 => Just(None), 1 => Just(null)].boxed()
}

fn value(kind: &Kind) -> BoxedStrategy<Value> {
    let word = || prop_oneof![6 => "/[a-z ]{0,3}", 1 => Just(String::new()), 1 => any::<String>()];
    match kind {
        Kind::Text => word().prop_map(Value::from).boxed(),
        Kind::FilledText => "/[a-z]{0,3}".prop_map(Value::from).boxed(),
        // Some names are invalid: their first letter, last letter, or a letter between is wrong.
        Kind::Name => {
            prop_oneof![20 => "([a-z0-9]([a-z0-9_-]{0,3}[a-z0-9])?)?", 1 => "[a_A-]{1,3}"].prop_map(Value::from).boxed()
        }
        Kind::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        Kind::Integer => prop_oneof![
            20 => (1..=65535).prop_map(|number: i32| json!(number)),
            2 => (1..=65535).prop_map(|number: i32| json!(f64::from(number))),
            1 => Just(json!(0)),
        ]
        .boxed(),
        Kind::IntegerIn { minimum, maximum } => {
            // Some are one too small or one too large.
            let (low, high) = (*minimum, maximum.unwrap_or(5_000_000_000));
            prop_oneof![20 => low..=high.min(1000), 1 => low - 1..=low, 1 => high..=high + 1]
                .prop_map(Value::from)
                .boxed()
        }
        Kind::Integers => {
            vec(prop_oneof![9 => (0..9).prop_map(|number: i32| json!(number)), 1 => Just(json!(1.0))], 0..3)
                .prop_map(Value::from)
                .boxed()
        }
        Kind::Any => prop_oneof![20 => (0..=65535).prop_map(|number: i32| json!(number)), 1 => anything()].boxed(),
        Kind::Ports => vec(1..=u16::MAX, 0..3).prop_map(Value::from).boxed(),
        Kind::Choice(words) => select(words.clone()).prop_map(Value::from).boxed(),
        Kind::Texts { .. } => vec("[a-z]{0,3}", 0..3).prop_map(Value::from).boxed(),
        Kind::TextMap => map(word().prop_map(Value::from)).boxed(),
        Kind::Headers => map(vec(word(), 0..3).prop_map(Value::from)).boxed(),
        Kind::Opaque => map(anything()).boxed(),
        Kind::Object(shape) => object(shape),
        Kind::Objects(shape) => vec(object(shape), 0..3).prop_map(Value::from).boxed(),
    }
}

fn map(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    btree_map("[a-zA-Z]{1,3}", value, 0..3).prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| prop_oneof![vec(inner.clone(), 0..3).prop_map(Value::from), map(inner)])
}

/// Removes all nulls from an object, at any depth.
pub fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
    for value in fields.values_mut() {
        match value {
            Value::Object(fields) => drop_nulls(fields),
            Value::Array(values) => values.iter_mut().filter_map(Value::as_object_mut).for_each(drop_nulls),
            _ => {}
        }
    }
}

/// The document without fields that change nothing: null, empty values, defaults, and unknown fields.
pub fn plain(document: &Value, shape: &Shape) -> Value {
    let fields = shape.fields.iter().filter_map(|field| {
        let value = match (&field.kind, document.get(field.name)?) {
            (_, Value::Null) => return None,
            (Kind::Object(shape), value) => plain(value, shape),
            (Kind::Objects(shape), Value::Array(values)) => values.iter().map(|value| plain(value, shape)).collect(),
            (Kind::Integer | Kind::IntegerIn { .. } | Kind::Any, number) => json!(in_64_bits(number)),
            (Kind::Integers, Value::Array(numbers)) => numbers.iter().map(in_64_bits).collect(),
            (_, value) => value.clone(),
        };
        let default = match field.name {
            "enabled" | "skipServerWatch" | "partitionsEnabled" => json!(false),
            "healthCheckPort" => json!(0.0),
            "includeEntity" => json!(true),
            "method" => json!("iam-ecs-service-token"),
            "publicListenerPort" if value == json!(0.0) => json!(0.0),
            "publicListenerPort" => json!(20000.0),
            _ => Value::Null,
        };
        let says_nothing = value == default || value == json!({}) || value == json!([]) || value == json!("");
        (!says_nothing).then(|| (field.name.to_owned(), value))
    });
    Value::Object(fields.collect())
}

/// A larger number is read as the largest `i64`, a smaller one as the smallest.
fn in_64_bits(number: &Value) -> Option<f64> {
    number.as_f64().map(|number| number.clamp(i64::MIN as f64, i64::MAX as f64))
}

/// Writes a parsed document as JSON. Each type is destructured completely, so the compiler reports a new field that is missing here.
pub fn written(config: &Config) -> Value {
    let Config {
        bootstrap_dir,
        log_level,
        consul_http_addr,
        consul_ca_cert_file,
        consul_login,
        health_sync_containers,
        service,
        proxy,
        gateway,
        consul_servers,
        controller,
        transparent_proxy,
        warnings: _,
    } = config;
    let log_level = log_level.map(|level| match level {
        LogLevel::Trace => "TRACE",
        LogLevel::Debug => "DEBUG",
        LogLevel::Info => "INFO",
        LogLevel::Warn => "WARN",
        LogLevel::Error => "ERROR",
    });
    let document = json!({
        "bootstrapDir": bootstrap_dir,
        "logLevel": log_level,
        "consulHTTPAddr": consul_http_addr,
        "consulCACertFile": consul_ca_cert_file,
        "consulLogin": consul_login.as_ref().map(login),
        "healthSyncContainers": health_sync_containers,
        "service": service.as_ref().map(self::service),
        "proxy": self::proxy(proxy),
        "gateway": gateway.as_ref().map(self::gateway),
        "consulServers": consul_servers.as_ref().map(servers),
        "controller": controller.as_ref().map(self::controller),
        "transparentProxy": transparent_proxy.as_ref().map(transparent),
    });
    without_nulls(document)
}

/// A field of the other mode is an error even if it is null. Opaque objects keep their nulls.
fn without_nulls(mut fields: Value) -> Value {
    fields.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    fields
}

fn servers(servers: &ConsulServers) -> Value {
    let ConsulServers { hosts, defaults, http, grpc, skip_server_watch } = servers;
    let (HttpServers { port, https, tls }, GrpcServers { port: grpc_port, tls: grpc_tls }) = (http, grpc);
    let mut http = server_tls(tls);
    http["port"] = json!(port);
    http["https"] = json!(https);
    let mut grpc = server_tls(grpc_tls);
    grpc["port"] = json!(grpc_port);
    json!({ "hosts": hosts, "defaults": server_tls(defaults), "http": http, "grpc": grpc,
        "skipServerWatch": skip_server_watch })
}

fn server_tls(tls: &ServerTls) -> Value {
    let ServerTls { ca_cert_file, tls, tls_server_name } = tls;
    json!({ "caCertFile": ca_cert_file, "tls": tls, "tlsServerName": tls_server_name })
}

fn controller(controller: &Controller) -> Value {
    let Controller { iam_role_path, partitions_enabled, partition } = controller;
    json!({ "iamRolePath": iam_role_path, "partitionsEnabled": partitions_enabled, "partition": partition })
}

fn transparent(proxy: &TransparentProxy) -> Value {
    let TransparentProxy {
        enabled,
        exclude_inbound_ports,
        exclude_outbound_ports,
        exclude_outbound_cidrs,
        exclude_uids,
        consul_dns,
    } = proxy;
    json!({ "enabled": enabled, "excludeInboundPorts": exclude_inbound_ports,
        "excludeOutboundPorts": exclude_outbound_ports, "excludeOutboundCIDRs": exclude_outbound_cidrs,
        "excludeUIDs": exclude_uids, "consulDNS": { "enabled": consul_dns } })
}

fn resilience(resilience: &NetworkResilience) -> Value {
    let NetworkResilience { enabled, outlier_detection } = resilience;
    json!({ "enabled": enabled, "outlierDetection": outlier_detection.as_ref().map(outlier) })
}

fn outlier(outlier: &OutlierDetection) -> Value {
    let OutlierDetection {
        interval,
        max_failures,
        enforcing_consecutive_5xx,
        consecutive_5xx,
        enforcing_consecutive_gateway_failure,
        consecutive_gateway_failure,
        max_ejection_percent,
    } = outlier;
    without_nulls(
        json!({ "interval": interval, "maxFailures": max_failures, "enforcingConsecutive5xx": enforcing_consecutive_5xx,
        "consecutive5xx": consecutive_5xx, "enforcingConsecutiveGatewayFailure": enforcing_consecutive_gateway_failure,
        "consecutiveGatewayFailure": consecutive_gateway_failure, "maxEjectionPercent": max_ejection_percent }),
    )
}

fn login(login: &ConsulLogin) -> Value {
    let ConsulLogin { enabled, method, datacenter, include_entity, meta, region, sts_endpoint, server_id_header_value } =
        login;
    without_nulls(
        json!({ "enabled": enabled, "datacenter": datacenter, "method": method, "includeEntity": include_entity, "meta": meta, "region": region,
        "stsEndpoint": sts_endpoint, "serverIdHeaderValue": server_id_header_value }),
    )
}

fn service(service: &Service) -> Value {
    let Service {
        name,
        tags,
        port,
        enable_tag_override,
        meta,
        weights,
        checks,
        namespace,
        partition,
        network_resilience,
    } = service;
    let weights = weights.map(|Weights { passing, warning }| json!({ "passing": passing, "warning": warning }));
    let checks = (!checks.is_empty()).then(|| checks.iter().map(check).collect::<Value>());
    without_nulls(
        json!({ "name": name, "tags": tags, "port": port, "enableTagOverride": enable_tag_override, "meta": meta,
        "weights": weights, "checks": checks, "networkResilienceConfig": network_resilience.as_ref().map(resilience), "namespace": namespace, "partition": partition }),
    )
}

fn check(check: &Check) -> Value {
    let Check {
        check_id,
        name,
        args,
        interval,
        timeout,
        ttl,
        http,
        header,
        method,
        body,
        tcp,
        udp,
        status,
        notes,
        tls_server_name,
        tls_skip_verify,
        grpc,
        grpc_use_tls,
        h2ping,
        h2ping_use_tls,
        alias_node,
        alias_service,
        success_before_passing,
        failures_before_critical,
    } = check;
    let status = status.map(|status| match status {
        CheckStatus::Passing => "passing",
        CheckStatus::Warning => "warning",
        CheckStatus::Critical => "critical",
        CheckStatus::Maintenance => "maintenance",
    });
    json!({ "checkId": check_id, "name": name.clone().unwrap_or_default(), "args": args, "interval": interval,
        "timeout": timeout, "ttl": ttl, "http": http, "header": header, "method": method, "body": body, "tcp": tcp,
        "udp": udp, "status": status, "notes": notes, "tlsServerName": tls_server_name,
        "tlsSkipVerify": tls_skip_verify, "grpc": grpc, "grpcUseTls": grpc_use_tls, "h2ping": h2ping,
        "h2pingUseTls": h2ping_use_tls, "aliasNode": alias_node, "aliasService": alias_service,
        "successBeforePassing": success_before_passing, "failuresBeforeCritical": failures_before_critical })
}

fn proxy(proxy: &Proxy) -> Value {
    let Proxy {
        config,
        local_service_address,
        public_listener_port,
        health_check_port,
        upstreams,
        mesh_gateway,
        expose,
    } = proxy;
    without_nulls(json!({ "config": config, "publicListenerPort": public_listener_port,
        "localServiceAddress": local_service_address, "healthCheckPort": health_check_port,
        "upstreams": upstreams.iter().map(upstream).collect::<Value>(), "meshGateway": mode(*mesh_gateway),
        "expose": expose.as_ref().map(self::expose) }))
}

fn mode(mode: Option<MeshGatewayMode>) -> Option<Value> {
    let mode = match mode? {
        MeshGatewayMode::None => "none",
        MeshGatewayMode::Local => "local",
        MeshGatewayMode::Remote => "remote",
    };
    Some(json!({ "mode": mode }))
}

fn upstream(upstream: &Upstream) -> Value {
    let Upstream {
        destination_type,
        destination_namespace,
        destination_partition,
        destination_name,
        destination_peer,
        datacenter,
        local_bind_address,
        local_bind_port,
        config,
        mesh_gateway,
    } = upstream;
    let destination_type = destination_type.map(|kind| match kind {
        DestinationType::Service => "service",
        DestinationType::PreparedQuery => "prepared_query",
    });
    without_nulls(json!({ "destinationType": destination_type, "destinationNamespace": destination_namespace,
        "destinationPeer": destination_peer, "destinationPartition": destination_partition, "destinationName": destination_name, "datacenter": datacenter,
        "localBindAddress": local_bind_address, "localBindPort": local_bind_port, "config": config,
        "meshGateway": mode(*mesh_gateway) }))
}

fn expose(expose: &Expose) -> Value {
    let Expose { checks, paths } = expose;
    let paths = paths.iter().map(|path| {
        let ExposePath { listener_port, path, local_path_port, protocol } = path;
        let protocol = protocol.map(|protocol| match protocol {
            ExposeProtocol::Http => "http",
            ExposeProtocol::Http2 => "http2",
        });
        json!({ "listenerPort": listener_port, "path": path, "localPathPort": local_path_port, "protocol": protocol })
    });
    json!({ "checks": checks, "paths": paths.collect::<Value>() })
}

fn gateway(gateway: &Gateway) -> Value {
    let Gateway { kind, lan_address, wan_address, name, tags, meta, namespace, partition, health_check_port, config } =
        gateway;
    let kind = match kind {
        GatewayKind::Mesh => "mesh-gateway",
        GatewayKind::Ingress => "ingress-gateway",
        GatewayKind::Terminating => "terminating-gateway",
        GatewayKind::Api => "api-gateway",
    };
    let address = |address: &Address| {
        let Address { address, port } = address;
        json!({ "address": address, "port": port })
    };
    without_nulls(
        json!({ "kind": kind, "lanAddress": lan_address.as_ref().map(address), "wanAddress": wan_address.as_ref().map(address),
        "name": name, "tags": tags, "meta": meta, "namespace": namespace, "partition": partition,
        "healthCheckPort": health_check_port, "proxy": { "config": config } }),
    )
}
