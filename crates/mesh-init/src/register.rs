//! Registering at Consul's agent, and taking registrations out again if the task cannot start.

use std::time::Duration;

use consul_api::{AgentService, Client, Proxy, ServiceId, ServiceRegistration, at_start};
use mesh_config::Names;
use sidecar_kit::wait::WaitError;

use crate::compat;
use crate::step::{StepError, deregister_all};

/// Why the task is not registered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RegisterError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("cannot register {id}: the agent's Consul does not know the field {field}: {cure}")]
    UnknownField { id: ServiceId, field: String, cure: &'static str },
    #[error("the agent answered without the proxy's configuration for {0}: another program has registered that ID")]
    NoProxy(ServiceId),
}

/// A proxy or gateway as the agent has it, with the central configuration merged in.
pub struct Registered {
    /// Its configuration.
    pub proxy: Proxy,
    /// Its namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// Its datacenter, since Consul 1.10.
    pub datacenter: Option<String>,
}

/// Registers at one agent and remembers which registrations the agent has accepted.
pub struct Registrar<'a> {
    consul: &'a Client,
    registrations: Vec<ServiceRegistration>,
    accepted: usize,
}

impl<'a> Registrar<'a> {
    /// Creates a registrar for these registrations, in this order. It registers nothing yet.
    #[must_use]
    pub fn new(consul: &'a Client, registrations: Vec<ServiceRegistration>) -> Self {
        Self { consul, registrations, accepted: 0 }
    }

    /// Registers the service and then the proxy that refers to it, or a gateway. It waits for the agent for at most `bound`.
    ///
    /// # Errors
    /// See [`RegisterError`]. The agent may have accepted some of the registrations.
    pub async fn register(&mut self, names: &Names, bound: Duration) -> Result<Registered, RegisterError> {
        let what = format!("Consul's agent at {}", self.consul.config().address());
        // The current step, for the error.
        let mut step = String::new();
        let registered = at_start(&what, bound, async || {
            for (index, registration) in self.registrations.iter().enumerate() {
                step = format!("register {}", registration.id);
                self.consul.register_service(registration).await?;
                self.accepted = self.accepted.max(index + 1);
            }
            step = format!("read {} from the agent", names.proxy_id);
            self.consul.agent_service(&names.proxy_id).await
        });
        let registered = registered.await.map_err(|source| failure(step, source, names))?;
        if let Some(field) = compat::dropped(self.consul.config(), &self.registrations, &registered) {
            return Err(unknown_field(field.to_owned(), names));
        }
        if let [gateway] = &*self.registrations {
            tracing::info!("registered gateway {}", gateway.id);
        } else {
            tracing::info!("registered service {} and proxy {}", names.service_id, names.proxy_id);
        }
        let AgentService { proxy, namespace, partition, datacenter, .. } = registered;
        let proxy = proxy.ok_or_else(|| RegisterError::NoProxy(names.proxy_id.clone()))?;
        Ok(Registered { proxy, namespace, partition, datacenter })
    }

    /// Deregisters what the agent has accepted, in reverse order, so that no proxy remains without its service. A failure is only logged.
    pub async fn deregister(self) {
        let accepted = self.registrations[..self.accepted].iter().rev().map(|registration| &registration.id);
        deregister_all(accepted, async |id: &ServiceId| self.consul.deregister_service(id).await).await;
    }
}

fn failure(step: String, source: WaitError<consul_api::Error>, names: &Names) -> RegisterError {
    if let WaitError::Final(error) = &source
        && let Some(field) = compat::refused(error)
    {
        return unknown_field(field, names);
    }
    StepError::new(step, source, names).into()
}

fn unknown_field(field: String, names: &Names) -> RegisterError {
    let cure = compat::cure(&field);
    RegisterError::UnknownField { id: names.service_id.clone(), field, cure }
}
