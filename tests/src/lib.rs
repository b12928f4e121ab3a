//! Shared code of the tests: real programs, HTTP, and [`eventually`], the one way to wait.

pub mod aws;
pub mod catalog;
pub mod consul;
pub mod http;
pub mod metadata;
pub mod moto;
pub mod platform;
pub mod process;
pub mod servers;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use local_mesh::workspace;

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

/// A real program that `cargo xtask test` fetches: `consul`, `envoy` or the directories `awscli`, `moto`, `terraform` and
/// `cfn-lint`.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn part(name: &str) -> PathBuf {
    let path = local_mesh::parts::program(name).unwrap_or_else(|error| panic!("{error}"));
    assert!(path.exists(), "{} is missing: run `cargo xtask test process` to fetch it", path.display());
    path
}

/// A code block of a crate's README, by its number among the blocks of its language. The tests run with what the README shows.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn readme(name: &str, language: &str, number: usize) -> String {
    let path = workspace().join("crates").join(name).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let block = text.split(&format!("```{language}\n")).nth(number + 1).and_then(|rest| rest.split("```").next());
    block.unwrap_or_else(|| panic!("{} has no {language} block {number}", path.display())).to_owned()
}

/// A TCP port on 127.0.0.1 that no program uses. No other test of this process gets it, and the kernel does not choose it: the
/// kernel's own ports begin at 32768.
///
/// # Panics
/// When there is none left.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes begin at different ports.
    let first = u16::try_from(std::process::id() % 90).expect("a small number") * 100 + 21_000;
    let mut ports = std::iter::from_fn(|| Some(first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000)).take(2_000);
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("loopback has a free port")
}

/// Repeats `attempt` every 50 ms until it returns a value, and returns that value.
///
/// # Panics
/// When `bound` is over. The message has `what` and the reason of the last attempt.
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
