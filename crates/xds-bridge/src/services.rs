//! The calls that a later Consul's servers answer to tasks without an agent, and that Consul 1.8 lacks. Each is answered from the HTTP API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use consul_api::{Login, ServiceKind};
use consul_grpc::messages::{
    BOOTSTRAP, BootstrapParams, BootstrapRequest, DNS, DnsRequest, DnsResponse, Empty, FEATURES, Feature, Features,
    LOGIN, LOGOUT, LoginRequest, LoginResponse, LoginToken, LogoutRequest, Server, WATCH_SERVERS, WatchServersResponse,
};
use futures_util::StreamExt;
use futures_util::stream;
use prost::Message;
use serde_json::{Map, Value};
use sidecar_kit::secret::Secret;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::consul::Token;
use crate::copies::Copies;
use crate::local::{Local, status};
use crate::relay::Responses;

/// Consul's number for the feature that the bootstrap comes from the server.
const ENVOY_BOOTSTRAP_CONFIGURATION: i32 = 3;
/// Consul's numbers for the protocol of a DNS query.
const TCP: i32 = 1;
const UDP: i32 = 2;
/// How often a watch asks for the servers and for the token. Later Consuls report a deleted token within a second.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long a logout may take.
const LOGOUT_TIME: Duration = Duration::from_secs(10);

/// Answers a call with one response. None if there is no such call.
pub(crate) async fn unary(copies: &Copies, path: &str, token: &Token, message: Bytes) -> Option<Result<Bytes, Status>> {
    let local = copies.local();
    Some(match path {
        FEATURES => features(local, token).await.map(encoded),
        BOOTSTRAP => with(message, async |request| bootstrap(local, token, request).await).await,
        LOGIN => with(message, async |request| login(local, request).await).await,
        LOGOUT => with(message, async |request| logout(copies, request).await).await,
        DNS => with(message, async |request| dns(local, request).await).await,
        _ => return None,
    })
}

async fn with<Q: Message + Default, A: Message>(
    message: Bytes,
    answer: impl AsyncFnOnce(Q) -> Result<A, Status>,
) -> Result<Bytes, Status> {
    let request = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(encoded(answer(request).await?))
}

fn encoded(message: impl Message) -> Bytes {
    message.encode_to_vec().into()
}

async fn features(local: &Local, token: &Token) -> Result<Features, Status> {
    local.authenticate(token).await?;
    let features = [WATCH_SERVERS, ENVOY_BOOTSTRAP_CONFIGURATION];
    Ok(Features { features: features.map(|name| Feature { name, supported: true }).into() })
}

async fn bootstrap(local: &Local, token: &Token, request: BootstrapRequest) -> Result<BootstrapParams, Status> {
    if request.node_name.is_empty() {
        return Err(Status::invalid_argument("the request names no node"));
    }
    let id = if request.proxy_id.is_empty() { request.service_id } else { request.proxy_id };
    let client = local.client(token)?;
    let found = client.service_of_node(&request.node_name, &id.as_str().into(), None, Duration::ZERO).await;
    let Some((proxy, datacenter)) = found.map_err(|error| status(&error))?.value else {
        return Err(Status::not_found("the node has no such service"));
    };
    let service = match proxy.kind {
        Some(ServiceKind::ConnectProxy) => proxy.proxy.destination_service_name,
        _ => proxy.service,
    };
    let mut config = entry(&client, "proxy-defaults", "global").await?.remove("Config");
    let config = config.as_mut().and_then(Value::as_object_mut).map(std::mem::take);
    let mut config = config.unwrap_or_default();
    let defaults = entry(&client, "service-defaults", &service).await?;
    if let Some(protocol) = defaults.get("Protocol").filter(|protocol| *protocol != "") {
        config.insert("protocol".to_owned(), protocol.clone());
    }
    config.extend(proxy.proxy.config.unwrap_or_default());
    Ok(BootstrapParams {
        service: service.clone(),
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        datacenter,
        config: Some(config.into()),
        node_name: request.node_name,
        access_logs: Vec::new(),
        identity: service,
    })
}

/// A config entry; empty if there is none.
async fn entry(client: &consul_api::Client, kind: &str, name: &str) -> Result<Map<String, Value>, Status> {
    match client.config_entry(kind, name).await {
        Ok(Value::Object(entry)) => Ok(entry),
        Ok(_) | Err(consul_api::Error::NotFound { .. }) => Ok(Map::new()),
        Err(error) => Err(status(&error)),
    }
}

async fn login(local: &Local, request: LoginRequest) -> Result<LoginResponse, Status> {
    let LoginRequest { auth_method, bearer_token, meta, datacenter, .. } = request;
    let meta: BTreeMap<String, String> = meta;
    let client = local.client_in(&datacenter)?;
    let proof = Secret::new(bearer_token);
    let token = client.login(Login { method: &auth_method, bearer_token: &proof, meta: &meta }).await;
    let token = token.map_err(|error| {
        let status = status(&error);
        let code = match status.code() {
            // Consul 1.8 answers `ACL not found` if there is no such auth method.
            Code::Unauthenticated => Code::InvalidArgument,
            Code::Internal => Code::Unauthenticated,
            code => code,
        };
        Status::new(code, status.message())
    })?;
    let secret_id = token.secret_id.expose().to_owned();
    Ok(LoginResponse { token: Some(LoginToken { accessor_id: token.entry.accessor_id.to_string(), secret_id }) })
}

async fn logout(copies: &Copies, request: LogoutRequest) -> Result<Empty, Status> {
    if request.token.is_empty() {
        return Err(Status::invalid_argument("the request has no token"));
    }
    // Only this token may remove its copies.
    copies.remove_those_of(&Token::from_text(&request.token)).await;
    let client = copies.local().client_in(&request.datacenter)?;
    client.logout(&Secret::new(&request.token), LOGOUT_TIME).await.map_err(|error| status(&error))?;
    Ok(Empty {})
}

async fn dns(local: &Local, request: DnsRequest) -> Result<DnsResponse, Status> {
    let tcp = match request.protocol {
        TCP => true,
        UDP => false,
        _ => return Err(Status::invalid_argument("the request names neither TCP nor UDP")),
    };
    Ok(DnsResponse { message: local.dns(&request.message, tcp).await? })
}

/// Streams the servers' addresses: at first all, then all again after each change. Ends when Consul no longer knows the token.
pub(crate) fn watch(local: Local, token: Token) -> Responses {
    let changes = stream::unfold(Some(Vec::new()), move |known| {
        let (local, token) = (local.clone(), token.clone());
        async move {
            Some(match next_servers(&local, &token, &known?).await {
                Ok(addresses) => (Ok(encoded(response(&addresses))), Some(addresses)),
                Err(status) => (Err(status), None),
            })
        }
    });
    changes.boxed()
}

async fn next_servers(local: &Local, token: &Token, known: &[String]) -> Result<Vec<String>, Status> {
    let client = local.client(token)?;
    loop {
        match local.authenticate(token).await {
            Err(status) if status.code() == Code::Unauthenticated => return Err(status),
            _ => {}
        }
        // A server without a leader answers with an error. The next round asks again.
        if let Ok(mut servers) = client.servers().await {
            servers.sort();
            if servers != known {
                return Ok(servers);
            }
        }
        sleep(WATCH_EVERY).await;
    }
}

fn response(servers: &[String]) -> WatchServersResponse {
    let address = |server: &String| server.rsplit_once(':').map_or(server.as_str(), |(ip, _)| ip).to_owned();
    let server = |server| Server { id: String::new(), address: address(server), version: String::new() };
    WatchServersResponse { servers: servers.iter().map(server).collect() }
}
