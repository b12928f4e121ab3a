//! The containers of a task without an agent, against their limits.

use std::path::Path;
use std::time::Duration;

use mesh_tests::catalog::register_node;
use mesh_tests::consul::Agent;
use tokio::time::sleep;

use crate::dataplane::{World, changes, killed, start};
use crate::peer::report::{median, rank};
use crate::peer::task::Side;
use crate::peer::{Who, has_dataplane_services, react};
use crate::registrations::{self, SERVICES, TASKS};
use crate::sidecars::{IDLE_CPU, idle, p99};
use crate::table::{Row, Unit};
use crate::usage::Usage;

/// How often health-sync gets TERM.
const TERMS: u64 = 100;

/// A program may still have work so long after its start.
const SETTLED: Duration = Duration::from_secs(10);

const MINUTE: Duration = Duration::from_secs(60);

/// Nothing is measured beside other programs.
const NO_FOLDER: &str = "";

/// All rows. If Consul is too old for some of them, also what is left out, and why.
pub async fn measure() -> (Vec<Row>, Option<String>) {
    let registrations::Measured { took, floor } = registrations::measure().await;
    let what = format!("mesh-init agentless: {TASKS} tasks of {SERVICES} services register at one server");
    let mut rows = vec![
        Row::new(what, Unit::Seconds, took.as_secs_f64(), 2.0 * floor.as_secs_f64()).with_floor(floor.as_secs_f64()),
    ];

    let agent = Agent::start().await;
    register_node(&agent).await;
    let sides = [Side::new(Who::OursAgentless, Path::new(NO_FOLDER))];
    let failed = "mesh-init registers the task";
    let (mut times, _) = react::health_times(&agent, &sides).await.expect(failed);
    let times = times.remove(&Who::OursAgentless).expect("it was measured");
    rows.push(p99("health-sync agentless: ECS health changed to check changed", times, 0.55));
    let (mut times, _) = react::term_times(&agent, &sides, TERMS).await.expect(failed);
    let times = times.remove(&Who::OursAgentless).expect("it was measured");
    rows.push(p99("health-sync agentless: TERM to check critical", times, 0.25));

    let left_out = has_dataplane_services("all that mesh-dataplane does");
    let (_tasks, syncs) = react::synced(&agent, &sides, "idle").await.expect(failed);
    let mut programs = vec![("health-sync agentless", 4.0, Some(IDLE_CPU), &syncs[0])];
    let (world, envoy);
    if left_out.is_ok() {
        world = World::start(1, Path::new(NO_FOLDER)).await;
        envoy = world.run(Who::OursAgentless).await;
        programs.push(("mesh-dataplane", 7.0, None, &envoy.process));
    }
    sleep(SETTLED).await;
    let before = programs.iter().map(|(.., process)| Usage::of(process.id())).collect::<Vec<_>>();
    sleep(MINUTE).await;
    for ((name, memory, cpu, process), before) in programs.into_iter().zip(before) {
        let used = Usage::of(process.id()) - before;
        rows.push(idle(name, process, memory));
        let (what, ms) = (format!("{name}: CPU of an idle minute"), used.milliseconds());
        rows.push(match cpu {
            Some(budget) => Row::new(what, Unit::Milliseconds, ms, budget),
            None => Row::without_budget(what, Unit::Milliseconds, ms),
        });
        let what = format!("{name}: wake-ups in an idle minute");
        rows.push(Row::without_budget(what, Unit::Calls, used.wakeups as f64));
    }
    if left_out.is_ok() {
        rows.extend(dataplane().await);
    }
    (rows, left_out.err())
}

/// Envoy's start, its endpoints, and a killed server.
async fn dataplane() -> Vec<Row> {
    let (sides, folder) = ([Who::OursAgentless], Path::new(NO_FOLDER));
    let times = start::measure(&sides, folder).await;
    let [ours, direct] = [Who::OursAgentless, Who::Direct].map(|who| median(&times[&who]).as_secs_f64());
    let what = format!("mesh-dataplane: start to public listener, median of {}", start::STARTS);
    let mut rows = vec![Row::new(what, Unit::Seconds, ours, 1.1 * direct).with_floor(direct)];

    let changes::Times { direct, later } = changes::measure(&sides, folder).await;
    let what = format!("mesh-dataplane: a changed endpoint is in Envoy, median of {}", changes::CHANGES);
    let whole =
        later[&Who::OursAgentless].iter().zip(&direct).map(|(later, direct)| later + direct).collect::<Vec<_>>();
    let direct = rank(&direct, 50);
    rows.push(Row::without_budget(what, Unit::Milliseconds, rank(&whole, 50)).with_floor(direct));
    let what = format!("mesh-dataplane: later than Envoy at the server itself, p99 of {}", changes::CHANGES);
    rows.push(Row::new(what, Unit::Milliseconds, rank(&later[&Who::OursAgentless], 99), 5.0));

    let killed::Times { follower, leader } = killed::measure(&sides, folder).await;
    let slowest = |times: &[Duration]| rank(times, 100).as_secs_f64();
    let what =
        |server, count| format!("mesh-dataplane: its server killed ({server}), endpoints flow, slowest of {count}");
    let (followers, leaders) = (what("a follower", killed::FOLLOWERS), what("the leader", killed::LEADERS));
    rows.push(Row::new(followers, Unit::Seconds, slowest(&follower[&Who::OursAgentless]), 0.3));
    // Consul elects another leader first, and takes seconds for that.
    rows.push(Row::without_budget(leaders, Unit::Seconds, slowest(&leader[&Who::OursAgentless])));
    rows
}
