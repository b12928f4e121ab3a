//! docker-compose, as a program of its own (1.29 or 2.x) or as Docker's plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bollard::Docker;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::command::{self, CommandError};
use crate::docker::{self, DockerError, PROJECT, PROJECT_LABEL, containers, label};
use crate::workspace;

/// Compose didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// It is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Docker failed.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// docker-compose.yml has no such task.
    #[error("there is no task {task:?} in docker-compose.yml: there are {known}")]
    NoTask {
        /// What was asked for.
        task: String,
        /// What there is.
        known: String,
    },
    /// Linux gives no random number.
    #[error("cannot make a task ID")]
    TaskId(#[source] std::io::Error),
}

/// One way to call docker-compose on the mesh's file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compose<'a> {
    /// Another file over docker-compose.yml.
    pub over: Option<&'a Path>,
    /// Variables that docker-compose.yml reads, before those of the caller's environment.
    pub settings: &'a [(&'a str, &'a str)],
}

impl Compose<'_> {
    /// Runs docker-compose and gives its standard output. A task that runs keeps its task ID; one that has stopped gets a
    /// new one, since a stopped task never runs again; one that never ran has what `.env` says.
    ///
    /// # Errors
    /// See [`ComposeError`].
    pub async fn run(self, arguments: &[&str]) -> Result<String, ComposeError> {
        let mut command = program().await?;
        // Said outright: COMPOSE_PROJECT_NAME or COMPOSE_FILE of the caller's shell would lead to another's containers.
        command.current_dir(workspace()).args(["--project-name", PROJECT, "--file", "docker-compose.yml"]);
        if let Some(over) = self.over {
            command.arg("--file").arg(over);
        }
        // A plain `up` starts gateways only where one runs already, which it would else take for an orphan; all else knows every
        // task there is.
        let mut gateways = arguments.iter().filter(|argument| !argument.starts_with('-')).ne(&["up"]);
        for (name, task) in docker::tasks(&docker::connect().await?).await? {
            gateways |= task.running && name.ends_with("-gateway");
            let id = if task.running { task.id } else { new_task_id()? };
            command.env(format!("{}_TASK_ID", name.to_uppercase().replace('-', "_")), id);
        }
        if gateways {
            command.env("COMPOSE_PROFILES", "gateways");
        }
        command.envs(self.settings.iter().copied());
        Ok(command::run(command.args(arguments)).await?)
    }
}

/// Runs docker-compose on the mesh's file.
///
/// # Errors
/// See [`ComposeError`].
pub async fn run(arguments: &[&str]) -> Result<String, ComposeError> {
    Compose::default().run(arguments).await
}

/// The names in docker-compose.yml of a task's services, the holder of its network namespace first.
///
/// # Errors
/// See [`ComposeError`]; [`ComposeError::NoTask`] when there is no such task.
pub async fn services(task: &str) -> Result<Vec<String>, ComposeError> {
    // Asked for once: Compose 1.29 takes more than a second to read its file.
    static ALL: OnceCell<String> = OnceCell::const_new();
    let all = ALL.get_or_try_init(async || run(&["config", "--services"]).await).await?;
    let all = all.lines().collect::<BTreeSet<_>>();
    let is_task = |name: &str| all.contains(name) && all.contains(format!("{name}-sidecar-proxy").as_str());
    let is_of = |service: &str, task: &str| {
        service.strip_prefix(task).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let of = |task: &str| {
        // A task web-2 is none of web's services.
        let longer =
            |service: &str| all.iter().any(|other| other.len() > task.len() && is_task(other) && is_of(service, other));
        let of_task = all.iter().filter(|service| is_of(service, task) && !longer(service));
        of_task.map(|service| (*service).to_owned()).collect::<Vec<_>>()
    };
    if is_task(task) {
        return Ok(of(task));
    }
    let known = all.iter().filter(|name| is_task(name)).copied().collect::<Vec<_>>().join(", ");
    Err(ComposeError::NoTask { task: task.to_owned(), known })
}

/// 32 hexadecimal digits, as ECS's are.
fn new_task_id() -> Result<String, ComposeError> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(ComposeError::TaskId)?;
    Ok(uuid.trim().replace('-', ""))
}

/// docker-compose or Docker's plugin. Asked for once: Compose 1.29 takes a second to say its version.
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

/// The running tasks of which a container's image or definition has changed since it was created.
///
/// # Errors
/// See [`ComposeError`].
pub async fn outdated_tasks(docker: &Docker) -> Result<BTreeSet<String>, ComposeError> {
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
