//! The CloudFormation templates and the task definitions in plain JSON.

use std::fs;
use std::process::Command;

use mesh_tests::moto::Moto;
use mesh_tests::{part, workspace};
use serde_json::{Value, json};

use super::{mesh_task, output, parsed, with_documents_read};

/// The names of the mesh tasks in `deploy/examples`.
const TASKS: [&str; 4] = ["api", "ingress-gateway", "mesh-gateway", "web"];

/// Prints a template as JSON, with `!Ref` and the like in their long form.
const AS_JSON: &str =
    "import json, sys; from cfnlint.decode import cfn_yaml; print(json.dumps(cfn_yaml.load(sys.argv[1])))";

fn example(name: &str) -> Value {
    parsed(&fs::read_to_string(workspace().join("deploy/examples").join(name)).unwrap())
}

async fn rendered(name: &str) -> Value {
    mesh_task("render", &example(&format!("{name}.mesh.json")), &example(&format!("{name}.json"))).await
}

fn templates() -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(workspace().join("deploy/cloudformation")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "yml")).collect()
}

fn with_cfn_lint() -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", part("cfn-lint"));
    python
}

#[tokio::test]
async fn the_aws_cli_registers_every_example_at_moto() {
    let moto = Moto::start().await;
    let ecs = async |command: &str, input: Value| {
        let ended = moto.aws(&["ecs", command, "--cli-input-json", &input.to_string()]).await;
        assert_eq!(ended.code, 0, "{command} {input}: {}", ended.stderr);
        parsed(&ended.stdout)
    };
    for name in TASKS {
        let registered = ecs("register-task-definition", rendered(name).await).await;
        let containers = registered["taskDefinition"]["containerDefinitions"].as_array().unwrap().clone();
        assert!(containers.iter().any(|container| container["name"] == "sidecar-proxy"), "{name}: {containers:?}");
    }
    let controller = ecs("register-task-definition", example("acl-controller.json")).await;
    assert_eq!(controller["taskDefinition"]["family"], "acl-controller");

    let mut service = example("web.service.json");
    // moto looks these up.
    let subnets = parsed(&moto.aws(&["ec2", "describe-subnets"]).await.stdout);
    let groups = parsed(&moto.aws(&["ec2", "describe-security-groups"]).await.stdout);
    let network = &mut service["networkConfiguration"]["awsvpcConfiguration"];
    network["subnets"] = json!([subnets["Subnets"][0]["SubnetId"]]);
    network["securityGroups"] = json!([groups["SecurityGroups"][0]["GroupId"]]);
    ecs("create-cluster", json!({ "clusterName": service["cluster"] })).await;
    let created = ecs("create-service", service).await["service"].take();
    let balanced = &created["loadBalancers"][0];
    assert_eq!((&balanced["containerName"], &balanced["containerPort"]), (&json!("app"), &json!(9090)));
    assert_eq!(created["propagateTags"], "TASK_DEFINITION");
}

#[tokio::test]
async fn the_cloudformation_templates_pass_cfn_lint() {
    let templates = templates();
    assert_eq!(templates.len(), 2, "{templates:?}");
    let program = part("cfn-lint").join("bin/cfn-lint");
    let said =
        output(with_cfn_lint().arg(program).args(["--non-zero-exit-code", "informational"]).args(templates)).await;
    assert_eq!(said, "");
}

/// A value of a template with its parameters and resources replaced, and names as the API spells them: `Name` is `name`.
fn resolved(value: &Value, known: &Value) -> Value {
    let replaced = |name: &str| known[name].as_str().unwrap_or_else(|| panic!("{name} is not known")).to_owned();
    match value {
        Value::Array(values) => values.iter().map(|value| resolved(value, known)).collect(),
        Value::Object(fields) => match fields.iter().next() {
            Some((key, name)) if key == "Ref" => replaced(name.as_str().unwrap()).into(),
            Some((key, text)) if key == "Fn::Sub" => {
                let mut parts = text.as_str().unwrap().split("${");
                let first = parts.next().unwrap_or_default().to_owned();
                let rest = parts.map(|part| part.split_once('}').unwrap());
                rest.fold(first, |text, (name, after)| text + &replaced(name) + after).into()
            }
            _ => {
                let spelled = |name: &str| name[..1].to_lowercase() + &name[1..];
                Value::Object(fields.iter().map(|(name, value)| (spelled(name), resolved(value, known))).collect())
            }
        },
        other => other.clone(),
    }
}

#[tokio::test]
async fn cloudformation_web_equals_what_mesh_task_renders() {
    let path = workspace().join("deploy/cloudformation/web.yml");
    let template = parsed(&output(with_cfn_lint().args(["-c", AS_JSON]).arg(path)).await);
    let settings = example("web.mesh.json");
    let secrets = &settings["secrets"];
    let known = json!({
        "AWS::Region": "eu-west-1", "Registry": settings["registry"], "RetryJoin": settings["retryJoin"][0],
        "Datacenter": settings["datacenter"], "LogGroup": "/ecs/web", "ServiceToken": secrets["serviceToken"],
        "ClientTokenSecretArn": secrets["clientToken"], "GossipKeySecretArn": secrets["gossipKey"],
        "CaSecretArn": secrets["ca"],
    });
    let of = &template["Resources"]["TaskDefinition"]["Properties"];
    let rendered = rendered("web").await;
    let containers = with_documents_read(resolved(&of["ContainerDefinitions"], &known));
    let expected = with_documents_read(rendered["containerDefinitions"].clone());
    for (container, expected) in containers.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
        assert_eq!(container, expected, "in the template on the left, rendered on the right");
    }
    assert_eq!(containers.as_array().unwrap().len(), expected.as_array().unwrap().len());
    for (name, field) in [("Volumes", "volumes"), ("Tags", "tags"), ("Cpu", "cpu"), ("Memory", "memory")] {
        assert_eq!(resolved(&of[name], &known), rendered[field], "{name}");
    }
}
