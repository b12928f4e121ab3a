//! The bootstrap directory on the task's shared volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_config::{BOOTSTRAP_FILE, CLIENT_TOKEN_FILE, DATAPLANE_FILE, SERVICE_TOKEN_FILE};
use serde_json::Value;
use sidecar_kit::file::{WriteError, create_beside, remove_temporaries, write_if_changed};

use crate::agentless::{GRPC_CA_FILE, HTTP_CA_FILE};

/// The bootstrap holds the ACL token: its owner and the volume's group may read it.
const BOOTSTRAP_MODE: u32 = 0o640;

/// All files that are written to the directory before the task's other containers start. agent-config writes the client token, and it has
/// ended before mesh-init starts.
const FILES: [&str; 6] =
    [BOOTSTRAP_FILE, SERVICE_TOKEN_FILE, CLIENT_TOKEN_FILE, DATAPLANE_FILE, HTTP_CA_FILE, GRPC_CA_FILE];

/// mesh-init cannot write to the bootstrap directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}: mount the task's shared volume there, writable for this user", path.display())]
pub struct NotWritable {
    path: PathBuf,
    source: io::Error,
}

/// Fails if this user cannot write to the directory. It also removes the temporary files of an earlier run that was killed,
/// because they may hold a token.
///
/// # Errors
/// When the directory does not exist or is not writable.
pub fn ensure_writable(directory: &Path) -> Result<(), NotWritable> {
    remove_temporaries(directory, &FILES);
    let probe = create_beside(&directory.join(BOOTSTRAP_FILE), BOOTSTRAP_MODE);
    let written = probe.and_then(|(probe, _)| fs::remove_file(probe));
    written.map_err(|source| NotWritable { path: directory.to_owned(), source })
}

/// Writes the bootstrap, unless the file already holds it.
///
/// # Errors
/// When the file cannot be written.
pub fn write_bootstrap(directory: &Path, bootstrap: &Value) -> Result<(), WriteError> {
    write_if_changed(&directory.join(BOOTSTRAP_FILE), format!("{bootstrap:#}\n").as_bytes(), BOOTSTRAP_MODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_files_of_a_killed_run_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let others = ["envoy-bootstrap.json", ".envoy-bootstrap.json.tmp", ".other.0123456789abcdef.tmp"];
        for name in others {
            fs::write(directory.path().join(name), "").unwrap();
        }
        for file in [
            "envoy-bootstrap.json",
            "dataplane.json",
            "consul-https-ca-cert.pem",
            "consul-grpc-ca-cert.pem",
            SERVICE_TOKEN_FILE,
            CLIENT_TOKEN_FILE,
        ] {
            create_beside(&directory.path().join(file), 0o600).unwrap();
        }
        ensure_writable(directory.path()).unwrap();
        assert!(others.iter().all(|name| directory.path().join(name).exists()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), others.len());
    }
}
