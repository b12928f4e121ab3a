//! App Mesh's resources as config entries: AWS's own client accepts the example, and a real Consul accepts the entries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::consul::{Agent, version};
use mesh_tests::process::run;
use mesh_tests::{binary, part, workspace};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// Checks each resource of a file as botocore does before it sends a request, and prints the problems.
const VALIDATE: &str = "\
import json, sys
from botocore.session import get_session
from botocore.validate import ParamValidator
model = get_session().get_service_model('appmesh')
kinds = ['GatewayRoute', 'Route', 'VirtualNode', 'VirtualService', 'VirtualRouter', 'VirtualGateway', 'Mesh']
for resource in json.load(open(sys.argv[1])):
    kind = next(kind for kind in kinds if kind[0].lower() + kind[1:] + 'Name' in resource)
    shape = model.operation_model('Create' + kind).input_shape
    report = ParamValidator().validate(resource, shape)
    if report.has_errors():
        print(kind, report.generate_report())
";

fn example() -> PathBuf {
    workspace().join("docs/examples/app-mesh/shop.json")
}

async fn objections(resources: &Path) -> String {
    let mut command = Command::new("python3");
    command.args(["-c", VALIDATE]).arg(resources).env("PYTHONPATH", part("awscli"));
    let finished = run(&mut command, BOUND).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    finished.stdout
}

/// The output of `mesh-task app-mesh` for a file.
async fn entries(resources: &Path) -> Vec<Value> {
    let mut command = Command::new(binary("mesh-task"));
    let converted = run(command.env_clear().arg("app-mesh").arg(resources), BOUND).await;
    assert_eq!(converted.code, 0, "{}", converted.stderr);
    serde_json::from_str(&converted.stdout).unwrap()
}

async fn write(agent: &Agent, entries: &[Value]) {
    for entry in entries {
        assert_eq!(agent.call("PUT", "/v1/config", entry).await, true, "{entry:#}");
    }
}

#[tokio::test]
async fn botocore_accepts_the_example() {
    assert_eq!(objections(&example()).await, "");
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.json");
    let node = json!({ "meshName": "shop", "virtualNodeName": "a", "spec": { "ofTomorrow": 1 } });
    std::fs::write(&wrong, json!([node]).to_string()).unwrap();
    assert!(objections(&wrong).await.contains("ofTomorrow"), "botocore objects to what it doesn't know");
}

#[tokio::test]
async fn consul_routes_as_app_mesh_did() {
    let agent = Agent::start().await;
    let mut entries = entries(&example()).await;
    if !version().at_least(1, 9) {
        // Consul before 1.9 has no such entries. The test below needs a later Consul.
        entries.retain(|entry| entry["Kind"] != "service-intentions");
    }
    write(&agent, &entries).await;

    let answer = agent.call("GET", "/v1/discovery-chain/reviews-shop-local", &Value::Null).await;
    let chain = &answer["Chain"];
    assert_eq!(chain["Protocol"], "http");
    let start = chain["StartNode"].as_str().unwrap();
    let routes = chain["Nodes"][start]["Routes"].as_array().unwrap();
    // Consul adds a last route of its own, for requests that no other route matches.
    assert_eq!(routes.len(), 3, "{routes:#?}");
    let testers = &routes[0]["Definition"];
    assert_eq!(testers["Match"]["HTTP"]["Header"], json!([{ "Name": "x-tester", "Exact": "yes" }]));
    assert_eq!(testers["Destination"]["Service"], "reviews-v2");
    let canary = &routes[1]["Definition"]["Destination"];
    assert_eq!((&canary["RequestTimeout"], &canary["NumRetries"]), (&json!("7.5s"), &json!(3)));
    assert_eq!(canary["RetryOnConnectFailure"], true);
    assert_eq!(canary["RetryOnStatusCodes"], json!([409, 502, 503, 504]));
    let splits = &chain["Nodes"][routes[1]["NextNode"].as_str().unwrap()]["Splits"];
    let of_split = |split: &Value| {
        let resolver = split["NextNode"].as_str().unwrap();
        let target = chain["Nodes"][resolver]["Resolver"]["Target"].as_str().unwrap();
        (split["Weight"].as_f64().unwrap(), chain["Targets"][target]["Service"].as_str().unwrap().to_owned())
    };
    let splits: Vec<_> = splits.as_array().unwrap().iter().map(of_split).collect();
    assert_eq!(splits, [(90.0, "reviews-v1".to_owned()), (10.0, "reviews-v2".to_owned())]);

    let redirected = agent.call("GET", "/v1/discovery-chain/stock-shop-local", &Value::Null).await;
    let targets = redirected["Chain"]["Targets"].as_object().unwrap();
    let services: Vec<_> = targets.values().map(|target| target["Service"].as_str().unwrap()).collect();
    assert_eq!((services, &redirected["Chain"]["Protocol"]), (vec!["stock"], &json!("tcp")));
}

#[tokio::test]
async fn backends_become_intentions() {
    let agent = Agent::start().await;
    write(&agent, &entries(&example()).await).await;
    let allowed = async |source: &str, destination: &str| {
        let path = format!("/v1/connect/intentions/check?source={source}&destination={destination}");
        agent.call("GET", &path, &Value::Null).await["Allowed"].as_bool().unwrap()
    };
    let sources = async |service: &str| {
        let entry = agent.call("GET", &format!("/v1/config/service-intentions/{service}"), &Value::Null).await;
        let names =
            entry["Sources"].as_array().unwrap().iter().map(|source| source["Name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert!(allowed("web", "reviews-v1").await && allowed("web", "stock").await && allowed("edge", "web").await);
    assert_eq!(sources("reviews-v2").await, ["edge", "web"]);
    assert_eq!(sources("stock").await, ["web"]);
}

#[tokio::test]
async fn fields_of_later_consuls_are_accepted() {
    let agent = Agent::start().await;
    let mut resources: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(example()).unwrap()).unwrap();
    let listener =
        &mut resources.iter_mut().find(|one| one["virtualNodeName"] == "web").unwrap()["spec"]["listeners"][0];
    listener["connectionPool"] = json!({ "http": { "maxConnections": 100 } });
    listener["timeout"] = json!({ "http": { "perRequest": { "unit": "s", "value": 20 } } });
    let canary = &mut resources.iter_mut().find(|one| one["routeName"] == "canary").unwrap()["spec"]["httpRoute"];
    canary["retryPolicy"]["httpRetryEvents"] = json!(["stream-error"]);
    canary["timeout"]["idle"] = json!({ "unit": "s", "value": 90 });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.json");
    std::fs::write(&file, Value::from(resources).to_string()).unwrap();
    assert_eq!(objections(&file).await, "");
    write(&agent, &entries(&file).await).await;

    let web = agent.call("GET", "/v1/config/service-defaults/web", &Value::Null).await;
    assert_eq!((&web["MaxInboundConnections"], &web["LocalRequestTimeoutMs"]), (&json!(100), &json!(20_000)));
    let router = agent.call("GET", "/v1/config/service-router/reviews-shop-local", &Value::Null).await;
    let destination = &router["Routes"][1]["Destination"];
    assert_eq!((&destination["IdleTimeout"], &destination["RetryOn"]), (&json!("1m30s"), &json!(["refused-stream"])));
}
