//! Load from within a task. To ecs-local, the load's container is one of the task's containers: it gets TERM with the others, and
//! envoy-entrypoint waits for its end.

use std::process::Stdio;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder};
pub use demo_app::Report;
use ecs_local::labels::{CONTAINER_NAME, DEPENDS_ON, ESSENTIAL, TYPE};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, WaitError, until};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::command::CommandError;
use crate::docker::{self, DockerError, inspect};
use crate::probe::Probe;
use crate::task::{self, TaskError};

/// How long Docker may take to start the container.
const START_BOUND: Duration = Duration::from_secs(30);

/// How long the load may take to end: its last answers, and app-entrypoint's delay.
const END_BOUND: Duration = Duration::from_secs(60);

/// Why a load did not start, or gave no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The task does not run.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The probe or the load could not be started.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The load sent no request in time.
    #[error(transparent)]
    NotStarted(Box<WaitError<NoRequest>>),
    /// The load printed no report.
    #[error("{container} printed no report, but {output:?}")]
    NoReport {
        /// The container's name.
        container: String,
        /// Its standard output.
        output: String,
    },
}

/// No request of the load has reached the task's Envoy.
#[derive(Debug, thiserror::Error)]
#[error("no request has reached the task's Envoy")]
pub struct NoRequest;

/// The requests of a load.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The URL, as a container of the task sees it.
    pub url: &'a str,
    /// Requests a second. The load keeps this rate, however long the answers take.
    pub rate: u32,
    /// Connections that are kept open for more than one request.
    pub connections: u32,
    /// The share of requests that get a new connection, `0` to `1`.
    pub fresh: &'a str,
    /// How long the load continues after TERM, as app-entrypoint's `--shutdown-delay`.
    pub shutdown_delay: &'a str,
}

/// A running load. It ends by itself after 15 minutes.
#[derive(Debug)]
pub struct Load {
    docker: Docker,
    container: String,
    child: Child,
}

impl Load {
    /// Starts a load in a running task and waits for its first request. If no request comes in time, the load is ended.
    pub async fn start(docker: &Docker, task: &str, options: Options<'_>) -> Result<Self, LoadError> {
        let holder = task::running(docker, task).await?.holder;
        let probe = Probe::start(&holder).await?;
        let outbound = || probe.last().map_or(0, |seen| seen.outbound);
        let before = outbound();
        let labels = inspect(docker, &holder).await?.config.and_then(|config| config.labels).unwrap_or_default();
        let container = format!("ecs-mesh-load-{task}-{}", std::process::id());
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--pull", "never", "--name", &container]);
        command.args(["--network", &format!("container:{holder}")]);
        let own = [CONTAINER_NAME, TYPE];
        let of_task =
            labels.iter().filter(|(name, _)| !name.starts_with("com.docker.") && !own.contains(&name.as_str()));
        for (name, value) in of_task {
            command.args(["--label", &format!("{name}={value}")]);
        }
        // The load depends on the proxy, as the app does. In the order of `dependsOn` the proxy gets TERM after the load has ended.
        let proxy = format!("{}:HEALTHY", docker::proxy(docker, task).await?);
        for (name, value) in [(CONTAINER_NAME, "load"), (ESSENTIAL, "false"), (DEPENDS_ON, proxy.as_str())] {
            command.args(["--label", &format!("{name}={value}")]);
        }
        command.args(["--entrypoint", "/app-entrypoint", "ecs-mesh/demo-app:dev"]);
        command.args(["--shutdown-delay", options.shutdown_delay, "/demo-app", "load", options.url, "--json"]);
        command.args(["--duration", "15m", "--rate", &options.rate.to_string(), "--fresh", options.fresh]);
        command.args(["--connections", &options.connections.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child =
            command.spawn().map_err(|source| CommandError::Start { program: "docker".to_owned(), source })?;
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(50));
        let what = format!("the first request of {container}");
        let begun = until(&what, START_BOUND, backoff, async || {
            if outbound() > before { Attempt::Done(()) } else { Attempt::Again(NoRequest) }
        })
        .await;
        probe.end().await;
        if let Err(error) = begun {
            // docker's client ends first, so that it cannot start the container later.
            let _ = child.kill().await;
            let force = RemoveContainerOptionsBuilder::default().force(true).build();
            let _ = docker.remove_container(&container, Some(force)).await;
            return Err(LoadError::NotStarted(error.into()));
        }
        Ok(Self { docker: docker.clone(), container, child })
    }

    /// Ends the load, unless it has ended with its task, and returns its report.
    pub async fn end(mut self) -> Result<Report, LoadError> {
        // app-entrypoint passes INT on without its delay. The container may be gone already.
        let interrupt = KillContainerOptionsBuilder::default().signal("SIGINT").build();
        let _ = self.docker.kill_container(&self.container, Some(interrupt)).await;
        let mut text = String::new();
        let mut output = self.child.stdout.take().expect("standard output is piped");
        let read = timeout(END_BOUND, output.read_to_string(&mut text)).await;
        let report = read.ok().and_then(Result::ok).and_then(|_| serde_json::from_str(&text).ok());
        report.ok_or_else(|| LoadError::NoReport { container: self.container.clone(), output: text })
    }
}
