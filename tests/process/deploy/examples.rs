//! The CloudFormation templates and the task definitions in plain JSON.

use std::fs;
use std::process::Command;

use mesh_tests::moto::Moto;
use mesh_tests::{part, readme, workspace};
use serde_json::{Value, json};

use super::{mesh_task, output, parsed, with_documents_read};

/// The mesh tasks in `deploy/examples`: the name of the task definition, which settings, and the container with Envoy.
const TASKS: [(&str, &str, &str); 6] = [
    ("api", "mesh", "sidecar-proxy"),
    ("ingress-gateway", "mesh", "sidecar-proxy"),
    ("mesh-gateway", "mesh", "sidecar-proxy"),
    ("api", "agentless", "dataplane"),
    ("web", "agentless", "dataplane"),
    ("web", "mesh", "sidecar-proxy"),
];

/// Prints a template as JSON, with `!Ref` and the like in their long form.
const AS_JSON: &str =
    "import json, sys; from cfnlint.decode import cfn_yaml; print(json.dumps(cfn_yaml.load(sys.argv[1])))";

fn example(name: &str) -> Value {
    parsed(&fs::read_to_string(workspace().join("deploy/examples").join(name)).unwrap())
}

/// The settings beside a task definition: with an agent, or without one.
fn settings(name: &str, mode: &str) -> Value {
    example(&format!("{name}.{mode}.json"))
}

async fn rendered(name: &str, mode: &str) -> Value {
    mesh_task("render", &settings(name, mode), &example(&format!("{name}.json"))).await
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
    for (name, mode, proxy) in TASKS {
        let registered = ecs("register-task-definition", rendered(name, mode).await).await;
        let containers = registered["taskDefinition"]["containerDefinitions"].as_array().unwrap().clone();
        assert!(containers.iter().any(|container| container["name"] == proxy), "{name}, {mode}: {containers:?}");
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
    assert_eq!(templates.len(), 3, "{templates:?}");
    let program = part("cfn-lint").join("bin/cfn-lint");
    let said =
        output(with_cfn_lint().arg(program).args(["--non-zero-exit-code", "informational"]).args(templates)).await;
    assert_eq!(said, "");
}

/// A value of a template with its parameters, resources and conditions replaced, and names as the API spells them: `Name` is `name`.
fn resolved(value: &Value, known: &Value) -> Value {
    let replaced = |name: &str| known[name].as_str().unwrap_or_else(|| panic!("{name} is not known")).to_owned();
    match value {
        Value::Array(values) => {
            values.iter().map(|value| resolved(value, known)).filter(|value| !value.is_null()).collect()
        }
        Value::Object(fields) => match fields.iter().next() {
            Some((key, name)) if key == "Ref" && name == "AWS::NoValue" => Value::Null,
            Some((key, name)) if key == "Ref" => replaced(name.as_str().unwrap()).into(),
            Some((key, path)) if key == "Fn::GetAtt" => {
                replaced(&format!("{}.{}", path[0].as_str().unwrap(), path[1].as_str().unwrap())).into()
            }
            Some((key, choice)) if key == "Fn::If" => {
                let chosen = if known[choice[0].as_str().unwrap()] == true { 1 } else { 2 };
                resolved(&choice[chosen], known)
            }
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

/// A template as JSON.
async fn template(name: &str) -> Value {
    let path = workspace().join("deploy/cloudformation").join(name);
    parsed(&output(with_cfn_lint().args(["-c", AS_JSON]).arg(path)).await)
}

#[tokio::test]
async fn the_cloudformation_services_equal_what_mesh_task_renders() {
    for (file, name, mode) in [("web.yml", "web", "mesh"), ("api-agentless.yml", "api", "agentless")] {
        let resources = template(file).await["Resources"].take();
        let settings = settings(name, mode);
        let secrets = &settings["secrets"];
        let known = json!({
            "AWS::Region": "eu-west-1", "Registry": settings["registry"], "RetryJoin": settings["retryJoin"][0],
            "ConsulServers": settings["consulServers"]["hosts"], "Datacenter": settings["datacenter"],
            "LogGroup": format!("/ecs/{name}"), "ServiceToken": secrets["serviceToken"],
            "ClientTokenSecretArn": secrets["clientToken"], "GossipKeySecretArn": secrets["gossipKey"],
            "CaSecretArn": secrets["ca"],
        });
        let of = &resources["TaskDefinition"]["Properties"];
        let rendered = rendered(name, mode).await;
        let containers = with_documents_read(resolved(&of["ContainerDefinitions"], &known));
        let expected = with_documents_read(rendered["containerDefinitions"].clone());
        for (container, expected) in containers.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
            assert_eq!(container, expected, "{file}: in the template on the left, rendered on the right");
        }
        assert_eq!(containers.as_array().unwrap().len(), expected.as_array().unwrap().len(), "{file}");
        for (name, field) in [("Volumes", "volumes"), ("Tags", "tags"), ("Cpu", "cpu"), ("Memory", "memory")] {
            assert_eq!(resolved(&of[name], &known), rendered[field], "{file}: {name}");
        }
    }
}

#[tokio::test]
async fn the_roles_of_a_login_have_the_tag_and_the_least_rights() {
    let known = json!({ "TaskRole": "api-task", "TaskRole.Arn": example("api.json")["taskRoleArn"], "CaSecretArn": "the CA",
        "LogGroup.Arn": "the logs", "AWS::Partition": "aws", "AWS::AccountId": "111122223333", "IamRolePath": "/consul-ecs/" });
    let resources = template("api-agentless.yml").await["Resources"].take();
    let of = |resource: &str| resolved(&resources[resource]["Properties"], &known);
    let printed = mesh_task("policy", &settings("api", "agentless"), &example("api.json")).await;
    let printed = &printed["taskRole"]["Statement"];
    let statement = &of("TaskRolePolicy")["policyDocument"]["statement"];
    assert_eq!(statement.as_array().unwrap().len(), printed.as_array().unwrap().len());
    assert_eq!(json!([statement[0]["action"]]), printed[0]["Action"]);
    assert_eq!(json!([statement[0]["resource"]]), printed[0]["Resource"]);
    assert_eq!(of("TaskRole")["tags"], json!([{ "key": "consul.hashicorp.com.service-name", "value": "api" }]));
    let secrets = &of("ExecutionRole")["policies"][0]["policyDocument"]["statement"][0];
    assert_eq!(secrets, &json!({ "effect": "Allow", "action": "secretsmanager:GetSecretValue", "resource": "the CA" }));
}

#[tokio::test]
async fn the_controller_of_cloudformation_has_the_rights_that_its_mode_needs() {
    let resources = template("acl-controller.yml").await["Resources"].take();
    let readme = resolved(&parsed(&readme("acl-controller", "json", 0)), &json!({}));
    for (has_secrets, has_auth_method) in [(true, false), (false, true)] {
        let known = json!({ "AWS::Partition": "aws", "AWS::Region": "REGION", "AWS::AccountId": "ACCOUNT", "Cluster": "CLUSTER",
            "SecretNamePrefix": "PREFIX", "HasSecrets": has_secrets, "HasAuthMethod": has_auth_method, "Agentless": "true",
            "ConsulHttpAddr": "https://consul.internal:8501", "AuthMethod": "iam-ecs-service-token",
            "IamRolePath": "/consul-ecs/" });
        let policy = resolved(&resources["TaskRole"]["Properties"]["Policies"][0]["PolicyDocument"], &known);
        let of_secrets = |statement: &&Value| statement["action"].to_string().contains("secretsmanager:");
        let expected = readme["statement"].as_array().unwrap().iter();
        let expected: Vec<_> = expected.filter(|statement| has_secrets || !of_secrets(statement)).cloned().collect();
        assert_eq!(policy["statement"], json!(expected));

        let container = &resources["TaskDefinition"]["Properties"]["ContainerDefinitions"][0];
        let environment = resolved(&container["Environment"], &known);
        let names: Vec<_> = environment.as_array().unwrap().iter().map(|variable| variable["name"].clone()).collect();
        let is_set = |name: &str| names.contains(&json!(format!("ACL_CONTROLLER_{name}")));
        assert_eq!(is_set("SECRET_NAME_PREFIX"), has_secrets, "{names:?}");
        assert_eq!((is_set("AUTH_METHOD"), is_set("IAM_ROLE_PATH")), (has_auth_method, has_auth_method), "{names:?}");
        assert!(is_set("AGENTLESS"), "{names:?}");
    }
}
