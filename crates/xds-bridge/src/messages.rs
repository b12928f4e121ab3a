//! The four discovery messages of the bridge, with the field numbers of Envoy's `discovery.proto`, and Envoy's node.

use std::collections::BTreeMap;
use std::fmt;

use consul_grpc::messages::Struct;

use crate::resource::{Kind, Resource};
use crate::wire::{self, Malformed, Value, put_bytes};

/// The parts of Envoy's node that the bridge reads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// The proxy's ID.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What the bootstrap says of it.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}

impl Node {
    /// The name of the catalog's node that has the proxy. A proxy with an agent names none.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match &self.metadata.as_ref()?.fields.get("node_name")?.kind {
            Some(consul_grpc::messages::Kind::Text(name)) if !name.is_empty() => Some(name.clone()),
            _ => None,
        }
    }
}

/// v3's DeltaDiscoveryRequest, which Envoy sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeltaRequest {
    /// The encoded node. Only the first request of a stream has it.
    pub node: Option<Vec<u8>>,
    /// The type URL of the resources.
    pub type_url: String,
    /// Names of resources that Envoy wants from now on.
    pub subscribe: Vec<String>,
    /// Names of resources that Envoy no longer wants.
    pub unsubscribe: Vec<String>,
    /// The versions of the resources that Envoy has from an earlier stream, by name. Only the first request for a type has them.
    pub initial_versions: BTreeMap<String, String>,
    /// The nonce of the response that this acknowledges or refuses; empty if it does neither.
    pub nonce: String,
    /// Envoy's reason for the refusal.
    pub error: Option<String>,
}

impl DeltaRequest {
    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        for field in wire::fields(message) {
            let field = field?;
            match field.number {
                1 => request.node = Some(field.bytes()?.to_vec()),
                2 => request.type_url = field.text()?.to_owned(),
                3 => request.subscribe.push(field.text()?.to_owned()),
                4 => request.unsubscribe.push(field.text()?.to_owned()),
                5 => {
                    let (name, version) = entry(field.bytes()?)?;
                    request.initial_versions.insert(name, version);
                }
                6 => request.nonce = field.text()?.to_owned(),
                7 => request.error = Some(status_message(field.bytes()?)?),
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Reads an entry of a `map<string, string>`.
fn entry(message: &[u8]) -> Result<(String, String), Malformed> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in wire::fields(message) {
        let field = field?;
        match field.number {
            1 => key = field.text()?.to_owned(),
            2 => value = field.text()?.to_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

/// Reads the `message` of a `google.rpc.Status`.
fn status_message(message: &[u8]) -> Result<String, Malformed> {
    let mut text = String::new();
    for field in wire::fields(message) {
        let field = field?;
        if field.number == 2 {
            text = String::from_utf8_lossy(field.bytes()?).into_owned();
        }
    }
    Ok(text)
}

/// v3's DeltaDiscoveryResponse: changed and removed resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaResponse {
    /// The kind of the resources.
    pub kind: Kind,
    /// The nonce by which Envoy acknowledges the response.
    pub nonce: String,
    /// New and changed resources.
    pub resources: Vec<Resource>,
    /// The names of removed resources.
    pub removed: Vec<String>,
}

impl DeltaResponse {
    /// Writes the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for resource in &self.resources {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, resource.version.as_bytes());
            put_bytes(&mut message, 2, &crate::convert::pack(self.kind.v3_url(), &resource.body));
            put_bytes(&mut message, 3, resource.name.as_bytes());
            put_bytes(&mut out, 2, &message);
        }
        put_bytes(&mut out, 4, self.kind.v3_url().as_bytes());
        put_bytes(&mut out, 5, self.nonce.as_bytes());
        for name in &self.removed {
            put_bytes(&mut out, 6, name.as_bytes());
        }
        out
    }
}

/// v2's DiscoveryRequest. It asks Consul for a kind, or acknowledges a response.
#[must_use]
pub fn request(kind: Kind, node: &[u8], version: &str, nonce: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if !version.is_empty() {
        put_bytes(&mut out, 1, version.as_bytes());
    }
    put_bytes(&mut out, 2, node);
    put_bytes(&mut out, 4, kind.v2_url().as_bytes());
    if !nonce.is_empty() {
        put_bytes(&mut out, 5, nonce.as_bytes());
    }
    out
}

/// v2's DiscoveryResponse: all resources of a kind. They may have private keys and tokens, so `Debug` does not show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// The number of Consul's configuration on this stream. All kinds of one configuration have the same number.
    pub version: String,
    /// The encoded resources.
    pub resources: Vec<Vec<u8>>,
    /// Their type URL.
    pub type_url: String,
    /// The nonce by which the bridge acknowledges the response.
    pub nonce: String,
}

impl Response {
    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        for field in wire::fields(message) {
            let field = field?;
            match field.number {
                1 => response.version = field.text()?.to_owned(),
                2 => {
                    let mut value = Vec::new();
                    for part in wire::fields(field.bytes()?) {
                        if let wire::Field { number: 2, value: Value::Bytes(bytes), .. } = part? {
                            value = bytes.to_vec();
                        }
                    }
                    response.resources.push(value);
                }
                4 => response.type_url = field.text()?.to_owned(),
                5 => response.nonce = field.text()?.to_owned(),
                _ => {}
            }
        }
        Ok(response)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} {} {}, {} resources)", self.type_url, self.version, self.nonce, self.resources.len())
    }
}
