//! The documents in `golden/`, each with its registrations. `UPDATE_GOLDEN=1 cargo test -p mesh-config` writes the registrations again.

use std::path::{Path, PathBuf};

use ecs_meta::Task;
use mesh_config::{CheckTtl, Config, Mode, Role, catalog};
use serde_json::{Value, json};

fn task() -> Task {
    let arn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";
    let networks = json!([{ "IPv4Addresses": ["10.20.30.41"] }]);
    serde_json::from_value(json!({
        "Cluster": "blue", "Family": "corner-shop", "TaskARN": arn, "AvailabilityZone": "eu-north-1b",
        "Containers": [{ "Name": "app", "Networks": networks }],
    }))
    .unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn assert_golden(name: &str, made: &Value) {
    let path = golden(&format!("{name}.registrations.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{made:#}\n")).unwrap();
    }
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(*made, expected, "{name}");
}

fn parsed(name: &str) -> Config {
    let document = std::fs::read_to_string(golden(&format!("{name}.document.json"))).unwrap();
    let config = Config::parse(&document).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(config.warnings, [""; 0], "{name}");
    config
}

#[test]
fn agentless_documents_give_their_registrations_in_the_catalog() {
    for name in ["agentless-gateway", "agentless-service"] {
        let config = parsed(name);
        assert_eq!(config.mode(), Mode::Agentless, "{name}");
        let (role, task) = (Role::of(&config), task());
        let node = task.cluster_arn().unwrap().to_string();
        let mut made =
            serde_json::to_value(catalog::registrations(role, &config, &catalog::names(role, &task), &task, &node))
                .unwrap();
        // The version changes with each release.
        for registration in made.as_array_mut().unwrap() {
            let version = registration["Service"]["Meta"].as_object_mut().unwrap().remove("ecs-mesh-version");
            assert_eq!(version.unwrap(), env!("CARGO_PKG_VERSION"));
        }
        assert_golden(name, &made);
    }
}

#[test]
fn golden_documents_give_their_registrations() {
    let arn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";
    let task: Task =
        serde_json::from_value(json!({ "Cluster": "blue", "Family": "corner-shop", "TaskARN": arn })).unwrap();
    for name in ["checks", "gateway", "nulls", "service"] {
        let config = parsed(name);
        let role = Role::of(&config);
        let made = role.registrations(&config, &role.names(&task), &task, CheckTtl::default());
        assert_golden(name, &serde_json::to_value(made).unwrap());
    }
}
