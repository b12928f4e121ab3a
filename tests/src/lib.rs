//! Support for the tests: real programs started, watched and ended; HTTP; and the one way to wait.

pub mod consul;
pub mod http;
pub mod process;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The top of the source tree.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate lies in the workspace")
}

/// A binary of this workspace, as `cargo build --workspace --bins` leaves it beside the tests.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.parent().and_then(Path::parent).expect("tests lie in target/…/deps").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins`", path.display());
    path
}

/// A real program that `cargo xtask images` fetches: `consul` or `envoy`.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn part(name: &str) -> PathBuf {
    let path = workspace().join("target/parts").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask images` to fetch it", path.display());
    path
}

/// A TCP port on 127.0.0.1 that nothing uses now.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Repeats `attempt` every 50 ms until it gives a value, and returns that.
///
/// # Panics
/// When `bound` is over, with `what` and the last attempt's reason.
pub async fn eventually<T>(what: &str, bound: Duration, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => panic!("{what}: not within {bound:?}: {reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
