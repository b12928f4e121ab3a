//! What `cargo xtask` does on a machine that lacks programs. Its PATH has only the fake programs of this file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::binary;
use mesh_tests::process::{Finished, run};
use rustix::process::geteuid;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);

/// A user other than root.
const NOBODY: u32 = 65_534;

/// Docker's client. The engine answers it while the file `up` exists.
const DOCKER: &str =
    "case $1 in version) if [ -e up ]; then echo 20; else echo 'is it running?' >&2; exit 1; fi;; *) exit 1; esac";
const DOCKERD: &str = "echo up > up; while [ -e up ]; do /bin/sleep 0.1; done";
const SYSTEMCTL: &str = "echo up > up";
/// Python, with pip once its package is installed.
const PYTHON: &str = "if [ ! -e bin/pip ]; then echo 'No module named pip' >&2; exit 1; fi";
/// Writes its arguments to a log. Installs the files in a package's folder.
const APT_GET: &str = "echo \"$*\" >> apt.log
    if [ $1 = install ]; then for package; do [ -d packages/$package ] && /bin/cp packages/$package/* bin/; done; fi; exit 0";
/// Succeeds for a package that has a folder.
const APT_CACHE: &str = "[ -d packages/$2 ]";
/// Writes its arguments to a log and fails, so xtask ends at its first call of cargo.
const CARGO: &str = "echo \"$*\" >> cargo.log; exit 1";

/// Held while a test starts an engine, because all engines write to the same log in the source tree.
static STARTS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Machine(TempDir);

/// Copies a program in another process. If this process wrote the copy, a child that another test starts meanwhile would hold it open for
/// writing, and Linux would not run it ("Text file busy").
fn install(program: &Path, path: &Path) {
    let installed = Command::new("install").args(["-D", "-m", "755"]).arg(program).arg(path).status();
    assert!(installed.unwrap().success(), "{}", path.display());
}

impl Machine {
    /// A machine with these programs. A program named `package/program` is only in that package. All programs run in the machine's folder.
    fn new(programs: &[(&str, &str)]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        fs::create_dir(machine.0.path().join("bin")).unwrap();
        fs::set_permissions(machine.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
        install(&binary("xtask"), &machine.0.path().join("xtask"));
        for (name, script) in programs {
            let path = match name.split_once('/') {
                Some((package, name)) => machine.0.path().join("packages").join(package).join(name),
                None => machine.0.path().join("bin").join(name),
            };
            let text = machine.0.path().join("script");
            fs::write(&text, format!("#!/bin/sh\ncd {}\n{script}\n", machine.0.path().display())).unwrap();
            install(&text, &path);
        }
        machine
    }

    async fn xtask(&self, arguments: &[&str], user: Option<u32>) -> Finished {
        let mut command = Command::new(self.0.path().join("xtask"));
        command.args(arguments).current_dir("/").env_clear().env("PATH", self.0.path().join("bin"));
        command.env("CARGO", self.0.path().join("bin/cargo"));
        if let Some(user) = user.filter(|_| geteuid().is_root()) {
            command.uid(user);
        }
        run(&mut command, BOUND).await
    }

    /// The lines in the log of a fake program.
    fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.0.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// The machine at the start of a CI run: it has Docker's client, but not its engine, docker-compose or pip.
fn fresh() -> Vec<(&'static str, &'static str)> {
    let there = [("docker", DOCKER), ("python3", PYTHON), ("systemctl", SYSTEMCTL), ("cargo", CARGO)];
    let apt = [("apt-get", APT_GET), ("apt-cache", APT_CACHE)];
    let packages = [("docker.io/dockerd", DOCKERD), ("docker-compose/docker-compose", ""), ("python3-pip/pip", "")];
    [&there[..], &apt, &packages].concat()
}

/// The error lines on standard error, without log lines and progress.
fn errors(finished: &Finished) -> Vec<&str> {
    finished.stderr.lines().filter(|line| line.starts_with("xtask: ")).collect()
}

#[tokio::test]
async fn fresh_debian_gets_packages_and_engine_as_root() {
    let _starts = STARTS.lock().await;
    let machine = Machine::new(&fresh());
    let ended = machine.xtask(&["test"], None).await;
    if !geteuid().is_root() {
        assert!(ended.stderr.contains("sudo apt-get install docker.io docker-compose python3-pip"), "{}", ended.stderr);
        return;
    }
    let says =
        "lacks Docker's engine, docker-compose, pip: installing docker.io docker-compose python3-pip with apt-get";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    assert!(ended.stderr.contains("Docker's engine is down: starting it with `"), "{}", ended.stderr);
    let apt = machine.log("apt.log");
    assert!(apt[0].starts_with("update "), "{apt:?}");
    assert!(apt[1].starts_with("install ") && apt[1].ends_with(" docker.io docker-compose python3-pip"), "{apt:?}");
    assert_eq!((apt.len(), machine.log("up")), (2, vec!["up".to_owned()]));
    assert_eq!(machine.log("cargo.log"), ["fmt --all --check"], "then the tests begin: {}", ended.stderr);

    let again = machine.xtask(&["test"], None).await;
    assert_eq!((machine.log("apt.log").len(), machine.log("cargo.log").len()), (2, 2), "{}", again.stderr);
    assert!(!again.stderr.contains("lacks") && !again.stderr.contains("is down"), "{}", again.stderr);
}

#[tokio::test]
async fn separate_package_of_the_docker_client_is_named() {
    let mut programs = fresh();
    programs.retain(|(name, _)| *name != "docker");
    programs.push(("docker-cli/docker", DOCKER));
    let machine = Machine::new(&programs);
    let ended = machine.xtask(&["test", "process"], Some(NOBODY)).await;
    let cure = "Docker's client, Docker's engine, pip: install it with `sudo apt-get install docker-cli docker.io python3-pip`";
    assert_eq!((ended.code, errors(&ended).len()), (1, 1), "{}", ended.stderr);
    assert!(errors(&ended)[0].ends_with(cure), "{}", ended.stderr);
}

#[tokio::test]
async fn without_root_the_installing_line_is_printed() {
    let machine = Machine::new(&fresh());
    for arguments in [&["up"][..], &["images"], &["test"], &["test", "mesh"]] {
        let ended = machine.xtask(arguments, Some(NOBODY)).await;
        let line = "xtask: this machine lacks Docker's engine, docker-compose, pip: \
                    install it with `sudo apt-get install docker.io docker-compose python3-pip`\n";
        assert_eq!((ended.code, ended.stderr.as_str()), (1, line), "{arguments:?}");
    }
    assert_eq!((machine.log("apt.log").len(), machine.log("cargo.log").len()), (0, 0));
}

#[tokio::test]
async fn without_apt_the_debian_packages_are_named() {
    let mut programs = fresh();
    programs.retain(|(name, _)| !name.starts_with("apt-"));
    programs.push(("docker-compose", ""));
    programs.push(("dockerd", DOCKERD));
    let ended = Machine::new(&programs).xtask(&["up"], None).await;
    let line = "xtask: this machine lacks pip: install it; on Debian with `apt-get install python3-pip`\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (1, line));
}

#[tokio::test]
async fn engine_that_does_not_start_gives_the_reason() {
    let _starts = STARTS.lock().await;
    let fails = "echo no cgroups here >&2; exit 3";
    let programs = [("dockerd", fails), ("systemctl", fails), ("docker-compose", ""), ("pip", "")];
    let machine = Machine::new(&[&fresh(), &programs[..]].concat());
    let ended = machine.xtask(&["up"], Some(NOBODY)).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("xtask: Docker's engine is down: start it with `sudo "), "{}", ended.stderr);
    if geteuid().is_root() {
        let ended = machine.xtask(&["up"], None).await;
        assert_eq!((ended.code, errors(&ended).len()), (1, 1), "{}", ended.stderr);
        assert!(errors(&ended)[0].contains("no cgroups here"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn engine_without_access_gives_the_line_that_allows_it() {
    let denies = "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1";
    let programs = [("docker", denies), ("dockerd", DOCKERD), ("docker-compose", ""), ("pip", "")];
    let ended = Machine::new(&[&fresh(), &programs[..]].concat()).xtask(&["up"], Some(NOBODY)).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("xtask: you may not use Docker's engine: run `sudo usermod "), "{}", ended.stderr);
}

#[tokio::test]
async fn each_suite_needs_only_its_own_programs() {
    let machine = Machine::new(&[("python3", PYTHON), ("pip", ""), ("cargo", CARGO)]);
    let ended = machine.xtask(&["test", "unit"], Some(NOBODY)).await;
    assert_eq!(machine.log("cargo.log").len(), 1, "without Docker: {}", ended.stderr);
    let with_plugin = "[ $1 = version ] || [ $1 = compose ]";
    let machine = Machine::new(&[
        ("python3", PYTHON),
        ("pip", ""),
        ("docker", with_plugin),
        ("dockerd", DOCKERD),
        ("cargo", CARGO),
    ]);
    let ended = machine.xtask(&["test"], Some(NOBODY)).await;
    assert_eq!(machine.log("cargo.log").len(), 1, "{}", ended.stderr);
}

/// Docker's client on a machine with an engine. `manifest inspect` is what the registry answers, `pull` what pulling does, and `image` which
/// images Docker has.
fn docker(manifest: &str, pull: &str, image: &str) -> String {
    format!(
        "echo \"$*\" >> docker.log
        case $1 in
            version) echo 20;;
            manifest) {manifest};;
            pull) {pull};;
            image) {image};;
            run) echo 'Consul v1.21.4';;
            *) exit 1;;
        esac"
    )
}

/// How `xtask images` ended on a machine with this client of Docker. It ends at the latest at the first call of cargo.
async fn images(docker: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (Finished, Machine) {
    let programs = [("docker", docker), ("docker-compose", ""), ("pip", "")];
    let machine = Machine::new(&[&fresh(), &programs[..]].concat());
    let mut command = Command::new(machine.0.path().join("xtask"));
    command.arg("images").args(arguments).current_dir("/").env_clear().env("PATH", machine.0.path().join("bin"));
    command.env("CARGO", machine.0.path().join("bin/cargo")).env("MOTO_IMAGE", "registry.example/moto");
    let ended = run(command.envs(variables.iter().copied()), BOUND).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    (ended, machine)
}

/// What `xtask images` prints first on a machine whose Docker has no images, and the calls of Docker's client.
async fn first_line(manifest: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (String, Vec<String>) {
    let (ended, machine) = images(&docker(manifest, "", "exit 1"), arguments, variables).await;
    assert!(ended.stderr.contains("[1/"), "then the build begins: {}", ended.stderr);
    (ended.stdout.lines().next().unwrap_or_default().to_owned(), machine.log("docker.log"))
}

fn asks_a_registry(calls: &[String]) -> bool {
    calls.iter().any(|call| call.starts_with("manifest ") || call.starts_with("pull "))
}

const CONSUL: &str = "hashicorp/consul:1.21.4";
const ENVOY: &str = "envoyproxy/envoy:v1.34.1";

#[tokio::test]
async fn machine_that_can_pull_runs_the_vendors_images() {
    let (line, calls) = first_line("exit 0", &[], &[]).await;
    assert_eq!(line, format!("Consul and Envoy: the vendors' images {CONSUL} and {ENVOY}"));
    for image in [CONSUL, ENVOY] {
        assert!(calls.contains(&format!("pull --quiet {image}")), "{calls:?}");
    }
}

#[tokio::test]
async fn machine_that_cannot_pull_runs_stand_ins() {
    let stand_ins = |reason: &str| format!("Consul and Envoy: stand-ins from Debian's and PyPI's packages ({reason})");
    for image in [CONSUL, ENVOY] {
        let (line, calls) = first_line(&format!("[ $3 != {image} ]"), &[], &[]).await;
        assert_eq!(line, stand_ins(&format!("cannot pull {image}")));
        assert!(!calls.iter().any(|call| call.starts_with("pull ")), "{calls:?}");
    }
    // A registry that never answers.
    let (line, _) = first_line("exec /bin/sleep 600", &[], &[]).await;
    assert_eq!(line, stand_ins("no image registry answers within 10s"));
}

#[tokio::test]
async fn stand_ins_and_variables_ask_no_registry() {
    for (arguments, variables, reason) in [
        (&["--stand-ins"][..], &[][..], "--stand-ins"),
        (&[], &[("ENVOY_IMAGE", "registry.example/envoy")], "except for ENVOY_IMAGE"),
    ] {
        let (line, calls) = first_line("exit 0", arguments, variables).await;
        assert_eq!(line, format!("Consul and Envoy: stand-ins from Debian's and PyPI's packages ({reason})"));
        assert!(!asks_a_registry(&calls), "{calls:?}");
    }
}

#[tokio::test]
async fn vendors_images_that_docker_has_need_no_registry() {
    let (ended, machine) = images(&docker("exit 1", "exit 1", "exit 0"), &[], &[]).await;
    let calls = machine.log("docker.log");
    let line = format!("Consul and Envoy: the vendors' images {CONSUL} and {ENVOY}\n");
    assert!(ended.stdout.starts_with(&line), "{}", ended.stdout);
    assert!(!asks_a_registry(&calls), "{calls:?}");
}

#[tokio::test]
async fn image_that_the_registry_has_and_cannot_be_pulled_is_one_line() {
    let pull = "echo 'no space left on device' >&2; exit 1";
    let (ended, _) = images(&docker("exit 0", pull, "exit 1"), &[], &[]).await;
    let [line] = errors(&ended)[..] else { panic!("{}", ended.stderr) };
    let cure = format!("xtask: cannot pull {CONSUL}: try again, or run the command with --stand-ins: ");
    assert!(line.starts_with(&cure) && line.ends_with("no space left on device"), "{line}");
}
