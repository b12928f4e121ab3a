//! docker-compose.yml: the fixed part, and the tasks of `deploy/examples`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Agentless, Made, Source, TasksError, make, refused, yaml};
use crate::workspace;

/// Everything except the tasks.
const BASE: &str = include_str!("base.yml");

/// The folder of the task definitions, and the end of the names of their settings.
const EXAMPLES: &str = "deploy/examples";
const SETTINGS: &str = ".mesh.json";

/// A service with two tasks: one can stop while the other answers.
const TWICE: (&str, [&str; 2]) = ("api", ["api-1", "api-2"]);

/// The listener of the ingress gateway, and the call that it makes. They are in Consul, and not in a task definition.
const INGRESS: &str = "ingress-gateway:8081:web";
const INGRESS_CALLS: (&str, &str) = ("ingress-gateway", "web");

/// The ports of the host that the fixed part publishes.
pub(crate) const PORTS: [u16; 3] = [8500, 51678, 5000];

pub(super) fn json_of(path: &Path) -> Result<Value, TasksError> {
    let text = fs::read(path).map_err(|source| TasksError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| TasksError::NotJson { path: path.to_owned(), source })
}

/// The tasks of docker-compose.yml: each task definition in `deploy/examples` that has settings beside it.
pub(super) fn made(agentless: &Agentless) -> Result<Vec<Made>, TasksError> {
    let folder = workspace().join(EXAMPLES);
    let failed = |source| TasksError::Read { path: folder.clone(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_string_lossy().strip_suffix(SETTINGS).map(str::to_owned));
    }
    names.sort();
    let (images, secrets) = (BTreeMap::new(), BTreeMap::new());
    names
        .iter()
        .map(|name| {
            let files = [folder.join(format!("{name}{SETTINGS}")), folder.join(format!("{name}.json"))];
            let source = Source {
                settings: &json_of(&files[0])?,
                definition: &json_of(&files[1])?,
                images: &images,
                secrets: &secrets,
                taken_ports: &PORTS,
                agentless,
            };
            let tasks: &[&str] = if *name == TWICE.0 { &TWICE.1 } else { &[name] };
            make(&source, tasks).map_err(|problems| refused(&problems, &files[0], &files[1]))
        })
        .collect()
}

/// The names of docker-compose.yml's tasks, each with its services. The first service holds the task's network namespace.
pub fn committed(agentless: &Agentless) -> Result<BTreeMap<String, Vec<String>>, TasksError> {
    Ok(names(&made(agentless)?))
}

pub(super) fn names(made: &[Made]) -> BTreeMap<String, Vec<String>> {
    let tasks = made.iter().flat_map(|made| &made.tasks);
    let names = |task: &super::Task| task.services.iter().map(|(name, _)| name.clone()).collect();
    tasks.map(|task| (task.name.clone(), names(task))).collect()
}

/// What `setup` does for these tasks. `of_users` are not in docker-compose.yml: they keep the protocol that Consul gives a service.
pub(super) fn setup(committed: &[Made], of_users: &[Made]) -> Value {
    let names = |made: &[Made], gateways: bool| -> Vec<String> {
        made.iter().filter(|made| made.is_gateway == gateways).map(|made| made.service.clone()).collect()
    };
    let all = || committed.iter().chain(of_users);
    let calls = all().flat_map(|made| made.upstreams.iter().map(|upstream| (made.service.as_str(), upstream.as_str())));
    let exists = |name: &str| all().any(|made| made.service == name);
    let calls = calls.filter(|(_, upstream)| exists(upstream)).chain([INGRESS_CALLS]);
    let allow: Vec<_> = calls.map(|(source, destination)| format!("{source}:{destination}")).collect();
    let gateways = [names(committed, true), names(of_users, true)].concat();
    let mut command = vec!["--http-service".to_owned(), names(committed, false).join(",")];
    command.extend(["--gateway".to_owned(), gateways.join(",")]);
    let services = names(of_users, false);
    if !services.is_empty() {
        command.extend(["--service".to_owned(), services.join(",")]);
    }
    command.extend(["--ingress".to_owned(), INGRESS.to_owned()]);
    command.extend(["--allow".to_owned(), format!("${{ALLOW:-{}}}", allow.join(","))]);
    let servers = [1, 2, 3].map(|server| format!("https://consul-server-{server}:8501"));
    command.extend(["--server".to_owned(), servers.join(",")]);
    json!(command)
}

/// docker-compose.yml, or the same file with tasks that have no agent.
pub fn compose_file(agentless: &Agentless) -> Result<String, TasksError> {
    let made = made(agentless)?;
    let mut command = String::new();
    yaml::field(&mut command, 2, "command", &setup(&made, &[]));
    let (mut services, mut volumes) = (String::new(), String::new());
    for task in made.iter().flat_map(|made| &made.tasks) {
        services.push_str(&format!("\n  # Task {}.\n", task.name));
        task.services.iter().for_each(|(name, service)| yaml::field(&mut services, 1, name, service));
        task.volumes.iter().for_each(|(name, volume)| yaml::field(&mut volumes, 1, name, volume));
    }
    let parts = [("    # <command of setup>\n", command), ("  # <tasks>\n", services), ("  # <volumes>\n", volumes)];
    Ok(parts.iter().fold(BASE.to_owned(), |file, (mark, part)| file.replace(mark, part)))
}
