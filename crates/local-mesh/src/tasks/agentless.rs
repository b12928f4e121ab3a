//! Tasks of docker-compose.yml without a Consul agent. docker-compose then reads another file in place of docker-compose.yml.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use sidecar_kit::file::write_atomically;

use super::TasksError;
use super::given::remove;
use super::project::{self, json_of};
use crate::{mesh_dir, workspace};

/// The tasks that have no Consul agent, whatever their settings say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agentless {
    /// All tasks except ingress gateways, which need an agent.
    All,
    /// These tasks.
    Tasks(Vec<String>),
}

impl Default for Agentless {
    fn default() -> Self {
        Self::Tasks(Vec::new())
    }
}

impl Agentless {
    pub(super) fn includes(&self, task: &str, is_ingress: bool) -> bool {
        match self {
            Self::All => !is_ingress,
            Self::Tasks(tasks) => tasks.iter().any(|name| name == task),
        }
    }

    /// Every name must be that of a task.
    pub(super) fn check(&self, known: &BTreeMap<String, Vec<String>>) -> Result<(), TasksError> {
        let Self::Tasks(tasks) = self else { return Ok(()) };
        match tasks.iter().find(|name| !known.contains_key(*name)) {
            Some(name) => {
                let known = known.keys().cloned().collect::<Vec<_>>().join(", ");
                Err(TasksError::NoTask { name: name.clone(), known })
            }
            None => Ok(()),
        }
    }

    /// The choice of the last `up`.
    pub(super) fn of_mesh() -> Result<Self, TasksError> {
        let path = choice();
        if !path.exists() {
            return Ok(Self::default());
        }
        let tasks: Option<Vec<String>> =
            serde_json::from_value(json_of(&path)?).map_err(|source| TasksError::NotJson { path, source })?;
        Ok(tasks.map_or(Self::All, Self::Tasks))
    }

    /// Writes docker-compose's file with these tasks, or removes it if every task has an agent.
    pub(super) fn write(&self) -> Result<(), TasksError> {
        if *self == Self::default() {
            remove(generated())?;
            return remove(choice());
        }
        let tasks = match self {
            Self::All => None,
            Self::Tasks(tasks) => Some(tasks),
        };
        // First of all, because it may fail. Later commands must not see a choice without its file.
        let text = project::compose_file(self)?;
        write_atomically(&choice(), json!(tasks).to_string().as_bytes(), 0o644)?;
        Ok(write_atomically(&generated(), text.as_bytes(), 0o644)?)
    }
}

/// The file with the choice, for later commands: the names of the tasks, or null for all.
fn choice() -> PathBuf {
    mesh_dir().join("agentless.json")
}

fn generated() -> PathBuf {
    mesh_dir().join("docker-compose.yml")
}

/// docker-compose.yml, or the file in its place.
pub(super) fn compose_file() -> PathBuf {
    if generated().exists() { generated() } else { workspace().join("docker-compose.yml") }
}
