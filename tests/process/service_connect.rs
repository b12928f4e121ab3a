//! Follows the guide docs/service-connect.md with its example.

use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::Agent;
use mesh_tests::process::run;
use mesh_tests::{binary, part, workspace};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// Checks the input of an operation of ECS as botocore does before it sends the request.
const VALIDATE: &str = "\
import json, sys
from botocore.session import get_session
from botocore.validate import ParamValidator
shape = get_session().get_service_model('ecs').operation_model(sys.argv[1]).input_shape
print(ParamValidator().validate(json.load(open(sys.argv[2])), shape).generate_report())
";

fn example(name: &str) -> Value {
    let path = workspace().join("docs/examples/service-connect").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

async fn assert_valid(operation: &str, file: &str) {
    let mut command = Command::new("python3");
    command.args(["-c", VALIDATE, operation, file]).env("PYTHONPATH", part("awscli"));
    let checked = run(command.current_dir(workspace().join("docs/examples/service-connect")), BOUND).await;
    assert_eq!((checked.code, checked.stdout.trim()), (0, ""), "{file}: {}", checked.stderr);
}

#[tokio::test]
async fn example_of_the_guide_becomes_a_mesh_task() {
    assert_valid("RegisterTaskDefinition", "task.json").await;
    assert_valid("CreateService", "service.json").await;
    let (task, service, settings) = (example("task.json"), example("service.json"), example("mesh.json"));
    let connect = &service["serviceConnectConfiguration"];
    let provided = &connect["services"][0];
    let mapping = &task["containerDefinitions"][0]["portMappings"][0];
    assert_eq!(mapping["name"], provided["portName"]);
    assert_eq!(settings["service"], json!({ "name": provided["discoveryName"], "port": mapping["containerPort"] }));
    assert_eq!(settings["logConfiguration"], connect["logConfiguration"]);
    let upstream = &settings["proxy"]["upstreams"][0];
    let alias = format!("http://{}:{}", upstream["destinationName"].as_str().unwrap(), upstream["localBindPort"]);
    assert_eq!(task["containerDefinitions"][0]["environment"][0]["value"], alias);

    let mut command = Command::new(binary("mesh-task"));
    let arguments = ["render", "--settings", "mesh.json", "task.json"];
    command.env_clear().args(arguments).current_dir(workspace().join("docs/examples/service-connect"));
    let rendered = run(&mut command, BOUND).await;
    assert_eq!(rendered.code, 0, "{}", rendered.stderr);
    let rendered: Value = serde_json::from_str(&rendered.stdout).unwrap();
    let app = &rendered["containerDefinitions"][0];
    assert_eq!(
        (&app["name"], &app["portMappings"][0]),
        (&json!("shop"), mapping),
        "Service Connect still finds its port"
    );

    let agent = Agent::start().await;
    let entries = example("entries.json");
    for entry in entries.as_array().unwrap() {
        assert_eq!(agent.call("PUT", "/v1/config", entry).await, true, "{entry:#}");
    }
    let answer = agent.call("GET", "/v1/discovery-chain/shop", &Value::Null).await;
    let chain = &answer["Chain"];
    assert_eq!(chain["Protocol"], mapping["appProtocol"]);
    let routes = &chain["Nodes"][chain["StartNode"].as_str().unwrap()]["Routes"];
    let timeout = format!("{}s", provided["timeout"]["perRequestTimeoutSeconds"]);
    assert_eq!(routes[0]["Definition"]["Destination"]["RequestTimeout"], timeout);
}
