//! A task with a Consul agent: its services and checks at the agent, and its run from the first metadata to the logout.

use std::cell::{OnceCell, RefCell};
use std::process::ExitCode;
use std::time::Duration;

use consul_api::{CheckId, CheckStatus, Client, Error, ServiceId, ServiceRegistration};
use ecs_meta::MetadataClient;
use futures_util::future::join_all;
use mesh_config::{CheckTtl, Config, Role, SERVICE_TOKEN_FILE};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::SecretSource;
use sidecar_kit::signals::StopSignals;

use crate::health::{Checks, Update};
use crate::mesh::{Instance, LastWrite};
use crate::registry::Registry;
use crate::shutdown::{self, NotSet};
use crate::sync::Syncer;
use crate::writes::{WriteError, Writes};
use crate::{Options, RunError, first_answer, logout};

/// The agent in the task.
#[derive(Debug)]
pub struct Agent {
    consul: Client,
    /// Service and proxy, or the gateway, as mesh-init registers them.
    registrations: Vec<ServiceRegistration>,
    check_ttl: CheckTtl,
    writes: Writes,
}

/// Waits for the metadata, syncs until TERM, takes the task out of the mesh, and logs out. Sets `known` once the task is known.
pub async fn run(
    options: Options,
    env: &Env,
    config: &Config,
    metadata: &MetadataClient,
    mut signals: StopSignals,
    known: &OnceCell<Syncer<Agent>>,
) -> Result<ExitCode, RunError> {
    let role = Role::of(config);
    let login = config.consul_login.as_ref().is_some_and(|login| login.enabled);
    let (namespace, partition) = role.namespace_and_partition();
    let config_of = || {
        let builder = consul_api::Config::builder(env);
        let token = config.bootstrap_dir.join(SERVICE_TOKEN_FILE);
        if login { builder.token(SecretSource::File(token)) } else { builder }
    };
    let consul = Client::new(config_of().build()?.within(namespace, partition))?;
    let (address, ca_file) = (config.consul_http_addr.as_deref(), config.consul_ca_cert_file.as_deref());
    let servers = || {
        let servers = config_of()
            .address("consulHTTPAddr (CONSUL_ECS_CONFIG_JSON)", address)
            .ca_file("consulCACertFile (CONSUL_ECS_CONFIG_JSON)", ca_file)
            .build();
        let client = servers.and_then(|servers| Client::new(servers.within(namespace, partition)));
        client.map(|client| client.no_longer_than(logout::PATIENCE)).map_err(RunError::Servers)
    };
    if login {
        // A wrong setting is reported now, not only when the task stops.
        servers()?;
    }
    let log_out = async |instances: &[(&str, &ServiceId)]| {
        let tokens = logout::files(&config.bootstrap_dir, login);
        match servers() {
            _ if tokens.is_empty() => Ok(()),
            Ok(servers) => logout::log_out(&servers, &tokens, instances).await.map_err(RunError::from),
            Err(error) => Err(error),
        }
    };
    let mut watch = metadata.watch(options.interval);
    let (task, own) = tokio::select! {
        first = first_answer(metadata, &mut watch) => first,
        _ = signals.next() => {
            // Nothing was written, so there is nothing to wait for.
            if let Err(error) = log_out(&[]).await {
                tracing::warn!("{}", one_line(&error));
            }
            return Err(RunError::NothingWritten);
        }
    };
    let names = role.names(&task);
    // A gateway has no check of a container: Consul connects to its listener.
    let containers = if matches!(role, Role::Gateway(_)) { &[] } else { &*config.health_sync_containers };
    let registrations = role.registrations(config, &names, &task, options.check_ttl);
    let agent = Agent { consul, registrations, check_ttl: options.check_ttl, writes: Writes::default() };
    let checks = Checks::at_agent(containers, &names);
    let sync =
        known.get_or_init(|| Syncer::new(agent, options, checks, Instance::new(role, &names), own, watch.last_fetch()));
    let left = match sync.run(metadata, &mut watch, task, signals.next()).await {
        LastWrite::Critical => sync.registry().leave_mesh(&sync.check_ids()).await,
        LastWrite::Nothing(reason) => {
            tracing::info!("{reason}: nothing is written");
            Ok(())
        }
    };
    let instances = [(names.service.as_str(), &names.service_id), (&names.proxy, &names.proxy_id)];
    let logged_out = log_out(&instances).await;
    if let (Err(_), Err(error)) = (&left, &logged_out) {
        tracing::warn!("{}", one_line(error));
    }
    left?;
    logged_out?;
    Ok(ExitCode::SUCCESS)
}

impl Agent {
    /// The IDs of service and proxy, or of the gateway.
    fn services(&self) -> Vec<&ServiceId> {
        self.registrations.iter().map(|registration| &registration.id).collect()
    }

    /// Sets the checks critical and puts service and proxy into maintenance.
    async fn leave_mesh(&self, checks: &[CheckId]) -> Result<(), NotSet> {
        let checks = checks.iter().collect::<Vec<_>>();
        shutdown::leave_mesh(&self.consul, &checks, &self.services(), self.writes.may_come_late()).await
    }

    async fn register(&self, registration: &ServiceRegistration) -> Result<(), String> {
        let register = self.consul.register_service_keeping_checks(registration);
        self.writes.make(register).await.map_err(|error| self.explained(&error))
    }

    /// The error on one line. If the agent refused the token, the line names the service identity that a token needs.
    fn explained(&self, error: &WriteError) -> String {
        let line = one_line(error);
        match error {
            WriteError::Consul(Error::PermissionDenied { .. }) => {
                format!("{line}; expected a token with the service identity {}", self.registrations[0].name)
            }
            _ => line,
        }
    }
}

impl Registry for Agent {
    const READ_BACK: Duration = Duration::from_secs(60);

    fn consul(&self) -> &Client {
        &self.consul
    }

    fn writes(&self) -> &Writes {
        &self.writes
    }

    fn service_id(&self) -> &ServiceId {
        &self.registrations[0].id
    }

    fn heartbeat(&self) -> Option<Duration> {
        // At least once a day, even with a time to live of 100000h.
        Some((self.check_ttl.duration() / 3).min(Duration::from_secs(24 * 60 * 60)))
    }

    /// If one of health-sync's own checks is passing, an earlier run set it. Then the task counts as having been in the mesh. In a task
    /// without such checks, the sign is that all checks of the proxy or gateway are passing.
    async fn was_in_mesh(&self, own: &[CheckId], id: &ServiceId) -> Result<bool, Error> {
        let checks = self.consul.agent_checks(&self.services()).await?;
        if own.is_empty() {
            let mut all = checks.values().filter(|check| check.service_id == *id).peekable();
            return Ok(all.peek().is_some() && all.all(|check| check.status == CheckStatus::Passing));
        }
        Ok(own.iter().any(|id| checks.get(id).is_some_and(|check| check.status == CheckStatus::Passing)))
    }

    async fn write(&self, updates: Vec<Update>, accepted: impl Fn(Update)) -> Result<(), String> {
        let written = join_all(updates.into_iter().map(async |update| {
            let write = self.consul.update_check(&update.id, update.status, &update.output);
            self.writes.make(write).await.map_err(|error| self.explained(&error))?;
            accepted(update);
            Ok(())
        }));
        written.await.into_iter().collect()
    }

    /// Registers again what the agent lost when it restarted without its data, and ends a maintenance that an earlier run set.
    async fn restore(&self, checks: &RefCell<Checks>) -> Result<(), String> {
        let explained = |error: Error| self.explained(&WriteError::Consul(error));
        let ids = self.services();
        let services = self.consul.agent_services(&ids).await.map_err(explained)?;
        for registration in &self.registrations {
            if !services.contains_key(&registration.id) {
                self.register(registration).await?;
                tracing::warn!("the agent had lost {}: registered it again", registration.id);
            }
        }
        let written = checks.borrow().written();
        let found = self.consul.agent_checks(&ids).await.map_err(explained)?;
        for id in ids {
            let maintenance = found.get(&shutdown::maintenance_check_id(id));
            if maintenance.is_some_and(|check| check.notes == shutdown::REASON) {
                let end = self.consul.set_maintenance(id, false, "");
                self.writes.make(end).await.map_err(|error| self.explained(&error))?;
            }
        }
        let lost = checks.borrow_mut().compare(&written, |id| found.get(id).map(|check| check.status));
        // Somebody deregistered a check by hand. Registering the service restores the check, as critical.
        if lost { self.register(&self.registrations[0]).await } else { Ok(()) }
    }
}
