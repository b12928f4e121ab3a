//! Joins one ADS stream of an Envoy to one stream of Consul.

use std::error::Error;
use std::future::pending;
use std::pin::pin;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::consul::{Consul, Token};
use crate::convert;
use crate::copies::{self, Copies};
use crate::delta::{Delta, Outcome};
use crate::messages::{self, DeltaRequest, Response};
use crate::resource::Kind;
use crate::wire::Malformed;

/// The responses to one Envoy.
pub type Responses = BoxStream<'static, Result<Bytes, Status>>;

/// How many characters of Envoy's refusal are logged.
const REASON: usize = 2000;

/// Starts to relay. This ends when Envoy drops the responses or when a side ends its stream. Envoy then gets Consul's status, keeps
/// its configuration, and reconnects with the versions of that configuration.
pub fn start(consul: Consul, copies: Copies, token: Token, requests: Streaming<Bytes>) -> Responses {
    let (responses, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let gone = responses.clone();
        let stream = copies.stream();
        tokio::select! {
            () = gone.closed() => debug!("Envoy has disconnected"),
            status = relay(&consul, (&copies, stream), &token, requests, &responses) => {
                debug!(code = ?status.code(), message = token.redact(status.message()), "ending Envoy's stream");
                let _ = responses.send(Err(status)).await;
            }
        }
        copies.remove_that_of(stream).await;
    });
    received(receiver).boxed()
}

/// What a channel receives, as a stream.
pub(crate) fn received<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|item| (item, receiver)) })
}

/// Relays until one side ends. Returns the status for Envoy.
async fn relay(
    consul: &Consul,
    (copies, stream): (&Copies, copies::Stream),
    token: &Token,
    mut requests: Streaming<Bytes>,
    responses: &mpsc::Sender<Result<Bytes, Status>>,
) -> Status {
    // Unbounded, but it only gets a few requests: at most one for each message from Consul.
    let (to_consul, consul_requests) = mpsc::unbounded_channel();
    let (from_consul, mut consul_responses) = mpsc::channel(1);
    let mut upstream = pin!(upstream(consul, token, consul_requests, from_consul));
    let mut session = Session { token, node: Vec::new(), id: String::new(), delta: Delta::default(), to_consul };
    let mut kept: BoxFuture<'_, Status> = pending().boxed();
    loop {
        let outcome = tokio::select! {
            Some(message) = consul_responses.recv() => session.consul(&message),
            status = &mut upstream => {
                info!(node = session.id, code = ?status.code(), reason = token.redact(status.message()), "the stream to Consul ended");
                return status;
            }
            status = &mut kept => {
                info!(node = session.id, code = ?status.code(), reason = token.redact(status.message()), "no copy of the proxy");
                return status;
            }
            request = requests.message() => match request {
                Ok(Some(message)) => session.envoy(&message).map(|catalog_node| {
                    if let Some(node) = catalog_node {
                        kept = copies.clone().keep(stream, token.clone(), node, session.id.as_str().into()).boxed();
                    }
                }),
                Ok(None) => return Status::ok("Envoy ended the stream"),
                Err(status) => return status,
            },
        };
        if let Err(status) = outcome {
            warn!(node = session.id, reason = status.message(), "ending the stream");
            return status;
        }
        while let Some(response) = session.delta.respond() {
            debug!(
                node = session.id,
                kind = %response.kind,
                resources = ?response.resources.iter().map(|resource| &resource.name).collect::<Vec<_>>(),
                removed = ?response.removed,
                "sending",
            );
            if responses.send(Ok(response.encode().into())).await.is_err() {
                return Status::cancelled("Envoy has disconnected");
            }
        }
    }
}

/// Opens Consul's stream with the first request, and reads it until it ends.
async fn upstream(
    consul: &Consul,
    token: &Token,
    requests: mpsc::UnboundedReceiver<Bytes>,
    responses: mpsc::Sender<Bytes>,
) -> Status {
    let requests =
        stream::unfold(requests, |mut requests| async { requests.recv().await.map(|request| (request, requests)) });
    let mut stream = match consul.stream(token, requests).await {
        Ok(stream) => stream,
        Err(status) => return status_for_envoy(status),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                let _ = responses.send(message).await;
            }
            Ok(None) => return Status::unavailable("Consul ended the stream"),
            Err(status) => return status_for_envoy(status),
        }
    }
}

/// Consul's status without the metadata of its response. A status with a cause comes from the lost connection, not from Consul.
fn status_for_envoy(status: Status) -> Status {
    match status.source() {
        Some(_) => Status::unavailable("cannot reach Consul's gRPC"),
        None => Status::new(status.code(), status.message()),
    }
}

struct Session<'a> {
    token: &'a Token,
    /// Envoy's encoded node. Consul 1.8.7 needs its `user_agent_build_version`: without it, Consul sends fields that Envoy no
    /// longer has (`agent/xds/envoy_versioning.go`).
    node: Vec<u8>,
    id: String,
    delta: Delta,
    to_consul: mpsc::UnboundedSender<Bytes>,
}

impl Session<'_> {
    /// Handles a request. Returns the name of the catalog's node, if this is the first request, and if Envoy has no agent.
    fn envoy(&mut self, message: &[u8]) -> Result<Option<String>, Status> {
        let mut request = DeltaRequest::decode(message).map_err(malformed)?;
        let mut catalog_node = None;
        if let Some(node) = request.node.take() {
            if self.id.is_empty() {
                let read = messages::Node::decode(&node[..]).map_err(|_| malformed(Malformed))?;
                catalog_node = read.name();
                self.id = read.id;
                info!(node = self.id, "Envoy opened a stream");
            }
            self.node = node;
        }
        if self.id.is_empty() {
            return Err(Status::invalid_argument("the first request must have a node"));
        }
        let Some(kind) = Kind::of_url(&request.type_url) else {
            debug!(node = self.id, type_url = request.type_url, "Consul does not serve this type");
            return Ok(catalog_node);
        };
        if !request.unsubscribe.is_empty() {
            debug!(node = self.id, %kind, resources = ?request.unsubscribe, "Envoy unsubscribed");
        }
        match self.delta.envoy(kind, request) {
            Outcome::Nothing => {}
            // Consul is asked for a kind only when Envoy asks for it. The reason: Consul ends the stream of a mesh gateway that asks
            // for routes (`agent/xds/routes.go`).
            Outcome::Subscribed(kind) => self.to_consul(messages::request(kind, &self.node, "", "")),
            Outcome::Refused(kind, reason) => {
                let reason = self.token.redact(&reason).chars().take(REASON).collect::<String>();
                warn!(node = self.id, %kind, reason, "Envoy refused a change");
            }
        }
        Ok(catalog_node)
    }

    fn consul(&mut self, message: &[u8]) -> Result<(), Status> {
        let response = Response::decode(message).map_err(malformed)?;
        let Some(kind) = Kind::of_url(&response.type_url) else { return Ok(()) };
        let resources = response.resources.iter().map(|resource| convert::resource(kind, resource));
        // One malformed resource fails them all. A missing resource would count as removed.
        let resources = resources.collect::<Result<_, _>>().map_err(malformed)?;
        // Consul does not wait for the acknowledgement, but it checks the nonce.
        self.to_consul(messages::request(kind, &self.node, &response.version, &response.nonce));
        self.delta.consul(kind, response.version, resources);
        Ok(())
    }

    fn to_consul(&self, request: Vec<u8>) {
        // This fails if Consul's stream has ended. `upstream` then returns the status.
        let _ = self.to_consul.send(request.into());
    }
}

fn malformed(error: Malformed) -> Status {
    Status::internal(error.to_string())
}
