//! The policy that every consul-client's token has.

use consul_api::{NewPolicy, Policy};

use crate::cycle::Controller;
use crate::error::Error;
use crate::term::Term;

/// What a consul-client may do: join, register its node, read services.
pub const CLIENT_RULES: &str = r#"node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }"#;

const POLICY_DESCRIPTION: &str = "What every consul-client may do, kept by acl-controller";

impl Controller {
    /// Makes the consul-clients' policy where it is missing, and repairs one that was changed.
    pub(crate) async fn ensure_policy(
        &self,
        term: &Term,
        right: &mut Option<u64>,
        policies: &[Policy],
    ) -> Result<(), Error> {
        let name = self.names.policy();
        let new = NewPolicy { name: &name, description: POLICY_DESCRIPTION, rules: CLIENT_RULES };
        let Some(found) = policies.iter().find(|policy| policy.name == name) else {
            let created = self.consul.create_policy(term, &new).await?;
            tracing::info!("policy {name}: created");
            *right = Some(created.modify_index);
            return Ok(());
        };
        if *right == Some(found.modify_index) {
            return Ok(());
        }
        let words = |rules: &str| rules.split_whitespace().collect::<Vec<_>>().join(" ");
        let policy = self.consul.policy(&found.id).await?;
        if words(&policy.rules) == words(CLIENT_RULES) && policy.datacenters.is_empty() {
            *right = Some(found.modify_index);
        } else {
            // The next cycle looks whether it is right now.
            self.consul.update_policy(term, &found.id, &new).await?;
            tracing::warn!("policy {name}: it was changed; repaired");
        }
        Ok(())
    }
}
