//! Tasks without an agent: the node that has their services, and what they leave behind.

use std::net::IpAddr;

use consul_api::{HealthNode, HealthService, NodeServices, TokenEntry};

use crate::auth_method::AuthMethodOptions;
use crate::aws::Tasks;
use crate::controller::Controller;
use crate::error::Error;
use crate::registered::Registered;
use crate::term::Term;

/// The meta that marks the node as synthetic: no machine has this name, so the node does not take part in gossip.
const SYNTHETIC: (&str, &str) = ("synthetic-node", "true");

/// The node in one cycle.
pub(crate) struct Node {
    /// Whether it is as it should be.
    kept: bool,
    /// Its services; none if it could not be read.
    services: Option<Vec<HealthService>>,
}

/// The settings for tasks without an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agentless {
    /// The node's address. Nobody connects to it: each service has its own address.
    pub node_address: IpAddr,
    /// The auth method with which tasks log in; none if somebody else sets it up.
    pub auth_method: Option<AuthMethodOptions>,
}

impl Controller {
    /// Keeps the node. This needs only Consul, so it comes before the calls to AWS.
    ///
    /// # Errors
    /// When the lock is lost.
    pub(crate) async fn keep_node(&self, term: &Term, agentless: &Agentless) -> Result<Node, Error> {
        let name = self.names.cluster.to_string();
        let node = match self.consul.node(&name).await {
            Ok(node) => node,
            Err(error) => {
                let kept = self.went_on("read the node of the tasks without an agent", Err(error.into()))?;
                return Ok(Node { kept, services: None });
            }
        };
        let kept = self.repair_node(term, &name, node.as_ref(), agentless.node_address).await;
        let kept = self.went_on("keep the node of the tasks without an agent", kept)?;
        Ok(Node { kept, services: Some(node.map(|node| node.services).unwrap_or_default()) })
    }

    /// Removes what stopped tasks have left: their services on the node, and the tokens of their logins. `listed`: the tokens; none if Consul
    /// did not list them. False if something failed, also if the node could not be read or kept.
    ///
    /// # Errors
    /// When the lock is lost.
    pub(crate) async fn sweep_agentless(
        &self,
        term: &Term,
        node: &Node,
        registered: &mut Option<Registered>,
        tasks: &Tasks,
        listed: Option<&[TokenEntry]>,
    ) -> Result<bool, Error> {
        let Some(services) = &node.services else { return Ok(false) };
        let swept = self.sweep(term, registered, services, listed, tasks).await;
        let swept = self.went_on("remove what stopped tasks have left", swept)?;
        Ok(node.kept && swept)
    }

    /// Registers the node, or repairs it.
    async fn repair_node(
        &self,
        term: &Term,
        name: &str,
        found: Option<&NodeServices>,
        address: IpAddr,
    ) -> Result<bool, Error> {
        let found = found.map(|found| &found.node);
        let wanted = wanted(name, found, address);
        if found != Some(&wanted) {
            self.consul.register_node(term, &wanted).await?;
            match found {
                None => tracing::info!("node {name}: registered for tasks without an agent, at {address}"),
                Some(found) => {
                    tracing::info!("node {name}: repaired; its address was {}, now {address}", found.address)
                }
            }
        }
        Ok(true)
    }
}

/// The node as it should be. Its other meta stays.
fn wanted(name: &str, found: Option<&HealthNode>, address: IpAddr) -> HealthNode {
    let mut meta = found.map(|found| found.meta.clone()).unwrap_or_default();
    meta.insert(SYNTHETIC.0.to_owned(), SYNTHETIC.1.to_owned());
    HealthNode { node: name.to_owned(), address: address.to_string(), meta }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repaired_node_keeps_the_meta_of_others() {
        let address = IpAddr::from([10, 0, 0, 14]);
        let new = wanted("n", None, address);
        assert_eq!((new.address.as_str(), new.meta.len()), ("10.0.0.14", 1));
        assert_eq!(wanted("n", Some(&new), address), new);
        let mut edited = new.clone();
        edited.meta = [("synthetic-node", "no"), ("team", "shop")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let repaired = wanted("n", Some(&edited), address);
        assert_eq!((repaired.meta["synthetic-node"].as_str(), repaired.meta["team"].as_str()), ("true", "shop"));
        assert_ne!(repaired, edited);
    }
}
