//! Converts Envoy's extensions: their names, types and configuration.

use super::structs::{self, Object, Value};
use crate::wire::{self, Malformed};

const TYPE_PREFIX: &str = "type.googleapis.com/";
const TYPED_STRUCT: &str = "type.googleapis.com/xds.type.v3.TypedStruct";
const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// The place of an extension. In v2, two filters have the name `envoy.ext_authz`: the place shows which one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A filter of a filter chain.
    Network,
    /// A filter of an HTTP connection manager.
    Http,
    /// A filter of a listener.
    Listener,
    /// A transport socket.
    Transport,
    /// An access log.
    AccessLog,
}

impl Place {
    /// The field numbers of `config` (a Struct, only in v2) and of `typed_config`. `name` is always 1.
    fn numbers(self) -> (u32, u32) {
        match self {
            Place::Network | Place::Http => (2, 4),
            Place::Listener | Place::Transport => (2, 3),
            Place::AccessLog => (3, 4),
        }
    }
}

/// The name in v2, the name in v3, and the type in v3.
type Row = (&'static str, &'static str, &'static str);

/// The extensions that Consul 1.8 sends, and those that its documentation shows for escape-hatch JSON.
/// (<https://www.envoyproxy.io/docs/envoy/v1.14.1/intro/deprecated> lists the renamed extensions.)
fn rows(place: Place) -> &'static [Row] {
    match place {
        Place::Network => &[
            (
                "envoy.tcp_proxy",
                "envoy.filters.network.tcp_proxy",
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            ),
            ("envoy.http_connection_manager", "envoy.filters.network.http_connection_manager", HTTP_CONNECTION_MANAGER),
            (
                "envoy.ext_authz",
                "envoy.filters.network.ext_authz",
                "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            ),
            (
                "envoy.filters.network.sni_cluster",
                "envoy.filters.network.sni_cluster",
                "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
            ),
        ],
        Place::Http => &[
            ("envoy.router", "envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
            (
                "envoy.grpc_http1_bridge",
                "envoy.filters.http.grpc_http1_bridge",
                "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config",
            ),
            ("envoy.ext_authz", "envoy.filters.http.ext_authz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"),
            ("envoy.cors", "envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
            ("envoy.fault", "envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
            ("envoy.grpc_web", "envoy.filters.http.grpc_web", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"),
            ("envoy.lua", "envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua"),
        ],
        Place::Listener => &[(
            "envoy.listener.tls_inspector",
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        )],
        Place::Transport => &[],
        Place::AccessLog => &[(
            "envoy.file_access_log",
            "envoy.access_loggers.file",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        )],
    }
}

/// The types in an `Any` of escape-hatch JSON: in v2, and in v3.
const TYPES: &[(&str, &str)] = &[
    ("envoy.config.filter.network.http_connection_manager.v2.HttpConnectionManager", HTTP_CONNECTION_MANAGER),
    ("envoy.config.filter.network.tcp_proxy.v2.TcpProxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
    ("envoy.config.filter.network.ext_authz.v2.ExtAuthz", "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"),
    ("envoy.config.filter.http.ext_authz.v2.ExtAuthz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"),
    ("envoy.config.filter.http.router.v2.Router", "envoy.extensions.filters.http.router.v3.Router"),
    ("envoy.config.filter.http.fault.v2.HTTPFault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
    ("envoy.config.filter.http.lua.v2.Lua", "envoy.extensions.filters.http.lua.v3.Lua"),
    ("envoy.config.accesslog.v2.FileAccessLog", "envoy.extensions.access_loggers.file.v3.FileAccessLog"),
    ("envoy.api.v2.auth.UpstreamTlsContext", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
    ("envoy.api.v2.auth.DownstreamTlsContext", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
];

fn row(place: Place, name: &str) -> Option<&'static Row> {
    rows(place).iter().find(|(old, new, _)| *old == name || *new == name)
}

/// Converts an encoded extension. Envoy 1.40 finds an extension only by the type of its `typed_config`, so an extension without
/// configuration gets an empty one. Also returns the names of its RouteConfigurations.
pub(super) fn convert_encoded(place: Place, message: &[u8]) -> Result<(Vec<u8>, Vec<String>), Malformed> {
    let (untyped, typed) = place.numbers();
    let mut name = "";
    let mut config = None;
    let mut any = None;
    for field in wire::fields(message) {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            number if number == untyped => config = Some(structs::decode(field.bytes()?)?),
            number if number == typed => any = Some(field.bytes()?),
            _ => {}
        }
    }
    let row = row(place, name);
    let mut routes = Vec::new();
    let any = match (any, config, row) {
        (Some(any), _, _) => Some(self::any(any, &mut routes)?),
        (None, Some(mut object), Some((_, _, v3))) => {
            typed_struct(v3, &mut object, &mut routes);
            Some(pack(TYPED_STRUCT, &typed_struct_message(v3, &object)))
        }
        (None, None, Some((_, _, v3))) => Some(pack(&format!("{TYPE_PREFIX}{v3}"), &[])),
        // The bridge does not know this extension. Envoy refuses it with a reason.
        (None, _, None) => None,
    };
    let mut out = Vec::new();
    wire::put_bytes(&mut out, 1, row.map_or(name, |(_, new, _)| new).as_bytes());
    if let Some(any) = any {
        wire::put_bytes(&mut out, typed, &any);
    }
    for field in wire::fields(message) {
        let field = field?;
        if ![1, untyped, typed].contains(&field.number) {
            out.extend_from_slice(field.raw);
        }
    }
    Ok((out, routes))
}

/// Encodes a `google.protobuf.Any`.
pub(crate) fn pack(type_url: &str, value: &[u8]) -> Vec<u8> {
    let mut any = Vec::new();
    wire::put_bytes(&mut any, 1, type_url.as_bytes());
    wire::put_bytes(&mut any, 2, value);
    any
}

fn typed_struct_message(v3: &str, object: &Object) -> Vec<u8> {
    let mut message = Vec::new();
    wire::put_bytes(&mut message, 1, format!("{TYPE_PREFIX}{v3}").as_bytes());
    wire::put_bytes(&mut message, 2, &structs::encode(object));
    message
}

/// Converts an Any of escape-hatch JSON.
fn any(message: &[u8], routes: &mut Vec<String>) -> Result<Vec<u8>, Malformed> {
    let (mut url, mut value) = ("", &[][..]);
    for field in wire::fields(message) {
        let field = field?;
        match field.number {
            1 => url = field.text()?,
            2 => value = field.bytes()?,
            _ => {}
        }
    }
    let Some(v3) = v3_type(url) else {
        return Ok(message.to_vec());
    };
    let url = format!("{TYPE_PREFIX}{v3}");
    if v3 == HTTP_CONNECTION_MANAGER {
        return Ok(pack(&url, &super::http_connection_manager(value, routes)?));
    }
    if v3.ends_with(".TcpProxy") {
        return Ok(pack(&url, &super::tcp_proxy(value)?));
    }
    let mut value = value.to_vec();
    if let Some(number) = transport_api_version(v3) {
        wire::put_varint(&mut value, number, super::API_V3);
    }
    Ok(pack(&url, &value))
}

fn v3_type(url: &str) -> Option<&'static str> {
    let v2 = url.strip_prefix(TYPE_PREFIX)?;
    TYPES.iter().find(|(old, _)| *old == v2).map(|(_, new)| *new)
}

/// The field number of `transport_api_version` in ext_authz.
fn transport_api_version(v3: &str) -> Option<u32> {
    match v3 {
        "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => Some(5),
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => Some(12),
        _ => None,
    }
}

/// How long Envoy waits for the agent to authorise a connection. Consul 1.8 leaves Envoy's default of 200 ms. With that, every new
/// connection fails while an agent is busy for half a second. Later versions of Consul send their intentions to Envoy, which then does
/// not ask the agent.
const AUTHORIZATION_TIMEOUT: &str = "5s";

/// Changes the Struct of an extension, so that it matches the JSON of the v3 type.
fn typed_struct(v3: &str, object: &mut Object, routes: &mut Vec<String>) {
    if transport_api_version(v3).is_some() {
        object.insert("transport_api_version".into(), Value::text("V3"));
        if let Some(Value::Object(service)) = structs::entry(object, "grpc_service") {
            service.entry("timeout".into()).or_insert_with(|| Value::text(AUTHORIZATION_TIMEOUT));
        }
    }
    if v3 == HTTP_CONNECTION_MANAGER {
        if let Some(Value::List(filters)) = structs::entry(object, "http_filters") {
            filters.iter_mut().for_each(|filter| convert_in_struct(Place::Http, filter));
        }
        // In v3 the listener's direction replaces `operation_name`.
        if let Some(Value::Object(tracing)) = structs::entry(object, "tracing") {
            structs::take(tracing, "operation_name");
        }
        if let Some(Value::Object(rds)) = structs::entry(object, "rds") {
            if let Some(Value::Object(source)) = structs::entry(rds, "config_source") {
                source.insert("resource_api_version".into(), Value::text("V3"));
            }
            if let Some(Value::Text(name)) = structs::entry(rds, "route_config_name") {
                routes.push(name.clone());
            }
        }
    }
    if let Some(Value::List(logs)) = structs::entry(object, "access_log") {
        logs.iter_mut().for_each(|log| convert_in_struct(Place::AccessLog, log));
    }
}

/// Converts an extension within the Struct of another.
fn convert_in_struct(place: Place, extension: &mut Value) {
    let Some(object) = extension.object_mut() else { return };
    let Some(Value::Text(name)) = structs::entry(object, "name") else { return };
    let row = row(place, name);
    if let Some((_, new, _)) = row {
        *name = (*new).to_owned();
    }
    if let Some(Value::Object(typed)) = structs::entry(object, "typed_config") {
        if let Some(Value::Text(url)) = typed.get_mut("@type")
            && let Some(v3) = v3_type(url)
        {
            *url = format!("{TYPE_PREFIX}{v3}");
            if transport_api_version(v3).is_some() {
                typed.insert("transport_api_version".into(), Value::text("V3"));
            }
        }
        return;
    }
    let Some((_, _, v3)) = row else { return };
    let typed = match object.remove("config") {
        Some(Value::Object(mut config)) if !config.is_empty() => {
            typed_struct(v3, &mut config, &mut Vec::new());
            Object::from([
                ("@type".into(), Value::text(TYPED_STRUCT)),
                ("type_url".into(), Value::Text(format!("{TYPE_PREFIX}{v3}"))),
                ("value".into(), Value::Object(config)),
            ])
        }
        _ => Object::from([("@type".into(), Value::Text(format!("{TYPE_PREFIX}{v3}")))]),
    };
    object.insert("typed_config".into(), Value::Object(typed));
}
