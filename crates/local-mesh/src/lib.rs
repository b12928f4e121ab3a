//! The local mesh: its real parts, images, tasks, events and timelines.
//!
//! For `xtask` and the tests alike. Everything here drives real tools (apt, pip, cargo, Docker, docker-compose) and none
//! of it enters a production image.

pub mod command;
pub mod compose;
pub mod demo;
pub mod docker;
pub mod drawing;
pub mod events;
pub mod images;
pub mod keys;
pub mod load;
pub mod machine;
pub mod mesh;
pub mod parts;
pub mod probe;
pub mod rolling;
pub mod secrets;
pub mod task;
pub mod timeline;
pub mod watch;

use std::path::{Path, PathBuf};

/// The top of the source tree.
#[must_use]
pub fn workspace() -> &'static Path {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    top.expect("the crate lies two levels below the top")
}

/// Where fetched programs are kept; like cargo's own artifacts they outlive the mesh.
#[must_use]
pub fn parts_dir() -> PathBuf {
    workspace().join("target/parts")
}

/// Where everything is made that belongs to a mesh: build contexts, later keys and certificates.
#[must_use]
pub fn mesh_dir() -> PathBuf {
    workspace().join("target/local-mesh")
}

/// Who wants to know what takes so long.
pub trait Progress: Sync {
    /// A step begins; `of` steps there are in all.
    fn step(&self, number: usize, of: usize, what: &str);
    /// Something within the step.
    fn detail(&self, what: &str);
}

/// Nobody wants to know.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: usize, _: usize, _: &str) {}
    fn detail(&self, _: &str) {}
}
