//! The programs of other projects: `bench --peer` measures them beside ecs-mesh, and `test mesh --peer` moves a service from their tasks.

use std::path::{Path, PathBuf};
use std::process::Command;

use sidecar_kit::exit::one_line;

/// The files that the folder may have, the argument with which each prints its version, and a part of what it then prints.
const PEERS: [(&str, &str, &str); 3] = [
    ("consul-ecs-0.6", "version", "v0.6."),
    ("consul-ecs-0.10", "version", "v0.10."),
    ("consul-dataplane", "-version", "Dataplane"),
];

/// What consul-ecs 0.6's mesh-init runs.
const CONSUL: &str = "consul";

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    #[error("--peer {}: expected a folder with consul-ecs-0.6 (and consul), consul-ecs-0.10 or consul-dataplane", .0.display())]
    NoPeer(PathBuf),
    #[error("--peer {}: consul-ecs-0.6 needs `consul` in the same folder, because its mesh-init runs `consul connect envoy`", .0.display())]
    NoConsul(PathBuf),
    #[error("--peer {}: the folder has no {missing}, which the mesh test needs", folder.display())]
    Lacks { folder: PathBuf, missing: &'static str },
    #[error("--peer: `{} {argument}` failed: {reason}; expected a program that prints {version:?}", program.display())]
    Broken { program: PathBuf, argument: &'static str, reason: String, version: String },
}

/// A folder with at least one peer. Every program in it can be run.
#[derive(Debug)]
pub struct Peers {
    /// Its full path.
    pub folder: PathBuf,
    /// The programs that the folder lacks.
    pub missing: Vec<&'static str>,
}

impl Peers {
    /// Looks at the folder and runs each program once.
    pub fn find(folder: &Path) -> Result<Self, PeersError> {
        let no_peer = || PeersError::NoPeer(folder.to_owned());
        let full = folder.canonicalize().map_err(|_| no_peer())?;
        let (found, missing): (Vec<_>, Vec<_>) = PEERS.into_iter().partition(|(name, ..)| full.join(name).exists());
        if found.is_empty() {
            return Err(no_peer());
        }
        for (name, argument, version) in &found {
            check(full.join(name), argument, version)?;
            if *name == "consul-ecs-0.6" {
                if !full.join(CONSUL).exists() {
                    return Err(PeersError::NoConsul(folder.to_owned()));
                }
                check(full.join(CONSUL), "version", "Consul")?;
            }
        }
        Ok(Self { folder: full, missing: missing.into_iter().map(|(name, ..)| name).collect() })
    }

    /// The same for the mesh test, which runs a task of consul-ecs 0.10.
    pub fn of_a_task(folder: &Path) -> Result<Self, PeersError> {
        let peers = Self::find(folder)?;
        let needed = ["consul-ecs-0.10", "consul-dataplane"];
        match needed.into_iter().find(|name| peers.missing.contains(name)) {
            Some(missing) => Err(PeersError::Lacks { folder: folder.to_owned(), missing }),
            None => Ok(peers),
        }
    }
}

/// Runs the program once. It must print `version`.
fn check(program: PathBuf, argument: &'static str, version: &str) -> Result<(), PeersError> {
    let reason = match Command::new(&program).arg(argument).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if output.status.success() && text.contains(version) {
                return Ok(());
            }
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
            format!("{}, {}", output.status, last.trim())
        }
        Err(error) => one_line(&error),
    };
    Err(PeersError::Broken { program, argument, reason, version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with these scripts.
    fn folder(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, body) in scripts {
            let text = folder.path().join("text");
            fs::write(&text, body).unwrap();
            // Another process writes the program. If this process did, a child that another test starts meanwhile would hold it open for
            // writing, and Linux would not run it ("Text file busy").
            let mut install = std::process::Command::new("install");
            assert!(install.args(["-m", "755"]).arg(&text).arg(folder.path().join(name)).status().unwrap().success());
        }
        folder
    }

    const GOOD: &str = "#!/bin/sh\necho v0.6.2 Consul Dataplane\n";

    fn error(folder: &Path) -> String {
        one_line(&Peers::find(folder).unwrap_err())
    }

    #[test]
    fn a_task_needs_two_programs() {
        let both = folder(&[("consul-ecs-0.10", "#!/bin/sh\necho v0.10.0\n"), ("consul-dataplane", GOOD)]);
        assert!(Peers::of_a_task(both.path()).is_ok());
        let one = folder(&[("consul-dataplane", GOOD)]);
        let line = one_line(&Peers::of_a_task(one.path()).unwrap_err());
        assert!(line.ends_with(": the folder has no consul-ecs-0.10, which the mesh test needs"), "{line}");
    }

    #[test]
    fn missing_programs_of_a_folder_are_listed() {
        let all = folder(&[("consul-ecs-0.6", GOOD), ("consul", GOOD)]);
        assert_eq!(Peers::find(all.path()).unwrap().missing, ["consul-ecs-0.10", "consul-dataplane"]);
        let one = folder(&[("consul-dataplane", GOOD)]);
        assert_eq!(Peers::find(one.path()).unwrap().missing, ["consul-ecs-0.6", "consul-ecs-0.10"]);
    }

    #[test]
    fn a_folder_without_peers_is_refused() {
        let empty = folder(&[("consul", GOOD)]);
        let line = error(empty.path());
        assert!(
            line.ends_with(": expected a folder with consul-ecs-0.6 (and consul), consul-ecs-0.10 or consul-dataplane"),
            "{line}"
        );
        assert!(error(&empty.path().join("none")).contains("/none: expected a folder"));
    }

    #[test]
    fn consul_ecs_0_6_needs_consul_beside_it() {
        let line = error(folder(&[("consul-ecs-0.6", GOOD)]).path());
        assert!(line.contains("consul-ecs-0.6 needs `consul` in the same folder"), "{line}");
    }

    #[test]
    fn a_program_that_does_not_run_is_named_with_the_reason() {
        let line = error(folder(&[("consul-ecs-0.10", "#!/bin/sh\necho >&2 'no such thing'\nexit 3\n")]).path());
        assert!(line.contains("/consul-ecs-0.10 version` failed: exit status: 3, no such thing; expected a program that prints \"v0.10.\""), "{line}");
        let line = error(folder(&[("consul-dataplane", "\x7fELF")]).path());
        assert!(line.contains("/consul-dataplane -version` failed: "), "{line}");
        let broken = folder(&[("consul-ecs-0.6", GOOD), ("consul", "#!/bin/sh\nexit 1\n")]);
        let line = error(broken.path());
        assert!(line.contains("/consul version` failed: exit status: 1, no output"), "{line}");
    }
    #[test]
    fn another_version_under_a_peer_s_name_is_refused() {
        let line = error(folder(&[("consul-ecs-0.10", GOOD)]).path());
        assert!(line.contains("exit status: 0, v0.6.2 Consul Dataplane; expected"), "{line}");
    }
}
