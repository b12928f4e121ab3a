//! The version of Consul that the local mesh and the tests run with.

use std::fmt;
use std::path::Path;

use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::mesh_dir;

/// The file with the version that the mesh's images were built with.
const RECORD: &str = "consul-version";

/// A version of Consul. A version in development, `1.22.0-dev`, counts as the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16, u16, u16);

/// Why a version is not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// `consul version` failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// `consul version` printed something else.
    #[error("`{command}` printed {output:?}: expected `Consul v1.2.3`")]
    Unreadable {
        /// The command.
        command: String,
        /// The first line that it printed.
        output: String,
    },
}

impl Version {
    /// The version in Debian 11, which the mesh runs by default.
    pub const DEBIAN_11: Self = Self(1, 8, 7);

    /// Reads the output of `consul version`.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let version = output.lines().next()?.strip_prefix("Consul v")?;
        let mut parts = version.split(['.', '-', '+']).map(str::parse);
        Some(Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
    }

    /// Whether this is at least `major.minor`.
    #[must_use]
    pub fn at_least(self, major: u16, minor: u16) -> bool {
        self >= Self(major, minor, 0)
    }

    /// Whether Consul serves xDS v3, so that an Envoy needs no bridge. `tests/needs.txt` says what needs which version.
    #[must_use]
    pub fn serves_xds_v3(self) -> bool {
        self.at_least(1, 10)
    }

    /// Whether a current Envoy accepts the listeners of this Consul: with the bridge, or directly since 1.16.
    #[must_use]
    pub fn suits_current_envoy(self) -> bool {
        !self.serves_xds_v3() || self.at_least(1, 16)
    }

    /// Whether the agent's configuration has `tls.defaults` in place of `ca_file` and others.
    #[must_use]
    pub fn has_tls_defaults(self) -> bool {
        self.at_least(1, 12)
    }

    /// Whether the configuration has `ports.grpc_tls`. With TLS files and `ports.grpc`, a server of such a version starts only if
    /// `ports.grpc_tls` is set too.
    #[must_use]
    pub fn has_grpc_tls(self) -> bool {
        self.at_least(1, 14)
    }

    /// Whether a service-router has `RetryOn`.
    #[must_use]
    pub fn has_retry_on(self) -> bool {
        self.at_least(1, 14)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The version of a Consul binary.
pub async fn of_program(program: &Path) -> Result<Version, VersionError> {
    ask(Command::new(program).arg("version")).await
}

/// The version of the Consul in an image.
pub(crate) async fn of_image(image: &str) -> Result<Version, VersionError> {
    ask(Command::new("docker").args(["run", "--rm", "--entrypoint", "consul", image, "version"])).await
}

async fn ask(command: &mut Command) -> Result<Version, VersionError> {
    let output = run(command).await?;
    Version::parse(&output).ok_or_else(|| VersionError::Unreadable {
        command: crate::command::shown(command),
        output: output.lines().next().unwrap_or_default().to_owned(),
    })
}

/// The version that the mesh's images were last built with; `None` before the first build.
pub fn of_mesh() -> Option<Version> {
    Version::parse(&std::fs::read_to_string(mesh_dir().join(RECORD)).ok()?)
}

/// Records the version for [`of_mesh`].
pub(crate) fn record(version: Version) -> std::io::Result<()> {
    std::fs::create_dir_all(mesh_dir())?;
    std::fs::write(mesh_dir().join(RECORD), format!("Consul v{version}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_and_of_development_are_read() {
        for (output, expected) in [
            ("Consul v1.8.7\nProtocol 2 spoken by default", Some(Version(1, 8, 7))),
            ("Consul v1.22.0-dev+ent\n", Some(Version(1, 22, 0))),
            ("Consul v1.21.4", Some(Version(1, 21, 4))),
            ("Consul", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(output), expected, "{output:?}");
        }
        assert!(Version(1, 9, 17) < Version(1, 10, 0));
    }
}
