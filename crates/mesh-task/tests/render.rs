//! Rendered task definitions.

use mesh_task::{LABEL, Rendered, differences, policy, render};
use serde_json::{Value, json};

fn settings() -> Value {
    json!({
        "service": { "port": 8080 },
        "retryJoin": ["consul.internal"],
        "registry": "registry.example/ecs-mesh",
    })
}

fn task() -> Value {
    json!({
        "family": "shop",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "512",
        "memory": "1024",
        "executionRoleArn": "arn:aws:iam::111122223333:role/shop-execution",
        "containerDefinitions": [{
            "name": "app",
            "image": "registry.example/shop:7",
            "essential": true,
            "entryPoint": ["/shop"],
            "portMappings": [{ "containerPort": 8080, "name": "http", "appProtocol": "http" }],
            "healthCheck": { "command": ["CMD", "/shop", "healthy"] },
            "environment": [{ "name": "A", "value": "b" }],
        }],
    })
}

fn secrets() -> Value {
    let arn = |name: &str| format!("arn:aws:secretsmanager:eu-west-1:111122223333:secret:{name}-AbCdEf");
    json!({
        "clientToken": arn("mesh-consul-client-token"), "serviceToken": arn("mesh-shop"),
        "gossipKey": arn("gossip"), "ca": arn("ca"),
    })
}

fn rendered(settings: &Value, task: &Value) -> Value {
    rendered_with_notes(settings, task).definition
}

/// Renders a task twice, and checks that the second time changes nothing.
fn rendered_with_notes(settings: &Value, task: &Value) -> Rendered {
    let once = render(settings, task).unwrap_or_else(|problems| panic!("{problems}"));
    let twice = render(settings, &once.definition).unwrap_or_else(|problems| panic!("a second time: {problems}"));
    assert_eq!(once.definition, twice.definition);
    once
}

fn container<'a>(definition: &'a Value, name: &str) -> &'a Value {
    let mut all = definition["containerDefinitions"].as_array().unwrap().iter();
    all.find(|container| container["name"] == name).unwrap_or(&Value::Null)
}

fn on(container: &Value) -> Vec<(&str, &str)> {
    let list = container["dependsOn"].as_array().into_iter().flatten();
    list.map(|on| (on["containerName"].as_str().unwrap(), on["condition"].as_str().unwrap())).collect()
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["environment"].as_array()?.iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

#[test]
fn the_least_settings_make_a_mesh_task() {
    let definition = rendered(&settings(), &task());
    let containers = definition["containerDefinitions"].as_array().unwrap();
    let names: Vec<_> = containers.iter().map(|container| container["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["app", "consul-config", "consul-client", "mesh-init", "sidecar-proxy", "health-sync"]);

    let app = container(&definition, "app");
    assert_eq!(on(app), [("sidecar-proxy", "HEALTHY")]);
    assert_eq!(app["portMappings"], task()["containerDefinitions"][0]["portMappings"]);
    assert_eq!(app["entryPoint"], json!(["/shop"]));
    let on_of = |name| on(container(&definition, name));
    assert_eq!(on_of("consul-config"), []);
    assert_eq!(on_of("consul-client"), [("consul-config", "SUCCESS")]);
    assert_eq!(on_of("mesh-init"), [("consul-client", "START")]);
    assert_eq!(on_of("sidecar-proxy"), [("mesh-init", "SUCCESS"), ("consul-client", "START")]);
    assert_eq!(on_of("health-sync"), [("mesh-init", "SUCCESS")]);

    for container in &containers[1..] {
        assert_eq!(container["readonlyRootFilesystem"], true);
        assert_eq!(container["linuxParameters"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["dockerLabels"][LABEL], "mesh-task");
        assert!(container["cpu"].as_u64() > Some(0) && container["memoryReservation"].as_u64() > Some(0));
        let ends = matches!(container["name"].as_str(), Some("consul-config" | "mesh-init"));
        assert_eq!(container["essential"], !ends, "{}", container["name"]);
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(container(&definition, "mesh-init")["image"], format!("registry.example/ecs-mesh/mesh-init:{version}"));
    let health_sync = container(&definition, "health-sync");
    assert_eq!(health_sync["healthCheck"]["command"], json!(["CMD", "/health-sync", "healthy", "--in-mesh"]));
    assert_eq!(health_sync["restartPolicy"]["enabled"], true);
    let document: Value = serde_json::from_str(variable(health_sync, "CONSUL_ECS_CONFIG_JSON").unwrap()).unwrap();
    let expected = json!({ "bootstrapDir": "/consul", "service": { "port": 8080 }, "healthSyncContainers": ["app"] });
    assert_eq!(document, expected);
    let proxy = container(&definition, "sidecar-proxy");
    assert_eq!(proxy["ulimits"], json!([{ "name": "nofile", "softLimit": 1_048_576, "hardLimit": 1_048_576 }]));
    assert_eq!(proxy["stopTimeout"], 40);
    assert_eq!(proxy["healthCheck"]["command"][3], "localhost:20000");
    let tag = |key: &str, value: &str| json!({ "key": format!("consul.hashicorp.com/{key}"), "value": value });
    assert_eq!(definition["tags"], json!([tag("mesh", "true"), tag("service-name", "shop")]));
}

#[test]
fn a_described_definition_becomes_one_to_register() {
    let mut described = task();
    described["revision"] = json!(7);
    for read_only in [
        "taskDefinitionArn",
        "status",
        "compatibilities",
        "requiresAttributes",
        "registeredAt",
        "registeredBy",
        "deregisteredAt",
    ] {
        described[read_only] = json!("x");
    }
    described["taskRoleArn"] = Value::Null;
    described["ofTomorrow"] = json!({ "kept": [1], "none": null });
    described["containerDefinitions"][0]["command"] = Value::Null;
    described["containerDefinitions"][0]["ofTomorrow"] = json!("kept");
    let tags = json!([{ "key": "team", "value": "shop" }]);
    let definition = rendered(&settings(), &json!({ "taskDefinition": described, "tags": tags }));

    let mut expected = task();
    expected["ofTomorrow"] = json!({ "kept": [1] });
    expected["containerDefinitions"][0]["ofTomorrow"] = json!("kept");
    expected["tags"] = tags;
    assert_eq!(definition, rendered(&settings(), &expected));
    assert_eq!(definition["ofTomorrow"], json!({ "kept": [1] }));
    assert_eq!(definition["tags"][0], json!({ "key": "team", "value": "shop" }));
}

#[test]
fn secrets_reach_only_the_containers_that_need_them() {
    let mut settings = settings();
    settings["secrets"] = secrets();
    settings["datacenter"] = json!("eu");
    settings["tls"] = json!(true);
    let definition = rendered(&settings, &task());
    let of = |name: &str| container(&definition, name)["secrets"].clone();
    let entry = |name: &str, from: &str| json!({ "name": name, "valueFrom": from });
    let arn = |name: &str| secrets()[name].as_str().unwrap().to_owned();
    let token = |name: &str| format!("{}:token::", arn(name));
    let expected = json!([
        entry("CONSUL_CLIENT_TOKEN", &token("clientToken")),
        entry("CONSUL_GOSSIP_KEY", &arn("gossipKey")),
        entry("CONSUL_CACERT_PEM", &arn("ca")),
    ]);
    assert_eq!(of("consul-config"), expected);
    for name in ["mesh-init", "health-sync"] {
        assert_eq!(of(name), json!([entry("CONSUL_HTTP_TOKEN", &token("serviceToken"))]), "{name}");
    }
    for name in ["consul-client", "sidecar-proxy", "app"] {
        assert_eq!(of(name), Value::Null, "{name}");
    }
    assert_eq!(variable(container(&definition, "consul-config"), "CONSUL_DATACENTER"), Some("eu"));

    // A key in the ARN does not change, and a parameter of Parameter Store holds the token itself.
    let keyed = format!("{}:mine::", arn("serviceToken"));
    let parameter = "arn:aws:ssm:eu-west-1:111122223333:parameter/token";
    settings["secrets"]["serviceToken"] = json!(keyed);
    settings["secrets"]["clientToken"] = json!(parameter);
    let definition = rendered(&settings, &task());
    assert_eq!(container(&definition, "mesh-init")["secrets"][0]["valueFrom"], keyed);
    assert_eq!(container(&definition, "consul-config")["secrets"][0]["valueFrom"], parameter);

    let policy = policy(&settings, &task()).unwrap();
    let expected = json!({ "executionRole": { "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"],
            "Resource": [arn("ca"), arn("gossipKey"), arn("serviceToken")] },
        { "Effect": "Allow", "Action": ["ssm:GetParameters"], "Resource": [parameter] },
    ] } });
    assert_eq!(policy, expected);
}

#[test]
fn a_login_takes_the_place_of_the_tokens() {
    let mut settings = settings();
    settings["consulLogin"] = json!({ "enabled": true, "region": "eu-west-1" });
    settings["consulHTTPAddr"] = json!("https://consul.internal:8501");
    settings["secrets"] = json!({ "ca": secrets()["ca"] });
    let mut task = task();
    task["taskRoleArn"] = json!("arn:aws:iam::111122223333:role/consul-ecs/shop");
    let definition = rendered(&settings, &task);
    let config = container(&definition, "consul-config");
    assert_eq!(variable(config, "CONSUL_LOGIN"), Some("true"));
    assert_eq!(variable(config, "CONSUL_HTTP_ADDR"), Some("https://consul.internal:8501"));
    assert_eq!(config["mountPoints"][0], json!({ "sourceVolume": "mesh", "containerPath": "/consul" }));
    assert_eq!(container(&definition, "mesh-init")["secrets"][0]["name"], "CONSUL_CACERT_PEM");
    let policy = policy(&settings, &task).unwrap();
    let statement = json!([{ "Effect": "Allow", "Action": ["iam:GetRole"], "Resource": [task["taskRoleArn"]] }]);
    assert_eq!(policy["taskRole"]["Statement"], statement);

    // A role's name in place of its ARN, a log group that awslogs creates, cloud auto-join, and another partition.
    task["taskRoleArn"] = json!("shop");
    task["executionRoleArn"] = json!("arn:aws-cn:iam::111122223333:role/shop-execution");
    settings["retryJoin"] = json!(["provider=aws tag_key=consul tag_value=server"]);
    let options = json!({ "awslogs-group": "/shop", "awslogs-region": "cn-north-1", "awslogs-create-group": "true" });
    settings["logConfiguration"] = json!({ "logDriver": "awslogs", "options": options });
    let policy = mesh_task::policy(&settings, &task).unwrap();
    let resources = |role: &str| -> Vec<Value> {
        let statements = policy[role]["Statement"].as_array().unwrap().iter();
        statements.map(|statement| statement["Resource"][0].clone()).collect()
    };
    assert_eq!(resources("executionRole")[1], "arn:aws-cn:logs:cn-north-1:*:log-group:/shop:*");
    assert_eq!(resources("taskRole"), ["*", "arn:aws-cn:iam::*:role/shop"]);
}

#[test]
fn an_app_with_a_delay_runs_under_app_entrypoint() {
    let mut settings = settings();
    settings["shutdownDelay"] = json!("10s");
    let mut task = task();
    task["containerDefinitions"][0]["dependsOn"] = json!([{ "containerName": "migrate", "condition": "SUCCESS" }]);
    let migrate = json!({ "name": "migrate", "image": "registry.example/migrate:1", "essential": false });
    let agent = json!({ "name": "agent", "image": "registry.example/agent:1", "entryPoint": [""], "command": ["run"] });
    task["containerDefinitions"].as_array_mut().unwrap().extend([migrate, agent]);
    let definition = rendered(&settings, &task);

    let app = container(&definition, "app");
    let wrapped = |words: &[&str]| {
        let first = ["/ecs-mesh/app-entrypoint", "--shutdown-delay", "10s", "--stop-timeout", "30s"];
        json!([&first, words].concat())
    };
    assert_eq!(app["entryPoint"], wrapped(&["/shop"]));
    assert_eq!(on(app), [("migrate", "SUCCESS"), ("sidecar-proxy", "HEALTHY"), ("app-entrypoint", "SUCCESS")]);
    let mount = json!([{ "sourceVolume": "app-entrypoint", "containerPath": "/ecs-mesh", "readOnly": true }]);
    assert_eq!(app["mountPoints"], mount);
    assert_eq!(container(&definition, "agent")["entryPoint"], wrapped(&[]));
    // A container has no delay if others wait for its end.
    assert_eq!(container(&definition, "migrate")["entryPoint"], Value::Null);
    assert_eq!(on(container(&definition, "migrate")), [("sidecar-proxy", "HEALTHY")]);
    let installer = container(&definition, "app-entrypoint");
    assert_eq!((&installer["command"], &installer["essential"]), (&json!(["install", "/shared"]), &json!(false)));

    // If the delay is removed, the result is the same as if there had never been a delay.
    let without = self::settings();
    assert_eq!(rendered(&without, &definition), rendered(&without, &task));

    settings["shutdownDelayContainers"] = json!(["app"]);
    let definition = rendered(&settings, &task);
    assert_eq!(container(&definition, "agent")["entryPoint"], json!([""]));
}

#[test]
fn envoy_runs_for_as_long_as_the_slowest_app() {
    let grace = |seconds: u64| {
        let mut task = task();
        task["requiresCompatibilities"] = json!(["EC2"]);
        task["containerDefinitions"][0]["stopTimeout"] = json!(seconds);
        let definition = rendered(&settings(), &task);
        let proxy = container(&definition, "sidecar-proxy");
        (variable(proxy, "ENVOY_ENTRYPOINT_GRACE").map(str::to_owned), proxy["stopTimeout"].as_u64())
    };
    assert_eq!(grace(300), (Some("300s".to_owned()), Some(310)));
    // The default is 120 s.
    assert_eq!(grace(120), (None, Some(130)));
}

#[test]
fn a_log_router_and_service_connect_do_not_change() {
    let mut settings = settings();
    settings["logConfiguration"] = json!({ "logDriver": "awsfirelens", "options": { "Name": "stdout" } });
    settings["shutdownDelay"] = json!("5s");
    let mut task = task();
    let router = json!({
        "name": "log-router", "image": "registry.example/fluent-bit:3", "essential": true,
        "firelensConfiguration": { "type": "fluentbit", "options": { "enable-ecs-log-metadata": "true" } },
    });
    task["containerDefinitions"][0]["logConfiguration"] = settings["logConfiguration"].clone();
    task["containerDefinitions"].as_array_mut().unwrap().insert(0, router.clone());
    let definition = rendered(&settings, &task);
    assert_eq!(container(&definition, "log-router"), &router);
    let proxy = container(&definition, "sidecar-proxy");
    assert_eq!(variable(proxy, "ENVOY_ENTRYPOINT_IGNORE_CONTAINERS"), Some("log-router"));
    assert_eq!(proxy["logConfiguration"], settings["logConfiguration"]);
    assert_eq!(container(&definition, "app")["portMappings"], task["containerDefinitions"][1]["portMappings"]);
}

#[test]
fn a_gateway_is_a_task_without_an_app() {
    let settings = json!({
        "gateway": { "kind": "mesh-gateway", "lanAddress": { "port": 9443 } },
        "retryJoin": ["consul.internal"],
        "registry": "registry.example/ecs-mesh",
    });
    let mut task = task();
    task["containerDefinitions"] = json!([]);
    let definition = rendered(&settings, &task);
    let proxy = container(&definition, "sidecar-proxy");
    assert_eq!(variable(proxy, "ENVOY_ENTRYPOINT_GATEWAY_DELAY"), Some("6s"));
    assert_eq!(proxy["portMappings"][0]["containerPort"], 9443);
    assert_eq!(proxy["healthCheck"]["command"][3], "localhost:9443");
    assert_eq!(definition["tags"][2], json!({ "key": "consul.hashicorp.com/gateway-kind", "value": "mesh-gateway" }));
}

#[test]
fn an_ingress_gateway_has_the_ports_of_its_listeners() {
    let settings = json!({
        "gateway": { "kind": "ingress-gateway" },
        "listenerPorts": [8081, 8082],
        "retryJoin": ["consul.internal"],
        "registry": "registry.example/ecs-mesh",
    });
    let mut task = task();
    task["containerDefinitions"] = json!([]);
    let definition = rendered(&settings, &task);
    let mapped = [8443, 8081, 8082].map(|port| json!({ "containerPort": port, "protocol": "tcp" }));
    assert_eq!(container(&definition, "sidecar-proxy")["portMappings"], json!(mapped));
}

#[test]
fn an_older_consul_gets_a_configuration_that_it_knows() {
    let mut settings = settings();
    settings["consulVersion"] = json!("1.8");
    let definition = rendered(&settings, &task());
    assert_eq!(variable(container(&definition, "consul-config"), "MESH_INIT_CONSUL_VERSION"), Some("1.8"));
}

#[test]
fn a_task_that_is_too_small_grows_once_with_a_note() {
    let mut task = task();
    task["containerDefinitions"][0]["cpu"] = json!(512);
    task["containerDefinitions"][0]["memory"] = json!(1024);
    let Rendered { definition, notes } = rendered_with_notes(&settings(), &task);
    assert_eq!((&definition["cpu"], &definition["memory"]), (&json!("1024"), &json!("2048")));
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("cpu: raised from 512 to 1024"), "{notes:?}");
}

#[test]
fn a_rendered_task_can_be_rendered_with_other_settings() {
    let mut others = settings();
    others["registry"] = json!("other.example");
    others["service"]["name"] = json!("till");
    others["proxy"] = json!({ "upstreams": [{ "destinationName": "stock", "localBindPort": 1234 }] });
    others["shutdownDelay"] = json!("5s");
    others["secrets"] = secrets();
    let first = rendered(&settings(), &task());
    assert_eq!(rendered(&others, &first), rendered(&others, &task()));
    assert_eq!(rendered(&settings(), &rendered(&others, &first)), first);
}

#[test]
fn the_check_ignores_values_that_ecs_fills_in() {
    let definition = rendered(&settings(), &task());
    let mut deployed = definition.clone();
    deployed["taskDefinitionArn"] = json!("arn:aws:ecs:eu-west-1:111122223333:task-definition/shop:7");
    deployed["revision"] = json!(7);
    deployed["placementConstraints"] = json!([]);
    deployed["enableFaultInjection"] = json!(false);
    for volume in deployed["volumes"].as_array_mut().unwrap() {
        volume["host"] = json!({});
    }
    for container in deployed["containerDefinitions"].as_array_mut().unwrap() {
        for empty in ["volumesFrom", "systemControls", "mountPoints", "environment", "portMappings", "environmentFiles"]
        {
            if container[empty].is_null() {
                container[empty] = json!([]);
            }
        }
        for mapping in container["portMappings"].as_array_mut().unwrap() {
            mapping["hostPort"] = mapping["containerPort"].clone();
            mapping["protocol"] = json!("tcp");
        }
        container["environment"].as_array_mut().unwrap().reverse();
        if container["name"] == "app" {
            container["cpu"] = json!(0);
            container["healthCheck"]["interval"] = json!(30);
            container["healthCheck"]["timeout"] = json!(5);
            container["healthCheck"]["retries"] = json!(3);
        }
    }
    deployed.as_object_mut().unwrap().remove("tags");
    let nothing: [String; 0] = [];
    assert_eq!(differences(&json!({ "taskDefinition": deployed }), &definition), nothing);
    let with_tags = json!({ "taskDefinition": deployed, "tags": definition["tags"] });
    assert_eq!(differences(&with_tags, &definition), nothing);
    assert_eq!(differences(&definition, &definition), nothing);

    let containers = deployed["containerDefinitions"].as_array_mut().unwrap();
    containers[0]["image"] = json!("registry.example/shop:6");
    containers[0]["environment"][0]["value"] = json!("5ec3e7");
    containers[0]["stopTimeout"] = json!(60);
    containers[4]["ulimits"] = json!([]);
    containers.pop();
    let mut wrong_tags = definition["tags"].clone();
    wrong_tags[1]["value"] = json!("till");
    let lines = differences(&json!({ "taskDefinition": deployed, "tags": wrong_tags }), &definition);
    let expected = [
        "containerDefinitions[app].environment[A].value: deployed with another value",
        "containerDefinitions[app].image: deployed \"registry.example/shop:6\", rendered \"registry.example/shop:7\"",
        "containerDefinitions[app].stopTimeout: deployed, but not rendered",
        "containerDefinitions[health-sync]: not deployed",
        "containerDefinitions[sidecar-proxy].ulimits[nofile]: not deployed",
        "tags[consul.hashicorp.com/service-name].value: deployed \"till\", rendered \"shop\"",
    ];
    assert_eq!(lines, expected);

    // Without names, entries and containers are not compared one by one.
    let nameless = json!([{ "value": "5ec3e7" }]);
    let container = json!({ "name": "app", "environment": nameless });
    assert_eq!(
        differences(
            &json!({ "containerDefinitions": [container] }),
            &json!({ "containerDefinitions": [{ "name": "app",
            "environment": [{ "name": "A", "value": "5ec3e7" }] }] })
        ),
        ["containerDefinitions[app].environment: deployed with another value"]
    );
    assert_eq!(
        differences(
            &json!({ "containerDefinitions": [{ "environment": nameless }] }),
            &json!({ "containerDefinitions": [container] })
        ),
        ["containerDefinitions: deployed a list of objects, rendered a list of objects"]
    );
}

#[test]
fn a_second_rendering_never_changes_the_result() {
    type Change = fn(&mut Value, &mut Value);
    let changes: [Change; 10] = [
        |settings, _| settings["secrets"] = secrets(),
        |settings, _| settings["shutdownDelay"] = json!("10s"),
        |settings, _| settings["logConfiguration"] = json!({ "logDriver": "awsfirelens" }),
        |settings, _| settings["proxy"] = json!({ "publicListenerPort": 21000 }),
        |settings, _| settings["service"]["partition"] = json!("shops"),
        |_, task| {
            task["containerDefinitions"][0]["dependsOn"] =
                json!([{ "containerName": "sidecar-proxy", "condition": "START" }])
        },
        |_, task| task["containerDefinitions"][0]["entryPoint"] = json!(["", "-a", "", "--shutdown-delay", "1s"]),
        |_, task| {
            task["volumes"] = json!([{ "name": "mine" }]);
            task["containerDefinitions"][0]["mountPoints"] = json!([{ "sourceVolume": "mine", "containerPath": "/m" }]);
        },
        |_, task| {
            let router =
                json!({ "name": "router", "image": "router:1", "firelensConfiguration": { "type": "fluentd" } });
            task["containerDefinitions"].as_array_mut().unwrap().push(router);
        },
        |_, task| task["containerDefinitions"][0]["memory"] = json!(1024),
    ];
    for asked in 0..1_u32 << changes.len() {
        let (mut settings, mut task) = (settings(), task());
        for (_, change) in changes.iter().enumerate().filter(|(bit, _)| asked >> bit & 1 == 1) {
            change(&mut settings, &mut task);
        }
        let definition = rendered(&settings, &task);
        let nothing: [String; 0] = [];
        assert_eq!(differences(&json!({ "taskDefinition": definition }), &definition), nothing);
    }
}
