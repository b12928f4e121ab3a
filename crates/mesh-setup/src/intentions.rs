//! Who may call whom.

use consul_api::{Client, Error, IntentionAction};

/// Allows these calls, each a source and a destination, unless Consul has an intention for the pair.
pub(crate) async fn allow(consul: &Client, calls: &[(String, String)]) -> Result<(), Error> {
    let known = consul.intentions().await?;
    for (source, destination) in calls {
        if !known.iter().any(|one| one.source_name == *source && one.destination_name == *destination) {
            consul.create_intention(source, destination, IntentionAction::Allow).await?;
            tracing::info!("{source} may call {destination}");
        }
    }
    Ok(())
}
