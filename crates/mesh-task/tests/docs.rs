//! The schema in `docs/` is that of the types, and the README's example is what comes out.

use std::path::Path;

use mesh_task::{render, schema};
use serde_json::Value;

#[test]
fn the_schema_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mesh-task.schema.json");
    let made = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "docs/mesh-task.schema.json is not what the code says: UPDATE_DOCS=1 cargo test -p mesh-config -p mesh-task"
    );
}

#[test]
fn the_example_of_the_readme_is_what_comes_out() {
    let readme = include_str!("../README.md");
    let blocks: Vec<Value> = readme
        .split("```json\n")
        .skip(1)
        .map(|rest| serde_json::from_str(rest.split("```").next().unwrap()).unwrap())
        .collect();
    let [settings, task, app, proxy] = &blocks[..] else { panic!("{} blocks of JSON", blocks.len()) };
    let rendered = render(settings, task).unwrap();
    let containers = rendered.definition["containerDefinitions"].as_array().unwrap();
    assert_eq!(&containers[0], app);
    assert_eq!(containers.iter().find(|container| container["name"] == "sidecar-proxy"), Some(proxy));
}
