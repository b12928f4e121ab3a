//! The Envoy of a task without an agent, beside consul-dataplane.

use std::path::Path;
use std::time::Duration;

use super::Who;
use super::report::{Figure, median, rank};
use super::start::milliseconds;
use crate::dataplane::killed::{FOLLOWERS, LEADERS};
use crate::dataplane::{changes, killed, start};
use crate::table::Unit;

/// The start, a changed endpoint, and a killed server, with the dataplanes of these sides.
pub async fn figures(sides: &[Who], folder: &Path) -> Vec<Figure> {
    let mut times = start::measure(sides, folder).await;
    let direct = times.remove(&Who::Direct).map(|times| median(&times));
    let work = format!("dataplane: start to public listener, median of {}", start::STARTS);
    let mut figures = vec![milliseconds(work, direct, times.into_iter().map(|(who, times)| (who, median(&times))))];

    let changes::Times { direct, later } = changes::measure(sides, folder).await;
    let what = |what, percent| format!("{what}, {percent} of {}", changes::CHANGES);
    let whole = later.iter().map(|(who, later)| {
        let whole = later.iter().zip(&direct).map(|(later, direct)| later + direct).collect::<Vec<_>>();
        (*who, rank(&whole, 50))
    });
    figures.push(Figure {
        work: what("endpoint changed until it is in Envoy", "median"),
        unit: Unit::Milliseconds,
        floor: Some(rank(&direct, 50)),
        values: whole.collect(),
    });
    figures.push(Figure {
        work: what("endpoint changed: delay compared with an Envoy that is connected to the server itself", "p99"),
        unit: Unit::Milliseconds,
        floor: None,
        values: later.iter().map(|(who, later)| (*who, rank(later, 99))).collect(),
    });

    let killed::Times { follower, leader } = killed::measure(sides, folder).await;
    for (server, count, times) in [("a follower", FOLLOWERS, follower), ("the leader", LEADERS, leader)] {
        for (what, percent) in [("median", 50), ("slowest", 100)] {
            let values = times.iter().map(|(who, times)| (*who, rank::<Duration>(times, percent)));
            let work = format!("its server killed ({server}) until a changed endpoint is in Envoy, {what} of {count}");
            figures.push(milliseconds(work, None, values));
        }
    }
    figures
}
