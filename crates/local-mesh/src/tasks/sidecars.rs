//! What the local mesh changes in the sidecars: their secrets are files, and variables of docker-compose set what the demos change.

use serde_json::{Value, json};

use super::container::Place;
use super::text;

/// Whether mesh-task added this container.
pub(crate) fn is_sidecar(container: &Value) -> bool {
    container["dockerLabels"].get(mesh_task::LABEL).is_some()
}

/// A volume in memory, for group 10001. It is empty again when its last container has ended.
pub(crate) fn tmpfs(mode: &str) -> Value {
    let options = format!("uid=10001,gid=10001,mode={mode}");
    json!({ "driver": "local", "driver_opts": { "type": "tmpfs", "device": "tmpfs", "o": options } })
}

/// The definition of one of the sidecars' volumes; none for a volume of the user.
pub(crate) fn volume(name: &str) -> Option<Value> {
    match name {
        "mesh" | "consul-config" | "consul-data" => Some(tmpfs("2770")),
        // Every user may run the program in it.
        "app-entrypoint" => Some(tmpfs("0755")),
        _ => None,
    }
}

/// The sidecars' secrets: variable and `valueFrom`, each once.
pub(crate) fn secrets(containers: &[Value]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let sidecars = containers.iter().filter(|container| is_sidecar(container));
    for secret in sidecars.filter_map(|sidecar| sidecar["secrets"].as_array()).flatten() {
        let secret = (text(&secret["name"]), text(&secret["valueFrom"]));
        if !all.contains(&secret) {
            all.push(secret);
        }
    }
    all
}

/// The container that passes the secrets to a task, as ECS's agent does. It waits until acl-controller has filled them. It does not
/// belong to the task, which cannot reach Secrets Manager.
pub(crate) fn filler(place: &Place, secrets: &[(String, String)]) -> Value {
    let mut command = vec!["secrets".to_owned(), "--dir".to_owned(), "/secrets".to_owned()];
    command.extend(["--timeout".to_owned(), "3m".to_owned()]);
    command.extend(secrets.iter().flat_map(|(name, from)| ["--secret".to_owned(), format!("{name}={from}")]));
    json!({
        "image": "ecs-mesh/ecs-local:dev",
        "user": "10001:10001",
        "command": command,
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": ["aws"],
        "environment": { "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://moto:5000" },
        "volumes": [format!("{}:/secrets", place.volume("secrets"))],
        "depends_on": { place.task.as_str(): { "condition": "service_started" } },
    })
}

/// The service of a container with the changes that the local mesh makes.
pub(crate) fn adjusted(place: &Place, container: &Value, mut service: Value) -> Value {
    delay(&mut service);
    if is_sidecar(container) {
        adjust(place, container, &mut service);
    }
    // Compose 1.29 sorts them when it merges files, and another order would be a change.
    if let Some(mounts) = service.get_mut("volumes").and_then(Value::as_array_mut) {
        mounts.sort_by_key(|mount| mount.as_str().and_then(|mount| mount.split(':').nth(1)).map(str::to_owned));
    }
    service
}

fn adjust(place: &Place, container: &Value, service: &mut Value) {
    service["security_opt"] = json!(["no-new-privileges:true"]);
    secrets_as_files(place, container, service);
    match container["name"].as_str().unwrap_or_default() {
        "consul-config" => {
            service["environment"]["MESH_INIT_CONSUL_VERSION"] = json!("${CONSUL_VERSION:-1.8.7}");
            // The image declares this volume too. Docker would make a new one each time.
            service["tmpfs"] = json!(["/consul:uid=10001,gid=10001,mode=2770"]);
        }
        "consul-client" => {
            service["image"] = json!("${CONSUL_IMAGE:-ecs-mesh/consul:dev}");
            service["tmpfs"] = json!(["/tmp:mode=1777"]);
        }
        "mesh-init" => service["tmpfs"] = json!(["/consul/config:uid=10001,gid=10001,mode=2770"]),
        "sidecar-proxy" => proxy(service, "ENVOY_ENTRYPOINT"),
        "dataplane" => proxy(service, "MESH_DATAPLANE"),
        "health-sync" => health_sync(service),
        _ => {}
    }
}

/// Lets `SHUTDOWN_DELAY` set the delay of an app under app-entrypoint.
fn delay(service: &mut Value) {
    let words = service.get_mut("entrypoint").and_then(Value::as_array_mut).map(Vec::as_mut_slice);
    let Some([_, flag, delay, ..]) = words else { return };
    if flag == "--shutdown-delay" {
        *delay = json!(format!("${{SHUTDOWN_DELAY:-{}}}", text(delay)));
    }
}

/// The files in place of the variables, which `docker inspect` would show.
fn secrets_as_files(place: &Place, container: &Value, service: &mut Value) {
    let secrets = container["secrets"].as_array().into_iter().flatten();
    let names: Vec<_> = secrets.map(|secret| text(&secret["name"])).collect();
    let Some(environment) = service["environment"].as_object_mut().filter(|_| !names.is_empty()) else { return };
    for name in names {
        environment.remove(&name);
        let file = match name.as_str() {
            "CONSUL_CACERT_PEM" => "CONSUL_CACERT".to_owned(),
            // The document has the path.
            "CONSUL_HTTPS_CACERT_PEM" | "CONSUL_GRPC_CACERT_PEM" => continue,
            _ => format!("{name}_FILE"),
        };
        environment.insert(file, json!(format!("/secrets/{name}")));
    }
    let mount = json!(format!("{}:/secrets:ro", place.volume("secrets")));
    match &mut service["volumes"] {
        Value::Array(mounts) => mounts.push(mount),
        none => *none = json!([mount]),
    }
    let filled = json!({ "condition": "service_completed_successfully" });
    service["depends_on"][place.service("secrets")] = filled;
}

/// `variables` is the prefix of the variables of the program that runs Envoy.
fn proxy(service: &mut Value, variables: &str) {
    // `cargo xtask demo shutdown` shows what happens without draining and without a delay.
    service["environment"][format!("{variables}_DRAIN")] = json!("${DRAIN:-true}");
    if let Some(delay) = service["environment"].get_mut(format!("{variables}_GATEWAY_DELAY")) {
        *delay = json!(format!("${{SHUTDOWN_DELAY:-{}}}", text(delay)));
    }
    if let Value::Array(command) = &mut service["command"] {
        command.extend([json!("-l"), json!("warning")]);
    }
}

fn health_sync(service: &mut Value) {
    // `cargo xtask demo rolling` shows each of these settings.
    service["environment"]["HEALTH_SYNC_HOLD"] = json!("${HEALTH_SYNC_HOLD:-2500ms}");
    service["environment"]["HEALTH_SYNC_INTERVAL"] = json!("${HEALTH_SYNC_INTERVAL:-500ms}");
    service["environment"]["HEALTH_SYNC_IN_MESH"] = json!("${HEALTH_SYNC_IN_MESH:-true}");
    if let Value::Array(command) = &mut service["healthcheck"]["test"] {
        command.retain(|word| word != "--in-mesh");
    }
    // A short period for the tests. On ECS the shortest is 60 s.
    service["labels"]["ecs-mesh.restart-attempt-period"] = json!("10");
}
