//! The policies of the consul-clients and of mesh gateways.

use std::collections::HashMap;

use consul_api::{NewPolicy, Policy};

use crate::controller::Controller;
use crate::error::Error;
use crate::term::Term;

/// The rules for consul-clients: join, register the node, read services.
pub const CLIENT_RULES: &str = r#"node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }"#;

/// The rules for mesh gateways beside the service identity: get a certificate, list peerings, and route to every service. Consul 1.8
/// accepts the rules that it does not know, and ignores them.
pub const MESH_GATEWAY_RULES: &str =
    r#"mesh = "write" peering = "read" node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;

/// The modify index of each policy when its rules were right, by its name.
pub(crate) type RightPolicies = HashMap<String, u64>;

impl Controller {
    /// The policies of this controller.
    pub(crate) fn own_policies(&self) -> [(String, &'static str, &'static str); 2] {
        let clients = "What every consul-client may do, written by acl-controller";
        let gateways = "What every mesh gateway may do besides its service identity, written by acl-controller";
        [(self.names.policy(), clients, CLIENT_RULES), (self.names.mesh_gateway_policy(), gateways, MESH_GATEWAY_RULES)]
    }

    /// Creates a missing policy, and repairs one that was changed.
    pub(crate) async fn ensure_policy(
        &self,
        term: &Term,
        new: &NewPolicy<'_>,
        right: &mut RightPolicies,
        policies: &[Policy],
    ) -> Result<(), Error> {
        let name = new.name;
        let Some(found) = policies.iter().find(|policy| policy.name == name) else {
            let created = self.consul.create_policy(term, new).await?;
            tracing::info!("policy {name}: created");
            right.insert(name.to_owned(), created.modify_index);
            return Ok(());
        };
        if right.get(name) == Some(&found.modify_index) {
            return Ok(());
        }
        let words = |rules: &str| rules.split_whitespace().collect::<Vec<_>>().join(" ");
        let policy = self.consul.policy(&found.id).await?;
        if words(&policy.rules) == words(new.rules) && policy.datacenters.is_empty() {
            right.insert(name.to_owned(), found.modify_index);
        } else {
            // The next cycle checks it again.
            self.consul.update_policy(term, &found.id, new).await?;
            tracing::warn!("policy {name}: its rules or datacenters were not those of this acl-controller; repaired");
        }
        Ok(())
    }
}
