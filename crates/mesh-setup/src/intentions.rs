//! Intentions: who may call whom.

use consul_api::{Client, Error, IntentionAction};

/// Allows these calls, each a source and a destination, unless Consul has an intention for the pair.
pub(crate) async fn allow(consul: &Client, calls: &[(String, String)]) -> Result<(), Error> {
    let known = consul.intentions().await?;
    let exact = has_exact(&consul.agent_self().await?.config.version);
    for (source, destination) in calls {
        if known.iter().any(|one| one.source_name == *source && one.destination_name == *destination) {
            continue;
        }
        if exact {
            consul.put_intention(source, destination, IntentionAction::Allow).await?;
        } else {
            consul.create_intention(source, destination, IntentionAction::Allow).await?;
        }
        tracing::info!("{source} may call {destination}");
    }
    Ok(())
}

/// Whether this version of Consul, 1.9 or later, keeps the intentions of a destination as one `service-intentions` entry and has
/// `PUT …/intentions/exact`. In these versions, the older POST call fails for a destination whose entry was edited in the UI.
fn has_exact(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return true };
    (major, minor) >= (1, 9)
}

#[cfg(test)]
mod tests {
    use super::has_exact;

    #[test]
    fn intentions_are_put_by_name_since_consul_1_9() {
        for (version, exact) in [("1.8.7", false), ("1.9.0", true), ("1.21.4-x", true), ("2.0.0", true), ("dev", true)]
        {
            assert_eq!(has_exact(version), exact, "{version}");
        }
    }
}
