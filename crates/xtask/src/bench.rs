//! Measures the release binaries against their budgets.

use local_mesh::images::{self, RELEASE_STEPS};
use local_mesh::{Progress as _, parts};

use crate::progress::Reporter;
use crate::test::{TestError, cargo};

/// Builds the release binaries and the program that measures them, and runs it.
pub async fn run() -> Result<(), TestError> {
    parts::consul().await?;
    let reporter = Reporter::new(RELEASE_STEPS);
    reporter.step(1, RELEASE_STEPS, "building the release binaries");
    images::release_binaries(&reporter).await?;
    reporter.finish();
    cargo("bench", &["run", "--bin", "bench", "--quiet"]).await
}
