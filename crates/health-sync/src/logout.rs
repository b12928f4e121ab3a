//! The tokens of the task's logins are destroyed, once nothing needs them any more: the agent hands a service's statuses on to
//! the servers with the service's token, some time after it has answered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use consul_api::{Client, ServiceId};
use futures_util::future::join_all;
use mesh_config::{CLIENT_TOKEN_FILE, SERVICE_TOKEN_FILE};
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::{Secret, SecretSource};
use tokio::time::Instant;

use crate::shutdown::retried;

/// How long the statuses may take from the agent to the servers. With what follows, and the second before, well below the
/// 30 s that ECS gives a container unless told otherwise.
const ARRIVAL: Duration = Duration::from_secs(8);
/// How long the logouts may take then.
const BOUND: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long one server may take, so that an attempt has time for another.
pub const PATIENCE: Duration = Duration::from_millis(900);

/// Tokens that stay until the auth method's MaxTokenTTL.
#[derive(Debug, thiserror::Error)]
pub enum NotLoggedOut {
    #[error(
        "not logged out: within {} the servers did not show the task as out of the mesh: {reason}; its tokens stay until the auth \
         method's MaxTokenTTL",
        humantime::format_duration(ARRIVAL)
    )]
    NotArrived { reason: String },
    #[error("not logged out, the tokens stay until the auth method's MaxTokenTTL: {}", .0.join("; "))]
    Refused(Vec<String>),
}

/// The files of the tokens to destroy: the service's where the document has mesh-init log in, the agent's where there is one.
pub fn files(bootstrap_dir: &Path, login: bool) -> Vec<PathBuf> {
    let service = bootstrap_dir.join(SERVICE_TOKEN_FILE);
    let client = bootstrap_dir.join(CLIENT_TOKEN_FILE);
    [login.then_some(service), client.exists().then_some(client)].into_iter().flatten().collect()
}

/// Waits until the servers have the instances as critical, or no longer, and destroys the tokens. `instances` are names and
/// IDs of service and proxy; none where nothing was told to the agent.
///
/// # Errors
/// With what is left.
pub async fn log_out(
    servers: &Client,
    files: &[PathBuf],
    instances: &[(&str, &ServiceId)],
) -> Result<(), NotLoggedOut> {
    // A file that isn't there was never written, or is somebody else's doing: nothing to destroy.
    let tokens = files.iter().filter_map(|file| Some((file, SecretSource::File(file.clone()).read().ok()?)));
    let tokens = tokens.collect::<Vec<_>>();
    if tokens.is_empty() {
        return Ok(());
    }
    retried(Instant::now() + ARRIVAL, ATTEMPT, async || out_of_the_mesh(servers, instances).await)
        .await
        .map_err(|reason| NotLoggedOut::NotArrived { reason })?;
    let failed = join_all(tokens.iter().map(async |(file, token)| {
        let outcome = retried(Instant::now() + BOUND, ATTEMPT, async || log_out_of(servers, token).await).await;
        match outcome {
            Ok(()) => tracing::info!("logged out: the token in {} is no more", file.display()),
            Err(reason) => return Some(format!("{}: {reason}", file.display())),
        }
        None
    }));
    let failed = failed.await.into_iter().flatten().collect::<Vec<_>>();
    if failed.is_empty() { Ok(()) } else { Err(NotLoggedOut::Refused(failed)) }
}

async fn log_out_of(servers: &Client, token: &Secret) -> Result<(), String> {
    servers.logout(token, ATTEMPT).await.map_err(|error| one_line(&error))
}

async fn out_of_the_mesh(servers: &Client, instances: &[(&str, &ServiceId)]) -> Result<(), String> {
    for (name, id) in instances {
        match servers.service_health(name, None, Duration::ZERO).await {
            Ok(found) if found.value.iter().any(|instance| instance.service.id == **id && instance.is_routed_to()) => {
                return Err(format!("{id} is not critical there yet"));
            }
            Ok(_) => {}
            // The token is gone already: what was not handed on will not be.
            Err(error) if error.is_unknown_token() => return Ok(()),
            Err(error) => return Err(one_line(&error)),
        }
    }
    Ok(())
}
