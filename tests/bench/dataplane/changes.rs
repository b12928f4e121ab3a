//! How much later a changed endpoint reaches an Envoy behind a dataplane than an Envoy that is connected to the server itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Admin, INSTANCES, World};
use crate::BOUND;
use crate::peer::Who;

/// How often an endpoint changes.
pub const CHANGES: u64 = 200;

/// Consul collects changes for 200 ms before it sends them. So nothing can be there earlier.
const NOT_BEFORE: Duration = Duration::from_millis(150);

/// Times in ms, one for each change.
#[derive(Default)]
pub struct Times {
    /// From the catalog to the Envoy that is connected to the server itself.
    pub direct: Vec<f64>,
    /// How much later the change was in the Envoy of each side. This is negative if it was there before.
    pub later: BTreeMap<Who, Vec<f64>>,
}

/// All Envoys run at the same time, beside one server.
pub async fn measure(sides: &[Who], folder: &Path) -> Times {
    let world = World::start(1, folder).await;
    let (mut envoys, mut admins) = (Vec::new(), Vec::new());
    for who in std::iter::once(Who::Direct).chain(sides.iter().copied()) {
        let envoy = world.run(who).await;
        admins.push((who, Admin::connect(&envoy).await.expect("Envoy runs")));
        envoys.push(envoy);
    }
    let mut times = Times::default();
    for number in 0..CHANGES {
        // The pauses differ, so that the changes do not come in step with anything else.
        sleep(Duration::from_millis(20 + number * 37 % 100)).await;
        let (status, count) = if number % 2 == 0 { ("critical", INSTANCES - 1) } else { ("passing", INSTANCES) };
        world.set_status(0, status).await;
        let began = Instant::now();
        sleep(NOT_BEFORE).await;
        let mut arrived = BTreeMap::new();
        // The order changes with each round, so that none of them is always asked first.
        for turn in number.. {
            let first = usize::try_from(turn).expect("a small number") % admins.len();
            let (after, before) = admins.split_at_mut(first);
            for (who, admin) in before.iter_mut().chain(after) {
                if !arrived.contains_key(who) && admin.endpoints().await.expect("Envoy runs") == count {
                    arrived.insert(*who, began.elapsed().as_secs_f64() * 1e3);
                }
            }
            if arrived.len() == envoys.len() {
                break;
            }
            assert!(began.elapsed() < BOUND, "the change has reached {arrived:?} only");
        }
        let direct = arrived.remove(&Who::Direct).expect("all have it");
        times.direct.push(direct);
        for (who, at) in arrived {
            times.later.entry(who).or_default().push(at - direct);
        }
    }
    times
}
