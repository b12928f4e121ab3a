//! Measures the release binaries: against their limits, beside other programs, or as the load grows.

use std::path::PathBuf;

use clap::Args;
use local_mesh::release::{self, Arch};
use local_mesh::{Progress as _, parts};

use crate::peers::Peers;
use crate::progress::Reporter;
use crate::test::{TestError, cargo};

/// The kind of measurement.
#[derive(Debug, Args)]
pub struct Measurement {
    /// Measure ecs-mesh beside the programs in this folder, instead of against the limits: consul-ecs-0.6 (with consul beside it),
    /// consul-ecs-0.10 and consul-dataplane. Takes about twenty minutes.
    #[arg(long, value_name = "DIR", conflicts_with = "growth")]
    peer: Option<PathBuf>,
    /// Measure how the work grows with upstreams, services and tasks, instead of against the limits. Takes about ten minutes.
    #[arg(long)]
    growth: bool,
}

/// Builds the release binaries and the program that measures them, and runs it.
pub async fn run(measurement: &Measurement) -> Result<(), TestError> {
    let peers = measurement.peer.as_deref().map(Peers::find).transpose()?;
    let missing = peers.iter().flat_map(|peers| &peers.missing).copied().collect::<Vec<_>>().join(", ");
    if !missing.is_empty() {
        println!("── the folder lacks {missing}");
    }
    parts::consul().await?;
    if !measurement.growth {
        // mesh-dataplane and consul-dataplane run it.
        parts::envoy().await?;
    }
    let reporter = Reporter::new(1);
    reporter.step(1, 1, "building the release binaries");
    release::binaries(&reporter, Arch::Amd64).await?;
    reporter.finish();
    let mut arguments = vec!["run", "--bin", "bench", "--quiet"];
    let folder = peers.map(|peers| peers.folder.to_string_lossy().into_owned());
    match &folder {
        Some(folder) => arguments.extend(["--", "--peer", folder]),
        None if measurement.growth => arguments.extend(["--", "--growth"]),
        None => {}
    }
    cargo("bench", &arguments).await
}
