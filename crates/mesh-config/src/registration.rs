//! The registrations of the task's service and proxy ("Register Service - Agent HTTP API").

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use consul_types::{
    CheckDefinition, CheckStatus, ExposeConfig, ExposePath, MeshGatewayConfig, Proxy, ServiceKind, ServiceRegistration,
    Upstream, Weights,
};
use ecs_meta::Task;
use serde_json::{Map, Value};

use crate::{
    CheckTtl, Config, DestinationType, ExposeProtocol, HEALTH_SYNC_NAME, MeshGatewayMode, Names, Service, meta,
};

/// How often Consul dials the listener of a proxy or gateway. The first time is at random within this interval. Until then, the servers
/// do not list a new task's proxy as passing.
pub(crate) const LISTENER_INTERVAL: &str = "1s";

/// The registration of the app's service: the checks of the document, and a TTL check for each container that health-sync reports. It has
/// no address, because the agent's address is the task's.
#[must_use]
pub fn service(
    config: &Config,
    service: &Service,
    names: &Names,
    task: &Task,
    check_ttl: CheckTtl,
) -> ServiceRegistration {
    let synced = config.health_sync_containers.iter().map(|container| health_sync_check(names, container, check_ttl));
    ServiceRegistration {
        id: names.service_id.clone(),
        name: names.service.clone(),
        port: port(service),
        checks: service.checks.iter().map(check).chain(synced).collect(),
        ..common(service, task)
    }
}

/// The registration of the sidecar proxy. It copies the service's tags, meta, weights, namespace and partition.
#[must_use]
pub fn proxy(config: &Config, service: &Service, names: &Names, task: &Task) -> ServiceRegistration {
    let proxy = &config.proxy;
    let listener = proxy.public_listener_port;
    ServiceRegistration {
        kind: Some(ServiceKind::ConnectProxy),
        id: names.proxy_id.clone(),
        name: names.proxy.clone(),
        port: Some(listener),
        checks: vec![
            CheckDefinition {
                name: "Proxy Public Listener".to_owned(),
                tcp: Some(format!("{}:{listener}", if is_ipv6_only(task) { "[::1]" } else { "127.0.0.1" })),
                interval: Some(LISTENER_INTERVAL.to_owned()),
                deregister_critical_service_after: Some("10m".to_owned()),
                ..CheckDefinition::default()
            },
            CheckDefinition {
                name: "Destination Alias".to_owned(),
                alias_service: Some(names.service_id.clone()),
                ..CheckDefinition::default()
            },
        ],
        proxy: Some(Proxy {
            destination_service_name: names.service.clone(),
            destination_service_id: Some(names.service_id.clone()),
            local_service_address: Some("127.0.0.1".to_owned()),
            local_service_port: port(service),
            config: Some(config_on(task, &proxy.config)).filter(|config| !config.is_empty()),
            upstreams: proxy.upstreams.iter().map(upstream).collect(),
            mesh_gateway: proxy.mesh_gateway.map(mesh_gateway),
            expose: proxy.expose.as_ref().map(expose),
        }),
        ..common(service, task)
    }
}

/// Whether the task has only IPv6 addresses. By default, Consul puts Envoy's listeners on IPv4.
pub(crate) fn is_ipv6_only(task: &Task) -> bool {
    task.private_ip().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
}

/// The proxy's configuration. In a task without an IPv4 address the public listener and exposed paths are on all IPv6
/// addresses, unless the document says where.
fn config_on(task: &Task, config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    let given = config.keys().any(|key| key.eq_ignore_ascii_case("bind_address"));
    if is_ipv6_only(task) && !given {
        config.insert("bind_address".to_owned(), "::".into());
    }
    config
}

/// What service and proxy share.
fn common(service: &Service, task: &Task) -> ServiceRegistration {
    let weights = service.weights.map(|weights| Weights { passing: weights.passing, warning: weights.warning });
    ServiceRegistration {
        tags: service.tags.clone(),
        meta: meta(task.task_id(), &task.task_arn.to_string(), &service.meta),
        enable_tag_override: service.enable_tag_override,
        weights,
        namespace: service.namespace.clone(),
        partition: service.partition.clone(),
        tagged_addresses: BTreeMap::new(),
        ..ServiceRegistration::default()
    }
}

fn port(service: &Service) -> Option<u16> {
    Some(service.port).filter(|port| *port != 0)
}

/// The check of a container. It is critical until health-sync writes its status. An agent that already has the check keeps the current
/// status.
fn health_sync_check(names: &Names, container: &str, check_ttl: CheckTtl) -> CheckDefinition {
    CheckDefinition {
        check_id: Some(names.health_sync_check_id(container)),
        name: HEALTH_SYNC_NAME.to_owned(),
        notes: Some(format!("The ECS health of container {container}, written by health-sync.")),
        ttl: Some(check_ttl.to_string()),
        status: Some(CheckStatus::Critical),
        ..CheckDefinition::default()
    }
}

fn check(check: &crate::Check) -> CheckDefinition {
    let check = check.clone();
    CheckDefinition {
        check_id: check.check_id.map(Into::into),
        name: check.name.unwrap_or_default(),
        args: check.args,
        interval: check.interval,
        timeout: check.timeout,
        ttl: check.ttl,
        http: check.http,
        header: check.header,
        method: check.method,
        body: check.body,
        tcp: check.tcp,
        udp: check.udp,
        status: check.status.map(|status| match status {
            crate::CheckStatus::Passing => CheckStatus::Passing,
            crate::CheckStatus::Warning => CheckStatus::Warning,
            crate::CheckStatus::Critical => CheckStatus::Critical,
            crate::CheckStatus::Maintenance => CheckStatus::Maintenance,
        }),
        notes: check.notes,
        tls_server_name: check.tls_server_name,
        tls_skip_verify: check.tls_skip_verify,
        grpc: check.grpc,
        grpc_use_tls: check.grpc_use_tls,
        h2ping: check.h2ping,
        h2ping_use_tls: check.h2ping_use_tls,
        alias_node: check.alias_node,
        alias_service: check.alias_service.map(Into::into),
        success_before_passing: check.success_before_passing,
        failures_before_critical: check.failures_before_critical,
        deregister_critical_service_after: None,
    }
}

fn upstream(upstream: &crate::Upstream) -> Upstream {
    let destination_type = upstream.destination_type.map(|kind| match kind {
        DestinationType::Service => "service".to_owned(),
        DestinationType::PreparedQuery => "prepared_query".to_owned(),
    });
    Upstream {
        destination_type,
        destination_namespace: upstream.destination_namespace.clone(),
        destination_partition: upstream.destination_partition.clone(),
        destination_name: upstream.destination_name.clone(),
        destination_peer: upstream.destination_peer.clone(),
        datacenter: upstream.datacenter.clone(),
        local_bind_address: upstream.local_bind_address.clone(),
        local_bind_port: upstream.local_bind_port,
        config: Some(upstream.config.clone()).filter(|config| !config.is_empty()),
        mesh_gateway: upstream.mesh_gateway.map(mesh_gateway),
    }
}

fn mesh_gateway(mode: MeshGatewayMode) -> MeshGatewayConfig {
    let mode = match mode {
        MeshGatewayMode::None => "none",
        MeshGatewayMode::Local => "local",
        MeshGatewayMode::Remote => "remote",
    };
    MeshGatewayConfig { mode: Some(mode.to_owned()) }
}

fn expose(expose: &crate::Expose) -> ExposeConfig {
    let path = |path: &crate::ExposePath| ExposePath {
        listener_port: path.listener_port,
        path: path.path.clone(),
        local_path_port: path.local_path_port,
        protocol: path.protocol.map(|protocol| match protocol {
            ExposeProtocol::Http => "http".to_owned(),
            ExposeProtocol::Http2 => "http2".to_owned(),
        }),
    };
    ExposeConfig { checks: expose.checks, paths: expose.paths.iter().map(path).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_ipv6_only_task_has_its_listener_and_check_on_ipv6() {
        let proxy_of = |addresses: Value, config: Value| {
            let document = json!({ "bootstrapDir": "/c", "service": { "port": 1 }, "proxy": { "config": config } });
            let config = Config::parse(&document.to_string()).unwrap();
            let task: Task = serde_json::from_value(json!({
                "Cluster": "blue", "Family": "Shop", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
                "Containers": [{ "Name": "app", "Networks": [addresses] }],
            }))
            .unwrap();
            let service = config.service.clone().unwrap();
            let proxy = proxy(&config, &service, &Names::new(None, "shop", &"f1a2".into()), &task);
            let bind = proxy.proxy.unwrap().config.unwrap_or_default();
            (json!(bind), proxy.checks[0].tcp.clone().unwrap())
        };
        let v6 = json!({ "IPv6Addresses": ["fd00::7"] });
        let both = json!({ "IPv4Addresses": ["10.0.0.7"], "IPv6Addresses": ["fd00::7"] });
        assert_eq!(proxy_of(v6.clone(), json!({})), (json!({ "bind_address": "::" }), "[::1]:20000".to_owned()));
        assert_eq!(proxy_of(both, json!({})), (json!({}), "127.0.0.1:20000".to_owned()));
        let given = json!({ "Bind_Address": "fd00::7" });
        assert_eq!(proxy_of(v6, given.clone()), (given, "[::1]:20000".to_owned()));
    }

    fn registrations(document: &Value) -> (Value, Value) {
        let config = Config::parse(&document.to_string()).unwrap();
        let task: Task = serde_json::from_value(json!({
            "Cluster": "blue", "Family": "Shop",
            "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
        }))
        .unwrap();
        let described = config.service.clone().unwrap();
        let names = Names::new(described.name.as_deref(), &task.family, task.task_id());
        let service = service(&config, &described, &names, &task, CheckTtl::default());
        let proxy = proxy(&config, &described, &names, &task);
        (serde_json::to_value(service).unwrap(), serde_json::to_value(proxy).unwrap())
    }

    #[test]
    fn the_smallest_document_sends_no_field_that_is_not_set() {
        let (service, proxy) = registrations(&json!({ "bootstrapDir": "/consul", "service": { "port": 0 } }));
        let meta = json!({
            "source": "consul-ecs",
            "task-arn": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "task-id": "f1a2",
        });
        assert_eq!(service, json!({ "ID": "shop-f1a2", "Name": "shop", "Meta": meta }));
        assert_eq!(
            proxy,
            json!({
                "Kind": "connect-proxy", "ID": "shop-f1a2-sidecar-proxy", "Name": "shop-sidecar-proxy", "Port": 20000,
                "Meta": meta,
                "Checks": [
                    { "Name": "Proxy Public Listener", "TCP": "127.0.0.1:20000", "Interval": "1s",
                      "DeregisterCriticalServiceAfter": "10m" },
                    { "Name": "Destination Alias", "AliasService": "shop-f1a2" },
                ],
                "Proxy": { "DestinationServiceName": "shop", "DestinationServiceID": "shop-f1a2",
                    "LocalServiceAddress": "127.0.0.1" },
            })
        );
    }

    #[test]
    fn the_proxy_copies_fields_of_its_service() {
        let (service, proxy) = registrations(&json!({
            "bootstrapDir": "/consul",
            "service": { "name": "web", "port": 8080, "tags": ["a"], "weights": { "passing": 3, "warning": 2 },
                "enableTagOverride": true, "namespace": "ns", "partition": "ap", "meta": { "source": "mine" },
                "checks": [{ "name": "own", "http": "http://localhost:8080", "interval": "5s", "status": "passing" }] },
            "proxy": { "publicListenerPort": 21000, "config": { "protocol": "http" }, "meshGateway": { "mode": "local" },
                "upstreams": [{ "destinationName": "api", "localBindPort": 1234, "datacenter": "dc2" }],
                "expose": { "checks": true, "paths": [{ "path": "/p", "listenerPort": 1, "localPathPort": 2 }] } },
        }));
        for copied in ["Tags", "Weights", "EnableTagOverride", "Namespace", "Partition", "Meta"] {
            assert!(service.get(copied).is_some_and(|value| proxy.get(copied) == Some(value)), "{copied}");
        }
        assert_eq!(
            service["Checks"],
            json!([{ "Name": "own", "HTTP": "http://localhost:8080", "Interval": "5s", "Status": "passing" }])
        );
        assert_eq!(proxy["Port"], 21000);
        assert_eq!(proxy["Checks"][0]["TCP"], "127.0.0.1:21000");
        assert_eq!(
            proxy["Proxy"],
            json!({
                "DestinationServiceName": "web", "DestinationServiceID": "web-f1a2",
                "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
                "Config": { "protocol": "http" }, "MeshGateway": { "Mode": "local" },
                "Upstreams": [{ "DestinationName": "api", "LocalBindPort": 1234, "Datacenter": "dc2" }],
                "Expose": { "Checks": true, "Paths": [{ "Path": "/p", "ListenerPort": 1, "LocalPathPort": 2 }] },
            })
        );
    }

    #[test]
    fn each_synced_container_has_a_critical_check_at_first() {
        let (service, _) = registrations(&json!({
            "bootstrapDir": "/consul", "healthSyncContainers": ["app"], "service": { "name": "web", "port": 8080 },
        }));
        assert_eq!(
            service["Checks"],
            json!([{ "CheckID": "web-f1a2-app-consul-ecs", "Name": "consul ecs synced", "TTL": "30s",
                "Status": "critical", "Notes": "The ECS health of container app, written by health-sync." }])
        );
    }
}
