//! The four discovery messages the bridge reads and writes itself, by the field numbers of Envoy's `discovery.proto`.

use std::collections::BTreeMap;
use std::fmt;

use crate::resource::{Kind, Resource};
use crate::wire::{self, Malformed, Value, put_bytes};

/// v3's DeltaDiscoveryRequest: what Envoy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeltaRequest {
    /// The node, as it stands on the wire; on the first request of a stream.
    pub node: Option<Vec<u8>>,
    /// The type it is about.
    pub type_url: String,
    /// Names it wants from now on.
    pub subscribe: Vec<String>,
    /// Names it doesn't want any more.
    pub unsubscribe: Vec<String>,
    /// What it has from an earlier stream: versions by name. Only on the first request for a type.
    pub initial_versions: BTreeMap<String, String>,
    /// The response it acknowledges or refuses; empty if none.
    pub nonce: String,
    /// Why it refuses that response.
    pub error: Option<String>,
}

impl DeltaRequest {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
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

/// An entry of a `map<string, string>`.
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

/// The `message` of a `google.rpc.Status`.
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

/// v3's DeltaDiscoveryResponse: what changed, and what went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaResponse {
    /// The kind of its resources.
    pub kind: Kind,
    /// By which Envoy acknowledges it.
    pub nonce: String,
    /// New or changed.
    pub resources: Vec<Resource>,
    /// Names of what is gone.
    pub removed: Vec<String>,
}

impl DeltaResponse {
    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for resource in &self.resources {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, resource.version.as_bytes());
            put_bytes(&mut message, 2, &crate::extension::pack(self.kind.v3_url(), &resource.body));
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

/// v2's DiscoveryRequest: asks Consul for a kind, or acknowledges what it sent.
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

/// v2's DiscoveryResponse: all resources of a kind. They may hold private keys and tokens, so they don't print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// Counts Consul's configurations of this proxy on this stream; the same for all kinds of one configuration.
    pub version: String,
    /// The messages.
    pub resources: Vec<Vec<u8>>,
    /// What they are.
    pub type_url: String,
    /// By which it is acknowledged.
    pub nonce: String,
}

impl Response {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
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
