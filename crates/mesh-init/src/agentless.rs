//! A task's start without a Consul agent. mesh-init logs in at the servers, and waits for the node of the task's cluster. Then it registers
//! in the catalog, and writes the file for mesh-dataplane.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use consul_api::Client;
use consul_login::LoginError;
use ecs_meta::{MetadataClient, Task};
use mesh_access::{Access, AccessError, HTTP_CA_PEM};
use mesh_config::{Config, ConsulServers, Role, ServerEndpoint, catalog};
use sidecar_kit::env::Env;
use sidecar_kit::file::{WriteError, write_if_changed};
use sidecar_kit::signals::StopSignals;
use sidecar_kit::tls::{CertificatesPem, PemError};
use sidecar_kit::wait::WaitError;

use crate::catalog::{Catalog, RegisterError};
use crate::dataplane;
use crate::run::stopped;
use crate::service_defaults::{self, ServiceDefaultsError};

/// The variable of consul-ecs with the CA certificate of the servers' gRPC, in PEM.
const GRPC_CA_PEM: &str = "CONSUL_GRPC_CACERT_PEM";
/// The files for these certificates.
pub(crate) const HTTP_CA_FILE: &str = "consul-https-ca-cert.pem";
pub(crate) const GRPC_CA_FILE: &str = "consul-grpc-ca-cert.pem";
/// How long one server may take to answer. After that, the client uses the next one.
const PATIENCE: Duration = Duration::from_secs(3);
/// Its owner and the volume's group may read it.
const MODE: u32 = 0o640;

/// Why the task is not in the mesh.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AgentlessError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("consulLogin")]
    Login(#[from] LoginError),
    #[error("no task metadata")]
    Metadata(#[from] WaitError<ecs_meta::Error>),
    #[error("no task metadata")]
    MetadataVariable(#[from] ecs_meta::Error),
    #[error("the task metadata has no usable cluster")]
    Cluster(#[source] ecs_meta::ArnError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("{variable}")]
    Authority { variable: &'static str, source: PemError },
    #[error("cannot write a file for the dataplane")]
    Write(#[from] WriteError),
    #[error(transparent)]
    ServiceDefaults(#[from] ServiceDefaultsError),
}

/// Registers the task's service and proxy, or its gateway, and writes the dataplane's file. A second run changes nothing. A signal ends it,
/// and it logs out.
///
/// # Errors
/// See [`AgentlessError`]. If a step fails after the registration, it deregisters what this run has registered.
pub(crate) async fn run(
    config: &Config,
    servers: &ConsulServers,
    role: Role<'_>,
    bound: Duration,
    env: &Env,
    mut signals: StopSignals,
) -> Result<ExitCode, AgentlessError> {
    let Access { consul, login } = Access::of(config, servers, role, bound, env)?;
    let consul = consul.no_longer_than(PATIENCE.min(bound / 3));
    let token = OnceCell::new();
    let joined = async {
        let task = MetadataClient::from_env(env)?.task_within(bound).await?;
        let node = task.cluster_arn().map_err(AgentlessError::Cluster)?.to_string();
        if let Some(login) = &login {
            let new = login.token(&task, None).await?;
            consul.use_token(new.secret().clone());
            let _ = token.set(new);
        }
        join(config, servers, role, &task, &node, &consul, bound, env).await
    };
    let ended = tokio::select! {
        joined = joined => joined.map(|()| ExitCode::SUCCESS),
        stop = signals.next() => Ok(stopped(stop)),
    };
    if let (Some(login), Some(token)) = (&login, token.get()) {
        // mesh-dataplane and health-sync log in themselves, so this token is no longer needed.
        login.log_out(token).await;
    }
    ended
}

#[expect(clippy::too_many_arguments, reason = "the registration needs each of them")]
async fn join(
    config: &Config,
    servers: &ConsulServers,
    role: Role<'_>,
    task: &Task,
    node: &str,
    consul: &Client,
    bound: Duration,
    env: &Env,
) -> Result<(), AgentlessError> {
    let names = catalog::names(role, task);
    let mut catalog = Catalog::new(consul, node, catalog::registrations(role, config, &names, task, node));
    let joined = async {
        catalog.register(&names, bound).await?;
        let ca_file = authority(config, &servers.grpc_endpoint(), (GRPC_CA_PEM, GRPC_CA_FILE), env)?;
        let http_ca_file = authority(config, &servers.http_endpoint(), (HTTP_CA_PEM, HTTP_CA_FILE), env)?;
        let (ca_file, http_ca_file) = (ca_file.as_deref(), http_ca_file.as_deref());
        let dataplane = dataplane::File { config, servers, role, task, names: &names, node, ca_file, http_ca_file };
        dataplane.write()?;
        if let Some(resilience) = role.network_resilience() {
            // Last, because the entry belongs to the whole service and is not taken back.
            service_defaults::write(consul, &names, resilience.outlier_detection.as_ref(), bound).await?;
        }
        Ok(())
    };
    let joined: Result<(), AgentlessError> = joined.await;
    if joined.is_err() {
        // ECS will not start the task's other containers, so nothing else would clean up.
        catalog.deregister().await;
    }
    joined
}

/// The file with the CA certificate of an endpoint. If a variable has the certificate, mesh-init writes it to the shared volume.
fn authority(
    config: &Config,
    endpoint: &ServerEndpoint<'_>,
    (variable, file): (&'static str, &str),
    env: &Env,
) -> Result<Option<PathBuf>, AgentlessError> {
    if !endpoint.tls {
        return Ok(None);
    }
    let Some(pem) = env.get(variable) else { return Ok(endpoint.ca_file.map(Into::into)) };
    let pem = CertificatesPem::new(pem).map_err(|source| AgentlessError::Authority { variable, source })?;
    let path = config.bootstrap_dir.join(file);
    write_if_changed(&path, pem.as_str().as_bytes(), MODE)?;
    Ok(Some(path))
}
