//! The tasks of the local mesh, made from task definitions. mesh-task adds the sidecars, as for a task on ECS. This module turns the result
//! into services of docker-compose, with settings of the local mesh in place of those of production, and reports what it cannot simulate.

mod agentless;
mod container;
mod given;
mod local;
mod project;
mod report;
mod sidecars;
mod yaml;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use mesh_task::{Document, Problems};
use serde_json::{Map, Value, json};
use sidecar_kit::file::WriteError;
use sidecar_kit::secret::Secret;

use container::{Place, escaped};

pub use agentless::Agentless;
pub(crate) use container::task_id_variable;
pub use given::{Given, Name, Own, read};
pub(crate) use given::{files, known, write};
pub use project::{committed, compose_file};

/// The account, region and cluster of every task.
const TASK_ARN: &str = "arn:aws:ecs:us-east-1:123456789012:task/ecs-mesh";

/// The ARN of the cluster. Consul has the tasks without an agent on a node of this name.
pub const CLUSTER_ARN: &str = "arn:aws:ecs:us-east-1:123456789012:cluster/ecs-mesh";

/// Why a task definition cannot run in the local mesh.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is not JSON.
    #[error("{} is not JSON", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// mesh-task refuses the documents: one line for each problem, with its file.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// There are more task definitions than settings, or fewer.
    #[error(
        "{definitions} times --task-definition and {settings} times --settings: expected one --settings for each task definition"
    )]
    Settings {
        /// How many task definitions there are.
        definitions: usize,
        /// How many settings there are.
        settings: usize,
    },
    /// Two containers would have the same name.
    #[error("the local mesh already has a container {0}: give the task's family, or the container, another name")]
    SameName(String),
    /// An option names a task that docker-compose.yml lacks.
    #[error("--agentless {name}: there is no such task: expected one of {known}")]
    NoTask {
        /// The name.
        name: String,
        /// The tasks that exist.
        known: String,
    },
    /// An option names a container or a secret that no given task has.
    #[error("--{option} {name}: no given task definition has a {what} of this name: expected one of {known}")]
    Unknown {
        /// The option.
        option: &'static str,
        /// What the option names.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The tasks could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A task definition and its settings.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// The settings of mesh-task.
    pub(crate) settings: &'a Value,
    /// The task definition.
    pub(crate) definition: &'a Value,
    /// Images by the container's name, in place of those of the task definition.
    pub(crate) images: &'a BTreeMap<String, String>,
    /// The values of the apps' secrets, by the variable's name.
    pub(crate) secrets: &'a BTreeMap<String, Secret>,
    /// The ports of the host that are in use, so that they cannot lead to this task.
    pub(crate) taken_ports: &'a [u16],
    /// The tasks that have no Consul agent, whatever the settings say.
    pub(crate) agentless: &'a Agentless,
}

/// A task of the local mesh.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its name in docker-compose.
    pub(crate) name: String,
    /// Its services. The first one holds the task's network namespace.
    pub(crate) services: Vec<(String, Value)>,
    /// Its volumes.
    pub(crate) volumes: Vec<(String, Value)>,
}

/// What a task definition became.
#[derive(Debug)]
pub(crate) struct Made {
    /// One task, or several of the same definition.
    pub(crate) tasks: Vec<Task>,
    /// The name of the service or the gateway in Consul.
    pub(crate) service: String,
    pub(crate) is_gateway: bool,
    /// The services that it calls.
    pub(crate) upstreams: Vec<String>,
    /// The host's ports that lead to it.
    pub(crate) ports: Vec<u16>,
    /// The image of each of the user's containers.
    pub(crate) images: Vec<(String, String)>,
    /// The secrets of the user's containers, by the variable's name.
    pub(crate) secrets: Vec<String>,
    /// What is different from ECS, one line each.
    pub(crate) notes: Vec<String>,
}

/// Makes the services of a task definition's tasks. `names` are the names of the tasks; the family if it is empty.
pub(crate) fn make(source: &Source<'_>, names: &[&str]) -> Result<Made, Problems> {
    // What the local mesh replaces must be valid too: the same documents go into production.
    let produced = mesh_task::render(source.settings, source.definition)?;
    let service = tag(&produced.definition, "service-name");
    let family = text(&produced.definition["family"]);
    let names = if names.is_empty() { vec![family.as_str()] } else { names.to_vec() };
    let by_settings = source.settings.get("consulServers").is_some_and(|servers| !servers.is_null());
    let rendered = |agentless: bool| {
        let (settings, replaced) = local::settings(source.settings, &service, agentless);
        mesh_task::render(&settings, source.definition).map(|rendered| (settings, rendered.definition, replaced))
    };
    let is_ingress = source.settings["gateway"]["kind"] == "ingress-gateway";
    let is_agentless = |name: &str| by_settings || source.agentless.includes(name, is_ingress);
    let definitions =
        names.iter().map(|name| Ok(rendered(is_agentless(name))?.1)).collect::<Result<Vec<_>, Problems>>()?;
    // The tasks differ only in their sidecars.
    let (settings, definition, replaced) = rendered(is_agentless(names[0]))?;
    let is_gateway = settings.get("gateway").is_some();
    let empty = Vec::new();
    let containers = definition["containerDefinitions"].as_array().unwrap_or(&empty);
    let own: Vec<&Value> = containers.iter().filter(|container| !sidecars::is_sidecar(container)).collect();
    let registry = source.settings["registry"].as_str();

    let mut notes = [produced.notes, replaced].concat();
    notes.extend(report::of_task(&definition));
    for container in &own {
        notes.extend(report::of_container(container, source.secrets));
    }
    let mapped = own.iter().flat_map(|container| container::mapped_ports(container)).chain(local::listeners(&settings));
    let (taken, ports): (Vec<u16>, Vec<u16>) = mapped.partition(|port| source.taken_ports.contains(port));
    notes.extend(taken.iter().map(|port| {
        format!("port {port}: it is not published, because the local mesh already uses this port on the host; `cargo xtask get {family} http://127.0.0.1:{port}/` reaches the app")
    }));

    let place = |name: &str| Place {
        task: name.to_owned(),
        family: family.clone(),
        profile: is_gateway.then_some("gateways"),
        tags: tags(&definition),
    };
    let image = |container: &Value| local::image(container, registry, source.images);
    let made_image = |container: &&Value| (text(&container["name"]), image(container));
    let tasks = names.iter().zip(&definitions);
    let tasks = tasks.map(|(name, definition)| task(&place(name), definition, source, &ports, &image)).collect();
    let upstreams = settings["proxy"]["upstreams"].as_array().into_iter().flatten();
    Ok(Made {
        tasks,
        service,
        is_gateway,
        upstreams: upstreams.map(|upstream| text(&upstream["destinationName"])).collect(),
        images: own.iter().map(made_image).collect(),
        secrets: own.iter().flat_map(|container| container::secret_names(container)).collect(),
        ports,
        notes,
    })
}

/// The services and volumes of one task.
fn task(
    place: &Place,
    definition: &Value,
    source: &Source<'_>,
    ports: &[u16],
    image: &impl Fn(&Value) -> String,
) -> Task {
    let containers = definition["containerDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let volumes: Vec<String> =
        definition["volumes"].as_array().into_iter().flatten().map(|volume| text(&volume["name"])).collect();
    let mut services = vec![(place.task.clone(), holder(place, &volumes, ports))];
    let secrets = sidecars::secrets(containers);
    services.push((place.service("secrets"), sidecars::filler(place, &secrets)));
    for container in containers {
        let service = container::service(place, container, image(container), source.secrets);
        let service = sidecars::adjusted(place, container, service);
        services.push((place.service(&text(&container["name"])), service));
    }
    if let Some(profile) = place.profile {
        for (_, service) in &mut services {
            service["profiles"] = json!([profile]);
        }
    }
    let mut made: Vec<_> =
        volumes.iter().map(|name| (place.volume(name), sidecars::volume(name).unwrap_or_else(|| json!({})))).collect();
    made.push((place.volume("secrets"), sidecars::tmpfs("2770")));
    Task { name: place.task.clone(), services, volumes: made }
}

/// The container that holds a task's network namespace. It also mounts the volumes in memory, because such a volume loses its content when
/// no container mounts it.
fn holder(place: &Place, volumes: &[String], ports: &[u16]) -> Value {
    let mut mounts: Vec<_> = volumes
        .iter()
        .filter(|name| sidecars::volume(name).is_some())
        .chain([&"secrets".to_owned()])
        .map(|name| format!("{}:/volumes/{name}", place.volume(name)))
        .collect();
    mounts.sort();
    let mut labels = place.labels("~internal~ecs~pause");
    labels.insert("ecs-mesh.type".to_owned(), json!("CNI_PAUSE"));
    let mut service = json!({
        "image": "ecs-mesh/ecs-local:dev",
        "user": "10001:10001",
        "command": ["pause"],
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": ["mesh", "metadata"],
        "labels": labels,
        "volumes": mounts,
        "depends_on": ["acl-controller-1", "acl-controller-2"],
    });
    if !ports.is_empty() {
        service["ports"] = ports.iter().map(|port| format!("127.0.0.1:{port}:{port}")).collect();
    }
    service
}

/// One line for each problem, with the file that it is in.
fn refused(problems: &Problems, settings: &Path, definition: &Path) -> TasksError {
    let line = |problem: &mesh_task::Problem| {
        let file = match problem.document {
            Document::Settings => settings,
            Document::Task => definition,
        };
        format!("{}: {}", file.display(), problem.error)
    };
    TasksError::Refused(problems.0.iter().map(line).collect())
}

/// The value of one of the tags that mesh-task adds.
fn tag(definition: &Value, name: &str) -> String {
    let key = format!("consul.hashicorp.com/{name}");
    let mut tags = definition["tags"].as_array().into_iter().flatten();
    tags.find(|tag| tag["key"] == *key).map(|tag| text(&tag["value"])).unwrap_or_default()
}

/// The task's tags as labels.
fn tags(definition: &Value) -> Map<String, Value> {
    let tags = definition["tags"].as_array().into_iter().flatten();
    let label = |tag: &Value| (format!("ecs-mesh.tag.{}", text(&tag["key"])), json!(escaped(&text(&tag["value"]))));
    tags.map(label).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
