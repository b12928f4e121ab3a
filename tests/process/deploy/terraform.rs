//! What the Terraform modules plan is what `mesh-task` renders.

use std::fs;
use std::path::Path;
use std::process::Command;

use mesh_tests::process::run;
use mesh_tests::{part, readme, workspace};
use serde_json::{Map, Value, json};

use super::{BOUND, mesh_task, output, parsed, with_documents_read};

const CLUSTER: &str = "arn:aws:ecs:eu-west-1:111122223333:cluster/blue";

fn secret(name: &str) -> String {
    format!("arn:aws:secretsmanager:eu-west-1:111122223333:secret:{name}-AbCdEf")
}

/// The same inputs for a module and for `mesh-task`.
struct Case {
    name: &'static str,
    module: &'static str,
    inputs: Value,
    settings: Value,
    task: Value,
}

impl Case {
    /// A service: the task's family, containers and launch types are the module's inputs too.
    fn service(name: &'static str, containers: Value, inputs: Value, settings: Value) -> Self {
        let mut case = Self { name, module: "mesh-task", inputs, settings, task: json!({}) };
        case.inputs["container_definitions"] = containers.clone();
        case.with_task(containers)
    }

    fn gateway(name: &'static str, inputs: Value, settings: Value) -> Self {
        let mut case = Self { name, module: "gateway-task", inputs, settings, task: json!({}) };
        case.inputs["ecs_cluster_arn"] = json!(CLUSTER);
        case.inputs["subnets"] = json!(["subnet-1"]);
        case.with_task(json!([]))
    }

    fn with_task(mut self, containers: Value) -> Self {
        let launch_types = self.inputs.get("requires_compatibilities").cloned();
        self.inputs["family"] = json!(self.name);
        self.task = json!({ "family": self.name, "networkMode": "awsvpc", "containerDefinitions": containers,
            "requiresCompatibilities": launch_types.unwrap_or_else(|| json!(["EC2", "FARGATE"])) });
        self
    }
}

fn cases() -> Vec<Case> {
    let app = json!({ "name": "app", "image": "registry.example/shop:7", "essential": true, "entryPoint": ["/shop"],
        "portMappings": [{ "containerPort": 8080, "name": "http", "appProtocol": "http" }],
        "healthCheck": { "command": ["CMD", "/shop", "healthy"] },
        "environment": [{ "name": "A", "value": "b" }], "command": null });
    let mut after_migration = app.clone();
    after_migration["stopTimeout"] = json!(60);
    after_migration["mountPoints"] = json!([{ "sourceVolume": "mine", "containerPath": "/m" }]);
    after_migration["dependsOn"] = json!([{ "containerName": "sidecar-proxy", "condition": "START" },
        { "containerName": "migrate", "condition": "SUCCESS" }]);
    let mut after_migration_of_dataplane = after_migration.clone();
    after_migration_of_dataplane["dependsOn"][0]["containerName"] = json!("dataplane");
    let agentless_images =
        json!({ "meshInit": "a/init:1", "meshDataplane": "a/dataplane:1", "healthSync": "a/sync:1" });
    let migrate = json!({ "name": "migrate", "image": "registry.example/migrate:1", "essential": false });
    let agent = json!({ "name": "agent", "image": "registry.example/agent:1", "entryPoint": [""], "command": ["run"],
        "logConfiguration": { "logDriver": "awsfirelens", "options": { "Name": "stdout" } } });
    let router = json!({ "name": "log-router", "image": "registry.example/fluent-bit:3", "essential": true,
        "healthCheck": { "command": ["CMD", "/healthy"] },
        "firelensConfiguration": { "type": "fluentbit", "options": { "enable-ecs-log-metadata": "true" } } });
    let wrapped = json!({ "name": "wrapped", "image": "registry.example/wrapped:1",
        "entryPoint": ["/app-entrypoint", "--shutdown-delay", "5s", "/wrapped"] });
    let all = json!([after_migration, migrate, agent, router, wrapped]);
    let logs = json!({ "logDriver": "awslogs", "options": { "awslogs-group": "/shop", "awslogs-region": "eu-west-1",
        "awslogs-stream-prefix": "shop", "awslogs-create-group": "true" } });
    let upstreams = json!([{ "destinationName": "stock", "localBindPort": 1234 },
        { "destinationName": "till", "localBindPort": 1235, "meshGateway": { "mode": "local" } }]);
    let options = json!({ "envoy_prometheus_bind_addr": "0.0.0.0:9102", "protocol": "http" });
    let images = json!({ "meshInit": "a/init:1", "sidecarProxy": "a/proxy:1", "healthSync": "a/sync:1",
        "appEntrypoint": "a/entry:1" });
    let mut with_consul = images.clone();
    with_consul["consul"] = json!("a/consul:1");
    let checks = json!([{ "name": "up", "http": "http://127.0.0.1:8080/up", "interval": "10s" }]);
    let registry = "registry.example/ecs-mesh";
    vec![
        Case::service(
            "Least",
            json!([app]),
            json!({ "port": 8080, "retry_join": ["consul.internal"], "registry": registry }),
            json!({ "service": { "port": 8080 }, "retryJoin": ["consul.internal"], "registry": registry, "datacenter": "dc1" }),
        ),
        Case::service(
            "all",
            all.clone(),
            json!({
                "port": 8080, "consul_service_name": "shop", "consul_service_tags": ["a", "b"],
                "consul_service_meta": { "team": "<fish & chips>" }, "consul_namespace": "n", "consul_partition": "p",
                "envoy_public_listener_port": 21000, "upstreams": upstreams,
                "consul_ecs_config": { "logLevel": "DEBUG", "proxy": { "config": options }, "service": { "weights": { "passing": 3, "warning": 1 } } },
                "retry_join": ["provider=aws tag_key=consul tag_value=server", "consul.internal"], "consul_datacenter": "eu",
                "images": images, "consul_image": "a/consul:1", "log_configuration": logs,
                "application_shutdown_delay_seconds": 10, "volumes": [{ "name": "mine" }],
                "tls": true, "consul_ca_cert_arn": secret("ca"), "gossip_key_secret_arn": secret("gossip"), "acls": true,
                "acl_secret_name_prefix": "p", "consul_client_token_secret_arn": secret("p-consul-client-token"),
                "create_service_token_secret": false, "service_token_secret_arn": format!("{}:mine::", secret("p-shop")),
            }),
            json!({
                "service": { "port": 8080, "name": "shop", "tags": ["a", "b"], "meta": { "team": "<fish & chips>" },
                    "namespace": "n", "partition": "p", "weights": { "passing": 3, "warning": 1 } },
                "proxy": { "publicListenerPort": 21000, "upstreams": upstreams, "config": options }, "logLevel": "DEBUG",
                "retryJoin": ["provider=aws tag_key=consul tag_value=server", "consul.internal"], "datacenter": "eu",
                "images": with_consul, "logConfiguration": logs, "shutdownDelay": "10s", "tls": true,
                "secrets": { "ca": secret("ca"), "gossipKey": secret("gossip"),
                    "clientToken": secret("p-consul-client-token"), "serviceToken": format!("{}:mine::", secret("p-shop")) },
            }),
        ),
        Case::service(
            "login",
            json!([app, agent, router]),
            json!({
                "port": 8080, "checks": checks, "retry_join": ["consul.internal"], "registry": registry,
                "requires_compatibilities": ["EC2"], "acls": true, "consul_http_addr": "https://consul.internal:8501",
                "service_token_auth_method_name": "mine", "tls": true, "consul_server_ca_cert_arn": secret("ca"),
                "consul_ecs_config": { "consulLogin": { "region": "eu-west-1", "includeEntity": false, "serverIdHeaderValue": "s" } },
                "application_shutdown_delay_seconds": 100, "application_shutdown_delay_containers": ["later"],
            }),
            json!({
                "service": { "port": 8080, "checks": checks }, "retryJoin": ["consul.internal"], "registry": registry,
                "datacenter": "dc1", "tls": true, "secrets": { "ca": secret("ca") }, "shutdownDelay": "100s",
                "shutdownDelayContainers": ["later"], "consulHTTPAddr": "https://consul.internal:8501",
                "consulLogin": { "enabled": true, "method": "mine", "region": "eu-west-1", "includeEntity": false, "serverIdHeaderValue": "s" },
            }),
        )
        .with_container(json!({ "name": "later", "image": "registry.example/later:1", "stopTimeout": 300, "entryPoint": ["/later"] })),
        Case::service(
            "outbound",
            json!([migrate]),
            json!({ "outbound_only": true, "port": 1, "retry_join": ["a", "b"], "registry": registry,
                "acls": true, "acl_secret_name_prefix": "p", "consul_client_token_secret_arn": "arn:aws:ssm:eu-west-1:111122223333:parameter/client",
                "create_service_token_secret": false, "service_token_secret_arn": secret("p-outbound") }),
            json!({ "service": { "port": 0 }, "retryJoin": ["a", "b"], "registry": registry, "datacenter": "dc1",
                "secrets": { "clientToken": "arn:aws:ssm:eu-west-1:111122223333:parameter/client", "serviceToken": secret("p-outbound") } }),
        ),
        Case::service(
            "agentless",
            json!([after_migration_of_dataplane, migrate]),
            json!({
                "port": 8080, "consul_server_hosts": "consul.internal", "registry": registry, "tls": true,
                "consul_ca_cert_arn": secret("ca"), "acls": true, "acl_secret_name_prefix": "p",
                "create_service_token_secret": false, "service_token_secret_arn": secret("p-agentless"),
                "application_shutdown_delay_seconds": 10, "volumes": [{ "name": "mine" }],
            }),
            json!({
                "service": { "port": 8080 }, "registry": registry, "shutdownDelay": "10s",
                "consulServers": { "hosts": "consul.internal", "defaults": { "tls": true }, "http": { "https": true } },
                "secrets": { "ca": secret("ca"), "serviceToken": secret("p-agentless") },
            }),
        ),
        Case::service(
            "agentless-login",
            json!([app]),
            json!({
                "port": 8080, "consul_server_hosts": "10.0.0.1,10.0.0.2", "images": agentless_images, "acls": true,
                "http_config": { "port": 8500 }, "grpc_config": { "port": 8502, "tls": false }, "tls_server_name": "server.dc1.consul",
                "skip_server_watch": true, "envoy_readiness_port": 22001,
            }),
            json!({
                "service": { "port": 8080 }, "proxy": { "healthCheckPort": 22001 }, "images": agentless_images,
                "consulLogin": { "enabled": true },
                "consulServers": { "hosts": "10.0.0.1,10.0.0.2", "skipServerWatch": true,
                    "defaults": { "tls": false, "tlsServerName": "server.dc1.consul" },
                    "http": { "https": false, "port": 8500 }, "grpc": { "port": 8502, "tls": false } },
            }),
        ),
        Case::gateway(
            "agentless-gateway",
            json!({ "kind": "mesh-gateway", "consul_server_hosts": "consul.internal", "registry": registry }),
            json!({ "gateway": { "kind": "mesh-gateway" }, "registry": registry,
                "consulServers": { "hosts": "consul.internal", "defaults": { "tls": false }, "http": { "https": false } } }),
        ),
        Case::gateway(
            "Mesh-gateway",
            json!({ "kind": "mesh-gateway", "lan_port": 9443, "wan_address": "edge.example", "wan_port": 443,
                "consul_service_tags": ["t"], "consul_partition": "p", "retry_join": ["consul.internal"], "registry": registry }),
            json!({ "gateway": { "kind": "mesh-gateway", "tags": ["t"], "partition": "p", "lanAddress": { "port": 9443 },
                "wanAddress": { "address": "edge.example", "port": 443 } },
                "retryJoin": ["consul.internal"], "registry": registry, "datacenter": "dc1" }),
        ),
        Case::gateway(
            "ingress",
            json!({ "kind": "ingress-gateway", "consul_service_name": "front", "application_shutdown_delay_seconds": 50,
                "listener_ports": [8081, 8082], "consul_version": "1.8",
                "retry_join": ["consul.internal"], "registry": registry }),
            json!({ "gateway": { "kind": "ingress-gateway", "name": "front" }, "shutdownDelay": "50s",
                "listenerPorts": [8081, 8082], "consulVersion": "1.8",
                "retryJoin": ["consul.internal"], "registry": registry, "datacenter": "dc1" }),
        ),
    ]
}

impl Case {
    fn with_container(mut self, container: Value) -> Self {
        for list in [&mut self.inputs["container_definitions"], &mut self.task["containerDefinitions"]] {
            list.as_array_mut().unwrap().push(container.clone());
        }
        self
    }
}

/// A copy of the modules for a provider of 2021, which has no `runtime_platform`.
fn copy_modules(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_modules(&path, &copy);
            continue;
        }
        let mut text = fs::read_to_string(&path).unwrap();
        if let Some((before, block)) = text.split_once("\n  runtime_platform {\n") {
            let after = block.split_once("\n  }\n").expect("the block ends").1;
            text = format!("{before}{after}");
        }
        fs::write(copy, text.replace("\n      version = \">= 5.77\"\n", "\n")).unwrap();
    }
}

fn terraform(directory: &Path, arguments: &[&str]) -> Command {
    let mut terraform = Command::new(part("terraform").join("terraform"));
    terraform.env_clear().env("CHECKPOINT_DISABLE", "1").env("HOME", directory);
    terraform.args(arguments).current_dir(directory);
    terraform
}

/// A folder with a configuration of these modules and outputs, ready for a plan. The modules' sources are in `./modules`.
async fn configured(modules: &Value, outputs: &Value) -> tempfile::TempDir {
    let configuration = json!({
        "provider": { "aws": { "region": "eu-west-1", "access_key": "none", "secret_key": "none",
            "skip_credentials_validation": true, "skip_requesting_account_id": true, "skip_metadata_api_check": true } },
        "module": modules,
        "output": outputs,
    });
    let folder = tempfile::tempdir().unwrap();
    copy_modules(&workspace().join("deploy/terraform"), &folder.path().join("modules"));
    fs::write(folder.path().join("main.tf.json"), configuration.to_string()).unwrap();
    let plugins = format!("-plugin-dir={}", part("terraform").join("plugins").display());
    output(&mut terraform(folder.path(), &["init", "-input=false", "-no-color", &plugins])).await;
    folder
}

fn planning(folder: &Path) -> Command {
    terraform(folder, &["plan", "-input=false", "-no-color", "-refresh=false", "-out=plan"])
}

async fn plan(modules: &Value, outputs: &Value) -> Value {
    let folder = configured(modules, outputs).await;
    output(&mut planning(folder.path())).await;
    parsed(&output(&mut terraform(folder.path(), &["show", "-json", "plan"])).await)
}

/// All resources of a planned module and of its child modules.
fn resources(module: &Value) -> Vec<&Value> {
    let own = module["resources"].as_array().into_iter().flatten();
    let below = module["child_modules"].as_array().into_iter().flatten().flat_map(resources);
    own.chain(below).collect()
}

/// The values of a resource, by its address.
fn values<'a>(plan: &'a Value, address: &str) -> &'a Value {
    let all = resources(&plan["planned_values"]["root_module"]);
    let found = all.into_iter().find(|resource| resource["address"] == address);
    &found.unwrap_or_else(|| panic!("no {address} in the plan"))["values"]
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_terraform_plan_equals_what_mesh_task_renders() {
    let cases = cases();
    let (mut modules, mut outputs) = (Map::new(), Map::new());
    for case in &cases {
        let mut module = case.inputs.clone();
        module["source"] = json!(format!("./modules/{}", case.module));
        modules.insert(case.name.to_owned(), module);
        let containers = json!({ "value": format!("${{module.{}.container_definitions}}", case.name) });
        outputs.insert(case.name.to_owned(), containers);
    }
    let plan = plan(&json!(modules), &json!(outputs)).await;
    for case in &cases {
        let rendered = mesh_task("render", &case.settings, &case.task).await;
        let planned = with_documents_read(plan["planned_values"]["outputs"][case.name]["value"].clone());
        let expected = with_documents_read(rendered["containerDefinitions"].clone());
        for (planned, expected) in planned.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
            assert_eq!(planned, expected, "{}: planned on the left, rendered on the right", case.name);
        }
        assert_eq!(names(&planned), names(&expected), "{}", case.name);

        let task = if case.module == "gateway-task" { ".module.task" } else { "" };
        let definition = values(&plan, &format!("module.{}{task}.aws_ecs_task_definition.this", case.name));
        let registered = parsed(definition["container_definitions"].as_str().unwrap());
        assert_eq!(names(&registered), names(&expected), "{}", case.name);
        let tags: Map<_, _> = rendered["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| (tag["key"].as_str().unwrap().to_owned(), tag["value"].clone()))
            .collect();
        assert_eq!(definition["tags"], json!(tags), "{}", case.name);
        let mut volumes = names(&rendered["volumes"]);
        if case.inputs.get("volumes").is_some() {
            volumes.push("mine");
        }
        volumes.sort_unstable();
        let mut planned = names(&definition["volume"]);
        planned.sort_unstable();
        assert_eq!(planned, volumes, "{}", case.name);

        // The role reads what mesh-task's policy lets it read.
        let policy = mesh_task("policy", &case.settings, &case.task).await;
        let role = values(&plan, &format!("module.{}{task}.aws_iam_role_policy.execution[0]", case.name));
        let role = parsed(role["policy"].as_str().unwrap());
        let of = |policy: &Value, action: &str| -> Vec<String> {
            let statements = policy["Statement"].as_array().into_iter().flatten();
            let mut resources: Vec<_> = statements
                .filter(|statement| statement["Action"][0] == action)
                .flat_map(|statement| statement["Resource"].as_array().unwrap().iter())
                .map(|resource| resource.as_str().unwrap().to_owned())
                .collect();
            resources.sort();
            resources
        };
        for action in ["secretsmanager:GetSecretValue", "ssm:GetParameters", "logs:CreateLogGroup"] {
            assert_eq!(of(&role, action), of(&policy["executionRole"], action), "{}: {action}", case.name);
        }
    }
}

#[tokio::test]
async fn the_modules_plan_services_and_least_privileges() {
    let modules = json!({
        "controller": { "source": "./modules/acl-controller", "ecs_cluster_arn": CLUSTER, "name_prefix": "p",
            "consul_server_http_addr": "${module.server.http_addr}", "consul_server_ca_cert_arn": "${module.server.ca_cert_arn}",
            "consul_bootstrap_token_secret_arn": "${module.server.bootstrap_token_secret_arn}", "subnets": ["subnet-1"],
            "registry": "registry.example/ecs-mesh", "environment": { "ACL_CONTROLLER_GRACE": "1h" },
            "log_configuration": { "logDriver": "awslogs", "options": { "awslogs-group": "/mesh" } } },
        "server": { "source": "./modules/dev-server", "ecs_cluster_arn": CLUSTER, "vpc_id": "vpc-1", "subnet_ids": ["subnet-1"],
            "service_discovery_namespace": "consul.internal", "client_security_group_ids": ["sg-1"], "acls": true, "tls": true,
            "ca_cert_arn": secret("ca"), "ca_key_arn": secret("ca-key"), "bootstrap_token_arn": secret("bootstrap"),
            "gossip_key_secret_arn": secret("gossip") },
        "shop": { "source": "./modules/mesh-task", "family": "Shop", "port": 8080, "registry": "registry.example/ecs-mesh",
            "container_definitions": [{ "name": "app", "image": "registry.example/shop:7", "essential": true }],
            "retry_join": ["${module.server.server_dns}"], "tls": true, "consul_ca_cert_arn": "${module.server.ca_cert_arn}",
            "gossip_key_secret_arn": "${module.server.gossip_key_arn}", "acls": true,
            "acl_secret_name_prefix": "${module.controller.name_prefix}",
            "consul_client_token_secret_arn": "${module.controller.client_token_secret_arn}" },
        "edge": { "source": "./modules/gateway-task", "family": "edge", "kind": "mesh-gateway", "ecs_cluster_arn": CLUSTER,
            "subnets": ["subnet-1"], "retry_join": ["${module.server.server_dns}"], "registry": "registry.example/ecs-mesh",
            "wan_port": 443, "lb_enabled": true, "lb_vpc_id": "vpc-1", "lb_subnets": ["subnet-1"],
            "lb_ingress_rule_cidr_blocks": ["192.0.2.0/24"], "acls": true, "consul_http_addr": "${module.server.http_addr}" },
    });
    let mut modules = modules;
    // No task has an agent, and all of them log in.
    let mut logins = modules["controller"].clone();
    for (input, value) in [
        ("name_prefix", json!("logins")),
        ("agentless", json!(true)),
        ("auth_method", json!("iam-ecs-service-token")),
        ("token_secrets", json!(false)),
        ("iam_role_path", json!("/mesh/")),
    ] {
        logins[input] = value;
    }
    modules["logins"] = logins;
    modules["till"] = json!({ "source": "./modules/mesh-task", "family": "Till", "port": 8080, "registry": "registry.example/ecs-mesh",
        "container_definitions": [{ "name": "app", "image": "registry.example/till:7", "essential": true }],
        "consul_server_hosts": "${module.server.server_dns}", "tls": true, "consul_ca_cert_arn": "${module.server.ca_cert_arn}",
        "acls": true, "acl_secret_name_prefix": "${module.logins.name_prefix}", "iam_role_path": "/mesh/" });
    let mut front = modules["edge"].clone();
    front["family"] = json!("front");
    front["kind"] = json!("ingress-gateway");
    front["listener_ports"] = json!([8081, 8082]);
    modules["front"] = front;
    let plan = plan(&modules, &json!({ "secret": { "value": "${module.shop.service_token_secret_arn}" } })).await;
    let container = |name: &str| {
        let definition = values(&plan, &format!("module.{name}.aws_ecs_task_definition.this"));
        parsed(definition["container_definitions"].as_str().unwrap())[0].clone()
    };

    let policy = values(&plan, "module.controller.aws_iam_role_policy.task");
    let expected = readme("acl-controller", "json", 0);
    let names = [("REGION", "eu-west-1"), ("ACCOUNT", "111122223333"), ("CLUSTER", "blue"), ("PREFIX", "p")];
    let expected = names.iter().fold(expected, |text, (name, value)| text.replace(name, value));
    assert_eq!(parsed(policy["policy"].as_str().unwrap()), parsed(&expected));
    let variable = |module: &str, name: &str| {
        let environment = container(module)["environment"].clone();
        let found = environment.as_array().unwrap().iter().find(|variable| variable["name"] == name);
        found.map(|variable| variable["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(variable("controller", "ACL_CONTROLLER_SECRET_NAME_PREFIX").as_deref(), Some("p"));
    assert_eq!(variable("controller", "CONSUL_HTTP_ADDR").as_deref(), Some("https://server.consul.internal:8501"));
    assert_eq!(variable("controller", "ACL_CONTROLLER_AGENTLESS"), None);
    assert_eq!(
        values(&plan, "module.controller.aws_secretsmanager_secret.client_token[0]")["name"],
        "p-consul-client-token"
    );

    let policy = values(&plan, "module.logins.aws_iam_role_policy.task")["policy"].as_str().unwrap();
    assert!(policy.contains("ecs:DescribeTasks") && !policy.contains("secretsmanager"), "{policy}");
    for (name, value) in [
        ("SECRET_NAME_PREFIX", None),
        ("AGENTLESS", Some("true")),
        ("AUTH_METHOD", Some("iam-ecs-service-token")),
        ("IAM_ROLE_PATH", Some("/mesh/")),
    ] {
        assert_eq!(variable("logins", &format!("ACL_CONTROLLER_{name}")).as_deref(), value, "{name}");
    }
    let all = resources(&plan["planned_values"]["root_module"]);
    let secret =
        |address: &Value| address.as_str().is_some_and(|address| address.contains("aws_secretsmanager_secret"));
    let of_logins = |address: &Value| {
        let address = address.as_str().unwrap_or_default();
        address.starts_with("module.logins.") || address.starts_with("module.till.")
    };
    assert!(!all.iter().any(|resource| secret(&resource["address"]) && of_logins(&resource["address"])));
    let role = values(&plan, "module.till.aws_iam_role.task[0]");
    assert_eq!((&role["path"], &role["tags"]["consul.hashicorp.com.service-name"]), (&json!("/mesh/"), &json!("till")));
    values(&plan, "module.till.aws_iam_role_policy.login[0]");

    let secrets = container("server")["secrets"].clone();
    assert_eq!(secrets.as_array().unwrap().len(), 4, "{secrets}");
    let ports = [0, 1, 2, 3, 4].map(|rule| {
        values(&plan, &format!("module.server.aws_security_group_rule.ingress[{rule}]"))["from_port"].clone()
    });
    assert_eq!(ports, [8300, 8301, 8301, 8501, 8503]);
    assert_eq!(values(&plan, "module.shop.aws_secretsmanager_secret.service_token[0]")["name"], "p-shop");

    let service = values(&plan, "module.edge.aws_ecs_service.this");
    assert_eq!(service["propagate_tags"], "TASK_DEFINITION");
    assert_eq!(service["load_balancer"][0]["container_port"], 8443);
    assert_eq!(values(&plan, "module.edge.aws_lb_listener.this[0]")["port"], 443);
    let front = |resource: &str| values(&plan, &format!("module.front.{resource}"));
    assert_eq!(front("aws_ecs_service.this")["load_balancer"][0]["container_port"], 8081);
    assert_eq!(front("aws_lb_target_group.this[0]")["port"], 8081);
    assert_eq!(front("aws_security_group_rule.ingress[0]")["from_port"], 8081);
    let clients = values(&plan, "module.edge.aws_security_group_rule.lb_ingress[0]");
    assert_eq!((&clients["from_port"], &clients["cidr_blocks"]), (&json!(443), &json!(["192.0.2.0/24"])));
}

#[tokio::test]
async fn a_plan_with_wrong_inputs_ends_with_their_names() {
    let module = |input: &str, value: Value| {
        let container = json!({ "name": "app", "image": "registry.example/shop:7" });
        json!({ "source": "./modules/mesh-task", "family": "shop", "retry_join": ["consul.internal"],
            "registry": "registry.example/ecs-mesh", "container_definitions": [container], "acls": true, input: value })
    };
    let modules = json!({
        "no_ca": module("tls", json!(true)),
        "no_client_token": module("acl_secret_name_prefix", json!("p")),
        "no_entry_point": module("application_shutdown_delay_seconds", json!(5)),
    });
    let outputs = json!({ "role": { "value": "${module.no_ca.task_role_arn}" } });
    let folder = configured(&modules, &outputs).await;
    let ended = run(&mut planning(folder.path()), BOUND).await;
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    for expected in [
        "var.consul_server_ca_cert_arn is \"\"",
        "var.consul_client_token_secret_arn is \"\"",
        "This object does not have an attribute named \"entryPoint\".",
    ] {
        assert!(ended.stderr.contains(expected), "{expected}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn the_terraform_modules_are_formatted() {
    let mut fmt = terraform(&workspace().join("deploy/terraform"), &["fmt", "-check", "-recursive", "-diff"]);
    assert_eq!(output(&mut fmt).await, "");
}
