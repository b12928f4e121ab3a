//! A user's own tasks beside those of docker-compose.yml. docker-compose reads them from a second file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use sidecar_kit::file::write_atomically;
use sidecar_kit::secret::Secret;

use super::project::{self, PORTS, json_of};
use super::{Agentless, Made, Source, TasksError, agentless, make, refused};
use crate::mesh_dir;

/// The field of the second file with the tasks' names and services.
const TASKS: &str = "x-tasks";

/// What a user gives: `NAME=VALUE`.
pub type Name = (String, String);

/// A task definition and its settings, as files.
#[derive(Debug, Clone)]
pub struct Given {
    /// The task definition.
    pub definition: PathBuf,
    /// The settings of mesh-task.
    pub settings: PathBuf,
}

/// A user's own tasks.
#[derive(Debug, Default)]
pub struct Own {
    /// The names of the tasks.
    pub tasks: Vec<String>,
    /// What is different from ECS, one line each.
    pub notes: Vec<String>,
    /// The images of the tasks' containers, by the container's name.
    pub images: Vec<Name>,
    /// The ports of the host that lead to the tasks.
    pub ports: Vec<u16>,
    /// The tasks of docker-compose.yml without a Consul agent.
    agentless: Agentless,
    /// The second file of docker-compose.
    file: Value,
}

/// Reads task definitions. `images` are images by the container's name. `secrets` are files with the values of the apps' secrets, by the
/// variable's name; a newline at the end of a file does not count.
pub fn read(given: &[Given], images: &[Name], secrets: &[Name], agentless: Agentless) -> Result<Own, TasksError> {
    let committed = project::made(&agentless)?;
    agentless.check(&project::names(&committed))?;
    if given.is_empty() && images.is_empty() && secrets.is_empty() {
        return Ok(Own { agentless, ..Own::default() });
    }
    let images: BTreeMap<_, _> = images.iter().cloned().collect();
    let secrets = secrets.iter().map(|(name, file)| Ok((name.clone(), secret(file.into())?)));
    let secrets = secrets.collect::<Result<BTreeMap<_, _>, TasksError>>()?;
    let mut taken = PORTS.to_vec();
    taken.extend(committed.iter().flat_map(|made| &made.ports));
    let mut made: Vec<Made> = Vec::new();
    for Given { definition, settings } in given {
        let source = Source {
            settings: &json_of(settings)?,
            definition: &json_of(definition)?,
            images: &images,
            secrets: &secrets,
            taken_ports: &taken,
            agentless: &agentless,
        };
        let one = make(&source, &[]).map_err(|problems| refused(&problems, settings, definition))?;
        taken.extend(&one.ports);
        made.push(one);
    }
    check_names(
        "image",
        "container",
        images.keys(),
        made.iter().flat_map(|made| made.images.iter().map(|(name, _)| name)),
    )?;
    check_names("secret", "secret", secrets.keys(), made.iter().flat_map(|made| &made.secrets))?;
    let mut notes: Vec<String> = Vec::new();
    for one in &made {
        let name = &one.tasks[0].name;
        notes.extend(one.notes.iter().map(|note| format!("{name}: {note}")));
        for upstream in &one.upstreams {
            let exists = committed.iter().chain(&made).any(|other| other.service == *upstream);
            notes.push(match exists {
                true => format!("{name}: an intention allows {} to call {upstream}", one.service),
                false => format!("{name}: the local mesh has no service {upstream}, so calls to this upstream fail"),
            });
        }
    }
    Ok(Own {
        tasks: made.iter().flat_map(|made| &made.tasks).map(|task| task.name.clone()).collect(),
        notes,
        images: made.iter().flat_map(|made| made.images.clone()).collect(),
        ports: made.iter().flat_map(|made| made.ports.clone()).collect(),
        file: file(&committed, &made)?,
        agentless,
    })
}

impl Own {
    /// The second file of docker-compose, which has these tasks.
    #[must_use]
    pub fn file(&self) -> &Value {
        &self.file
    }
}

fn secret(path: PathBuf) -> Result<Secret, TasksError> {
    let text = fs::read_to_string(&path).map_err(|source| TasksError::Read { path, source })?;
    Ok(Secret::new(text.strip_suffix('\n').unwrap_or(&text)))
}

/// Every given name must exist, since a wrong one would have no effect.
fn check_names<'a>(
    option: &'static str,
    what: &'static str,
    mut given: impl Iterator<Item = &'a String>,
    known: impl Iterator<Item = &'a String>,
) -> Result<(), TasksError> {
    let known: Vec<_> = known.map(String::as_str).collect();
    match given.find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(TasksError::Unknown { option, what, name: name.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

/// The second file. It changes one service of docker-compose.yml, `setup`.
fn file(committed: &[Made], made: &[Made]) -> Result<Value, TasksError> {
    let mut services = Map::from_iter([("setup".to_owned(), json!({ "command": project::setup(committed, made) }))]);
    let mut volumes = Map::new();
    let taken: Vec<_> = project::names(committed).into_values().flatten().collect();
    for task in made.iter().flat_map(|made| &made.tasks) {
        for (name, service) in &task.services {
            if taken.contains(name) || services.insert(name.clone(), service.clone()).is_some() {
                return Err(TasksError::SameName(name.clone()));
            }
        }
        volumes.extend(task.volumes.iter().cloned());
    }
    Ok(json!({ "services": services, "volumes": volumes, TASKS: project::names(made) }))
}

/// The second file of docker-compose. It exists while the mesh has tasks of a user.
fn path() -> PathBuf {
    mesh_dir().join("tasks.yml")
}

/// The files that docker-compose reads.
pub(crate) fn files() -> Vec<PathBuf> {
    [agentless::compose_file(), path()].into_iter().filter(|path| path.exists()).collect()
}

/// Writes what differs from docker-compose.yml: the tasks without an agent, and the tasks of the user. Only its owner may read the second
/// file, because it holds the values of secrets.
pub(crate) fn write(own: &Own) -> Result<(), TasksError> {
    own.agentless.write()?;
    if own.tasks.is_empty() {
        return remove(path());
    }
    Ok(write_atomically(&path(), format!("{:#}\n", own.file).as_bytes(), 0o600)?)
}

/// Removes a file, if it exists.
pub(super) fn remove(path: PathBuf) -> Result<(), TasksError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(TasksError::Read { path, source }),
        _ => Ok(()),
    }
}

/// All tasks, each with its services: those of docker-compose.yml, and those of the user.
pub(crate) fn known() -> Result<BTreeMap<String, Vec<String>>, TasksError> {
    let mut all = project::committed(&Agentless::of_mesh()?)?;
    let path = path();
    if path.exists() {
        let mut file = json_of(&path)?;
        let own = serde_json::from_value::<BTreeMap<String, Vec<String>>>(file[TASKS].take());
        all.extend(own.map_err(|source| TasksError::NotJson { path, source })?);
    }
    Ok(all)
}
