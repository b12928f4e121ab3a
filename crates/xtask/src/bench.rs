//! The measurements: the binaries as they are shipped, against their budgets.

use local_mesh::parts;

use crate::test::{TestError, cargo};

/// What has a budget of size; each also has its place in an image.
const SHIPPED: [&str; 5] = ["mesh-init", "health-sync", "envoy-entrypoint", "app-entrypoint", "acl-controller"];

/// Builds what is shipped and what measures it, and measures.
pub async fn run() -> Result<(), TestError> {
    parts::consul().await?;
    for package in SHIPPED {
        // One by one, as for production: together they would have the features that the others ask for.
        cargo("the release binary", &["build", "--release", "--package", package, "--quiet"]).await?;
    }
    cargo("bench", &["run", "--bin", "bench", "--quiet"]).await
}
