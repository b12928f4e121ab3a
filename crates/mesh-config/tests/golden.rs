//! The documents in `golden/`, each with its registrations. `UPDATE_GOLDEN=1 cargo test -p mesh-config` writes the registrations again.

use std::path::Path;

use ecs_meta::Task;
use mesh_config::{CheckTtl, Config, Role};
use serde_json::{Value, json};

#[test]
fn golden_documents_give_their_registrations() {
    let arn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";
    let task: Task =
        serde_json::from_value(json!({ "Cluster": "blue", "Family": "corner-shop", "TaskARN": arn })).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ["checks", "gateway", "nulls", "service"] {
        let document = std::fs::read_to_string(golden.join(format!("{name}.document.json"))).unwrap();
        let config = Config::parse(&document).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config.warnings, [""; 0], "{name}");
        let role = Role::of(&config);
        let made = role.registrations(&config, &role.names(&task), &task, CheckTtl::default());
        let made = serde_json::to_value(made).unwrap();
        let path = golden.join(format!("{name}.registrations.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{made:#}\n")).unwrap();
        }
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(made, expected, "{name}");
    }
}
