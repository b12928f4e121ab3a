//! The images of production: both architectures are in each OCI layout, and the programs for arm64 run under qemu-user.
//!
//! `cargo xtask test arm64` builds the images first.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use local_mesh::release::layout;
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::process::{Finished, run};
use serde_json::{Value, json};
use tempfile::TempDir;

/// An emulated program is many times slower.
const BOUND: Duration = Duration::from_secs(120);

/// The images, each with its program.
const IMAGES: [(&str, &str); 7] = [
    ("mesh-init", "mesh-init"),
    ("envoy-entrypoint", "envoy-entrypoint"),
    ("health-sync", "health-sync"),
    ("app-entrypoint", "app-entrypoint"),
    ("acl-controller", "acl-controller"),
    ("sidecar-proxy", "usr/local/bin/envoy-entrypoint"),
    ("mesh-dataplane", "usr/local/bin/mesh-dataplane"),
];

/// `e_machine` of an ELF file.
const MACHINES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];

fn json_of(path: &Path) -> Value {
    let text = std::fs::read(path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask images --release --stand-ins`", path.display()));
    serde_json::from_slice(&text).unwrap()
}

fn blob(image: &str, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
    let path = layout(image).join("blobs").join(digest);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), descriptor["size"], "{}", path.display());
    path
}

/// The manifests of an image, by architecture.
fn manifests(image: &str) -> Vec<(String, Value)> {
    let index = json_of(&layout(image).join("index.json"));
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], env!("CARGO_PKG_VERSION"));
    let of_image = json_of(&blob(image, &index["manifests"][0]));
    let manifest = |entry: &Value| {
        assert_eq!(entry["platform"]["os"], "linux");
        (entry["platform"]["architecture"].as_str().unwrap().to_owned(), json_of(&blob(image, entry)))
    };
    of_image["manifests"].as_array().unwrap().iter().map(manifest).collect()
}

/// The files of an image, unpacked.
async fn files(image: &str, architecture: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (_, manifest) = manifests(image).into_iter().find(|(name, _)| name == architecture).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-same-owner", "--file"]).arg(blob(image, layer));
        let unpacked = run(tar.arg("--directory").arg(directory.path()), BOUND).await;
        assert_eq!(unpacked.code, 0, "{}", unpacked.stderr);
    }
    directory
}

/// Runs a program of an arm64 image.
async fn emulated(root: &Path, program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut command = Command::new("qemu-aarch64-static");
    command.arg("-L").arg(root).arg(root.join(program)).args(arguments);
    run(command.env_clear().env("PATH", "/usr/bin:/bin").envs(variables.iter().copied()), BOUND).await
}

fn machine(program: &Path) -> u16 {
    let mut head = [0; 20];
    std::fs::File::open(program).unwrap().read_exact(&mut head).unwrap();
    assert_eq!(head[..4], *b"\x7fELF", "{}", program.display());
    u16::from_le_bytes([head[18], head[19]])
}

#[tokio::test]
async fn each_image_has_the_programs_of_both_architectures() {
    for (image, program) in IMAGES {
        let manifests = manifests(image);
        let architectures: Vec<_> = manifests.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(architectures, ["amd64", "arm64"], "{image}");
        for ((architecture, of_elf), (_, manifest)) in MACHINES.into_iter().zip(&manifests) {
            let config = json_of(&blob(image, &manifest["config"]));
            assert_eq!(config["architecture"], architecture, "{image}");
            let entry = config["config"]["Entrypoint"][0].as_str().unwrap();
            assert_eq!(entry.trim_start_matches('/'), program);
            let files = files(image, architecture).await;
            assert_eq!(machine(&files.path().join(program)), of_elf, "{image} {architecture}");
        }
        let user =
            |(_, manifest): &(String, Value)| json_of(&blob(image, &manifest["config"]))["config"]["User"].clone();
        let users: Vec<_> = manifests.iter().map(user).collect();
        assert_eq!(users[0], users[1]);
    }
}

#[tokio::test]
async fn arm64_programs_print_their_version() {
    for (image, program) in IMAGES {
        let files = files(image, "arm64").await;
        let ended = emulated(files.path(), program, &["--version"], &[]).await;
        let name = program.rsplit('/').next().unwrap();
        assert_eq!(
            (ended.code, ended.stdout),
            (0, format!("{name} {}\n", env!("CARGO_PKG_VERSION"))),
            "{}",
            ended.stderr
        );
    }
    let files = files("sidecar-proxy", "arm64").await;
    let envoy = emulated(files.path(), "usr/local/bin/envoy", &["--version"], &[]).await;
    assert!(envoy.code == 0 && envoy.stdout.contains("/RELEASE/"), "{}{}", envoy.stdout, envoy.stderr);
}

#[tokio::test]
async fn arm64_mesh_init_registers_a_task() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", json!([]));
    let volume = tempfile::tempdir().unwrap();
    let document = json!({ "bootstrapDir": volume.path(), "service": { "port": 8080 } }).to_string();
    let files = files("mesh-init", "arm64").await;
    let variables = [
        ("CONSUL_HTTP_ADDR", agent.http.as_str()),
        ("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri),
        ("CONSUL_ECS_CONFIG_JSON", &document),
    ];
    let ended = emulated(files.path(), "mesh-init", &[], &variables).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let proxy = agent.call("GET", "/v1/agent/service/shop-f1a2-sidecar-proxy", &Value::Null).await;
    assert_eq!(proxy["Service"], "shop-sidecar-proxy");
    assert!(volume.path().join("envoy-bootstrap.json").exists());
}
