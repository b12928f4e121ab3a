//! Refused settings and tasks. All problems are reported at once.

use mesh_task::{Document, Problems, render};
use serde_json::{Value, json};

fn settings() -> Value {
    json!({ "service": { "port": 8080 }, "retryJoin": ["consul.internal"], "registry": "registry.example" })
}

fn task() -> Value {
    json!({
        "family": "shop", "networkMode": "awsvpc",
        "containerDefinitions": [
            { "name": "app", "image": "shop:7", "entryPoint": ["/shop"] },
            { "name": "other", "image": "other:1", "entryPoint": [""], "command": ["/other"] },
        ],
    })
}

/// The paths and rules of all problems.
fn problems(settings: &Value, task: &Value) -> Vec<(String, Option<&'static str>)> {
    let Problems(problems) = render(settings, task).err().unwrap_or(Problems(Vec::new()));
    problems.into_iter().map(|problem| (problem.error.path, problem.error.rule)).collect()
}

fn of_task(change: impl FnOnce(&mut Value)) -> Vec<(String, Option<&'static str>)> {
    let mut task = task();
    change(&mut task);
    problems(&settings(), &task)
}

fn of_settings(change: impl FnOnce(&mut Value)) -> Vec<(String, Option<&'static str>)> {
    let mut settings = settings();
    change(&mut settings);
    problems(&settings, &task())
}

fn one(path: &str, rule: &'static str) -> Vec<(String, Option<&'static str>)> {
    vec![(path.to_owned(), Some(rule))]
}

#[test]
fn a_task_that_cannot_be_in_the_mesh() {
    assert_eq!(problems(&settings(), &task()), []);
    for mode in ["bridge", "host", "none"] {
        assert_eq!(of_task(|task| task["networkMode"] = json!(mode)), one("networkMode", "awsvpc"));
    }
    assert_eq!(of_task(|task| task["networkMode"] = Value::Null), one("networkMode", "awsvpc"));
    let app_mesh = of_task(|task| task["proxyConfiguration"] = json!({ "type": "APPMESH", "containerName": "envoy" }));
    assert_eq!(app_mesh, one("proxyConfiguration", "app-mesh"));
    let windows = json!({ "operatingSystemFamily": "WINDOWS_SERVER_2022_CORE" });
    assert_eq!(
        of_task(|task| task["runtimePlatform"] = windows),
        one("runtimePlatform.operatingSystemFamily", "linux")
    );
    let arm = json!({ "operatingSystemFamily": "LINUX", "cpuArchitecture": "ARM64" });
    assert_eq!(of_task(|task| task["runtimePlatform"] = arm), []);
    assert_eq!(of_task(|task| task["containerDefinitions"] = json!([])), [("containerDefinitions".to_owned(), None)]);
}

#[test]
fn names_and_volumes_of_sidecars() {
    for name in ["sidecar-proxy", "consul-client", "mesh-init", "consul-ecs-mesh-init", "app-entrypoint"] {
        let path = "containerDefinitions[1].name";
        assert_eq!(
            of_task(|task| task["containerDefinitions"][1]["name"] = json!(name)),
            one(path, "name-of-a-sidecar")
        );
    }
    let volume = of_task(|task| {
        task["volumes"] = json!([{ "name": "mine" }, { "name": "mesh" }]);
        let mount = json!([{ "sourceVolume": "mesh", "containerPath": "/m" }]);
        task["containerDefinitions"][0]["mountPoints"] = mount;
    });
    let rule = Some("volume-of-a-sidecar");
    let expected = [
        ("volumes[1].name".to_owned(), rule),
        ("containerDefinitions[0].mountPoints[0].sourceVolume".to_owned(), rule),
    ];
    assert_eq!(volume, expected);
    let from =
        of_task(|task| task["containerDefinitions"][0]["volumesFrom"] = json!([{ "sourceContainer": "mesh-init" }]));
    assert_eq!(from, one("containerDefinitions[0].volumesFrom[0].sourceContainer", "volume-of-a-sidecar"));
    // An app in a rendered task cannot reach the tokens either.
    let mut rendered = render(&settings(), &task()).unwrap().definition;
    rendered["containerDefinitions"][0]["mountPoints"] = json!([{ "sourceVolume": "mesh", "containerPath": "/m" }]);
    assert_eq!(
        problems(&settings(), &rendered),
        one("containerDefinitions[0].mountPoints[0].sourceVolume", "volume-of-a-sidecar")
    );
}

#[test]
fn ports_of_the_mesh() {
    let mapped = |mapping: Value| of_task(|task| task["containerDefinitions"][0]["portMappings"] = json!([mapping]));
    let path = "containerDefinitions[0].portMappings[0].containerPort";
    for port in [20000, 19000, 8500, 8501, 8502, 8600, 8301] {
        assert_eq!(mapped(json!({ "containerPort": port })), one(path, "port-of-the-mesh"), "{port}");
    }
    for free in [json!({ "containerPort": 8080 }), json!({ "containerPort": 20000, "protocol": "udp" })] {
        assert_eq!(mapped(free), []);
    }
    assert_eq!(mapped(json!({ "containerPort": 8301, "protocol": "udp" })), one(path, "port-of-the-mesh"));
    let path = "containerDefinitions[0].portMappings[0].containerPortRange";
    assert_eq!(mapped(json!({ "containerPortRange": "19990-20010" })), one(path, "port-of-the-mesh"));
    assert_eq!(mapped(json!({ "containerPortRange": "9000-9100" })), []);

    assert_eq!(of_settings(|settings| settings["service"]["port"] = json!(8500)).len(), 1);
    assert_eq!(
        of_settings(|settings| settings["service"]["port"] = json!(8501)),
        one("service.port", "port-of-the-mesh")
    );
    assert_eq!(of_settings(|settings| settings["proxy"] = json!({ "publicListenerPort": 8600 })).len(), 1);
    let mut moved = settings();
    moved["proxy"] =
        json!({ "publicListenerPort": 21000, "upstreams": [{ "destinationName": "a", "localBindPort": 7000 }] });
    let mut task = task();
    moved["proxy"]["config"] =
        json!({ "envoy_prometheus_bind_addr": "0.0.0.0:9102", "Envoy_Stats_Bind_Addr": "0.0.0.0:9103" });
    let ports = [20000, 21000, 7000, 9102, 9103].map(|port| json!({ "containerPort": port }));
    let mappings = json!(ports);
    task["containerDefinitions"][0]["portMappings"] = mappings;
    let paths: Vec<_> = problems(&moved, &task).into_iter().map(|(path, _)| path).collect();
    let expected = [1, 2, 3, 4].map(|index| format!("containerDefinitions[0].portMappings[{index}].containerPort"));
    assert_eq!(paths, expected);
}

#[test]
fn ports_of_an_ingress_gateway_s_listeners() {
    let gateway = |ports: Value, containers: Value| {
        let settings = json!({ "gateway": { "kind": "ingress-gateway" }, "listenerPorts": ports,
            "retryJoin": ["consul.internal"], "registry": "registry.example" });
        let task = json!({ "family": "gateway", "networkMode": "awsvpc", "containerDefinitions": containers });
        problems(&settings, &task)
    };
    let rule = Some("port-of-the-mesh");
    assert_eq!(gateway(json!([8081, 443]), json!([])), []);
    let expected = [("listenerPorts[0]".to_owned(), rule), ("listenerPorts[2]".to_owned(), rule)];
    assert_eq!(gateway(json!([8443, 8081, 19000]), json!([])), expected);
    for wrong in [0, 65536, 8081] {
        assert_eq!(gateway(json!([8081, wrong]), json!([])), [("listenerPorts[1]".to_owned(), None)], "{wrong}");
    }
    let beside = json!([{ "name": "logs", "image": "logs:1", "portMappings": [{ "containerPort": 8081 }] }]);
    let path = "containerDefinitions[0].portMappings[0].containerPort";
    assert_eq!(gateway(json!([8081]), beside), one(path, "port-of-the-mesh"));
}

#[test]
fn circles_of_depends_on() {
    let on = |name: &str| json!([{ "containerName": name, "condition": "START" }]);
    let circle = of_task(|task| {
        task["containerDefinitions"][0]["dependsOn"] = on("other");
        task["containerDefinitions"][1]["dependsOn"] = on("app");
    });
    assert_eq!(circle, one("containerDefinitions[0].dependsOn", "depends-on-circle"));
    let own = of_task(|task| task["containerDefinitions"][1]["dependsOn"] = on("other"));
    assert_eq!(own, one("containerDefinitions[1].dependsOn", "depends-on-circle"));
    let unknown = of_task(|task| task["containerDefinitions"][1]["dependsOn"] = on("nobody"));
    assert_eq!(unknown, [("containerDefinitions[1].dependsOn[0].containerName".to_owned(), None)]);
    let sidecar = of_task(|task| task["containerDefinitions"][1]["dependsOn"] = on("consul-client"));
    assert_eq!(sidecar, []);
    // health-sync becomes healthy after the proxy, and the proxy after the app.
    let health = json!([{ "containerName": "health-sync", "condition": "HEALTHY" }]);
    let health = of_task(|task| task["containerDefinitions"][1]["dependsOn"] = health);
    assert_eq!(health, one("containerDefinitions[1].dependsOn[0]", "depends-on-circle"));
    // The sidecars wait for the log router, and the log router waits for the app.
    let mut settings = settings();
    settings["logConfiguration"] = json!({ "logDriver": "awsfirelens" });
    let mut task = task();
    task["containerDefinitions"][1]["firelensConfiguration"] = json!({ "type": "fluentbit" });
    assert_eq!(problems(&settings, &task), []);
    task["containerDefinitions"][1]["dependsOn"] = on("app");
    assert_eq!(problems(&settings, &task), one("containerDefinitions[0].dependsOn", "depends-on-circle"));
}

#[test]
fn stop_timeouts_and_delays() {
    let timeout = |delay: &str, seconds: Value, places: Value| {
        let mut settings = settings();
        settings["shutdownDelay"] = json!(delay);
        let mut task = task();
        task["requiresCompatibilities"] = places;
        task["containerDefinitions"][0]["stopTimeout"] = seconds;
        problems(&settings, &task)
    };
    let path = "containerDefinitions[0].stopTimeout";
    assert_eq!(timeout("10s", json!(30), json!(["FARGATE"])), []);
    assert_eq!(timeout("10s", json!(10), json!(["FARGATE"])), one(path, "stop-timeout"));
    assert_eq!(timeout("10s", json!(121), json!(["FARGATE"])), one(path, "stop-timeout"));
    assert_eq!(timeout("10s", json!(121), Value::Null), one(path, "stop-timeout"));
    assert_eq!(timeout("10s", json!(121), json!(["EC2"])), []);
    // Without a stop timeout ECS waits 30 seconds.
    let both = [0, 1].map(|index| (format!("containerDefinitions[{index}].stopTimeout"), Some("stop-timeout")));
    assert_eq!(timeout("30s", Value::Null, Value::Null), both);

    let gateway = |delay: &str, places: Value| {
        let settings = json!({ "gateway": { "kind": "mesh-gateway" }, "retryJoin": ["consul.internal"], "registry": "r.example",
            "shutdownDelay": delay });
        let task = json!({ "family": "gateway", "networkMode": "awsvpc", "requiresCompatibilities": places,
            "containerDefinitions": [] });
        problems(&settings, &task)
    };
    assert_eq!(gateway("119s", json!(["FARGATE"])), []);
    assert_eq!(gateway("120s", json!(["FARGATE"])), one("shutdownDelay", "stop-timeout"));
    assert_eq!(gateway("150s", json!(["EC2"])), []);

    let entry_point = |entry_point: Value, command: Value| {
        let mut settings = settings();
        settings["shutdownDelay"] = json!("10s");
        let mut task = task();
        task["containerDefinitions"][0]["entryPoint"] = entry_point;
        task["containerDefinitions"][0]["command"] = command;
        problems(&settings, &task)
    };
    for none in [Value::Null, json!([])] {
        assert_eq!(entry_point(none, json!(["/shop"])), one("containerDefinitions[0].entryPoint", "entry-point"));
    }
    assert_eq!(entry_point(json!([""]), json!(["/shop"])), []);
    assert_eq!(entry_point(json!([""]), Value::Null), one("containerDefinitions[0].command", "entry-point"));
    let mut named = settings();
    named["shutdownDelay"] = json!("10s");
    named["shutdownDelayContainers"] = json!(["app", "nobody"]);
    assert_eq!(problems(&named, &task()), [("shutdownDelayContainers[1]".to_owned(), None)]);
    // A container that already runs under an app-entrypoint does not change.
    assert_eq!(entry_point(json!(["/app-entrypoint", "/shop"]), Value::Null), []);
}

#[test]
fn incomplete_or_contradictory_settings() {
    let paths =
        |change: fn(&mut Value)| -> Vec<String> { of_settings(change).into_iter().map(|(path, _)| path).collect() };
    assert_eq!(paths(|settings| settings["retryJoin"] = json!([])), ["retryJoin"]);
    assert_eq!(
        paths(|settings| settings["registry"] = Value::Null),
        ["images.meshInit", "images.sidecarProxy", "images.healthSync"]
    );
    // Only a service with a delay needs app-entrypoint.
    let image = "registry.example/image:1";
    let mut without_entrypoint = settings();
    without_entrypoint["registry"] = Value::Null;
    without_entrypoint["images"] = json!({ "meshInit": image, "sidecarProxy": image, "healthSync": image });
    for (delay, missing) in [("10s", &["images.appEntrypoint"][..]), ("0s", &[])] {
        without_entrypoint["shutdownDelay"] = json!(delay);
        let found = problems(&without_entrypoint, &task());
        assert_eq!(found.iter().map(|(path, _)| path).collect::<Vec<_>>(), missing, "{delay}");
    }
    without_entrypoint["shutdownDelay"] = json!("10s");
    without_entrypoint.as_object_mut().unwrap().remove("service");
    without_entrypoint["gateway"] = json!({ "kind": "mesh-gateway" });
    let gateway = json!({ "family": "gateway", "networkMode": "awsvpc", "containerDefinitions": [] });
    assert_eq!(problems(&without_entrypoint, &gateway), []);
    assert_eq!(paths(|settings| settings["bootstrapDir"] = json!("/consul")), ["bootstrapDir"]);
    assert_eq!(paths(|settings| settings["listenerPorts"] = json!([8080])), ["listenerPorts"]);
    assert_eq!(paths(|settings| settings["tls"] = json!(true)), ["secrets.ca"]);
    assert_eq!(paths(|settings| settings["shutdownDelay"] = json!("10")), ["shutdownDelay"]);
    assert_eq!(paths(|settings| settings["healthSyncContainers"] = json!(["app"])), ["healthSyncContainers[0]"]);
    assert_eq!(
        paths(|settings| {
            settings["consulLogin"] = json!({ "enabled": true });
            settings["secrets"] = json!({ "serviceToken": "arn:aws:ssm:eu-west-1:111122223333:parameter/token" });
        }),
        ["secrets.serviceToken", "consulHTTPAddr"]
    );
    assert_eq!(
        paths(|settings| settings["retryJoin"] = json!(["consul-token.internal", "provider=aws tag_key=a"])),
        [""; 0]
    );
    let keys = json!(["provider=aws tag_key=consul tag_value=server access_key_id=x secret_access_key=5ec3e7"]);
    let Problems(problems) = {
        let mut settings = settings();
        settings["retryJoin"] = keys;
        render(&settings, &task()).unwrap_err()
    };
    assert_eq!(problems[0].error.path, "retryJoin[0]");
    assert!(!Problems(problems).to_string().contains("5ec3e7"));
}

#[test]
fn all_problems_of_both_documents_are_reported_at_once() {
    let settings = json!({ "service": { "port": "80" }, "unknown": 1, "registry": "registry.example" });
    let task = json!({
        "networkMode": "host",
        "containerDefinitions": [
            { "name": "app", "stopTimeout": "long", "portMappings": [{ "containerPort": "80" }], "dependsOn": ["x"] },
            7,
            { "name": "app" },
            {},
        ],
    });
    let Problems(problems) = render(&settings, &task).unwrap_err();
    let of = |document: Document| -> Vec<_> {
        problems.iter().filter(|one| one.document == document).map(|one| one.error.path.as_str()).collect()
    };
    assert_eq!(of(Document::Settings), ["retryJoin", "service.port", "unknown"]);
    let expected = [
        "family",
        "containerDefinitions[1]",
        "containerDefinitions[3].name",
        "networkMode",
        "containerDefinitions[2].name",
        "containerDefinitions[0].stopTimeout",
        "containerDefinitions[0].dependsOn[0]",
        "containerDefinitions[0].portMappings[0].containerPort",
    ];
    assert_eq!(of(Document::Task), expected);
    for (value, path) in [(json!([]), "the document"), (json!("x"), "the document")] {
        assert_eq!(render(&value, &value).unwrap_err().0[0].error.path, path);
    }
}
