//! AWS's own client accepts what `mesh-task` prints, and `mesh-task` reports every problem of a wrong document.

use std::process::Command;
use std::time::Duration;

use mesh_tests::process::{Finished, run};
use mesh_tests::{binary, part, readme};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// Validates standard input as botocore does before it sends a RegisterTaskDefinition.
const VALIDATE: &str = "\
import json, sys
from botocore.session import get_session
from botocore.validate import ParamValidator
shape = get_session().get_service_model('ecs').operation_model('RegisterTaskDefinition').input_shape
print(ParamValidator().validate(json.load(open(sys.argv[1])), shape).generate_report())
";

async fn mesh_task(arguments: &[&str], directory: &std::path::Path) -> Finished {
    run(Command::new(binary("mesh-task")).env_clear().args(arguments).current_dir(directory), BOUND).await
}

/// The problems that botocore finds in a task definition.
async fn objections(definition: &str, directory: &std::path::Path) -> String {
    std::fs::write(directory.join("definition.json"), definition).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", VALIDATE, "definition.json"]).current_dir(directory).env("PYTHONPATH", part("awscli"));
    let finished = run(&mut command, BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    finished.stdout.trim().to_owned()
}

/// A folder with these documents.
fn folder(documents: &[(&str, &Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, document) in documents {
        std::fs::write(folder.path().join(name), document.to_string()).unwrap();
    }
    folder
}

fn example(number: usize) -> Value {
    serde_json::from_str(&readme("mesh-task", "json", number)).unwrap()
}

#[tokio::test]
async fn botocore_accepts_the_rendered_definitions() {
    let (mut settings, mut task) = (example(0), example(1));
    let gateway = json!({ "retryJoin": ["consul.internal"], "registry": "registry.example",
        "gateway": { "kind": "mesh-gateway" } });
    let empty = json!({ "family": "gateway", "networkMode": "awsvpc", "containerDefinitions": [] });
    let login = json!({ "retryJoin": ["consul.internal"], "registry": "registry.example", "service": { "port": 8080 },
        "consulHTTPAddr": "https://consul.internal:8501", "consulLogin": { "enabled": true } });
    let agentless = json!({ "consulServers": { "hosts": "consul.internal" }, "registry": "registry.example",
        "service": { "port": 8080 }, "shutdownDelay": "5s" });
    let plain = task.clone();
    // This task gets every addition that mesh-task can make.
    settings["logLevel"] = json!("DEBUG");
    settings["logConfiguration"] = json!({ "logDriver": "awsfirelens", "options": { "Name": "stdout" } });
    let router = json!({ "name": "log-router", "image": "registry.example/fluent-bit:3", "essential": true,
        "firelensConfiguration": { "type": "fluentbit" } });
    task["containerDefinitions"].as_array_mut().unwrap().push(router);
    for (settings, task) in [(&settings, &task), (&gateway, &empty), (&login, &plain), (&agentless, &plain)] {
        let folder = folder(&[("mesh.json", settings), ("task.json", task)]);
        let rendered = mesh_task(&["render", "--settings", "mesh.json", "task.json"], folder.path()).await;
        assert_eq!(rendered.code, 0, "{}", rendered.stderr);
        assert_eq!(objections(&rendered.stdout, folder.path()).await, "");

        std::fs::write(folder.path().join("rendered.json"), &rendered.stdout).unwrap();
        let again = mesh_task(&["render", "--settings", "mesh.json", "rendered.json"], folder.path()).await;
        assert_eq!((again.code, &again.stdout), (0, &rendered.stdout), "{}", again.stderr);
        let same = ["render", "--settings", "mesh.json", "task.json", "--check", "rendered.json"];
        let checked = mesh_task(&same, folder.path()).await;
        assert_eq!((checked.code, checked.stdout.as_str()), (0, ""));
        let other = ["render", "--settings", "mesh.json", "task.json", "--check", "task.json"];
        let checked = mesh_task(&other, folder.path()).await;
        assert_eq!(checked.code, 1);
        let proxy = if settings == &agentless { "dataplane" } else { "sidecar-proxy" };
        let missing = format!("containerDefinitions[{proxy}]: not deployed\n");
        assert!(checked.stdout.contains(&missing), "{}", checked.stdout);
    }
    // botocore does find unknown fields and wrong types.
    let folder = folder(&[]);
    let wrong = json!({ "family": 1, "containerDefinitions": [{ "ofTomorrow": 1 }] }).to_string();
    let objections = objections(&wrong, folder.path()).await;
    assert!(objections.contains("family") && objections.contains("\"ofTomorrow\""));
}

#[tokio::test]
async fn each_problem_is_one_line_with_its_file() {
    let settings = json!({ "service": { "port": 8080 }, "retryJoin": ["consul.internal"] });
    let task = json!({ "family": "shop", "networkMode": "host", "containerDefinitions": [{ "name": "mesh-init" }] });
    let folder = folder(&[("mesh.json", &settings), ("task.json", &task)]);
    for command in ["render", "policy"] {
        let refused = mesh_task(&[command, "--settings", "mesh.json", "task.json"], folder.path()).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
        let begins: Vec<_> = refused.stderr.lines().map(|line| line.split(": ").nth(2).unwrap_or_default()).collect();
        let paths = [
            "images.meshInit",
            "images.sidecarProxy",
            "images.healthSync",
            "networkMode",
            "containerDefinitions[0].name",
        ];
        assert_eq!(begins, paths, "{}", refused.stderr);
        assert!(refused.stderr.starts_with("error: mesh.json: ") && refused.stderr.contains("\nerror: task.json: "));
    }
    std::fs::write(folder.path().join("task.json"), "{ \"family\": 5ec3e7").unwrap();
    let refused = mesh_task(&["render", "--settings", "mesh.json", "task.json"], folder.path()).await;
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1));
    assert!(refused.stderr.starts_with("mesh-task: task.json is not JSON: "), "{}", refused.stderr);
    let missing = mesh_task(&["render", "--settings", "mesh.json", "nowhere.json"], folder.path()).await;
    assert_eq!((missing.code, missing.stderr.lines().count()), (1, 1));
    assert!(missing.stderr.starts_with("mesh-task: cannot read nowhere.json: "), "{}", missing.stderr);
    assert_eq!(mesh_task(&["render"], folder.path()).await.code, 2);
}
