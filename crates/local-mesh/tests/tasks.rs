//! docker-compose.yml is what the task definitions say, and a user's task becomes what ECS would run.

use local_mesh::tasks::{Agentless, Given, Name, Own, TasksError, committed, compose_file, read};
use local_mesh::workspace;
use serde_json::{Value, json};

#[test]
fn compose_file_is_made_of_the_task_definitions() {
    let path = workspace().join("docker-compose.yml");
    let made = compose_file(&Agentless::default()).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "docker-compose.yml is not what deploy/examples says: UPDATE_DOCS=1 cargo test --workspace --test tasks"
    );
    assert!(!made.contains(" &") && !made.contains("<<:") && !made.contains(": *"), "no anchor and no alias");
}

#[test]
fn the_tasks_have_the_names_on_which_programs_rely() {
    let names: Vec<_> = committed(&Agentless::default()).unwrap().into_keys().collect();
    assert_eq!(names, ["api-1", "api-2", "ingress-gateway", "mesh-gateway", "web"]);
    assert_eq!(
        committed(&Agentless::default()).unwrap()["web"][0],
        "web",
        "the first service holds the network namespace"
    );
}

#[test]
fn tasks_without_an_agent_are_made_beside_those_with_one() {
    let agentless = Agentless::Tasks(vec!["api-2".to_owned()]);
    let tasks = committed(&agentless).unwrap();
    let sidecars = |task: &str| {
        tasks[task].iter().filter_map(|name| name.strip_prefix(task)?.strip_prefix('-')).collect::<Vec<_>>()
    };
    assert_eq!(sidecars("api-2"), ["secrets", "app", "mesh-init", "dataplane", "health-sync", "app-entrypoint"]);
    assert!(sidecars("api-1").contains(&"consul-client") && sidecars("web").contains(&"sidecar-proxy"));
    let all = committed(&Agentless::All).unwrap().into_values().flatten().collect::<Vec<_>>();
    let with_agent: Vec<_> = all.iter().filter(|name| name.ends_with("consul-client")).collect();
    assert_eq!(with_agent, ["ingress-gateway-consul-client"]);
    let file = compose_file(&agentless).unwrap();
    assert!(file.contains("  api-2-dataplane:\n") && !file.contains("api-2-consul-client"));
}

/// The settings of a service `shop` as in production.
fn settings() -> Value {
    json!({
        "service": { "port": 8080, "partition": "shops" },
        "proxy": { "upstreams": [
            { "destinationName": "api", "localBindPort": 1234 }, { "destinationName": "stock", "localBindPort": 1235 },
        ] },
        "retryJoin": ["consul.internal"], "registry": "registry.example/ecs-mesh", "datacenter": "eu", "tls": true,
        "secrets": { "ca": "arn:aws:secretsmanager:eu-west-1:111122223333:secret:ca-AbCdEf" },
        "shutdownDelay": "10s",
    })
}

fn definition() -> Value {
    json!({
        "family": "shop", "networkMode": "awsvpc", "cpu": "512", "taskRoleArn": "arn:aws:iam::111122223333:role/shop",
        "volumes": [{ "name": "data", "efsVolumeConfiguration": { "fileSystemId": "fs-1" } }, { "name": "scratch", "host": {} }],
        "containerDefinitions": [
            {
                "name": "app", "image": "registry.example/shop:7", "entryPoint": ["/shop"], "stopTimeout": 20, "memory": 256, "cpu": 0,
                "portMappings": [{ "containerPort": 8080 }, { "containerPort": 9090 }, { "containerPort": 53, "protocol": "udp" }],
                "environment": [{ "name": "PRICE", "value": "5$" }],
                "secrets": [{ "name": "DB_PASSWORD", "valueFrom": "arn:aws:secretsmanager:eu-west-1:111122223333:secret:db:password::" },
                    { "name": "API_KEY", "valueFrom": "arn:aws:ssm:eu-west-1:111122223333:parameter/key" }],
                "healthCheck": { "command": ["CMD", "/shop", "healthy"], "interval": 10, "startPeriod": 60 },
                "dependsOn": [{ "containerName": "migrate", "condition": "SUCCESS" }],
                "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data", "readOnly": true }],
                "linuxParameters": { "initProcessEnabled": true, "tmpfs": [{ "containerPath": "/run", "size": 8 }], "devices": [{ "hostPath": "/dev/x" }] },
                "environmentFiles": [{ "type": "s3", "value": "arn:aws:s3:::b/f.env" }], "ofTomorrow": 1,
            },
            { "name": "migrate", "image": "registry.example/ecs-mesh/demo-app:0.1.0", "essential": false,
                "restartPolicy": { "enabled": true, "restartAttemptPeriod": 60 } },
        ],
    })
}

/// Writes documents to files and reads them as `up` does.
fn given(settings: &Value, definition: &Value, images: &[Name], secrets: &[(&str, &str)]) -> Result<Own, TasksError> {
    let folder =
        std::env::temp_dir().join(format!("ecs-mesh-tasks-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let files = [Given {
        definition: write("task.json", definition.to_string()),
        settings: write("mesh.json", settings.to_string()),
    }];
    let secrets: Vec<_> = secrets
        .iter()
        .map(|(name, value)| ((*name).to_owned(), write(name, format!("{value}\n")).display().to_string()))
        .collect();
    let read = read(&files, images, &secrets, Agentless::default());
    std::fs::remove_dir_all(&folder).unwrap();
    read
}

fn name(name: &str, value: &str) -> Name {
    (name.to_owned(), value.to_owned())
}

#[test]
fn a_user_s_container_has_what_ecs_would_give_it() {
    let own = given(&settings(), &definition(), &[name("app", "shop:local")], &[("DB_PASSWORD", "p$ss")]).unwrap();
    assert_eq!(own.tasks, ["shop"]);
    assert_eq!(own.images, [name("app", "shop:local"), name("migrate", "ecs-mesh/demo-app:dev")]);
    assert_eq!(own.ports, [8080], "web has 9090");
    let services = &own.file()["services"];
    assert_eq!(services["shop"]["ports"], json!(["127.0.0.1:8080:8080"]));
    let app = &services["shop-app"];
    assert_eq!(app["network_mode"], "service:shop");
    let environment = &app["environment"];
    assert_eq!((&environment["PRICE"], &environment["DB_PASSWORD"]), (&json!("5$$"), &json!("p$$ss")));
    assert_eq!(environment["API_KEY"], "made-up-api_key");
    let delay =
        ["/ecs-mesh/app-entrypoint", "--shutdown-delay", "${SHUTDOWN_DELAY:-10s}", "--stop-timeout", "20s", "/shop"];
    assert_eq!(app["entrypoint"], json!(delay));
    let health = json!({ "test": ["CMD", "/shop", "healthy"], "interval": "2s", "timeout": "5s", "retries": 3, "start_period": "60s" });
    assert_eq!(app["healthcheck"], health);
    let on = |condition: &str| json!({ "condition": condition });
    let completed = on("service_completed_successfully");
    let expected = json!({ "shop-migrate": completed, "shop-sidecar-proxy": on("service_healthy"), "shop-app-entrypoint": completed });
    assert_eq!(app["depends_on"], expected);
    assert_eq!(app["volumes"], json!(["shop-data:/data:ro", "shop-app-entrypoint:/ecs-mesh:ro"]));
    assert_eq!(
        (&app["stop_grace_period"], &app["mem_limit"], &app["init"]),
        (&json!("20s"), &json!("256m"), &json!(true))
    );
    assert_eq!(app["tmpfs"], json!(["/run:size=8m"]));
    let labels = &app["labels"];
    assert_eq!(labels["ecs-mesh.stop-timeout"], "20");
    assert_eq!(labels["ecs-mesh.depends-on"], "migrate:SUCCESS,sidecar-proxy:HEALTHY,app-entrypoint:SUCCESS");
    assert_eq!(labels["ecs-mesh.tag.consul.hashicorp.com/service-name"], "shop");
    let labels = &services["shop-migrate"]["labels"];
    assert_eq!(
        (&labels["ecs-mesh.essential"], &labels["ecs-mesh.restart-attempt-period"]),
        (&json!("false"), &json!("60"))
    );
}

#[test]
fn the_sidecars_use_the_local_mesh() {
    let own = given(&settings(), &definition(), &[], &[]).unwrap();
    let services = &own.file()["services"];
    let config = &services["shop-consul-config"];
    let variable = |name: &str| config["environment"][name].as_str();
    assert_eq!(variable("CONSUL_RETRY_JOIN"), Some("consul-server-1,consul-server-2,consul-server-3"));
    assert_eq!(variable("CONSUL_DATACENTER"), Some("dc1"));
    assert_eq!(variable("CONSUL_CLIENT_TOKEN_FILE"), Some("/secrets/CONSUL_CLIENT_TOKEN"));
    assert_eq!(variable("CONSUL_CACERT"), Some("/secrets/CONSUL_CACERT_PEM"));
    assert_eq!(variable("CONSUL_PARTITION"), None);
    let filler = services["shop-secrets"]["command"].to_string();
    assert!(filler.contains("CONSUL_HTTP_TOKEN=ecs-mesh-shop:token"), "{filler}");
    let setup = services["setup"]["command"].to_string();
    assert!(setup.contains("web:api,shop:api,ingress-gateway:web"), "{setup}");
    assert!(setup.contains(r#""--service","shop""#), "{setup}");
    for app in ["shop-app", "shop-migrate"] {
        assert!(!services[app].to_string().contains("/secrets"), "{app} sees no token");
    }
}

#[test]
fn a_task_with_servers_in_its_settings_runs_without_an_agent() {
    let mut settings = settings();
    let fields = settings.as_object_mut().unwrap();
    ["retryJoin", "datacenter", "tls"].into_iter().for_each(|name| drop(fields.remove(name)));
    fields.insert("consulServers".to_owned(), json!({ "hosts": "consul.internal" }));
    let own = given(&settings, &definition(), &[], &[]).unwrap();
    let services = &own.file()["services"];
    assert!(services["shop-consul-client"].is_null());
    let document = &services["shop-mesh-init"]["environment"]["CONSUL_ECS_CONFIG_JSON"];
    let document: Value = serde_json::from_str(document.as_str().unwrap()).unwrap();
    let servers = json!({
        "hosts": "consul-server-1,consul-server-2,consul-server-3",
        "defaults": { "caCertFile": "/secrets/CONSUL_HTTPS_CACERT_PEM" },
    });
    assert_eq!(document["consulServers"], servers);
    let dataplane = &services["shop-dataplane"];
    assert_eq!(dataplane["image"], "ecs-mesh/mesh-dataplane:dev");
    assert_eq!(dataplane["environment"]["CONSUL_HTTP_TOKEN_FILE"], "/secrets/CONSUL_HTTP_TOKEN");
}

#[test]
fn an_upstream_elsewhere_is_called_in_the_local_datacenter() {
    let mut settings = settings();
    settings["proxy"] = json!({ "upstreams": [
        { "destinationName": "api", "localBindPort": 1234, "datacenter": "eu", "destinationPartition": "shops" },
    ] });
    let own = given(&settings, &definition(), &[], &[]).unwrap();
    let document = &own.file()["services"]["shop-mesh-init"]["environment"]["CONSUL_ECS_CONFIG_JSON"];
    let document: Value = serde_json::from_str(document.as_str().unwrap()).unwrap();
    assert_eq!(document["proxy"]["upstreams"], json!([{ "destinationName": "api", "localBindPort": 1234 }]));
    for begin in ["datacenter: \"eu\" is left out", "destinationPartition: \"shops\" is left out"] {
        let begin = format!("shop: settings.proxy.upstreams[0].{begin}");
        assert!(own.notes.iter().any(|note| note.starts_with(&begin)), "{begin}: {:#?}", own.notes);
    }
}

#[test]
fn what_cannot_be_simulated_is_said() {
    let own = given(&settings(), &definition(), &[], &[]).unwrap();
    for begin in [
        "shop: settings: the local mesh has its own retryJoin, registry, secrets, datacenter, tls",
        "shop: settings.service.partition: \"shops\" is left out",
        "shop: port 9090: it is not published, because the local mesh already uses this port",
        "shop: cpu: ",
        "shop: taskRoleArn: the app gets no AWS credentials here",
        "shop: volumes[data].efsVolumeConfiguration: an empty volume",
        "shop: volumes[scratch]: it keeps its files",
        "shop: containerDefinitions[app].environmentFiles: ",
        "shop: containerDefinitions[app].ofTomorrow: it has no effect here",
        "shop: containerDefinitions[app].linuxParameters.devices: ",
        "shop: containerDefinitions[app].portMappings: UDP",
        "shop: containerDefinitions[app].healthCheck: runs every 2 s here, every 10 s on ECS",
        "shop: containerDefinitions[app].secrets: DB_PASSWORD has the made-up value",
        "shop: an intention allows shop to call api",
        "shop: the local mesh has no service stock",
    ] {
        assert!(own.notes.iter().any(|note| note.starts_with(begin)), "{begin}: {:#?}", own.notes);
    }
    // Files in EFS stay on ECS too, and a container without `cpu` has 0 in the output of `describe-task-definition`.
    for begin in ["shop: volumes[data]:", "shop: containerDefinitions[app].cpu"] {
        assert!(!own.notes.iter().any(|note| note.starts_with(begin)), "{begin}: {:#?}", own.notes);
    }
}

#[test]
fn wrong_documents_and_options_are_refused() {
    let refused = |settings: &Value, definition: &Value, images: &[Name], secrets: &[(&str, &str)]| {
        given(settings, definition, images, secrets).unwrap_err().to_string()
    };
    let mut web = definition();
    web["family"] = json!("web");
    assert!(refused(&settings(), &web, &[], &[]).starts_with("the local mesh already has a container web"));
    let mut secrets = definition();
    secrets["containerDefinitions"][1]["name"] = json!("secrets");
    secrets["containerDefinitions"][0]["dependsOn"][0]["containerName"] = json!("secrets");
    assert!(refused(&settings(), &secrets, &[], &[]).contains("a container shop-secrets"));
    let image = refused(&settings(), &definition(), &[name("ap", "x")], &[]);
    assert!(image.starts_with("--image ap: no given task definition has a container of this name"), "{image}");
    let secret = refused(&settings(), &definition(), &[], &[("DB_PASSWORT", "x")]);
    assert!(secret.ends_with("expected one of DB_PASSWORD, API_KEY"), "{secret}");
    // The settings that the local mesh replaces must be valid too.
    let mut no_servers = settings();
    no_servers["retryJoin"] = json!([]);
    assert!(refused(&no_servers, &definition(), &[], &[]).contains("retryJoin"));
}
