//! The measurements: the binaries as they are shipped, against their budgets.

use local_mesh::images::{self, RELEASE_STEPS};
use local_mesh::mesh::MeshError;
use local_mesh::{Progress as _, parts};

use crate::progress::Reporter;
use crate::test::{TestError, cargo};

/// Builds what is shipped and what measures it, and measures.
pub async fn run() -> Result<(), TestError> {
    parts::consul().await?;
    let reporter = Reporter::new(RELEASE_STEPS);
    reporter.step(1, RELEASE_STEPS, "building the release binaries");
    images::release_binaries(&reporter).await.map_err(MeshError::from)?;
    reporter.finish();
    cargo("bench", &["run", "--bin", "bench", "--quiet"]).await
}
