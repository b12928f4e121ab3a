//! What `cargo xtask` says when it cannot do its work.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use mesh_tests::process::run;
use mesh_tests::{binary, workspace};

const BOUND: Duration = Duration::from_secs(60);

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("xtask"));
    command.args(arguments).current_dir(workspace());
    command
}

#[tokio::test]
async fn without_docker_each_command_gives_one_line() {
    for arguments in [
        &["up"][..],
        &["down"],
        &["images"],
        &["get", "web", "http://127.0.0.1/"],
        &["stop", "web"],
        &["start", "web"],
        &["demo", "shutdown"],
        &["demo", "rolling"],
    ] {
        let ended = run(xtask(arguments).env("DOCKER_HOST", "unix:///nonexistent/docker.sock"), BOUND).await;
        assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with("xtask: Docker is not running or may not be used: start it"),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn port_in_use_is_named_before_any_build() {
    let _taken = TcpListener::bind("127.0.0.1:9090").expect("port 9090 is free; `cargo xtask down` frees it");
    let ended = run(&mut xtask(&["up"]), BOUND).await;
    assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("xtask: port 9090 of 127.0.0.1 is taken: "), "{}", ended.stderr);
}

#[tokio::test]
async fn wrong_command_line_gives_one_line_and_exit_code_2() {
    for arguments in [&[][..], &["nope"], &["get", "web"], &["test", "nope"]] {
        let ended = run(&mut xtask(arguments), BOUND).await;
        assert_eq!((ended.code, ended.stderr.lines().count()), (2, 1), "{arguments:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn workspace_has_one_tls_provider() {
    // With two of them rustls panics at run time.
    let packages = packages(&["--workspace", "--edges", "all"]).await;
    assert!(packages.contains("ring"));
    assert!(!packages.contains("aws-lc-rs"));
}

#[tokio::test]
async fn entry_points_build_neither_tls_nor_consul_api() {
    for entry_point in ["app-entrypoint", "envoy-entrypoint"] {
        let packages = packages(&["--package", entry_point, "--edges", "normal"]).await;
        assert!(packages.contains("sidecar-kit"));
        for package in ["rustls", "consul-api", "consul-grpc", "tonic"] {
            assert!(!packages.contains(package), "{entry_point}: {package}");
        }
    }
}

/// The names of the packages that `cargo tree` shows.
async fn packages(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut tree = Command::new(cargo);
    let tree = tree.args(["tree", "--prefix", "none"]).args(arguments).current_dir(workspace());
    let tree = run(tree, BOUND).await;
    assert_eq!(tree.code, 0, "{}", tree.stderr);
    tree.stdout.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_ships_depends_on_no_crate_of_the_local_mesh() {
    let local =
        ["local-mesh", "ecs-local", "xds-bridge", "demo-app", "mesh-setup", "mesh-probe", "xtask", "mesh-tests"];
    let shipped = [
        "acl-controller",
        "app-entrypoint",
        "envoy-entrypoint",
        "health-sync",
        "mesh-dataplane",
        "mesh-init",
        "mesh-task",
    ];
    for program in shipped {
        let packages = packages(&["--package", program, "--edges", "normal"]).await;
        assert!(packages.contains("sidecar-kit"), "{program}");
        for package in local {
            assert!(!packages.contains(package), "{program}: {package}");
        }
    }
}

#[tokio::test]
async fn consul_libraries_know_neither_ecs_nor_each_other() {
    let directly = async |package: &str| packages(&["--package", package, "--edges", "normal"]).await;
    for (package, other) in [("consul-api", "consul-grpc"), ("consul-grpc", "consul-api")] {
        let packages = directly(package).await;
        for above in [other, "consul-login", "ecs-meta", "mesh-config"] {
            assert!(!packages.contains(above), "{package}: {above}");
        }
    }
    let login = directly("consul-login").await;
    assert!(login.contains("consul-api") && login.contains("aws-sigv4") && !login.contains("mesh-config"));
    // Only the feature `grpc` needs gRPC.
    assert!(!login.contains("tonic"));
    // mesh-init and health-sync log in by HTTP. Only acl-controller has AWS's SDK.
    for program in ["mesh-init", "health-sync"] {
        let packages = directly(program).await;
        assert!(packages.contains("mesh-access") && !packages.contains("tonic") && !packages.contains("aws-config"));
    }
}

#[tokio::test]
async fn mesh_config_has_no_http_client() {
    let packages = packages(&["--package", "mesh-config", "--edges", "normal"]).await;
    assert!(packages.contains("consul-types"));
    for package in ["hyper", "rustls", "tokio", "consul-api", "sidecar-kit"] {
        assert!(!packages.contains(package), "{package}");
    }
}
