//! The options of `up` for task definitions of the user.

use std::path::PathBuf;

use clap::Args;
use local_mesh::tasks::{self, Agentless, Given, Name, Own, TasksError};

/// Task definitions to run in the mesh beside `web` and `api`.
#[derive(Debug, Args)]
pub struct OwnArguments {
    /// Also run this task definition: a file for `register-task-definition`, as you deploy it. `up` prints what is different from
    /// ECS. May be given more than once. `up` without this option removes the task again.
    #[arg(long, value_name = "FILE", requires = "settings")]
    task_definition: Vec<PathBuf>,
    /// The settings of mesh-task for the task definition. The local mesh replaces its servers, registry, secrets, datacenter and TLS. If
    /// there is more than one task definition, give one for each, in the same order.
    #[arg(long, value_name = "FILE", requires = "task_definition")]
    settings: Vec<PathBuf>,
    /// The image of a container, in place of the image in the task definition. May be given more than once.
    #[arg(long, value_name = "CONTAINER=IMAGE", value_parser = name, requires = "task_definition")]
    image: Vec<Name>,
    /// A file with the value of a secret of a container. Other secrets have made-up values. May be given more than once.
    #[arg(long, value_name = "NAME=FILE", value_parser = name, requires = "task_definition")]
    secret: Vec<Name>,
    /// These tasks have no Consul agent. Without names, that is all tasks except ingress gateways, which need an agent. The other tasks
    /// have one, unless their settings have `consulServers`.
    #[arg(long, value_name = "TASK,TASK", value_delimiter = ',', num_args = 0..=1)]
    agentless: Option<Vec<String>>,
}

fn name(text: &str) -> Result<Name, &'static str> {
    let pair = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or("expected NAME=VALUE")
}

impl OwnArguments {
    /// Reads the files.
    pub fn read(self) -> Result<Own, TasksError> {
        let Self { task_definition, settings, image, secret, agentless } = self;
        if task_definition.len() != settings.len() {
            return Err(TasksError::Settings { definitions: task_definition.len(), settings: settings.len() });
        }
        let given = task_definition.into_iter().zip(settings);
        let given: Vec<_> = given.map(|(definition, settings)| Given { definition, settings }).collect();
        let agentless = match agentless {
            Some(tasks) if tasks.is_empty() => Agentless::All,
            tasks => Agentless::Tasks(tasks.unwrap_or_default()),
        };
        tasks::read(&given, &image, &secret, agentless)
    }
}
