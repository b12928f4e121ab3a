//! The schema in `docs/` and the README's example are up to date with the code.

use std::path::Path;

use mesh_task::{policy, render, schema};
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
fn the_readme_s_example_is_what_render_prints() {
    let blocks = json_blocks(include_str!("../README.md"));
    let [settings, task, app, proxy, agentless] = &blocks[..] else { panic!("{} blocks of JSON", blocks.len()) };
    let rendered = render(settings, task).unwrap();
    let containers = rendered.definition["containerDefinitions"].as_array().unwrap();
    assert_eq!(&containers[0], app);
    assert_eq!(containers.iter().find(|container| container["name"] == "sidecar-proxy"), Some(proxy));
    render(agentless, task).unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn the_guide_s_smallest_settings_need_its_policy() {
    let guide = json_blocks(include_str!("../../../docs/task-definition.md"));
    let [settings, expected] = &guide[..] else { panic!("{} blocks of JSON", guide.len()) };
    let task = &json_blocks(include_str!("../README.md"))[1];
    assert_eq!(&policy(settings, task).unwrap(), expected);
}

/// The blocks of JSON that begin a line.
fn json_blocks(page: &str) -> Vec<Value> {
    let blocks = page.split("\n```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap()).collect()
}
