//! A stopping task, observed in Docker's events, in Consul's catalog, in its own Envoy and in the Envoys that send to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use consul_api::{CheckStatus, HealthCheck, ServiceId};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::wait::{Attempt, until};
use tokio::task::JoinHandle;

use crate::command::CommandError;
use crate::consul::{self, ConsulError};
use crate::docker::{self, DockerError};
use crate::events::{Event, Recorder};
use crate::load::{Load, LoadError, Options, Report};
use crate::probe::{self, Probe, Sample, Seen};
use crate::registered::Registered;
use crate::task::{self, StopOrder, TaskError};

/// How long one blocking query may wait for a change.
const CONSUL_WAIT: Duration = Duration::from_secs(30);

/// How long requests may take to reach a task after a load has started.
const FLOW_BOUND: Duration = Duration::from_secs(15);

/// Why a task could not be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The task does not run, or did not stop or start.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// A probe did not start.
    #[error(transparent)]
    Probe(#[from] CommandError),
    /// Consul could not be asked.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// The load did not start.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A task's state in Consul's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A service of the task has no critical check. The proxy counts as a service.
    Passing,
    /// Each service of the task has a critical check, so no Envoy sends to the task.
    Critical,
    /// The catalog does not have the task's node.
    Gone,
}

/// The reason why [`Watch::flowing`] still waits.
#[derive(Debug, thiserror::Error)]
#[error("the task's Envoy still counts {0} requests")]
struct NoRequest(u64);

/// The observations of a task that stopped. Times are nanoseconds since 1970.
#[derive(Debug)]
pub struct Stopped {
    /// The events of its containers.
    pub events: Vec<Event>,
    /// When service and proxy both had a critical check at the servers.
    pub checks_critical: Option<i64>,
    /// Whether it has a Consul agent.
    pub has_agent: bool,
    /// When its node left the catalog. The agent still runs for some seconds after that. If it then reports a check to the
    /// servers, the node comes back as critical, until the servers reconcile a minute later. Without an agent: when its services left
    /// the catalog.
    pub left: Option<i64>,
    /// When each Envoy that sent to the task removed its endpoint, by task; `None` if that Envoy still has the endpoint.
    pub removed: BTreeMap<String, Option<i64>>,
    /// The time of the last request that came in through its public listener.
    pub last_inbound: Option<i64>,
    /// The time of the last request that its app sent to an upstream.
    pub last_outbound: Option<i64>,
    /// The samples of its own Envoy.
    pub samples: Vec<Sample>,
}

/// The observation of a task. It starts before the task gets TERM.
#[derive(Debug)]
pub struct Watch {
    task: String,
    endpoint: String,
    recorder: Recorder,
    /// A probe for each running task, the watched task included.
    probes: BTreeMap<String, Probe>,
    states: Arc<Mutex<Vec<(i64, State)>>>,
    asking: JoinHandle<()>,
    has_agent: bool,
    begun: i64,
}

impl Watch {
    /// Starts to watch a running task.
    pub async fn start(docker: &Docker, task: &str) -> Result<Self, WatchError> {
        let registered = Registered::of(docker, task).await?;
        let has_agent = registered.has_agent;
        let mut probes = BTreeMap::new();
        for (name, other) in docker::tasks(docker).await? {
            if other.running {
                probes.insert(name, Probe::start(&other.holder).await?);
            }
        }
        let states = Arc::new(Mutex::new(Vec::new()));
        let asking = tokio::spawn(ask(consul::client().await?, registered, states.clone()));
        Ok(Self {
            task: task.to_owned(),
            endpoint: task::endpoint(docker, task).await?,
            recorder: Recorder::start(docker),
            probes,
            states,
            asking,
            has_agent,
            begun: probe::now(),
        })
    }

    /// Waits until the task gets or sends requests. False if it does neither in time.
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

    /// Whether requests from web to `api` pass through the task, as the answers of web's Envoy say.
    fn gets_load(&self) -> bool {
        let is_upstream =
            |sample: &Sample| sample.seen.as_ref().is_some_and(|seen| seen.endpoints.contains(&self.endpoint));
        self.probes.get("web").is_some_and(|web| self.task == "web" || web.samples().iter().any(is_upstream))
    }

    /// The current state of a task's Envoy.
    #[must_use]
    pub fn seen(&self, task: &str) -> Option<Seen> {
        self.probes.get(task)?.last()
    }

    /// Ends the watch after the task's end and returns the observations.
    pub async fn end(mut self) -> Stopped {
        self.asking.abort();
        let mut events = self.recorder.events();
        events.retain(|event| event.task == self.task);
        events.sort_by_key(|event| event.at);
        let states = self.states.lock().expect("no writer panics").clone();
        let first = |state| states.iter().find(|(_, now)| *now == state).map(|(at, _)| *at);
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
            checks_critical: first(State::Critical),
            has_agent: self.has_agent,
            left: first(State::Gone),
            removed: removed.collect(),
            last_inbound: probe::last_rise(&own, self.begun, |seen| seen.inbound),
            last_outbound: probe::last_rise(&own, self.begun, |seen| seen.outbound),
            samples: own,
        }
    }
}

/// Follows the state of a task in Consul with blocking queries, and appends each change.
async fn ask(consul: consul_api::Client, registered: Registered, states: Arc<Mutex<Vec<(i64, State)>>>) {
    let mut index = None;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    loop {
        match registered.checks(&consul, index, CONSUL_WAIT).await {
            Ok(health) => {
                backoff.reset();
                index = health.index;
                let now = state(&health.value);
                let mut states = states.lock().expect("no writer panics");
                if states.last().is_none_or(|(_, last)| *last != now) {
                    states.push((probe::now(), now));
                }
            }
            // A test may restart this server meanwhile.
            Err(_) => tokio::time::sleep(backoff.delay()).await,
        }
    }
}

fn state(checks: &[HealthCheck]) -> State {
    let services = checks.iter().map(|check| &check.service_id).filter(|id| !id.is_empty()).collect::<BTreeSet<_>>();
    let critical =
        |id: &&ServiceId| checks.iter().any(|check| check.service_id == **id && check.status == CheckStatus::Critical);
    if checks.is_empty() {
        State::Gone
    } else if !services.is_empty() && services.iter().all(critical) {
        State::Critical
    } else {
        State::Passing
    }
}

/// The load of `cargo xtask stop`: enough to show the last requests, and too little to slow the shutdown down.
const LIGHT: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 50, connections: 4, fresh: "0.2", shutdown_delay: "5s" };

/// Stops a task as ECS does, and watches it. Task web and the tasks of `api` stop under light load from web to `api`. The report is
/// `None` for other tasks, if web does not run, or if the load printed no report.
pub async fn stop(docker: &Docker, task: &str, order: StopOrder) -> Result<(Stopped, Option<Report>), WatchError> {
    let watch = Watch::start(docker, task).await?;
    let load = if watch.gets_load() {
        Some(Load::start(docker, "web", LIGHT).await?)
    } else {
        tracing::info!("no load: requests from web to api do not pass through task {task}");
        None
    };
    if load.is_some() && !watch.flowing().await {
        tracing::warn!("task {task} gets and sends no request");
    }
    let done = task::stop(docker, task, order).await;
    let stopped = watch.end().await;
    let report = match load {
        Some(load) => Some(load.end().await),
        None => None,
    };
    done?;
    // The timeline is useful without the report.
    let report = report.and_then(|report| report.inspect_err(|error| tracing::warn!("{}", one_line(error))).ok());
    Ok((stopped, report))
}

/// Starts a stopped task and returns the events of its containers.
pub async fn start(docker: &Docker, task: &str) -> Result<Vec<Event>, WatchError> {
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
    fn a_task_is_critical_or_gone_as_the_catalog_says() {
        let check = |service: &str, status| HealthCheck {
            check_id: Default::default(),
            name: String::new(),
            status,
            output: String::new(),
            notes: String::new(),
            service_id: service.into(),
        };
        let (passing, critical) = (CheckStatus::Passing, CheckStatus::Critical);
        let rows = [
            (vec![], State::Gone),
            (vec![("", passing)], State::Passing),
            (vec![("", passing), ("api", critical), ("api-sidecar-proxy", passing)], State::Passing),
            (vec![("", passing), ("api", critical), ("api-sidecar-proxy", critical)], State::Critical),
            (vec![("", passing), ("gateway", passing)], State::Passing),
            (vec![("", passing), ("gateway", passing), ("gateway", critical)], State::Critical),
        ];
        for (checks, expected) in rows {
            let checks = checks.into_iter().map(|(service, status)| check(service, status)).collect::<Vec<_>>();
            assert_eq!(state(&checks), expected, "{checks:?}");
        }
    }
}
