//! consul-ecs and ecs-mesh do the same work: `cargo xtask bench --peer DIR`.
//!
//! All sides work in the same run, in turns or at the same time. So other load on the machine affects all of them.

mod envoy;
mod idle;
pub mod react;
pub mod report;
mod start;
pub mod task;

use std::collections::BTreeMap;
use std::path::Path;

use mesh_tests::catalog::register_node;
use mesh_tests::consul::{Agent, version};

use self::report::Figure;
use self::task::{Failed, Side};
use crate::dataplane::World;
use crate::table::Unit;
use crate::{megabytes, release_binary};

/// The side that does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// ecs-mesh in a task with an agent.
    Ours,
    /// ecs-mesh in a task without an agent.
    OursAgentless,
    ConsulEcs06,
    ConsulEcs010,
    Dataplane,
    /// An Envoy that is connected to a server of Consul itself.
    Direct,
}

impl Who {
    /// The file name of its program in the peers' folder.
    pub fn file(self) -> &'static str {
        match self {
            Self::Ours | Self::OursAgentless | Self::Direct => "",
            Self::ConsulEcs06 => "consul-ecs-0.6",
            Self::ConsulEcs010 => "consul-ecs-0.10",
            Self::Dataplane => "consul-dataplane",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours | Self::OursAgentless => "ecs-mesh",
            Self::Direct => "Envoy itself",
            peer => peer.file(),
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursAgentless)
    }

    /// Whether its tasks have no agent.
    fn is_agentless(self) -> bool {
        !matches!(self, Self::Ours | Self::ConsulEcs06)
    }

    /// A part of the names of its tasks' families.
    fn short(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursAgentless => "ours-agentless",
            Self::ConsulEcs06 => "agent",
            Self::ConsulEcs010 => "agentless",
            Self::Dataplane | Self::Direct => "dataplane",
        }
    }
}

/// mesh-dataplane, consul-dataplane and consul-ecs 0.10 need gRPC services that Consul has since 1.14. We have tried ecs-mesh with Consul
/// 1.16 and later.
const AGENTLESS: (u16, u16) = (1, 16);

/// Whether Consul has these services. If not, the reason why `what` is left out.
///
/// # Errors
/// With the reason.
pub fn has_dataplane_services(what: &str) -> Result<(), String> {
    let (major, minor) = AGENTLESS;
    if version().at_least(major, minor) {
        return Ok(());
    }
    Err(format!(
        "Consul is {}. Left out, because it needs {major}.{minor} or later: {what}. The variable CONSUL names another Consul.",
        version()
    ))
}

/// Measures everything, and returns the report in Markdown.
///
/// # Errors
/// If a mesh-init cannot register its task.
pub async fn measure(folder: &Path) -> Result<String, Failed> {
    let load = report::load();
    let all = [Who::ConsulEcs06, Who::ConsulEcs010, Who::Dataplane];
    let found = all.into_iter().filter(|who| folder.join(who.file()).exists()).collect::<Vec<_>>();
    let mut notes = Vec::new();
    for who in all.into_iter().filter(|who| !found.contains(who)) {
        notes.push(format!("The folder has no `{}`: it was not measured.", who.file()));
    }
    let sides = |whos: &[Who]| {
        let ours = whos.iter().filter(|who| who.is_ours() || found.contains(who));
        ours.map(|who| Side::new(*who, folder)).collect::<Vec<_>>()
    };
    let (with_agent, with_apps) =
        (sides(&[Who::Ours, Who::ConsulEcs06]), sides(&[Who::Ours, Who::ConsulEcs06, Who::ConsulEcs010]));
    let left_out = has_dataplane_services("everything in a task without an agent, but the sizes and app-entrypoint");
    let without_agent = if left_out.is_ok() { sides(&[Who::OursAgentless, Who::ConsulEcs010]) } else { Vec::new() };
    notes.extend(left_out.err());
    let in_mesh = [with_agent.clone(), without_agent.clone()].concat();
    let agent = Agent::start().await;
    // mesh-init of ecs-mesh waits for the node of the task's cluster.
    register_node(&agent).await;

    let mut figures = sizes(&found, folder);
    eprintln!("measuring the start of the entry points and of mesh-init …");
    for sides in [&with_agent, &without_agent] {
        figures.extend(start::mesh_init(&agent, sides).await?);
    }
    figures.push(start::entry_point("app-entrypoint", &with_apps));
    figures.push(start::entry_point("envoy-entrypoint", &with_agent));
    eprintln!("measuring reactions, for about four minutes …");
    figures.extend(react::to_health(&agent, &in_mesh).await?);
    figures.extend(react::to_term(&agent, &in_mesh).await?);
    figures.extend(react::to_last_app(&with_agent).await);
    let mut dataplanes = Vec::new();
    let world;
    if !without_agent.is_empty() {
        eprintln!("measuring Envoys of tasks without an agent, for about ten minutes …");
        let whos = [Who::OursAgentless, Who::Dataplane];
        let whos = whos.into_iter().filter(|who| who.is_ours() || found.contains(who)).collect::<Vec<_>>();
        figures.extend(envoy::figures(&whos, folder).await);
        world = World::start(1, folder).await;
        for who in whos {
            dataplanes.push(world.run(who).await);
        }
    }
    eprintln!("measuring an idle minute of each program, and another of {} copies …", idle::COPIES);
    figures.extend(idle::one(&agent, &with_agent, &with_apps, &in_mesh, &dataplanes).await?);
    drop(dataplanes);
    figures.extend(idle::many(&agent, &in_mesh).await?);
    Ok(report::draw(&figures, &found, folder, &load, &notes))
}

/// The binaries that a task runs, without Envoy and Consul's agent.
fn sizes(found: &[Who], folder: &Path) -> Vec<Figure> {
    let ours = |names: &[&str]| names.iter().map(|name| megabytes(&release_binary(name))).sum::<f64>();
    let theirs = |whos: &[Who]| {
        let all = whos.iter().all(|who| found.contains(who));
        all.then(|| whos.iter().map(|who| megabytes(&folder.join(who.file()))).sum::<f64>())
    };
    let figure = |work: &str, who: Who, ours: f64, peer: Who, theirs: Option<f64>| {
        let values = BTreeMap::from([(who, ours), (peer, theirs?)]);
        Some(Figure { work: work.to_owned(), unit: Unit::Megabytes, floor: None, values })
    };
    let with_agent = ours(&["mesh-init", "health-sync", "envoy-entrypoint", "app-entrypoint"]);
    let without_agent = ours(&["mesh-init", "health-sync", "mesh-dataplane", "app-entrypoint"]);
    let consul = folder.join("consul");
    let with_consul = theirs(&[Who::ConsulEcs06]).map(|size| size + megabytes(&consul));
    let (old, new) = (Who::ConsulEcs06, Who::ConsulEcs010);
    [
        figure("binaries of a task (ecs-mesh has four, consul-ecs one)", Who::Ours, with_agent, old, theirs(&[old])),
        figure(
            "binaries that mesh-init needs (consul-ecs runs `consul`)",
            Who::Ours,
            ours(&["mesh-init"]),
            old,
            with_consul,
        ),
        figure(
            "binaries of a task (ecs-mesh has four, consul-ecs with consul-dataplane two)",
            Who::OursAgentless,
            without_agent,
            new,
            theirs(&[new, Who::Dataplane]),
        ),
        figure(
            "binary of the dataplane",
            Who::OursAgentless,
            ours(&["mesh-dataplane"]),
            Who::Dataplane,
            theirs(&[Who::Dataplane]),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
