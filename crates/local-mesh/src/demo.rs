//! The shutdown demo: requests that fail while a task stops under load, with and without retries, a shutdown delay and draining.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::consul::{self, ConsulError};
use crate::load::{Load, LoadError, Options, Report};
use crate::mesh::{RequestError, fetch};
use crate::task::{self, StopOrder, TaskError};
use crate::version::{self, Version};
use crate::{Progress, workspace};

/// The task that is stopped and started, of service `api`.
const TASK: &str = "api-1";

/// The length of one case.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// How many times the task is stopped and started.
    pub stops: usize,
    /// The shortest time that the load lasts.
    pub least: Duration,
}

impl Length {
    /// The length in `cargo xtask demo shutdown`.
    pub const DEMO: Self = Self { stops: 3, least: Duration::from_secs(61) };
}

/// The load: somewhat more than 200 requests a second, from web's network namespace through web's Envoy to `api`.
pub(crate) const LOAD: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 210, connections: 8, fresh: "0.2", shutdown_delay: "0s" };

/// Without delay and draining: the app ends at TERM, and the proxy does not drain.
const NEITHER: [(&str, &str); 2] = [("SHUTDOWN_DELAY", "0s"), ("DRAIN", "false")];
/// With the delay and the draining that docker-compose.yml sets.
const BOTH: [(&str, &str); 0] = [];

/// One row of the demo.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Variables that docker-compose.yml reads.
    pub settings: &'static [(&'static str, &'static str)],
    /// The order of TERM.
    pub order: StopOrder,
    /// Whether a service-router with retries is written first.
    pub router: bool,
}

/// All cases of the demo. Cases with the same settings follow each other, so that the task is started only once for them.
pub const CASES: [Case; 5] = [
    Case { name: "no settings, all at once", settings: &NEITHER, order: StopOrder::AllAtOnce, router: false },
    Case { name: "retries, all at once", settings: &NEITHER, order: StopOrder::AllAtOnce, router: true },
    Case { name: "delay and draining, all at once", settings: &BOTH, order: StopOrder::AllAtOnce, router: false },
    Case { name: "delay and draining, depends-on", settings: &BOTH, order: StopOrder::DependsOn, router: false },
    Case { name: "all three settings, all at once", settings: &BOTH, order: StopOrder::AllAtOnce, router: true },
];

/// The service-router with retries, as an operator writes it. `RetryOn` names the conditions; Consul has it since 1.14.
fn router_file() -> PathBuf {
    let retry_on = version::of_mesh().is_none_or(Version::has_retry_on);
    let name = if retry_on { "service-router-with-retry-on.json" } else { "service-router-with-retries.json" };
    workspace().join("docs/examples").join(name)
}

/// Why a case of the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The task did not stop or start.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The load failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Consul could not be asked.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// Envoy's statistics could not be read.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The example file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The example file is not JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

fn read(path: &Path) -> Result<Value, DemoError> {
    let text = std::fs::read(path).map_err(|source| DemoError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| DemoError::Json { path: path.to_owned(), source })
}

/// The result of one case.
#[derive(Debug)]
pub struct Outcome {
    /// The report of the load.
    pub report: Report,
    /// The requests that failed although their route asks for retries. There are two possible reasons. Three retries to the cluster were
    /// already running, which is Envoy's default limit, and Consul does not change it. Or the request had used up all retries of its route.
    pub retries_refused: u64,
}

/// The demo on the running mesh.
#[derive(Debug)]
pub struct Demo {
    docker: Docker,
    /// The settings that the task runs with; `None` before the first case and after a failed case.
    settings: Option<&'static [(&'static str, &'static str)]>,
}

impl Demo {
    /// A demo on the mesh that this Docker engine runs.
    #[must_use]
    pub fn new(docker: Docker) -> Self {
        Self { docker, settings: None }
    }

    /// Runs one case: stops and starts the task under load.
    pub async fn run(&mut self, case: Case, length: Length, progress: &dyn Progress) -> Result<Outcome, DemoError> {
        let consul = consul::client().await?;
        match case.router {
            true => consul.put_config_entry(&read(&router_file())?).await,
            // An earlier run that was interrupted may have left a router.
            false => consul.delete_config_entry("service-router", "api").await,
        }
        .map_err(ConsulError::from)?;
        let refused = retries_refused().await?;
        let report = self.stop_under_load(case, length, progress).await;
        if case.router {
            consul.delete_config_entry("service-router", "api").await.map_err(ConsulError::from)?;
        }
        Ok(Outcome { report: report?, retries_refused: retries_refused().await?.saturating_sub(refused) })
    }

    async fn stop_under_load(
        &mut self,
        case: Case,
        Length { stops, least }: Length,
        progress: &dyn Progress,
    ) -> Result<Report, DemoError> {
        if self.settings.take() != Some(case.settings) {
            progress.detail("starting api-1 with the case's settings");
            start_anew(&self.docker, case.settings).await?;
        }
        task::in_rotation(&self.docker, TASK).await?;
        let load = Load::start(&self.docker, "web", LOAD).await?;
        let least = Instant::now() + least;
        let stopped = async {
            for number in 1..=stops {
                progress.detail(&format!("load on; stopping and starting api-1, {number} of {stops}"));
                task::stop(&self.docker, TASK, case.order).await?;
                task::start(&self.docker, TASK, case.settings).await?;
                task::in_rotation(&self.docker, TASK).await?;
            }
            sleep_until(least).await;
            Ok::<_, DemoError>(())
        };
        let stopped = stopped.await;
        let report = load.end().await;
        let report = stopped.and(report.map_err(DemoError::from))?;
        self.settings = Some(case.settings);
        Ok(report)
    }

    /// Starts the task with the settings of docker-compose.yml again.
    pub async fn end(self) -> Result<(), TaskError> {
        match self.settings {
            Some([]) => Ok(()),
            _ => start_anew(&self.docker, &BOTH).await,
        }
    }
}

/// Starts the task with these settings. If it runs, it is stopped first.
async fn start_anew(docker: &Docker, settings: &[(&str, &str)]) -> Result<(), TaskError> {
    if task::running(docker, TASK).await.is_ok() {
        task::stop(docker, TASK, StopOrder::AllAtOnce).await?;
    }
    task::start(docker, TASK, settings).await
}

/// The sum of two counters of web's Envoy. `upstream_rq_retry_overflow` counts requests that needed a retry while the cluster's limit
/// of retries was reached. `upstream_rq_retry_limit_exceeded` counts requests that failed after all retries of their route.
/// (<https://www.envoyproxy.io/docs/envoy/latest/configuration/upstream/cluster_manager/cluster_stats>)
async fn retries_refused() -> Result<u64, RequestError> {
    let stats = "http://127.0.0.1:19000/stats?filter=upstream_rq_retry_(overflow|limit_exceeded)";
    let stats = fetch("web", &stats.replace('|', "%7C")).await?;
    Ok(stats.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// A row of the table. Further lines show each reason of failure, and the requests that Envoy did not retry or did not retry again.
#[derive(Debug)]
pub struct Row<'a> {
    /// The name of the case.
    pub name: &'a str,
    /// The report of the load.
    pub report: &'a Report,
    /// See [`Outcome::retries_refused`].
    pub retries_refused: u64,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { name, report: Report { seconds, sent, succeeded, failed, failures, .. }, retries_refused } = self;
        write!(f, "{name:<36} {seconds:>7.1} {sent:>8} {succeeded:>10} {failed:>7}")?;
        for (reason, count) in failures {
            let reason = reason.replace("upstream connect error or disconnect/reset before headers. ", "");
            write!(f, "\n{count:>64}  {reason}")?;
        }
        if *retries_refused > 0 {
            write!(
                f,
                "\n{retries_refused:>64}  of them were not retried (again), because 3 retries were running or the request had used up its retries"
            )?;
        }
        Ok(())
    }
}

/// The head of the table.
#[must_use]
pub fn head() -> String {
    format!("{:<36} {:>7} {:>8} {:>10} {:>7}", "", "seconds", "sent", "succeeded", "failed")
}
