//! A task that stops, watched from all sides: Docker's events, Consul's catalog, its own Envoy and those that send to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use consul_api::{CheckStatus, HealthCheck, ServiceId};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::wait::{Attempt, until};
use tokio::task::JoinHandle;

use crate::docker;
use crate::events::{Event, Recorder};
use crate::load::{Load, Options, Report};
use crate::mesh::MeshError;
use crate::probe::{self, Probe, Sample, Seen};
use crate::task::{self, StopOrder, consul};

/// How long one question to Consul may wait for news.
const CONSUL_WAIT: Duration = Duration::from_secs(30);

/// How long requests may take to reach a task after load was started somewhere.
const FLOW_BOUND: Duration = Duration::from_secs(15);

/// What Consul's servers say of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// A service of it, which the proxy is too, has no critical check.
    Passing,
    /// Each has one: nobody is sent there any more.
    Critical,
    /// The catalog has no such node.
    Gone,
}

/// What [`Watch::flowing`] waits for.
#[derive(Debug, thiserror::Error)]
#[error("no request has passed its Envoy since the {0} before")]
struct NoRequest(u64);

/// What was seen of a task that stopped. Times are nanoseconds since 1970.
#[derive(Debug)]
pub struct Stopped {
    /// What happened to its containers.
    pub events: Vec<Event>,
    /// When the servers knew a critical check of both service and proxy.
    pub checks_critical: Option<i64>,
    /// When its node left the catalog. Its agent runs on for some seconds, and what it then tells the servers, such as a check
    /// that begins to fail, brings the node back there, critical, until they reconcile a minute later.
    pub left: Option<i64>,
    /// When each task's Envoy that sent to it was told not to any more; none if it still does.
    pub removed: BTreeMap<String, Option<i64>>,
    /// The last request that came in through its public listener.
    pub last_inbound: Option<i64>,
    /// The last request that its app sent to an upstream.
    pub last_outbound: Option<i64>,
    /// What its own Envoy said of itself.
    pub samples: Vec<Sample>,
}

/// Watching, from before a task is told to stop.
#[derive(Debug)]
pub struct Watch {
    task: String,
    endpoint: String,
    recorder: Recorder,
    /// By task, its own among them.
    probes: BTreeMap<String, Probe>,
    standings: Arc<Mutex<Vec<(i64, Standing)>>>,
    asking: JoinHandle<()>,
    begun: i64,
}

impl Watch {
    /// Begins to watch a running task.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub async fn start(docker: &Docker, task: &str) -> Result<Self, MeshError> {
        let watched = task::running(docker, task).await?;
        let mut probes = BTreeMap::new();
        for (name, other) in docker::tasks(docker).await? {
            if other.running {
                probes.insert(name, Probe::start(&other.holder).await?);
            }
        }
        let standings = Arc::new(Mutex::new(Vec::new()));
        let asking = tokio::spawn(ask(consul().await?, watched.node(), standings.clone()));
        Ok(Self {
            task: task.to_owned(),
            endpoint: task::endpoint(docker, task).await?,
            recorder: Recorder::start(docker),
            probes,
            standings,
            asking,
            begun: probe::now(),
        })
    }

    /// Waits until requests come to the task or go out of it. False if none do.
    pub async fn flowing(&self) -> bool {
        let Some(own) = self.probes.get(&self.task) else { return false };
        let count = |seen: Option<Seen>| seen.map_or(0, |seen| seen.inbound + seen.outbound);
        let before = count(own.last());
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(50));
        until("requests to pass", FLOW_BOUND, backoff, async || {
            if count(own.last()) > before { Attempt::Done(()) } else { Attempt::Again(NoRequest(before)) }
        })
        .await
        .is_ok()
    }

    /// What a task's Envoy says of itself now.
    #[must_use]
    pub fn seen(&self, task: &str) -> Option<Seen> {
        self.probes.get(task)?.last()
    }

    /// Ends the watch, after the task's end.
    pub async fn end(mut self) -> Stopped {
        self.asking.abort();
        let mut events = self.recorder.events();
        events.retain(|event| event.task == self.task);
        events.sort_by_key(|event| event.at);
        let standings = self.standings.lock().expect("no writer panics").clone();
        let first = |standing| standings.iter().find(|(_, now)| *now == standing).map(|(at, _)| *at);
        let mut samples = BTreeMap::new();
        for (name, probe) in self.probes {
            samples.insert(name, probe.samples());
            probe.end().await;
        }
        let own = samples.remove(&self.task).unwrap_or_default();
        let sent_to = |samples: &&Vec<Sample>| {
            let first = samples.first().and_then(|sample| sample.seen.as_ref());
            first.is_some_and(|seen| seen.endpoints.contains(&self.endpoint))
        };
        let downstream = samples.iter().filter(|(_, samples)| sent_to(samples));
        let removed =
            downstream.map(|(name, samples)| (name.clone(), probe::removed(samples, &self.endpoint, self.begun)));
        Stopped {
            events,
            checks_critical: first(Standing::Critical),
            left: first(Standing::Gone),
            removed: removed.collect(),
            last_inbound: probe::last_rise(&own, self.begun, |seen| seen.inbound),
            last_outbound: probe::last_rise(&own, self.begun, |seen| seen.outbound),
            samples: own,
        }
    }
}

/// Asks Consul again and again, and keeps what changes.
async fn ask(consul: consul_api::Client, node: String, standings: Arc<Mutex<Vec<(i64, Standing)>>>) {
    let mut index = None;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    loop {
        match consul.node_health(&node, index, CONSUL_WAIT).await {
            Ok(health) => {
                backoff.reset();
                index = health.index;
                let now = standing(&health.value);
                let mut standings = standings.lock().expect("no writer panics");
                if standings.last().is_none_or(|(_, last)| *last != now) {
                    standings.push((probe::now(), now));
                }
            }
            // The server that is asked may be restarted meanwhile.
            Err(_) => tokio::time::sleep(backoff.delay()).await,
        }
    }
}

fn standing(checks: &[HealthCheck]) -> Standing {
    let services = checks.iter().map(|check| &check.service_id).filter(|id| !id.is_empty()).collect::<BTreeSet<_>>();
    let critical =
        |id: &&ServiceId| checks.iter().any(|check| check.service_id == **id && check.status == CheckStatus::Critical);
    if checks.is_empty() {
        Standing::Gone
    } else if !services.is_empty() && services.iter().all(critical) {
        Standing::Critical
    } else {
        Standing::Passing
    }
}

/// What `cargo xtask stop` sends meanwhile: enough for the last requests to be seen, too little to be in the way.
const LIGHT: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 50, connections: 4, fresh: "0.2", shutdown_delay: "5s" };

/// Stops a task as ECS does, under light load from web to `api`, and watches it. The load is a container of task web: its
/// report is none if web doesn't run, or if it gave none.
///
/// # Errors
/// See [`MeshError`].
pub async fn stop(docker: &Docker, task: &str, order: StopOrder) -> Result<(Stopped, Option<Report>), MeshError> {
    let watch = Watch::start(docker, task).await?;
    let load = match watch.probes.contains_key("web") {
        true => Some(Load::start(docker, "web", LIGHT).await?),
        false => None,
    };
    if load.is_some() && !watch.flowing().await {
        tracing::warn!("no request reaches {task} or goes out of it");
    }
    let done = task::stop(docker, task, order).await;
    let stopped = watch.end().await;
    let report = match load {
        Some(load) => Some(load.end().await),
        None => None,
    };
    done?;
    // What happened to the task is worth telling without it.
    let report = report.and_then(|report| report.inspect_err(|error| tracing::warn!("{}", one_line(error))).ok());
    Ok((stopped, report))
}

/// Starts a task that was stopped; gives what happened to its containers.
///
/// # Errors
/// See [`MeshError`].
pub async fn start(docker: &Docker, task: &str) -> Result<Vec<Event>, MeshError> {
    let mut recorder = Recorder::start(docker);
    task::start(docker, task, &[]).await?;
    let mut events = recorder.events();
    events.retain(|event| event.task == task);
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_critical_when_each_of_its_services_is_and_gone_with_its_node() {
        let check = |service: &str, status| HealthCheck {
            check_id: Default::default(),
            name: String::new(),
            status,
            output: String::new(),
            service_id: service.into(),
        };
        let (passing, critical) = (CheckStatus::Passing, CheckStatus::Critical);
        let rows = [
            (vec![], Standing::Gone),
            (vec![("", passing)], Standing::Passing),
            (vec![("", passing), ("api", critical), ("api-sidecar-proxy", passing)], Standing::Passing),
            (vec![("", passing), ("api", critical), ("api-sidecar-proxy", critical)], Standing::Critical),
            (vec![("", passing), ("gateway", passing)], Standing::Passing),
            (vec![("", passing), ("gateway", passing), ("gateway", critical)], Standing::Critical),
        ];
        for (checks, expected) in rows {
            let checks = checks.into_iter().map(|(service, status)| check(service, status)).collect::<Vec<_>>();
            assert_eq!(standing(&checks), expected, "{checks:?}");
        }
    }
}
