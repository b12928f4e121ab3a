//! The images of production, for both architectures: built by Docker, written as OCI layouts.

use std::path::PathBuf;

use tokio::process::Command;

use crate::command::{self, run};
use crate::images::{
    Context, ImagesError, ON_ENVOY, Profile, SHIPPED, docker_build, from_scratch, image_in, on_envoy, program_image,
};
use crate::machine::Needs;
use crate::{Progress, oci, parts, workspace};

/// An architecture of the images of production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Arch {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// The name in OCI and in Docker.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The target of Rust.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// What the images sidecar-proxy and mesh-dataplane are built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envoy {
    /// An image that a registry has for both architectures.
    Image(String),
    /// Envoy from PyPI, for both architectures.
    StandIn,
    /// Nothing: these images are not built.
    None,
}

impl Envoy {
    /// The image in `ENVOY_IMAGE`; without it, nothing, or the stand-in if that is wanted.
    #[must_use]
    pub fn chosen(stand_in: bool) -> Self {
        match image_in("ENVOY_IMAGE") {
            Some(image) => Self::Image(image),
            None if stand_in => Self::StandIn,
            None => Self::None,
        }
    }
}

/// What [`build`] needs of this machine.
#[must_use]
pub fn needs(envoy: &Envoy) -> Needs {
    Needs { docker: true, pip: *envoy == Envoy::StandIn, cross: true, ..Needs::default() }
}

/// How many steps [`build`] reports.
pub const STEPS: usize = 3;

/// The directory of an image's OCI layout.
#[must_use]
pub fn layout(image: &str) -> PathBuf {
    workspace().join("target/images").join(image)
}

/// Builds every image of production for both architectures. Each becomes an OCI layout in `target/images`. The image for this machine's
/// architecture also stays in Docker, tagged with the version. Returns the images' names.
pub async fn build(progress: &dyn Progress, envoy: &Envoy) -> Result<Vec<&'static str>, ImagesError> {
    progress.step(1, STEPS, "building the release binaries");
    for arch in Arch::ALL {
        binaries(progress, arch).await?;
    }
    progress.step(2, STEPS, "building the images");
    for arch in Arch::ALL {
        for image in from_scratch() {
            program_image(image, Profile::Release(arch), progress).await?;
        }
        if let Some(base) = base(envoy, arch).await? {
            on_envoy(&base, Profile::Release(arch), progress).await?;
        }
    }
    let mut images = from_scratch().collect::<Vec<_>>();
    if *envoy != Envoy::None {
        images.extend(ON_ENVOY.map(|(image, _)| image));
    }
    progress.step(3, STEPS, "writing the OCI layouts");
    for image in &images {
        let of_arch = Arch::ALL.map(|arch| (Profile::Release(arch).tag(image), arch.name()));
        oci::write(&layout(image), env!("CARGO_PKG_VERSION"), &of_arch).await?;
        // Docker would take it for an image of its own architecture.
        run(Command::new("docker").args(["image", "rm", &Profile::Release(Arch::Arm64).tag(image)])).await?;
    }
    Ok(images)
}

/// Builds the release binaries one by one. In one build, each would get the features that the others enable.
pub async fn binaries(progress: &dyn Progress, arch: Arch) -> Result<(), ImagesError> {
    for package in SHIPPED {
        progress.detail(&format!("{package} for {}", arch.name()));
        let mut command = command::cargo();
        command.current_dir(workspace()).args(["build", "--release", "--quiet", "--package", package]);
        run(command.args(["--target", arch.target()])).await?;
    }
    Ok(())
}

/// The Envoy image for an architecture.
async fn base(envoy: &Envoy, arch: Arch) -> Result<Option<String>, ImagesError> {
    let tag = Profile::Release(arch).tag("envoy");
    match envoy {
        Envoy::None => return Ok(None),
        Envoy::Image(image) => {
            let platform = format!("linux/{}", arch.name());
            run(Command::new("docker").args(["pull", "--quiet", "--platform", &platform, image])).await?;
            run(Command::new("docker").args(["tag", image, &tag])).await?;
        }
        Envoy::StandIn => {
            let context = Context::new("envoy")?;
            match arch {
                Arch::Amd64 => context.program(&parts::envoy().await?, "envoy").await?,
                Arch::Arm64 => context.arm64_program(&parts::envoy_for_arm64().await?, "envoy")?,
            }
            docker_build("envoy", Profile::Release(arch), &context, &[]).await?;
        }
    }
    Ok(Some(tag))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn workflow_publishes_each_image_and_each_binary() {
        let workflow = std::fs::read_to_string(workspace().join(".github/workflows/release.yml")).unwrap();
        let published = |what: &str| {
            let (_, list) = workflow.split_once(&format!("for {what} in ")).unwrap();
            list.split_once("; do").unwrap().0.split(' ').collect::<BTreeSet<_>>()
        };
        assert_eq!(published("image"), from_scratch().chain(ON_ENVOY.map(|(image, _)| image)).collect());
        assert_eq!(published("binary"), SHIPPED.into_iter().chain(["mesh-task"]).collect());
    }
}
