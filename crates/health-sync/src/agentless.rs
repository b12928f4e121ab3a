//! The run of a task without an agent: from the login to the deregistration and the logout.

use std::cell::OnceCell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use consul_login::{Keeper, LOGOUT_AT_ONE, TaskLogin};
use ecs_meta::{MetadataClient, Status, Task};
use futures_util::future::join_all;
use mesh_access::Access;
use mesh_config::{Config, ConsulServers, Role, catalog, is_dataplane};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::signals::StopSignals;
use tokio::time::{Instant, timeout_at};

use crate::catalog::Catalog;
use crate::health::Checks;
use crate::logout::NotLoggedOut;
use crate::mesh::Instance;
use crate::shutdown::retried;
use crate::sync::Syncer;
use crate::{Options, RunError, first_answer};

/// How long one server may take to answer. After that, the client uses the next one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the logout may take.
const LOGOUT_BOUND: Duration = Duration::from_secs(2);

/// Waits for the metadata, logs in, syncs until TERM, takes the task out of the mesh and out of the catalog, and logs out. Sets `known`
/// once the task is known.
pub async fn run(
    options: Options,
    env: &Env,
    config: &Config,
    servers: &ConsulServers,
    metadata: &MetadataClient,
    mut signals: StopSignals,
    known: &OnceCell<Syncer<Catalog>>,
) -> Result<ExitCode, RunError> {
    let role = Role::of(config);
    let Access { consul, login } = Access::of(config, servers, role, PATIENCE, env)?;
    let consul = consul.no_longer_than(PATIENCE);
    let mut watch = metadata.watch(options.interval);
    let (task, own) = tokio::select! {
        first = first_answer(metadata, &mut watch) => first,
        _ = signals.next() => return Err(RunError::NothingWritten),
    };
    let node = task.cluster_arn().map_err(RunError::Cluster)?.to_string();
    let login = login.map(|login| Arc::new(TaskLogin::new(login, task.clone())));
    let keeper = async {
        match &login {
            Some(login) => Some(Keeper::log_in(login.clone()).await),
            None => None,
        }
    };
    let keeper = tokio::select! {
        keeper = keeper => keeper,
        _ = signals.next() => {
            // The login may have succeeded at the same moment.
            if let Some(login) = &login && let Err(error) = log_out(login).await {
                tracing::warn!("{}", one_line(&error));
            }
            return Err(RunError::NotLoggedIn);
        }
    };
    let names = catalog::names(role, &task);
    let registrations = catalog::registrations(role, config, &names, &task, &node);
    let containers = if matches!(role, Role::Gateway(_)) { &[] } else { &*config.health_sync_containers };
    let services = registrations.iter().map(|registration| &registration.service.id);
    let checks = Checks::in_catalog(containers, &names, services);
    let catalog = Catalog::new(consul, keeper, node, registrations);
    let sync = known
        .get_or_init(|| Syncer::new(catalog, options, checks, Instance::new(role, &names), own, watch.last_fetch()));
    let catalog = sync.registry();
    let whole = async {
        // If the hold ended because the servers no longer list the task, the writes change nothing.
        sync.run(metadata, &mut watch, task, signals.next()).await;
        let stopped = sync.until(&mut watch, dataplane_has_stopped);
        if !catalog.stay_critical(stopped, options.dataplane_wait).await? {
            let wait = humantime::format_duration(options.dataplane_wait);
            tracing::warn!("the dataplane has not stopped within {wait}: deregistering the task now");
        }
        Ok::<_, RunError>(catalog.deregister().await)
    };
    let deregistered = tokio::select! {
        deregistered = whole => deregistered?,
        () = catalog.renewals() => unreachable!("it does not end"),
    };
    let logged_out = match &login {
        Some(login) => log_out(login).await,
        None => Ok(()),
    };
    if let (Err(_), Err(error)) = (&deregistered, &logged_out) {
        tracing::warn!("{}", one_line(error));
    }
    deregistered?;
    logged_out?;
    Ok(ExitCode::SUCCESS)
}

/// Whether ECS has stopped the dataplane, and has seen that it stopped. A task without one has nothing to wait for.
fn dataplane_has_stopped(task: &Task) -> bool {
    let mut dataplanes = task.containers.iter().filter(|container| is_dataplane(&container.name));
    dataplanes.all(|container| container.desired_status == Status::Stopped && container.known_status == Status::Stopped)
}

/// Deletes the tokens of all logins. After a renewal, the token before still exists for some seconds.
async fn log_out(login: &TaskLogin) -> Result<(), NotLoggedOut> {
    let deadline = Instant::now() + LOGOUT_BOUND;
    let under_way = |_| NotLoggedOut::Refused(vec!["a login was still under way".to_owned()]);
    let tokens = timeout_at(deadline, login.issued().end()).await.map_err(under_way)?;
    let servers = login.login().servers();
    let failed = join_all(tokens.iter().map(async |token| {
        let attempt = async || servers.logout(token, LOGOUT_AT_ONE).await.map_err(|error| one_line(&error));
        retried(deadline, PATIENCE, attempt).await.err()
    }));
    let failed = failed.await.into_iter().flatten().collect::<Vec<_>>();
    if !failed.is_empty() {
        return Err(NotLoggedOut::Refused(failed));
    }
    if !tokens.is_empty() {
        tracing::info!("logged out");
    }
    Ok(())
}
