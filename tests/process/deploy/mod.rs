//! The files in `deploy/`.

mod examples;
mod terraform;

use std::fs;
use std::process::Command;
use std::time::Duration;

use mesh_tests::binary;
use mesh_tests::process::run;
use serde_json::Value;

/// A plan needs some seconds of CPU time, and other tests use the CPUs at the same time.
const BOUND: Duration = Duration::from_secs(300);

/// A program's standard output; it must succeed.
async fn output(command: &mut Command) -> String {
    let ended = run(command, BOUND).await;
    assert_eq!(ended.code, 0, "{command:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What `mesh-task` prints for these documents.
async fn mesh_task(command: &str, settings: &Value, task: &Value) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.json"), settings.to_string()).unwrap();
    fs::write(folder.path().join("task.json"), task.to_string()).unwrap();
    let mut mesh_task = Command::new(binary("mesh-task"));
    mesh_task.env_clear().args([command, "--settings", "mesh.json", "task.json"]).current_dir(folder.path());
    parsed(&output(&mut mesh_task).await)
}

/// Containers with the document in their variables read as JSON: Terraform writes `<` as `\u003c`.
fn with_documents_read(mut containers: Value) -> Value {
    let all = containers.as_array_mut().unwrap().iter_mut();
    for variable in all.filter_map(|container| container.get_mut("environment")?.as_array_mut()).flatten() {
        if variable["name"] == "CONSUL_ECS_CONFIG_JSON" {
            variable["value"] = parsed(variable["value"].as_str().unwrap());
        }
    }
    containers
}
