//! The figures, as tables in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::version;

use super::Who;
use crate::table::Unit;

/// One kind of work, with the figure of each side that did it.
#[derive(Debug)]
pub struct Figure {
    pub work: String,
    pub unit: Unit,
    /// The time without any of these programs: a test client sends the same calls, or the test starts the same command itself.
    pub floor: Option<f64>,
    pub values: BTreeMap<Who, f64>,
}

/// The median of some durations.
pub fn median(durations: &[Duration]) -> Duration {
    rank(durations, 50)
}

/// The value that this many of 100 do not exceed.
pub fn rank<T: Copy + PartialOrd>(values: &[T], percent: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).expect("they are numbers"));
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// The machine's load: processes that ran or waited to run, on average in the last minute.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").expect("Linux says its load");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The whole report. `load` is the machine's load before the measurements.
pub fn draw(figures: &[Figure], found: &[Who], folder: &Path, load: &str, notes: &[String]) -> String {
    let mut text = format!(
        "{}. Consul {} runs on the same machine. Load {load} at the start, {} at the end.\n",
        machine(),
        version(),
        self::load()
    );
    for who in found {
        writeln!(text, "{} is {}.", who.file(), described(&folder.join(who.file()))).expect("a string takes all");
    }
    let with_agent = [Who::ConsulEcs06].as_slice();
    let without_agent = [Who::ConsulEcs010, Who::Dataplane].as_slice();
    for (head, peers, ours) in [
        ("consul-ecs-0.6", with_agent, [Who::Ours, Who::Ours]),
        ("consul-ecs-0.10, consul-dataplane", without_agent, [Who::OursAgentless, Who::Ours]),
    ] {
        if !peers.iter().any(|peer| found.contains(peer)) {
            continue;
        }
        write!(text, "\n| work | floor | {head} | ecs-mesh | ratio |\n|---|--:|--:|--:|--:|\n")
            .expect("a string takes all");
        for Figure { work, unit, floor, values } in figures {
            let of = |whos: &[Who]| whos.iter().find_map(|who| values.get(who).copied());
            let (Some(peer), Some(ours)) = (of(peers), of(&ours)) else { continue };
            let floor = floor.map_or_else(|| "–".to_owned(), |floor| unit.shown(floor));
            let ratio = if peer > 0.0 && ours >= 0.0 { format!("{:.3}", ours / peer) } else { "–".to_owned() };
            let (peer, ours) = (unit.shown(peer), unit.shown(ours));
            writeln!(text, "| {work} | {floor} | {peer} | {ours} | {ratio} |").expect("a string takes all");
        }
    }
    for note in notes {
        write!(text, "\n{note}\n").expect("a string takes all");
    }
    text
}

/// The processors.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = info.lines().filter_map(|line| line.strip_prefix("model name")).collect::<Vec<_>>();
    let model = models.first().and_then(|model| model.split_once(": ")).map_or("unknown", |(_, name)| name.trim());
    format!("{} processors ({model})", models.len().max(1))
}

/// The version that a program prints.
fn described(program: &Path) -> String {
    let argument = if program.ends_with(Who::Dataplane.file()) { "-version" } else { "version" };
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_owned()
}
