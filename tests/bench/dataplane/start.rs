//! How soon Envoy has its public listener, with a token that need not come from a login.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::World;
use crate::BOUND;
use crate::peer::Who;

/// How often each side starts.
pub const STARTS: usize = 21;

/// The times from the start of the program until its Envoy's public listener takes connections. That of [`Who::Direct`] has its bootstrap
/// already. The sides take turns, beside one server.
pub async fn measure(sides: &[Who], folder: &Path) -> BTreeMap<Who, Vec<Duration>> {
    let world = World::start(1, folder).await;
    let mut times = BTreeMap::<Who, Vec<Duration>>::new();
    for _ in 0..STARTS {
        for who in std::iter::once(Who::Direct).chain(sides.iter().copied()) {
            let began = Instant::now();
            let envoy = world.spawn(who);
            while !world.connects().await {
                assert!(began.elapsed() < BOUND, "{} gets no listener: {}", who.name(), envoy.process.output());
                sleep(Duration::from_millis(1)).await;
            }
            times.entry(who).or_default().push(began.elapsed());
            drop(envoy);
            world.is_closed().await;
        }
    }
    times
}
