//! Destroys the tokens of the task's logins once nothing needs them. The agent sends a service's statuses to the servers with the
//! service's token, some time after it has answered health-sync.

use std::path::{Path, PathBuf};
use std::time::Duration;

use consul_api::{Client, ServiceId};
use futures_util::future::join_all;
use mesh_config::{CLIENT_TOKEN_FILE, SERVICE_TOKEN_FILE};
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::{Secret, SecretSource};
use tokio::time::Instant;

use crate::shutdown::retried;

/// How long the statuses may take from the agent to the servers. Together with the other bounds, that is well below ECS's default
/// stop timeout of 30 s.
const ARRIVAL: Duration = Duration::from_secs(8);
/// How long the logouts may take after that.
const BOUND: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long one server may take. An attempt then still has time to ask another.
pub const PATIENCE: Duration = Duration::from_millis(900);

/// Why tokens were not destroyed. They stay until the auth method's MaxTokenTTL.
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

/// The files of the tokens to destroy: the service's if mesh-init logs in, and the agent's if its file exists.
pub fn files(bootstrap_dir: &Path, login: bool) -> Vec<PathBuf> {
    let service = bootstrap_dir.join(SERVICE_TOKEN_FILE);
    let client = bootstrap_dir.join(CLIENT_TOKEN_FILE);
    [login.then_some(service), client.exists().then_some(client)].into_iter().flatten().collect()
}

/// Waits until the servers list the instances as critical or no longer list them, then destroys the tokens. `instances` are the names
/// and IDs of service and proxy; none if nothing was written to the agent.
///
/// # Errors
/// With the tokens that were not destroyed.
pub async fn log_out(
    servers: &Client,
    files: &[PathBuf],
    instances: &[(&str, &ServiceId)],
) -> Result<(), NotLoggedOut> {
    // Without a file there is no token to destroy.
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
            Ok(()) => tracing::info!("logged out: destroyed the token in {}", file.display()),
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
            // The token no longer exists, so the agent can send no more statuses with it.
            Err(error) if error.is_unknown_token() => return Ok(()),
            Err(error) => return Err(one_line(&error)),
        }
    }
    Ok(())
}
