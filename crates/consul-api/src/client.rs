//! One request and its answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sidecar_kit::http::{self, Limits, Response};
use sidecar_kit::json;
use sidecar_kit::secret::Secret;
use sidecar_kit::tls::TlsOptionsError;

use crate::config::{Config, ConfigError};
use crate::error::Error;
use crate::servers::{Place, Server, Servers};

/// The limits of one answer.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 16 << 20 };

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// All characters that are not unreserved in a URI (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of one agent or server, or of several: at several addresses, or behind a name with several addresses. It uses one of them until
/// that one fails.
#[derive(Debug)]
pub struct Client {
    config: Config,
    pub(crate) servers: Servers,
    /// The longest time for any answer.
    most: Duration,
    /// Whether a server has answered that it has neither namespaces nor partitions, as Consul without Enterprise does.
    without_scope: AtomicBool,
    /// The token in place of the configuration's.
    renewed: Mutex<Option<Secret>>,
}

/// A request to be sent: method, path with its segments encoded, query and body.
#[derive(Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Bytes,
    time: Duration,
    token: Option<Secret>,
    proof: Option<Secret>,
    accepted: Option<StatusCode>,
}

impl Call {
    /// `path` is literal. Variable segments are appended with [`Call::segment`].
    pub(crate) fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: Vec::new(),
            body: Bytes::new(),
            time: LIMITS.time,
            token: None,
            proof: None,
            accepted: None,
        }
    }

    pub(crate) fn segment(mut self, segment: &str) -> Self {
        self.path.push('/');
        self.path.extend(utf8_percent_encode(segment, RESERVED));
        self
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(body).expect("our own types have string keys alone").into();
        self
    }

    /// A text as the body.
    pub(crate) fn text(mut self, body: &str) -> Self {
        self.body = body.to_owned().into();
        self
    }

    /// The answer must be complete within this time.
    pub(crate) fn within(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Uses this token instead of the client's.
    pub(crate) fn token(mut self, token: &Secret) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// Says that the body holds this secret. It is removed from the text of an error.
    pub(crate) fn proof(mut self, proof: &Secret) -> Self {
        self.proof = Some(proof.clone());
        self
    }

    /// Takes an answer with this status as an answer, and not as an error.
    pub(crate) fn accepting(mut self, status: StatusCode) -> Self {
        self.accepted = Some(status);
        self
    }

    /// Gives the server this much time before the answer begins.
    pub(crate) fn blocks_for(mut self, wait: Duration) -> Self {
        self.time = LIMITS.time + wait;
        self
    }

    pub(crate) fn named(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

impl Client {
    /// A client with this configuration.
    ///
    /// # Errors
    /// When the certificates or the server name cannot be used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let place = |base: &String| Place { base: base.clone(), address: None };
        let servers = Servers::new(config.bases.iter().map(place).collect(), config.tls.clone())?;
        Ok(Self::of(config, servers))
    }

    fn of(config: Config, servers: Servers) -> Self {
        Self { config, servers, most: Duration::MAX, without_scope: AtomicBool::new(false), renewed: Mutex::new(None) }
    }

    /// A client for each server: for each address of the configuration, and for each address of a name. They have the configuration's token.
    ///
    /// # Errors
    /// When the certificates or the server name cannot be used.
    pub async fn each(&self) -> Result<Vec<Self>, ConfigError> {
        let one = |place: Place| {
            let config = Config { bases: vec![place.base.clone()], ..self.config.clone() };
            Ok(Self::of(config, Servers::new(vec![place], self.config.tls.clone())?))
        };
        self.servers.places().await.into_iter().map(one).collect()
    }

    /// The same client with a limit for each answer, for a caller with little time and several servers.
    #[must_use]
    pub fn no_longer_than(self, most: Duration) -> Self {
        Self { most, ..self }
    }

    /// A client with the same configuration and token for another datacenter. The server forwards each request to it.
    ///
    /// # Errors
    /// When the certificates cannot be used any more.
    pub fn in_datacenter(&self, datacenter: &str) -> Result<Self, ConfigError> {
        let config = self.config.clone().in_datacenter(datacenter);
        let renewed = Mutex::new(self.renewed.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(Self { most: self.most, renewed, ..Self::new(config)? })
    }

    /// From now on, sends this token and not the configuration's. A login that is renewed needs no new client.
    pub fn use_token(&self, token: Secret) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// The client's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sends a call and ignores the body of the answer.
    pub(crate) async fn execute(&self, call: Call) -> Result<(), Error> {
        self.send(call).await.map(|_| ())
    }

    /// Sends a call and decodes its answer.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let request = call.named();
        let response = self.send(call).await?;
        decode(request, &response)
    }

    /// Sends a call. Any status other than success is an error. If the server in use fails ([`Error::is_of_the_server`]), the client
    /// uses the next one from then on. It repeats the call there if the call only reads, or has not arrived at the first server.
    pub(crate) async fn send(&self, call: Call) -> Result<Response, Error> {
        let unusable = |source: TlsOptionsError| {
            let source = http::Error::Tls { server: self.config.address().to_owned(), source: source.into() };
            Error::from_http(call.named(), source)
        };
        let mut server = self.servers.in_use().await.map_err(unusable)?;
        let mut tried = Vec::new();
        loop {
            let error = match self.send_to(&server, call.clone()).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !error.is_of_the_server() {
                return Err(error);
            }
            tried.push(server.place.clone());
            let may_repeat = call.method == Method::GET || !error.may_have_arrived();
            match self.servers.leave(&server, &tried).await.filter(|_| may_repeat) {
                Some(next) => server = next,
                None => return Err(error),
            }
        }
    }

    /// Sends a call. If Consul without Enterprise refuses its namespace or partition, and all of them are `default`, this sends the
    /// call again without them. The meaning is the same.
    async fn send_to(&self, server: &Server, call: Call) -> Result<Response, Error> {
        let scoped = !self.without_scope.load(Ordering::Relaxed);
        match self.send_once(server, call.clone(), scoped).await {
            Err(Error::Refused { status, body, .. })
                if status == StatusCode::BAD_REQUEST
                    && body.contains("Invalid query parameter: \"")
                    && self.config.is_in_default_scope()
                    && scoped =>
            {
                self.without_scope.store(true, Ordering::Relaxed);
                self.send_once(server, call, false).await
            }
            outcome => outcome,
        }
    }

    /// Sends a call once. `scoped`: with the namespace and the partition.
    async fn send_once(&self, server: &Server, call: Call, scoped: bool) -> Result<Response, Error> {
        let (named, accepted) = (call.named(), call.accepted);
        let limits = Limits { time: call.time.min(self.most), ..LIMITS };
        let token = self.token_of(&call)?;
        let secrets = [token.clone(), call.proof.clone(), self.config.authorization.clone()];
        let request = self.request(server, call, token.as_ref(), scoped)?;
        let response = server.http.send(request, limits).await;
        let response = response.map_err(|source| Error::from_http(named.clone(), source))?;
        if response.status.is_success() || Some(response.status) == accepted {
            return Ok(response);
        }
        let secrets = secrets.iter().flatten().collect::<Vec<_>>();
        Err(Error::from_response(named, response.status, response.excerpt_without(&secrets)))
    }

    fn token_of(&self, call: &Call) -> Result<Option<Secret>, Error> {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (call.token.clone().or(renewed), &self.config.token) {
            (Some(token), _) => Ok(Some(token)),
            (None, Some(source)) => Ok(Some(source.read()?)),
            (None, None) => Ok(None),
        }
    }

    fn request(
        &self,
        server: &Server,
        call: Call,
        token: Option<&Secret>,
        scoped: bool,
    ) -> Result<http::Request, Error> {
        let named = call.named();
        let Config { namespace, partition, datacenter, .. } = &self.config;
        let scope = [("ns", namespace, scoped), ("partition", partition, scoped), ("dc", datacenter, true)];
        let scope = scope.into_iter().filter(|(.., sent)| *sent);
        let scope = scope.filter_map(|(name, value, _)| Some((name, value.clone()?)));
        let query = call.query.into_iter().chain(scope);
        let query = query.map(|(name, value)| format!("{name}={}", utf8_percent_encode(&value, RESERVED)));
        let query = query.collect::<Vec<_>>().join("&");
        let separator = if query.is_empty() { "" } else { "?" };
        let base = match server.place.base.as_str() {
            socket if socket.starts_with("unix:") => "http://localhost",
            base => base,
        };
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{base}{}{separator}{query}", call.path))
            .header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.config.authorization {
            request = request.header(AUTHORIZATION, sensitive(&named, authorization)?);
        }
        if let Some(token) = token {
            request = request.header(TOKEN, sensitive(&named, token)?);
        }
        request.body(call.body.into()).map_err(|source| Error::Undecodable { request: named, source: source.into() })
    }
}

/// A header value that hyper does not print.
fn sensitive(request: &str, secret: &Secret) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| Error::PermissionDenied {
        request: request.to_owned(),
        body: "the token has characters that a header field cannot have".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

pub(crate) fn decode<T: DeserializeOwned>(request: String, response: &Response) -> Result<T, Error> {
    json::decode(&response.body).map_err(|source| Error::Undecodable { request, source: source.into() })
}
