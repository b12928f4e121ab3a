//! consul-ecs and ecs-mesh do the same work: `cargo xtask bench --peer DIR`.
//!
//! All sides work in the same run, in turns or at the same time. So other load on the machine affects all of them.

mod idle;
mod react;
pub mod report;
mod start;
mod task;

use std::collections::BTreeMap;
use std::path::Path;

use mesh_tests::consul::{Agent, version};

use self::report::Figure;
use self::task::{Failed, Side};
use crate::table::Unit;
use crate::{megabytes, release_binary};

/// The side that does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Ours,
    ConsulEcs06,
    ConsulEcs010,
    Dataplane,
}

impl Who {
    /// The file name of its program in the peers' folder.
    fn file(self) -> &'static str {
        match self {
            Self::Ours => "",
            Self::ConsulEcs06 => "consul-ecs-0.6",
            Self::ConsulEcs010 => "consul-ecs-0.10",
            Self::Dataplane => "consul-dataplane",
        }
    }

    fn name(self) -> &'static str {
        if self == Self::Ours { "ecs-mesh" } else { self.file() }
    }

    /// A part of the names of its tasks' families.
    fn short(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::ConsulEcs06 => "agent",
            Self::ConsulEcs010 => "agentless",
            Self::Dataplane => "dataplane",
        }
    }
}

/// The programs of a task without an agent need gRPC services that Consul has since 1.14; ecs-mesh tried them since 1.16.
const AGENTLESS: (u16, u16) = (1, 16);

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
    let sides = std::iter::once(Who::Ours).chain(found.iter().copied()).filter(|who| *who != Who::Dataplane);
    let sides = sides.map(|who| Side::new(who, folder)).collect::<Vec<_>>();
    let agent = Agent::start().await;
    // The sides that can register a task with this Consul.
    let agentless = version().at_least(AGENTLESS.0, AGENTLESS.1);
    let in_mesh = sides.iter().filter(|side| agentless || side.who != Who::ConsulEcs010).cloned().collect::<Vec<_>>();
    let dataplane = found.contains(&Who::Dataplane) && agentless;
    if !agentless && found.iter().any(|who| matches!(who, Who::ConsulEcs010 | Who::Dataplane)) {
        notes.push(format!(
            "Consul is {}: consul-ecs-0.10's mesh-init and health-sync, and consul-dataplane, need {}.{} or later, so only what \
             needs no Consul was measured of them. The variable CONSUL names another Consul.",
            version(),
            AGENTLESS.0,
            AGENTLESS.1
        ));
    }

    let mut figures = sizes(&sides, found.contains(&Who::Dataplane).then(|| Side::new(Who::Dataplane, folder)), folder);
    eprintln!("measuring the start of the entry points and of mesh-init …");
    figures.extend(start::mesh_init(&agent, &in_mesh).await?);
    figures.extend(start::entry_points(&sides).await);
    eprintln!("measuring reactions, for about four minutes …");
    figures.extend(react::to_health(&agent, &in_mesh).await?);
    figures.extend(react::to_term(&agent, &in_mesh).await?);
    figures.extend(react::to_last_app(&sides).await);
    eprintln!("measuring an idle minute of each program, and another of {} copies …", idle::COPIES);
    let dataplane = if dataplane { Some(idle::dataplane(&agent, folder).await?) } else { None };
    figures.extend(idle::one(&agent, &sides, &in_mesh, dataplane).await?);
    figures.extend(idle::many(&agent, &in_mesh).await?);
    Ok(report::draw(&figures, &found, folder, &load, &notes))
}

/// The binaries that a task runs, without Envoy and Consul's agent.
fn sizes(sides: &[Side], dataplane: Option<Side>, folder: &Path) -> Vec<Figure> {
    let mut figures = Vec::new();
    let of = |who: Who| match who {
        Who::Ours => ["mesh-init", "health-sync", "envoy-entrypoint", "app-entrypoint"]
            .map(|name| megabytes(&release_binary(name)))
            .iter()
            .sum(),
        peer => megabytes(&folder.join(peer.file())),
    };
    let whos = sides.iter().chain(&dataplane).map(|side| side.who);
    let values = whos.map(|who| (who, of(who))).collect::<BTreeMap<_, _>>();
    let what = "binaries of a task (ecs-mesh has four, consul-ecs one)".to_owned();
    figures.push(Figure { work: what, unit: Unit::Megabytes, floor: None, values });
    if sides.iter().any(|side| side.who == Who::ConsulEcs06) {
        let values = BTreeMap::from([
            (Who::Ours, megabytes(&release_binary("mesh-init"))),
            (Who::ConsulEcs06, megabytes(&folder.join(Who::ConsulEcs06.file())) + megabytes(&folder.join("consul"))),
        ]);
        let what = "binaries that mesh-init needs (consul-ecs runs `consul`)".to_owned();
        figures.push(Figure { work: what, unit: Unit::Megabytes, floor: None, values });
    }
    figures
}
