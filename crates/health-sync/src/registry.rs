//! Where Consul has the task's services and checks: at the agent in the task, or in the servers' catalog.

use std::cell::RefCell;
use std::time::Duration;

use consul_api::{CheckId, Client, Error, ServiceId};

use crate::health::{Checks, Update};
use crate::writes::Writes;

/// How to read and write the task's services and checks.
pub trait Registry {
    /// How often health-sync compares what Consul has with what was written. It also does so after each write that failed.
    const READ_BACK: Duration;

    /// A client that also reaches the servers.
    fn consul(&self) -> &Client;

    /// The writes that health-sync makes until TERM.
    fn writes(&self) -> &Writes;

    /// The ID of the service or the gateway.
    fn service_id(&self) -> &ServiceId;

    /// How often a status that stays the same must be written again; none if it stays without that.
    fn heartbeat(&self) -> Option<Duration>;

    /// Whether an earlier run of health-sync in this task saw the proxy or gateway `id` in the mesh. `own` are the checks that health-sync
    /// writes.
    async fn was_in_mesh(&self, own: &[CheckId], id: &ServiceId) -> Result<bool, Error>;

    /// Writes statuses. Calls `accepted` with each that Consul has taken.
    async fn write(&self, updates: Vec<Update>, accepted: impl Fn(Update)) -> Result<(), String>;

    /// Registers again what Consul lost. Marks the checks that have another status than the one written last, so that they are written
    /// again.
    async fn restore(&self, checks: &RefCell<Checks>) -> Result<(), String>;
}
