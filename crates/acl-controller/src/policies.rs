//! The policies that tokens link: that of the consul-clients and that of mesh gateways.

use std::collections::HashMap;

use consul_api::{NewPolicy, Policy};

use crate::controller::Controller;
use crate::error::Error;
use crate::term::Term;

/// What a consul-client may do: join, register its node, read services.
pub const CLIENT_RULES: &str = r#"node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }"#;

/// What a mesh gateway may do besides what its identity allows: get its certificate and route to every service. Consul before 1.10
/// takes the rules that it doesn't know, and ignores them.
pub const MESH_GATEWAY_RULES: &str =
    r#"mesh = "write" peering = "read" node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;

/// The modify index of each policy when its rules were right, by its name.
pub(crate) type RightPolicies = HashMap<String, u64>;

impl Controller {
    /// The policies of this controller.
    pub(crate) fn own_policies(&self) -> [(String, &'static str, &'static str); 2] {
        let clients = "What every consul-client may do, kept by acl-controller";
        let gateways = "What every mesh gateway may do besides its service identity, kept by acl-controller";
        [(self.names.policy(), clients, CLIENT_RULES), (self.names.mesh_gateway_policy(), gateways, MESH_GATEWAY_RULES)]
    }

    /// Makes a policy where it is missing, and repairs one that was changed.
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
            // The next cycle looks whether it is right now.
            self.consul.update_policy(term, &found.id, new).await?;
            tracing::warn!("policy {name}: it was changed; repaired");
        }
        Ok(())
    }
}
