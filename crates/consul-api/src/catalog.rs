//! The cluster's view: the catalog, and the health of a service with blocking queries ("Catalog HTTP API", "Health HTTP
//! API", "Blocking Queries").

use std::collections::BTreeMap;
use std::time::Duration;

use consul_types::{CheckId, CheckStatus, Proxy, ServiceAddress, ServiceId, ServiceKind, null_as_empty};
use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::{Call, Client, decode};
use crate::error::Error;

/// A version of an answer. A blocking query waits for a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index(u64);

/// An answer with its version.
#[derive(Debug, Clone)]
pub struct Indexed<T> {
    /// The version for the next query. None if Consul's index went backwards, as after a restore. The next query then must not block.
    pub index: Option<Index>,
    /// The answer.
    pub value: T,
}

/// A service instance in the catalog.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogService {
    /// The node's name.
    pub node: String,
    /// The node's address.
    pub address: String,
    /// The datacenter.
    #[serde(default)]
    pub datacenter: String,
    /// The instance's ID.
    #[serde(rename = "ServiceID")]
    pub service_id: ServiceId,
    /// The service's name.
    pub service_name: String,
    /// The instance's metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub service_meta: BTreeMap<String, String>,
    /// An index that grows with each change.
    #[serde(default)]
    pub modify_index: u64,
}

/// A service instance with its node and checks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceHealth {
    /// The node.
    pub node: HealthNode,
    /// The instance.
    pub service: HealthService,
    /// The checks of both.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub checks: Vec<HealthCheck>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthNode {
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: String,
    /// Metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub meta: BTreeMap<String, String>,
}

/// A service instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthService {
    /// Its ID.
    #[serde(rename = "ID")]
    pub id: ServiceId,
    /// The service's name.
    pub service: String,
    /// Its port; 0 for none.
    #[serde(default)]
    pub port: u16,
    /// Metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub meta: BTreeMap<String, String>,
    /// Services that are registered later have a higher index. To register a service again does not change it.
    #[serde(default)]
    pub create_index: u64,
}

/// A node with its services.
#[derive(Debug, Clone)]
pub struct NodeServices {
    /// The node.
    pub node: HealthNode,
    /// Its services. Consul leaves out those that the token may not read.
    pub services: Vec<HealthService>,
}

/// A check in the catalog.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    /// Its ID.
    #[serde(rename = "CheckID")]
    pub check_id: CheckId,
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: CheckStatus,
    /// What the last run or update said.
    #[serde(default)]
    pub output: String,
    /// The description, for operators. In a maintenance check, it is the reason.
    #[serde(default)]
    pub notes: String,
    /// The service's ID; empty for a check of the node.
    #[serde(default, rename = "ServiceID")]
    pub service_id: ServiceId,
}

impl ServiceHealth {
    /// Whether proxies send requests to it. In Consul, one critical check prevents that.
    #[must_use]
    pub fn is_routed_to(&self) -> bool {
        self.checks.iter().all(|check| !matches!(check.status, CheckStatus::Critical | CheckStatus::Maintenance))
    }
}

/// A service instance of a node, with its proxy's configuration. `Debug` does not show the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceOfNode {
    /// Its kind; none for an ordinary service.
    #[serde(default)]
    pub kind: Option<ServiceKind>,
    /// Its ID.
    #[serde(rename = "ID")]
    pub id: ServiceId,
    /// The service's name.
    pub service: String,
    /// Its address; empty if it is the node's.
    #[serde(default)]
    pub address: String,
    /// Its port; 0 for none.
    #[serde(default)]
    pub port: u16,
    /// Other addresses, by their tag.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    /// A proxy's service, upstreams and configuration, without the central configuration.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub proxy: Proxy,
}

/// Which instances to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instances<'a> {
    /// Those of this service.
    Of(&'a str),
    /// The proxies of this service, under any name.
    ProxiesOf(&'a str),
}

impl Client {
    /// The leader's address; none if there is no leader.
    pub async fn leader(&self) -> Result<Option<String>, Error> {
        let leader: String = self.fetch(Call::new(Method::GET, "/v1/status/leader")).await?;
        Ok(Some(leader).filter(|leader| !leader.is_empty()))
    }

    /// The addresses of the servers, `IP:port` of their RPC.
    pub async fn servers(&self) -> Result<Vec<String>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/status/peers")).await
    }

    /// The instances of a service.
    pub async fn catalog_service(&self, name: &str) -> Result<Vec<CatalogService>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/catalog/service").segment(name)).await
    }

    /// The names of all services, with the tags in use.
    pub async fn catalog_services(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/catalog/services")).await
    }

    /// All nodes.
    pub async fn catalog_nodes(&self) -> Result<Vec<HealthNode>, Error> {
        self.fetch(Call::new(Method::GET, "/v1/catalog/nodes")).await
    }

    /// The names of the nodes that have failed in gossip: their `serfHealth` is critical.
    pub async fn failed_nodes(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct NodeCheck {
            node: String,
            #[serde(rename = "CheckID")]
            check_id: String,
        }
        let call = Call::new(Method::GET, "/v1/health/state/critical").query("filter", "CheckID == \"serfHealth\"");
        let checks: Vec<NodeCheck> = self.fetch(call).await?;
        // An older Consul ignores a filter it doesn't know.
        Ok(checks.into_iter().filter(|check| check.check_id == "serfHealth").map(|check| check.node).collect())
    }

    /// The services of a node. The list is empty if the catalog does not have the node.
    pub async fn node_services(&self, node: &str) -> Result<Vec<HealthService>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Node {
            #[serde(default, deserialize_with = "null_as_empty")]
            services: BTreeMap<String, HealthService>,
        }
        let found: Option<Node> = self.fetch(Call::new(Method::GET, "/v1/catalog/node").segment(node)).await?;
        Ok(found.map(|node| node.services.into_values().collect()).unwrap_or_default())
    }

    /// A node with its services; none if the catalog does not have the node, or the token may not read it. The leader first confirms with
    /// its peers that it is the leader (`?consistent`). The request names no namespace.
    pub async fn node_with_services(&self, node: &str) -> Result<Option<NodeServices>, Error> {
        // Consul answers with null, or with a node that is null.
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            node: Option<HealthNode>,
            #[serde(default, deserialize_with = "null_as_empty")]
            services: Vec<HealthService>,
        }
        let call = Call::new(Method::GET, "/v1/catalog/node-services").segment(node).query("consistent", "");
        let found: Option<Answer> = self.fetch(call).await?;
        Ok(found.and_then(|found| Some(NodeServices { node: found.node?, services: found.services })))
    }

    /// A service of a node, and the node's datacenter. It is none if the catalog does not have it, or if the token may not read it. For
    /// `after` and `wait` see [`Client::service_health`]; any change of the node's services ends the wait.
    pub async fn service_of_node(
        &self,
        node: &str,
        id: &ServiceId,
        after: Option<Index>,
        wait: Duration,
    ) -> Result<Indexed<Option<(ServiceOfNode, String)>>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Node {
            datacenter: String,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Found {
            node: Option<Node>,
            #[serde(default, deserialize_with = "null_as_empty")]
            services: Vec<ServiceOfNode>,
        }
        let call = Call::new(Method::GET, "/v1/catalog/node-services").segment(node);
        let call = call.query("filter", equals("ID", id.as_str()));
        let Indexed { index, value: found } = self.blocking::<Option<Found>>(call, after, wait).await?;
        let service = found.and_then(|Found { node, services }| Some((services.into_iter().next()?, node?.datacenter)));
        Ok(Indexed { index, value: service })
    }

    /// The checks of one instance of a service, as the leader has them.
    pub async fn checks_of(&self, service: &str, id: &ServiceId) -> Result<Vec<HealthCheck>, Error> {
        let call = Call::new(Method::GET, "/v1/health/checks").segment(service);
        let call = call.query("filter", equals("ServiceID", id.as_str())).query("consistent", "");
        let found: Vec<HealthCheck> = self.fetch(call).await?;
        // A Consul that doesn't know filters lists all.
        Ok(found.into_iter().filter(|check| check.service_id == *id).collect())
    }

    /// The instances of a service with their checks. With `after`, the server answers when something has changed since that
    /// version, or after `wait`. Consul adds up to a sixteenth to `wait` at random.
    pub async fn service_health(
        &self,
        name: &str,
        after: Option<Index>,
        wait: Duration,
    ) -> Result<Indexed<Vec<ServiceHealth>>, Error> {
        self.blocking(Call::new(Method::GET, "/v1/health/service").segment(name), after, wait).await
    }

    /// Instances with their checks. The leader first confirms with its peers that it is the leader (`?consistent`).
    pub async fn consistent_health(&self, which: Instances<'_>) -> Result<Vec<ServiceHealth>, Error> {
        self.fetch(health(which).query("consistent", "")).await
    }

    /// One instance with its checks, by its ID. It is none if the servers do not have it.
    pub async fn instance_health(&self, which: Instances<'_>, id: &ServiceId) -> Result<Option<ServiceHealth>, Error> {
        let found: Vec<ServiceHealth> =
            self.fetch(health(which).query("filter", equals("Service.ID", id.as_str()))).await?;
        // A Consul that doesn't know filters lists all.
        Ok(found.into_iter().find(|instance| instance.service.id == *id))
    }

    /// All checks of a node. The list is empty if the catalog does not have the node. For `after` and `wait` see
    /// [`Client::service_health`].
    pub async fn node_health(
        &self,
        node: &str,
        after: Option<Index>,
        wait: Duration,
    ) -> Result<Indexed<Vec<HealthCheck>>, Error> {
        self.blocking(Call::new(Method::GET, "/v1/health/node").segment(node), after, wait).await
    }

    async fn blocking<T: DeserializeOwned>(
        &self,
        mut call: Call,
        after: Option<Index>,
        wait: Duration,
    ) -> Result<Indexed<T>, Error> {
        let request = call.named();
        if let Some(Index(index)) = after {
            call = call.query("index", index.to_string()).query("wait", format!("{}ms", wait.as_millis()));
            call = call.blocks_for(wait + wait / 16);
        }
        let response = self.send(call).await?;
        let index = response.headers.get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
        Ok(Indexed { index: following(after, index), value: decode(request, &response)? })
    }
}

fn health(which: Instances<'_>) -> Call {
    match which {
        Instances::Of(service) => Call::new(Method::GET, "/v1/health/service").segment(service),
        Instances::ProxiesOf(service) => Call::new(Method::GET, "/v1/health/connect").segment(service),
    }
}

/// A filter ("Filtering" in the HTTP API's documentation).
pub(crate) fn equals(field: &str, value: &str) -> String {
    format!("{field} == {}", serde_json::Value::from(value))
}

/// The index for the next query, as "Blocking Queries" asks. None after an index that went backwards, and after 0, because a query with the
/// index 0 does not block.
fn following(before: Option<Index>, index: Option<u64>) -> Option<Index> {
    let index = index.filter(|index| *index > 0)?;
    match before {
        Some(Index(before)) if index < before => None,
        _ => Some(Index(index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_went_backwards_starts_over() {
        assert_eq!(following(None, Some(7)), Some(Index(7)));
        assert_eq!(following(Some(Index(7)), Some(7)), Some(Index(7)));
        assert_eq!(following(Some(Index(7)), Some(6)), None);
        assert_eq!(following(None, Some(0)), None);
        assert_eq!(following(None, None), None);
    }
}
