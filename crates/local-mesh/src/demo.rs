//! Shutdown under load, with and without remedies, in numbers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::load::{Load, Options, Report};
use crate::mesh::{MeshError, fetch};
use crate::task::{self, StopOrder, consul};
use crate::{Progress, workspace};

/// The task that is stopped and started, of service `api`.
const STOPPED: &str = "api-1";

/// How long a case is.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// How often the task is stopped and started.
    pub stops: usize,
    /// The least that the load lasts.
    pub least: Duration,
}

impl Length {
    /// That of the demo.
    pub const DEMO: Self = Self { stops: 3, least: Duration::from_secs(61) };
}

/// The load, somewhat more than 200 requests a second: from web's network namespace through its Envoy to `api`.
pub(crate) const LOAD: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 210, connections: 8, fresh: "0.2", shutdown_delay: "0s" };

/// What the app and the proxy of the stopped task do for requests that still come.
const NO_REMEDY: [(&str, &str); 2] = [("SHUTDOWN_DELAY", "0s"), ("DRAIN", "false")];
/// What docker-compose.yml has.
const REMEDY: [(&str, &str); 0] = [];

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Variables that docker-compose.yml reads.
    pub settings: &'static [(&'static str, &'static str)],
    /// The order of TERM.
    pub order: StopOrder,
    /// Whether the router with retries is there.
    pub router: bool,
}

/// All cases of the demo; those with the same settings follow one another, so that the task is started anew only once for them.
pub const CASES: [Case; 5] = [
    Case { name: "(a) no remedy, all at once", settings: &NO_REMEDY, order: StopOrder::AllAtOnce, router: false },
    Case { name: "(c) retries, all at once", settings: &NO_REMEDY, order: StopOrder::AllAtOnce, router: true },
    Case { name: "(b) delay and draining, all at once", settings: &REMEDY, order: StopOrder::AllAtOnce, router: false },
    Case { name: "(b) delay and draining, depends-on", settings: &REMEDY, order: StopOrder::DependsOn, router: false },
    Case { name: "(b) + (c), all at once", settings: &REMEDY, order: StopOrder::AllAtOnce, router: true },
];

/// The router with retries, as an operator would write it.
fn router_file() -> PathBuf {
    workspace().join("docs/examples/service-router-with-retries.json")
}

/// An example file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// It can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

fn read(path: &Path) -> Result<Value, ExampleError> {
    let text = std::fs::read(path).map_err(|source| ExampleError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| ExampleError::Json { path: path.to_owned(), source })
}

/// What came out of one case.
#[derive(Debug)]
pub struct Outcome {
    /// What became of the requests.
    pub report: Report,
    /// The requests that Envoy failed though their route says to try again: three were being tried again already, which is
    /// Envoy's default and which Consul 1.8 leaves, or it had tried as often as it may.
    pub retries_refused: u64,
}

/// The demo on the running mesh.
#[derive(Debug)]
pub struct Demo {
    docker: Docker,
    /// What the task was started with; unknown before the first case and after one that failed.
    settings: Option<&'static [(&'static str, &'static str)]>,
}

impl Demo {
    /// A demo on the mesh of this Docker.
    #[must_use]
    pub fn new(docker: Docker) -> Self {
        Self { docker, settings: None }
    }

    /// Runs one case: load, and meanwhile the task stopped and started.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub async fn run(&mut self, case: Case, length: Length, progress: &dyn Progress) -> Result<Outcome, MeshError> {
        let consul = consul().await?;
        match case.router {
            true => consul.put_config_entry(&read(&router_file())?).await?,
            // A run that was cut off may have left one behind.
            false => consul.delete_config_entry("service-router", "api").await?,
        }
        let refused = retries_refused().await?;
        let report = self.stop_under_load(case, length, progress).await;
        if case.router {
            consul.delete_config_entry("service-router", "api").await?;
        }
        Ok(Outcome { report: report?, retries_refused: retries_refused().await?.saturating_sub(refused) })
    }

    async fn stop_under_load(
        &mut self,
        case: Case,
        Length { stops, least }: Length,
        progress: &dyn Progress,
    ) -> Result<Report, MeshError> {
        if self.settings.take() != Some(case.settings) {
            progress.detail("starting api-1 with the case's settings");
            start_anew(&self.docker, case.settings).await?;
        }
        task::in_rotation(&self.docker, STOPPED).await?;
        let load = Load::start(&self.docker, "web", LOAD).await?;
        let least = Instant::now() + least;
        let stopped = async {
            for number in 1..=stops {
                progress.detail(&format!("load on; stopping and starting api-1, {number} of {stops}"));
                task::stop(&self.docker, STOPPED, case.order).await?;
                task::start(&self.docker, STOPPED, case.settings).await?;
                task::in_rotation(&self.docker, STOPPED).await?;
            }
            sleep_until(least).await;
            Ok(())
        };
        let stopped = stopped.await;
        let report = load.end().await;
        stopped.and(report).inspect(|_| self.settings = Some(case.settings))
    }

    /// Brings the task back as docker-compose.yml has it.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub async fn end(self) -> Result<(), MeshError> {
        match self.settings {
            Some([]) => Ok(()),
            _ => start_anew(&self.docker, &REMEDY).await,
        }
    }
}

/// Starts the task with these settings; it need not run, as after a demo that was cut off.
async fn start_anew(docker: &Docker, settings: &[(&str, &str)]) -> Result<(), MeshError> {
    if task::running(docker, STOPPED).await.is_ok() {
        task::stop(docker, STOPPED, StopOrder::AllAtOnce).await?;
    }
    task::start(docker, STOPPED, settings).await
}

/// The sum of web's Envoy's counters `upstream_rq_retry_overflow` and `upstream_rq_retry_limit_exceeded`.
async fn retries_refused() -> Result<u64, MeshError> {
    let stats = "http://127.0.0.1:19000/stats?filter=upstream_rq_retry_(overflow|limit_exceeded)";
    let stats = fetch("web", &stats.replace('|', "%7C")).await?;
    Ok(stats.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// A line of the table, and one more for each reason of failures and for the retries that were refused.
#[derive(Debug)]
pub struct Row<'a> {
    /// The case.
    pub name: &'a str,
    /// What became of the requests.
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
            write!(f, "\n{retries_refused:>64}  of them not tried again: Envoy tries three at a time")?;
        }
        Ok(())
    }
}

/// The table's head.
#[must_use]
pub fn head() -> String {
    format!("{:<36} {:>7} {:>8} {:>10} {:>7}", "", "seconds", "sent", "succeeded", "failed")
}
