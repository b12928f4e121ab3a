//! A task's role, service or gateway, and the names and registration of a gateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use consul_types::{CheckDefinition, Proxy, ServiceAddress, ServiceId, ServiceKind, ServiceRegistration};
use ecs_meta::Task;
use serde_json::{Map, Value};

use crate::registration::LISTENER_INTERVAL;
use crate::{CheckTtl, Config, Gateway, GatewayKind, Names, NetworkResilience, Service, meta, registration};

/// The default port of a gateway's listener. An ingress gateway serves only `/ready` on this port.
pub const GATEWAY_PORT: u16 = 8443;

impl GatewayKind {
    /// Consul's name for it, as in `gateway.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh-gateway",
            Self::Ingress => "ingress-gateway",
            Self::Terminating => "terminating-gateway",
            Self::Api => "api-gateway",
        }
    }
}

/// The role of a task in the mesh.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// A service with its sidecar proxy.
    Service(&'a Service),
    /// A gateway. The rest of the document is not used.
    Gateway(&'a Gateway),
}

impl<'a> Role<'a> {
    /// The role that the document gives.
    ///
    /// # Panics
    /// Never for a document from [`Config::parse`], because the rule `service-or-gateway` requires one of the two.
    #[must_use]
    pub fn of(config: &'a Config) -> Self {
        let gateway = config.gateway.as_ref().map(Self::Gateway);
        gateway.or(config.service.as_ref().map(Self::Service)).expect("the rule service-or-gateway holds")
    }

    /// Its namespace and admin partition (Consul Enterprise).
    #[must_use]
    pub fn namespace_and_partition(self) -> (Option<&'a str>, Option<&'a str>) {
        let (namespace, partition) = match self {
            Self::Service(service) => (&service.namespace, &service.partition),
            Self::Gateway(gateway) => (&gateway.namespace, &gateway.partition),
        };
        (namespace.as_deref(), partition.as_deref())
    }

    /// The names in Consul. A gateway is its own proxy. Its default name is the task family, with its capitals; without an
    /// agent, see [`catalog::names`](crate::catalog::names).
    #[must_use]
    pub fn names(self, task: &Task) -> Names {
        match self {
            Self::Service(service) => Names::new(service.name.as_deref(), &task.family, task.task_id()),
            Self::Gateway(gateway) => {
                let service = given(gateway.name.as_deref()).unwrap_or(&task.family).to_owned();
                let service_id = ServiceId::from(format!("{service}-{}", task.task_id()));
                let (proxy, proxy_id) = (service.clone(), service_id.clone());
                Names { service, service_id, proxy, proxy_id }
            }
        }
    }

    /// The name of the service identity that the task's token needs, in lower case.
    #[must_use]
    pub fn identity(self, family: &str) -> String {
        let name = match self {
            Self::Service(service) => &service.name,
            Self::Gateway(gateway) => &gateway.name,
        };
        given(name.as_deref()).unwrap_or(family).to_lowercase()
    }

    /// The registrations, in order. The last one is the proxy or gateway for which Envoy runs.
    #[must_use]
    pub fn registrations(
        self,
        config: &Config,
        names: &Names,
        task: &Task,
        check_ttl: CheckTtl,
    ) -> Vec<ServiceRegistration> {
        match self {
            Self::Service(service) => vec![
                registration::service(config, service, names, task, check_ttl),
                registration::proxy(config, service, names, task),
            ],
            Self::Gateway(gateway) => vec![registration(gateway, names, task)],
        }
    }

    /// The settings for the passive health checks of a service's upstreams, if the document turns them on.
    #[must_use]
    pub fn network_resilience(self) -> Option<&'a NetworkResilience> {
        let Self::Service(service) = self else { return None };
        service.network_resilience.as_ref().filter(|resilience| resilience.enabled)
    }

    /// The configuration of the proxy or gateway.
    #[must_use]
    pub fn proxy_config(self, config: &'a Config) -> &'a Map<String, Value> {
        match self {
            Self::Service(_) => &config.proxy.config,
            Self::Gateway(gateway) => &gateway.config,
        }
    }

    /// The address at which Envoy serves `/ready` for an ingress gateway. Its config entry says on which ports the gateway
    /// listens, so without this address nothing listens on the port that the gateway's check dials.
    /// `consul connect envoy -gateway=ingress` does the same.
    #[must_use]
    pub fn ready_bind(self, task: &Task) -> Option<(IpAddr, u16)> {
        let Self::Gateway(gateway @ Gateway { kind: GatewayKind::Ingress, .. }) = self else { return None };
        // A name may have addresses of both IP versions. Then the version of the task's address decides.
        let ip = dialled(gateway, task).parse::<IpAddr>().ok().or_else(|| task.private_ip()?.parse().ok());
        let any =
            if ip.is_some_and(|ip| ip.is_ipv6()) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Some((any, port(gateway)))
    }
}

/// The registration of a gateway. It has an address only if the document gives one, because the agent's address is the task's. A task without
/// an IPv4 address is an exception: there the gateway has the task's address, because Envoy would listen on IPv4 otherwise.
fn registration(gateway: &Gateway, names: &Names, task: &Task) -> ServiceRegistration {
    let port = port(gateway);
    let lan = lan(gateway);
    let wan = gateway.wan_address.as_ref();
    let wan = wan.and_then(|wan| Some((given(wan.address.as_deref())?, wan.port.filter(|port| *port != 0))));
    let v6 = task.private_ip().filter(|_| registration::is_ipv6_only(task));
    let mut tagged_addresses = BTreeMap::new();
    if let Some(lan) = lan {
        tagged_addresses.insert("lan".to_owned(), ServiceAddress { address: lan.to_owned(), port });
    }
    if let Some((address, wan_port)) = wan {
        let port = wan_port.unwrap_or(GATEWAY_PORT);
        tagged_addresses.insert("wan".to_owned(), ServiceAddress { address: address.to_owned(), port });
    }
    let dialled = dialled(gateway, task);
    let dialled = match dialled.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}"),
        Err(_) => format!("{dialled}:{port}"),
    };
    ServiceRegistration {
        kind: Some(match gateway.kind {
            GatewayKind::Mesh => ServiceKind::MeshGateway,
            GatewayKind::Ingress => ServiceKind::IngressGateway,
            GatewayKind::Terminating => ServiceKind::TerminatingGateway,
            GatewayKind::Api => ServiceKind::ApiGateway,
        }),
        id: names.service_id.clone(),
        name: names.service.clone(),
        tags: gateway.tags.clone(),
        port: Some(port),
        address: lan.or(v6).map(str::to_owned),
        tagged_addresses,
        meta: meta(task.task_id(), &task.task_arn.to_string(), &gateway.meta),
        checks: vec![CheckDefinition {
            name: format!("{} listener", gateway.kind.as_str()),
            tcp: Some(dialled),
            interval: Some(LISTENER_INTERVAL.to_owned()),
            deregister_critical_service_after: Some("10m".to_owned()),
            ..CheckDefinition::default()
        }],
        proxy: Some(gateway.config.clone())
            .filter(|config| !config.is_empty())
            .map(|config| Proxy { config: Some(config), ..Proxy::default() }),
        namespace: gateway.namespace.clone(),
        partition: gateway.partition.clone(),
        ..ServiceRegistration::default()
    }
}

fn port(gateway: &Gateway) -> u16 {
    gateway.lan_address.as_ref().and_then(|lan| lan.port).filter(|port| *port != 0).unwrap_or(GATEWAY_PORT)
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn lan(gateway: &Gateway) -> Option<&str> {
    given(gateway.lan_address.as_ref()?.address.as_deref())
}

/// The IP address or name that the check dials.
fn dialled<'a>(gateway: &'a Gateway, task: &'a Task) -> &'a str {
    lan(gateway).or(task.private_ip()).unwrap_or("127.0.0.1")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;

    use super::*;

    fn task(addresses: &Value) -> Task {
        serde_json::from_value(json!({
            "Cluster": "blue", "Family": "Edge", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
            "Containers": [{ "Name": "sidecar-proxy", "Networks": [addresses] }],
        }))
        .unwrap()
    }

    fn v4() -> Task {
        task(&json!({ "NetworkMode": "awsvpc", "IPv4Addresses": ["10.1.2.3"] }))
    }

    fn registered(gateway: Value) -> Value {
        let config = Config::parse(&json!({ "bootstrapDir": "/consul", "gateway": gateway }).to_string()).unwrap();
        let role = Role::of(&config);
        let registrations = role.registrations(&config, &role.names(&v4()), &v4(), CheckTtl::default());
        serde_json::to_value(&registrations).unwrap()
    }

    #[test]
    fn the_smallest_gateway_is_named_by_the_family() {
        for kind in ["mesh-gateway", "ingress-gateway", "terminating-gateway"] {
            let expected = json!([{
                "Kind": kind, "ID": "Edge-f1a2", "Name": "Edge", "Port": 8443,
                "Meta": {
                    "source": "consul-ecs", "task-arn": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2", "task-id": "f1a2",
                },
                "Checks": [{
                    "Name": format!("{kind} listener"), "TCP": "10.1.2.3:8443", "Interval": "1s",
                    "DeregisterCriticalServiceAfter": "10m",
                }],
            }]);
            assert_eq!(registered(json!({ "kind": kind })), expected);
        }
    }

    #[test]
    fn every_field_of_a_gateway_is_registered() {
        let registered = registered(json!({
            "kind": "mesh-gateway", "name": "mgw", "tags": ["a"], "meta": { "env": "test" }, "namespace": "ns",
            "partition": "ap", "lanAddress": { "address": "10.9.9.9", "port": 9443 },
            "wanAddress": { "address": "gw.example.com", "port": 443 }, "proxy": { "config": { "connect_timeout_ms": 7 } },
        }));
        let gateway = &registered[0];
        let place = (&gateway["ID"], &gateway["Name"], &gateway["Namespace"], &gateway["Partition"]);
        assert_eq!(place, (&json!("mgw-f1a2"), &json!("mgw"), &json!("ns"), &json!("ap")));
        assert_eq!((&gateway["Address"], &gateway["Port"]), (&json!("10.9.9.9"), &json!(9443)));
        let addresses = json!({
            "lan": { "Address": "10.9.9.9", "Port": 9443 }, "wan": { "Address": "gw.example.com", "Port": 443 },
        });
        assert_eq!(gateway["TaggedAddresses"], addresses);
        assert_eq!(gateway["Checks"][0]["TCP"], "10.9.9.9:9443");
        assert_eq!((&gateway["Tags"], &gateway["Meta"]["env"]), (&json!(["a"]), &json!("test")));
        assert_eq!(gateway["Proxy"], json!({ "Config": { "connect_timeout_ms": 7 } }));
    }

    #[test]
    fn an_address_without_a_port_has_port_8443() {
        let gateway = registered(json!({
            "kind": "mesh-gateway", "lanAddress": { "port": 9443 }, "wanAddress": { "address": "198.51.100.7" },
        }));
        let wan = json!({ "wan": { "Address": "198.51.100.7", "Port": 8443 } });
        assert_eq!(gateway[0]["TaggedAddresses"], wan);
        assert_eq!((&gateway[0]["Address"], &gateway[0]["Port"]), (&Value::Null, &json!(9443)));
        assert_eq!(gateway[0]["Checks"][0]["TCP"], "10.1.2.3:9443");

        let gateway = registered(json!({ "kind": "mesh-gateway", "lanAddress": { "address": "fd00::7" } }));
        assert_eq!(gateway[0]["TaggedAddresses"], json!({ "lan": { "Address": "fd00::7", "Port": 8443 } }));
        assert_eq!(gateway[0]["Checks"][0]["TCP"], "[fd00::7]:8443");
        let gateway = registered(json!({ "kind": "mesh-gateway", "wanAddress": { "port": 443 } }));
        assert_eq!(gateway[0]["TaggedAddresses"], Value::Null);
    }

    #[test]
    fn an_ipv6_only_gateway_has_the_task_s_address() {
        let task = task(&json!({ "NetworkMode": "awsvpc", "IPv6Addresses": ["fd00::1"] }));
        let document = json!({ "bootstrapDir": "/consul", "gateway": { "kind": "mesh-gateway" } });
        let config = Config::parse(&document.to_string()).unwrap();
        let gateway = config.gateway.as_ref().unwrap();
        let registered = registration(gateway, &Role::Gateway(gateway).names(&task), &task);
        assert_eq!(registered.address.as_deref(), Some("fd00::1"));
        assert_eq!(registered.checks[0].tcp.as_deref(), Some("[fd00::1]:8443"));
    }

    #[test]
    fn only_an_ingress_gateway_has_a_readiness_listener() {
        let ready_at = |kind: &str, address: &str, task: &Task| {
            let document = json!({
                "bootstrapDir": "/consul", "service": { "port": 80 },
                "gateway": { "kind": kind, "lanAddress": { "address": address, "port": 9443 } },
            });
            let config = Config::parse(&document.to_string()).unwrap();
            let role = Role::of(&config);
            assert!(matches!(role, Role::Gateway(_)));
            assert_eq!(role.registrations(&config, &role.names(task), task, CheckTtl::default()).len(), 1);
            role.ready_bind(task).map(|address| SocketAddr::from(address).to_string())
        };
        let ready = |kind: &str, task: &Task| ready_at(kind, "", task);
        assert_eq!(ready("ingress-gateway", &v4()).as_deref(), Some("0.0.0.0:9443"));
        let v6 = task(&json!({ "NetworkMode": "awsvpc", "IPv6Addresses": ["fd00::1"] }));
        assert_eq!(ready("ingress-gateway", &v6).as_deref(), Some("[::]:9443"));
        // The listener has the IP version of the address that the check dials.
        for (address, task, any) in
            [("fd00::7", v4(), "[::]"), ("10.9.9.9", v6.clone(), "0.0.0.0"), ("gw.example.com", v6, "[::]")]
        {
            assert_eq!(ready_at("ingress-gateway", address, &task), Some(format!("{any}:9443")), "{address}");
        }
        for kind in ["mesh-gateway", "terminating-gateway"] {
            assert_eq!(ready(kind, &v4()), None);
        }
    }
}
