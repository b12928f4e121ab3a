//! Load from within a task, by a container that is one of the task's own for ECS: it gets TERM with the others, and
//! envoy-entrypoint waits for its end.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::KillContainerOptionsBuilder;
use ecs_local::labels::{CONTAINER_NAME, DEPENDS_ON, ESSENTIAL, TYPE};
use serde::Deserialize;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, until};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::command::CommandError;
use crate::docker::inspect;
use crate::mesh::MeshError;
use crate::probe::Probe;
use crate::task;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// What is asked, as a container of the task sees it.
    pub url: &'a str,
    /// Requests a second, on a schedule that answers don't change.
    pub rate: u32,
    /// Connections that are kept open for more than one request.
    pub connections: u32,
    /// The share of requests that get a connection of their own, `0` to `1`.
    pub fresh: &'a str,
    /// How long it goes on after TERM, as app-entrypoint's `--shutdown-delay`.
    pub shutdown_delay: &'a str,
}

/// What became of the requests. `sent` = `succeeded` + `failed`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Report {
    /// From the first request to the last answer.
    pub seconds: f64,
    /// All.
    pub sent: usize,
    /// Answered with 2xx.
    pub succeeded: usize,
    /// All others.
    pub failed: usize,
    /// The failures, by reason.
    pub failures: BTreeMap<String, usize>,
    /// How many connections were opened.
    pub connections: usize,
}

/// How long Docker may take to start the container.
const START_BOUND: Duration = Duration::from_secs(30);

/// The last answers, and what app-entrypoint delays.
const END_BOUND: Duration = Duration::from_secs(60);

/// The task's Envoy has not had one.
#[derive(Debug, thiserror::Error)]
#[error("none has passed the task's Envoy")]
pub struct NoRequest;

/// Load on its way. It ends by itself after a quarter of an hour.
#[derive(Debug)]
pub struct Load {
    docker: Docker,
    container: String,
    child: Child,
}

impl Load {
    /// Starts it in a running task and waits for its first request.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub async fn start(docker: &Docker, task: &str, options: Options<'_>) -> Result<Self, MeshError> {
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
        // As the app does, it depends on the proxy: in the order of `dependsOn` the proxy hears of TERM after its end.
        for (name, value) in [(CONTAINER_NAME, "load"), (ESSENTIAL, "false"), (DEPENDS_ON, "sidecar-proxy:HEALTHY")] {
            command.args(["--label", &format!("{name}={value}")]);
        }
        command.args(["--entrypoint", "/app-entrypoint", "ecs-mesh/demo-app:dev"]);
        command.args(["--shutdown-delay", options.shutdown_delay, "/demo-app", "load", options.url, "--json"]);
        command.args(["--duration", "15m", "--rate", &options.rate.to_string(), "--fresh", options.fresh]);
        command.args(["--connections", &options.connections.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().map_err(|source| CommandError::Start { program: "docker".to_owned(), source })?;
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(50));
        let what = format!("the first request of {container}");
        let begun = until(&what, START_BOUND, backoff, async || {
            if outbound() > before { Attempt::Done(()) } else { Attempt::Again(NoRequest) }
        })
        .await;
        probe.end().await;
        begun.map_err(MeshError::NoLoad)?;
        Ok(Self { docker: docker.clone(), container, child })
    }

    /// Ends it, unless the task's end has, and gives its report.
    ///
    /// # Errors
    /// When it gave none.
    pub async fn end(mut self) -> Result<Report, MeshError> {
        // app-entrypoint passes INT on at once. Its container may be gone already.
        let interrupt = KillContainerOptionsBuilder::default().signal("SIGINT").build();
        let _ = self.docker.kill_container(&self.container, Some(interrupt)).await;
        let mut text = String::new();
        let mut output = self.child.stdout.take().expect("standard output is piped");
        let read = timeout(END_BOUND, output.read_to_string(&mut text)).await;
        let report = read.ok().and_then(Result::ok).and_then(|_| serde_json::from_str(&text).ok());
        report.ok_or_else(|| MeshError::NoReport { container: self.container.clone(), said: text })
    }
}
