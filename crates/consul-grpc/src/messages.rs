//! The methods, and their messages with the field numbers of Consul's `.proto` files. Messages that may hold a token or configuration have no
//! derived `Debug`.
#![expect(missing_docs, reason = "Consul's own names")]

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Number, Value as Json};

/// The metadata with the ACL token.
pub const TOKEN: &str = "x-consul-token";

pub const FEATURES: &str = "/hashicorp.consul.dataplane.DataplaneService/GetSupportedDataplaneFeatures";
pub const BOOTSTRAP: &str = "/hashicorp.consul.dataplane.DataplaneService/GetEnvoyBootstrapParams";
pub const LOGIN: &str = "/hashicorp.consul.acl.ACLService/Login";
pub const LOGOUT: &str = "/hashicorp.consul.acl.ACLService/Logout";
pub const WATCH: &str = "/hashicorp.consul.serverdiscovery.ServerDiscoveryService/WatchServers";
pub const DNS: &str = "/hashicorp.consul.dns.DNSService/Query";

/// A message that `Debug` shows by its name only.
macro_rules! opaque_debug {
    ($($name:ident),+) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        })+
    };
}
opaque_debug!(LoginRequest, LoginToken, LogoutRequest, BootstrapParams);

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Features {
    #[prost(message, repeated, tag = "1")]
    pub features: Vec<Feature>,
}

/// Consul's numbers for features: 1 watching the servers, 2 certificates at the edge, 3 bootstrap configuration, 4 FIPS.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Feature {
    #[prost(int32, tag = "1")]
    pub name: i32,
    #[prost(bool, tag = "2")]
    pub supported: bool,
}

pub const WATCH_SERVERS: i32 = 1;

/// Consul 1.16 knows only `service_id`, later ones `proxy_id`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapRequest {
    #[prost(string, tag = "2")]
    pub node_name: String,
    #[prost(string, tag = "3")]
    pub service_id: String,
    #[prost(string, tag = "4")]
    pub partition: String,
    #[prost(string, tag = "5")]
    pub namespace: String,
    #[prost(string, tag = "6")]
    pub proxy_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct BootstrapParams {
    #[prost(string, tag = "2")]
    pub service: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(string, tag = "4")]
    pub partition: String,
    #[prost(string, tag = "5")]
    pub datacenter: String,
    #[prost(message, optional, tag = "6")]
    pub config: Option<Struct>,
    #[prost(string, tag = "8")]
    pub node_name: String,
    #[prost(string, repeated, tag = "9")]
    pub access_logs: Vec<String>,
    #[prost(string, tag = "10")]
    pub identity: String,
}

/// A request for a token. Empty texts are the same as absent ones. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct LoginRequest {
    /// The auth method's name.
    #[prost(string, tag = "1")]
    pub auth_method: String,
    /// The proof for the auth method.
    #[prost(string, tag = "2")]
    pub bearer_token: String,
    /// Goes into the token's description.
    #[prost(btree_map = "string, string", tag = "3")]
    pub meta: BTreeMap<String, String>,
    /// The auth method's namespace (Consul Enterprise).
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// The auth method's admin partition (Consul Enterprise).
    #[prost(string, tag = "5")]
    pub partition: String,
    /// The auth method's datacenter.
    #[prost(string, tag = "6")]
    pub datacenter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LoginResponse {
    #[prost(message, optional, tag = "1")]
    pub token: Option<LoginToken>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct LoginToken {
    #[prost(string, tag = "1")]
    pub accessor_id: String,
    #[prost(string, tag = "2")]
    pub secret_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct LogoutRequest {
    #[prost(string, tag = "1")]
    pub token: String,
    #[prost(string, tag = "2")]
    pub datacenter: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchServersRequest {
    #[prost(bool, tag = "1")]
    pub wan: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchServersResponse {
    #[prost(message, repeated, tag = "1")]
    pub servers: Vec<Server>,
}

/// A server of the datacenter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Server {
    /// Its node ID.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its IP address.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its version of Consul.
    #[prost(string, tag = "3")]
    pub version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DnsRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub message: Vec<u8>,
    #[prost(int32, tag = "2")]
    pub protocol: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DnsResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub message: Vec<u8>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Boolean(bool),
    #[prost(message, tag = "5")]
    Object(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct List {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

impl From<Struct> for Map<String, Json> {
    fn from(object: Struct) -> Self {
        object.fields.into_iter().map(|(name, value)| (name, value.into())).collect()
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        match value.kind {
            None | Some(Kind::Null(_)) => Self::Null,
            Some(Kind::Number(number)) => json_number(number),
            Some(Kind::Text(text)) => text.into(),
            Some(Kind::Boolean(boolean)) => boolean.into(),
            Some(Kind::Object(object)) => Map::from(object).into(),
            Some(Kind::List(list)) => list.values.into_iter().map(Self::from).collect(),
        }
    }
}

impl From<Map<String, Json>> for Struct {
    fn from(object: Map<String, Json>) -> Self {
        Self { fields: object.into_iter().map(|(name, value)| (name, value.into())).collect() }
    }
}

impl From<Json> for Value {
    fn from(value: Json) -> Self {
        let kind = match value {
            Json::Null => Kind::Null(0),
            Json::Bool(boolean) => Kind::Boolean(boolean),
            Json::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
            Json::String(text) => Kind::Text(text),
            Json::Array(values) => Kind::List(List { values: values.into_iter().map(Self::from).collect() }),
            Json::Object(object) => Kind::Object(object.into()),
        };
        Self { kind: Some(kind) }
    }
}

/// The format has only floating-point numbers. An integer is written as an integer again.
#[expect(clippy::cast_possible_truncation, reason = "only whole numbers that fit are converted")]
fn json_number(number: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        Json::from(number as i64)
    } else {
        Number::from_f64(number).map_or(Json::Null, Json::Number)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::*;

    #[test]
    fn debug_shows_neither_tokens_nor_configuration() {
        let request = LoginRequest { bearer_token: "5ec3e7".to_owned(), ..LoginRequest::default() };
        let token = LoginToken { secret_id: "5ec3e7".to_owned(), ..LoginToken::default() };
        let logout = LogoutRequest { token: "5ec3e7".to_owned(), ..LogoutRequest::default() };
        let fields =
            BTreeMap::from([("envoy_statsd_url".to_owned(), Value { kind: Some(Kind::Text("5ec3e7".to_owned())) })]);
        let params = BootstrapParams { config: Some(Struct { fields }), ..BootstrapParams::default() };
        let response = LoginResponse { token: Some(token.clone()) };
        let shown = format!("{request:?} {token:?} {logout:?} {params:?} {response:?}");
        assert!(!shown.contains("5ec3e7"), "{shown}");
    }

    #[test]
    fn a_struct_becomes_json() {
        // {"a": {"b": [1, 0.5, null]}, "c": "t", "d": true} as bytes of google.protobuf.Struct.
        let list = [
            0x32, 0x18, 0x0a, 0x09, 0x11, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x0a, 0x09, 0x11, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f,
            0x0a, 0x00,
        ];
        let entry = |name: u8, value: &[u8]| {
            let mut inner = vec![0x0a, 1, name, 0x12, u8::try_from(value.len()).unwrap()];
            inner.extend(value);
            [vec![0x0a, u8::try_from(inner.len()).unwrap()], inner].concat()
        };
        let object = entry(b'b', &list);
        let object = [vec![0x2a, u8::try_from(object.len()).unwrap()], object].concat();
        let bytes = [entry(b'a', &object), entry(b'c', &[0x1a, 1, b't']), entry(b'd', &[0x20, 1])].concat();
        let map = Map::from(Struct::decode(&bytes[..]).unwrap());
        assert_eq!(Json::from(map.clone()), json!({ "a": { "b": [1, 0.5, null] }, "c": "t", "d": true }));
        assert_eq!(Map::from(Struct::from(map.clone())), map);
    }
}
