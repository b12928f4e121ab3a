//! docker-compose on the mesh's file, as a program (1.29 or 2.x) or as Docker's plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bollard::Docker;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::command::{self, CommandError};
use crate::diagnosis::{self, Diagnosis};
use crate::docker::{self, DockerError, PROJECT, PROJECT_LABEL, containers, label};
use crate::tasks::{self, TasksError};
use crate::{version, workspace};

/// Why docker-compose failed.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// docker-compose is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// A container did not start, and its log or Docker shows why.
    #[error(transparent)]
    NotStarted(#[from] Diagnosis),
    /// docker-compose.yml has no such task.
    #[error("there is no task {task:?} in docker-compose.yml: expected one of {known}")]
    NoTask {
        /// The name that was given.
        task: String,
        /// The tasks of docker-compose.yml.
        known: String,
    },
    /// The task definitions could not be read.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// Linux did not give a random number.
    #[error("cannot make a task ID")]
    TaskId(#[source] std::io::Error),
}

/// A way to call docker-compose on the mesh's file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compose<'a> {
    /// A file whose settings override docker-compose.yml.
    pub over: Option<&'a Path>,
    /// Variables that docker-compose.yml reads. They take precedence over the caller's environment.
    pub settings: &'a [(&'a str, &'a str)],
}

impl Compose<'_> {
    /// Runs docker-compose and returns its standard output. A running task keeps its task ID. A stopped task gets a new ID,
    /// because ECS never starts a stopped task again. A task that never ran has the ID in docker-compose.yml.
    pub async fn run(self, arguments: &[&str]) -> Result<String, ComposeError> {
        let mut command = program().await?;
        // Without these arguments, COMPOSE_PROJECT_NAME or COMPOSE_FILE of the caller's shell could name another project.
        command.current_dir(workspace()).args(["--project-name", PROJECT, "--project-directory", "."]);
        for file in tasks::files().iter().map(PathBuf::as_path).chain(self.over) {
            command.arg("--file").arg(file);
        }
        // Every command except a plain `up` includes the gateways. `up` includes them only if one runs: if they were left out,
        // Compose would remove the running gateway as an orphan.
        let mut gateways = arguments.iter().filter(|argument| !argument.starts_with('-')).ne(&["up"]);
        for (name, task) in docker::tasks(&docker::connect().await?).await? {
            gateways |= task.running && task.is_gateway;
            let id = if task.running { task.id } else { new_task_id()? };
            command.env(tasks::task_id_variable(&name), id);
        }
        if gateways {
            command.env("COMPOSE_PROFILES", "gateways");
        }
        // ecs-local asks the engine that runs the mesh.
        if let Some(socket) = env::var("DOCKER_HOST").ok().as_deref().and_then(|host| host.strip_prefix("unix://")) {
            command.env("DOCKER_SOCKET", socket);
        }
        if let Some(version) = version::of_mesh() {
            command.env("CONSUL_VERSION", version.to_string());
        }
        command.envs(self.settings.iter().copied());
        Ok(command::run(command.args(arguments)).await?)
    }

    /// Starts services and waits for the containers that they depend on. An error names the container that failed and the
    /// reason.
    pub(crate) async fn up(self, docker: &Docker, services: &[&str]) -> Result<(), ComposeError> {
        let begun = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        let Err(error) = self.run(&[&["up", "--detach"], services].concat()).await else { return Ok(()) };
        match diagnosis::of_containers(docker, &begun).await? {
            Some(found) => Err(found.into()),
            None => Err(diagnosis::of_compose(&error.to_string()).map_or(error, ComposeError::from)),
        }
    }
}

/// Runs docker-compose on the mesh's file.
pub async fn run(arguments: &[&str]) -> Result<String, ComposeError> {
    Compose::default().run(arguments).await
}

/// The names of a task's services in docker-compose. The first one holds the task's network namespace.
pub fn services(task: &str) -> Result<Vec<String>, ComposeError> {
    let mut all = tasks::known()?;
    let names = all.keys().cloned().collect::<Vec<_>>().join(", ");
    all.remove(task).ok_or_else(|| ComposeError::NoTask { task: task.to_owned(), known: names })
}

/// A new task ID of 32 hexadecimal digits, as ECS makes them.
fn new_task_id() -> Result<String, ComposeError> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(ComposeError::TaskId)?;
    Ok(uuid.trim().replace('-', ""))
}

/// docker-compose, or Docker's plugin. The check runs once, because Compose 1.29 takes a second to print its version.
async fn program() -> Result<Command, ComposeError> {
    static IS_PLUGIN: OnceCell<bool> = OnceCell::const_new();
    let plugin = || {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    };
    let is_plugin = async || match command::run(Command::new("docker-compose").arg("version")).await {
        Ok(_) => Ok(false),
        Err(missing) => command::run(plugin().arg("version")).await.map(|_| true).map_err(|_| missing),
    };
    Ok(if *IS_PLUGIN.get_or_try_init(is_plugin).await? { plugin() } else { Command::new("docker-compose") })
}

/// The running tasks of which a container's image or definition has changed since the container was created.
pub(crate) async fn outdated_tasks(docker: &Docker) -> Result<BTreeSet<String>, ComposeError> {
    let hashes = run(&["config", "--hash", "*"]).await?;
    let hashes = hashes.lines().filter_map(|line| line.split_once(' ')).collect::<BTreeMap<_, _>>();
    let tasks = docker::tasks(docker).await?;
    let mut outdated = BTreeSet::new();
    for container in containers(docker, &[PROJECT_LABEL, docker::TASK]).await? {
        let Some(task) = label(&container, docker::TASK) else { continue };
        let service = label(&container, "com.docker.compose.service").unwrap_or_default();
        let same_definition = hashes.get(service).copied() == label(&container, "com.docker.compose.config-hash");
        if tasks.get(task).is_some_and(|task| task.running)
            && (!same_definition || docker::image_has_changed(docker, &container).await?)
        {
            outdated.insert(task.to_owned());
        }
    }
    Ok(outdated)
}
