//! The local mesh as a library: its programs, images, tasks, events and timelines.
//!
//! `xtask` and the tests use it. It runs real tools (apt, pip, cargo, Docker, docker-compose), and none of it enters a production
//! image.

pub mod command;
pub mod compose;
pub mod consul;
pub mod demo;
mod diagnosis;
pub mod docker;
pub mod drawing;
pub mod events;
pub mod images;
mod keys;
pub mod load;
pub mod machine;
pub mod mesh;
mod oci;
pub mod parts;
mod ports;
pub mod probe;
mod registered;
pub mod release;
pub mod rolling;
pub mod secrets;
pub mod task;
pub mod tasks;
pub mod timeline;
pub mod vendors;
pub mod version;
pub mod watch;

use std::path::{Path, PathBuf};

/// The top directory of the source tree.
#[must_use]
pub fn workspace() -> &'static Path {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    top.expect("the crate lies two levels below the top")
}

/// The directory of the fetched programs. They outlive the mesh, as cargo's own artifacts do.
#[must_use]
pub fn parts_dir() -> PathBuf {
    workspace().join("target/parts")
}

/// The directory of everything that belongs to one mesh: build contexts, keys and certificates.
pub(crate) fn mesh_dir() -> PathBuf {
    workspace().join("target/local-mesh")
}

/// Shows the progress of a long command.
pub trait Progress: Sync {
    /// A step begins: its number, the number of all steps, and its name.
    fn step(&self, number: usize, of: usize, what: &str);
    /// A part of the step begins.
    fn detail(&self, what: &str);
}

/// Shows nothing.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: usize, _: usize, _: &str) {}
    fn detail(&self, _: &str) {}
}
