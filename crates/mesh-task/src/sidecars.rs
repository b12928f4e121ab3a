//! The containers that mesh-task adds to a task, in the order in which they start.

use mesh_config::{GATEWAY_PORT, GatewayKind, HEALTH_CHECK_PORT, Role};
use serde_json::{Map, Value, json};

use crate::resources::{self, Share};
use crate::settings::{Agent, BOOTSTRAP_DIR, Mode, Settings};

/// The docker label of every container that mesh-task added.
pub const LABEL: &str = "ecs-mesh.rendered-by";

/// Envoy's container in a task with an agent.
const SIDECAR_PROXY: &str = "sidecar-proxy";
/// Envoy's container in a task without an agent.
const DATAPLANE: &str = "dataplane";
/// The name of the container and volume with the app-entrypoint binary, which delays an app's TERM.
pub(crate) const APP_ENTRYPOINT: &str = "app-entrypoint";
const WRAPPER_DIR: &str = "/ecs-mesh";
/// The first word of an entry point that mesh-task set.
pub(crate) const WRAPPER: &str = "/ecs-mesh/app-entrypoint";

const MESH: &str = "mesh";
const CONSUL_CONFIG: &str = "consul-config";
const CONSUL_DATA: &str = "consul-data";
/// The volumes that mesh-task adds.
pub(crate) const VOLUMES: [&str; 4] = [MESH, CONSUL_CONFIG, CONSUL_DATA, APP_ENTRYPOINT];

/// The longest start period of a health check that ECS accepts, in seconds.
const START_PERIOD: u64 = 300;

/// The variables with the CA certificate of the servers in a task without an agent: for their HTTP API, and for their gRPC.
const HTTPS_CA: &str = "CONSUL_HTTPS_CACERT_PEM";
const GRPC_CA: &str = "CONSUL_GRPC_CACERT_PEM";

const OUR_USER: &str = "10001:10001";

/// The parts of the task on which the sidecars depend.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    /// The complete document, in the form of `CONSUL_ECS_CONFIG_JSON`.
    pub(crate) document: String,
    /// The task's FireLens log routers.
    pub(crate) log_routers: Vec<&'a str>,
    /// The longest stop timeout of an app, in seconds.
    pub(crate) longest_stop: u64,
    /// The longest allowed stop timeout.
    pub(crate) stop_limit: Option<u64>,
    /// Whether an app runs under app-entrypoint.
    pub(crate) delays: bool,
}

impl Around<'_> {
    /// A stop timeout within the limit.
    fn limited(&self, seconds: u64) -> u64 {
        self.stop_limit.map_or(seconds, |limit| seconds.min(limit))
    }
}

/// The names of all sidecars, each with its dependencies.
pub(crate) fn dependencies(mode: &Mode) -> &'static [(&'static str, &'static [(&'static str, &'static str)])] {
    match mode {
        Mode::Agent(_) => &[
            ("consul-config", &[]),
            ("consul-client", &[("consul-config", "SUCCESS")]),
            ("mesh-init", &[("consul-client", "START")]),
            (SIDECAR_PROXY, &[("mesh-init", "SUCCESS"), ("consul-client", "START")]),
            ("health-sync", &[("mesh-init", "SUCCESS")]),
        ],
        Mode::Agentless => &[
            ("mesh-init", &[]),
            (DATAPLANE, &[("mesh-init", "SUCCESS")]),
            ("health-sync", &[("mesh-init", "SUCCESS")]),
        ],
    }
}

/// The name of Envoy's container, for which the apps wait.
pub(crate) fn proxy(mode: &Mode) -> &'static str {
    match mode {
        Mode::Agent(_) => SIDECAR_PROXY,
        Mode::Agentless => DATAPLANE,
    }
}

/// Whether a value names the container that runs Envoy in a task of the other mode.
pub(crate) fn is_proxy_of_other_mode(name: &Value, mode: &Mode) -> bool {
    [SIDECAR_PROXY, DATAPLANE].into_iter().any(|proxy_name| proxy_name != proxy(mode) && name == proxy_name)
}

/// The port of Envoy's readiness listener in a task without an agent.
pub(crate) fn readiness_port(settings: &Settings, role: Role<'_>) -> u16 {
    let port = match role {
        Role::Service(_) => settings.config.proxy.health_check_port,
        Role::Gateway(gateway) => gateway.health_check_port,
    };
    port.filter(|port| *port != 0).unwrap_or(HEALTH_CHECK_PORT)
}

/// The sidecars as container definitions, and the volumes that they need.
pub(crate) fn make(settings: &Settings, role: Role<'_>, around: &Around<'_>) -> (Vec<Value>, Vec<Value>) {
    let mut containers: Vec<Value> = dependencies(&settings.mode)
        .iter()
        .map(|(name, depends_on)| {
            let own = match (*name, &settings.mode) {
                ("consul-config", Mode::Agent(agent)) => consul_config(settings, agent, role),
                ("consul-client", Mode::Agent(_)) => consul_client(settings),
                ("mesh-init", _) => mesh_init(settings, around),
                (SIDECAR_PROXY, _) => sidecar_proxy(settings, role, around),
                (DATAPLANE, _) => dataplane(settings, role, around),
                (_, _) => health_sync(settings, role, around),
            };
            container(settings, name, depends_on, own)
        })
        .collect();
    let mut volumes = match settings.mode {
        Mode::Agent(_) => vec![MESH, CONSUL_CONFIG, CONSUL_DATA],
        Mode::Agentless => vec![MESH],
    };
    if around.delays {
        containers.push(container(settings, APP_ENTRYPOINT, &[], app_entrypoint(settings)));
        volumes.push(APP_ENTRYPOINT);
    }
    (containers, volumes.into_iter().map(|name| json!({ "name": name })).collect())
}

/// The path of app-entrypoint in an app's container.
pub(crate) fn wrapper_mount() -> Value {
    json!({ "sourceVolume": APP_ENTRYPOINT, "containerPath": WRAPPER_DIR, "readOnly": true })
}

/// The common fields of all sidecars, together with this sidecar's own fields.
fn container(settings: &Settings, name: &str, depends_on: &[(&str, &str)], own: Value) -> Value {
    let mut fields = Map::new();
    let Share { cpu, memory } = resources::share(name);
    let on: Vec<_> =
        depends_on.iter().map(|(name, condition)| json!({ "containerName": name, "condition": condition })).collect();
    let common = json!({
        "name": name,
        "cpu": cpu,
        "memoryReservation": memory,
        "dockerLabels": { LABEL: "mesh-task" },
        "linuxParameters": { "capabilities": { "drop": ["ALL"] } },
        "readonlyRootFilesystem": true,
        "dependsOn": on,
        "logConfiguration": settings.log_configuration,
    });
    for part in [common, own] {
        let Value::Object(part) = part else { continue };
        // Null and empty fields are left out.
        let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        fields.extend(part.into_iter().filter(|(_, value)| !empty(value)));
    }
    fields.into()
}

fn variable(name: &str, value: impl Into<String>) -> Value {
    json!({ "name": name, "value": value.into() })
}

/// A variable whose value ECS takes from a secret.
fn secret(name: &str, from: Option<&String>) -> Option<Value> {
    from.map(|arn| json!({ "name": name, "valueFrom": arn }))
}

/// A variable with the token from a secret of acl-controller. The secret's value is JSON with the key `token`.
fn token(name: &str, from: Option<&String>) -> Option<Value> {
    secret(name, from.map(|arn| with_key(arn)).as_ref())
}

/// `<arn>:token::` for a secret's ARN without a key. A parameter of Parameter Store holds the token itself.
fn with_key(arn: &str) -> String {
    let parts: Vec<_> = arn.split(':').collect();
    let names_a_secret = parts.len() == 7 && parts[2] == "secretsmanager";
    if names_a_secret { format!("{arn}:token::") } else { arn.to_owned() }
}

fn mount(volume: &str, path: &str, read_only: bool) -> Value {
    let mut mount = json!({ "sourceVolume": volume, "containerPath": path });
    if read_only {
        mount["readOnly"] = true.into();
    }
    mount
}

fn log_level(settings: &Settings) -> Option<Value> {
    settings.config.log_level.map(|level| variable("LOG_LEVEL", level.as_str()))
}

fn consul_config(settings: &Settings, agent: &Agent, role: Role<'_>) -> Value {
    let secrets = &settings.secrets;
    let logs_in = settings.logs_in() && secrets.client_token.is_none();
    let mut environment = vec![variable("CONSUL_RETRY_JOIN", agent.retry_join.join(","))];
    environment.extend(agent.datacenter.as_ref().map(|name| variable("CONSUL_DATACENTER", name)));
    environment.extend(agent.consul_version.as_ref().map(|version| variable("MESH_INIT_CONSUL_VERSION", version)));
    environment.extend(role.namespace_and_partition().1.map(|partition| variable("CONSUL_PARTITION", partition)));
    environment.extend(log_level(settings));
    let mut mounts = vec![mount(CONSUL_CONFIG, "/consul/config", false)];
    if logs_in {
        let login = settings.config.consul_login.as_ref();
        let named = |name: &str, value: Option<&String>| value.map(|value| variable(name, value));
        environment.push(variable("CONSUL_LOGIN", "true"));
        environment.extend(named("CONSUL_HTTP_ADDR", settings.config.consul_http_addr.as_ref()));
        environment.extend(
            login.filter(|login| !login.include_entity).map(|_| variable("CONSUL_LOGIN_INCLUDE_ENTITY", "false")),
        );
        environment.extend(named("CONSUL_LOGIN_REGION", login.and_then(|login| login.region.as_ref())));
        environment.extend(named("CONSUL_LOGIN_STS_ENDPOINT", login.and_then(|login| login.sts_endpoint.as_ref())));
        environment
            .extend(named("CONSUL_LOGIN_SERVER_ID", login.and_then(|login| login.server_id_header_value.as_ref())));
        mounts.insert(0, mount(MESH, BOOTSTRAP_DIR, false));
    }
    let secrets: Vec<_> = [
        token("CONSUL_CLIENT_TOKEN", secrets.client_token.as_ref()),
        secret("CONSUL_GOSSIP_KEY", secrets.gossip_key.as_ref()),
        secret("CONSUL_CACERT_PEM", secrets.ca.as_ref()),
    ]
    .into_iter()
    .flatten()
    .collect();
    json!({
        "image": settings.images.mesh_init,
        "command": ["agent-config"],
        "essential": false,
        "user": OUR_USER,
        "environment": environment,
        "secrets": secrets,
        "mountPoints": mounts,
    })
}

fn consul_client(settings: &Settings) -> Value {
    json!({
        "image": settings.images.consul,
        "command": ["consul", "agent", "-config-dir=/consul/config"],
        "essential": true,
        "user": "100:10001",
        "environment": [variable("CONSUL_DISABLE_PERM_MGMT", "1")],
        "mountPoints": [mount(CONSUL_CONFIG, "/consul/config", true), mount(CONSUL_DATA, "/consul/data", false)],
        "stopTimeout": 20,
    })
}

/// The variables with the service's token, unless it comes from a login, and with the CA certificate of the servers, if the container
/// speaks to them. `ca` are the names for that certificate in a task without an agent.
fn service_secrets(settings: &Settings, ca: &[&str]) -> Vec<Value> {
    let (secrets, logs_in) = (&settings.secrets, settings.logs_in());
    let token = if logs_in { None } else { token("CONSUL_HTTP_TOKEN", secrets.service_token.as_ref()) };
    let ca = match settings.mode {
        Mode::Agentless => ca,
        Mode::Agent(_) if logs_in => &["CONSUL_CACERT_PEM"],
        Mode::Agent(_) => &[],
    };
    token.into_iter().chain(ca.iter().filter_map(|name| secret(name, secrets.ca.as_ref()))).collect()
}

fn mesh_init(settings: &Settings, around: &Around<'_>) -> Value {
    json!({
        "image": settings.images.mesh_init,
        "essential": false,
        "user": OUR_USER,
        "environment": [variable(mesh_config::VARIABLE, &around.document)],
        "secrets": service_secrets(settings, &[HTTPS_CA, GRPC_CA]),
        "mountPoints": [mount(MESH, BOOTSTRAP_DIR, false)],
    })
}

fn sidecar_proxy(settings: &Settings, role: Role<'_>, around: &Around<'_>) -> Value {
    let bootstrap = format!("{BOOTSTRAP_DIR}/{}", mesh_config::BOOTSTRAP_FILE);
    let mut own = envoy(settings, role, around, "ENVOY_ENTRYPOINT", &["--config-path", &bootstrap]);
    own["image"] = json!(settings.images.sidecar_proxy);
    own["mountPoints"] = json!([mount(MESH, BOOTSTRAP_DIR, true)]);
    let dial = format!("localhost:{}", listener_port(settings, role));
    own["healthCheck"]["command"] = json!(["CMD", "/usr/local/bin/envoy-entrypoint", "dial", dial]);
    own
}

/// Envoy's container in a task without an agent. mesh-dataplane speaks to the servers, so it has the service's token. It writes Envoy's
/// bootstrap.
fn dataplane(settings: &Settings, role: Role<'_>, around: &Around<'_>) -> Value {
    let mut own = envoy(settings, role, around, "MESH_DATAPLANE", &[]);
    own["image"] = json!(settings.images.mesh_dataplane);
    own["secrets"] = service_secrets(settings, &[]).into();
    own["mountPoints"] = json!([mount(MESH, BOOTSTRAP_DIR, false)]);
    own["healthCheck"]["command"] = json!(["CMD", "/usr/local/bin/mesh-dataplane", "healthy"]);
    own
}

/// The port of Envoy's public listener, or of the gateway.
fn listener_port(settings: &Settings, role: Role<'_>) -> u16 {
    match role {
        Role::Service(_) => settings.config.proxy.public_listener_port,
        Role::Gateway(gateway) => {
            let port = gateway.lan_address.as_ref().and_then(|address| address.port);
            port.filter(|port| *port != 0).unwrap_or(GATEWAY_PORT)
        }
    }
}

/// What both containers with Envoy have. `variables` is the prefix of the variables of the program that runs Envoy.
fn envoy(settings: &Settings, role: Role<'_>, around: &Around<'_>, variables: &str, flags: &[&str]) -> Value {
    let own = |name: &str, value: &str| variable(&format!("{variables}_{name}"), value);
    let mut environment = vec![own("DRAIN", "true")];
    if let Role::Gateway(gateway) = role {
        let delay = settings.shutdown_delay.as_ref();
        environment.push(own("GATEWAY_DELAY", delay.map_or("6s", |(text, _)| text)));
        // An ingress gateway has no listener before it has a config entry.
        if gateway.kind == GatewayKind::Ingress {
            environment.push(own("LISTENER_TIMEOUT", "0s"));
        }
    }
    let stop_timeout = around.limited(proxy_stop_timeout(settings, role, around));
    // Without GRACE, Envoy gets TERM after 120 s, even if an app still runs. Envoy's end takes up to 10 s.
    if stop_timeout > 130 {
        environment.push(own("GRACE", &format!("{}s", stop_timeout - 10)));
    }
    if !around.log_routers.is_empty() {
        environment.push(own("IGNORE_CONTAINERS", &around.log_routers.join(",")));
    }
    environment.extend(log_level(settings));
    let port = listener_port(settings, role);
    let ports = std::iter::once(&port).chain(&settings.listener_ports);
    let mappings: Vec<_> = ports.map(|port| json!({ "containerPort": port, "protocol": "tcp" })).collect();
    let mut command = vec!["envoy"];
    command.extend(flags);
    command.extend(["--disable-hot-restart", "--concurrency", "2", "--drain-strategy", "immediate"]);
    json!({
        "command": command,
        "essential": true,
        "user": "101:10001",
        "environment": environment,
        "portMappings": mappings,
        "ulimits": [{ "name": "nofile", "softLimit": 1_048_576, "hardLimit": 1_048_576 }],
        "healthCheck": { "interval": 5, "timeout": 2, "retries": 3, "startPeriod": START_PERIOD },
        "stopTimeout": stop_timeout,
    })
}

/// The stop timeout of Envoy's container in seconds. Envoy ends after the last app, or after a gateway's own delay.
fn proxy_stop_timeout(settings: &Settings, role: Role<'_>, around: &Around<'_>) -> u64 {
    let delay = settings.shutdown_delay.as_ref().filter(|_| matches!(role, Role::Gateway(_)));
    (around.longest_stop + 10).max(40).max(delay.map_or(0, |(_, delay)| delay.as_secs() + 10))
}

fn health_sync(settings: &Settings, role: Role<'_>, around: &Around<'_>) -> Value {
    let mut environment = vec![variable(mesh_config::VARIABLE, &around.document)];
    let mut stop_timeout = 30;
    if settings.mode == Mode::Agentless {
        // It deregisters the task after Envoy has ended, which takes it less than 10 s.
        stop_timeout = around.limited(proxy_stop_timeout(settings, role, around) + 10);
        environment.push(variable("HEALTH_SYNC_DATAPLANE_WAIT", format!("{}s", stop_timeout - 10)));
    }
    json!({
        "image": settings.images.health_sync,
        "essential": true,
        "user": OUR_USER,
        "environment": environment,
        "secrets": service_secrets(settings, &[HTTPS_CA]),
        "mountPoints": [mount(MESH, BOOTSTRAP_DIR, false)],
        "healthCheck": {
            "command": ["CMD", "/health-sync", "healthy", "--in-mesh"],
            "interval": 5, "timeout": 5, "retries": 3, "startPeriod": START_PERIOD,
        },
        // ECS restarts the container only if it has run for this many seconds.
        "restartPolicy": { "enabled": true, "restartAttemptPeriod": 60 },
        "stopTimeout": stop_timeout,
    })
}

fn app_entrypoint(settings: &Settings) -> Value {
    json!({
        "image": settings.images.app_entrypoint,
        "command": ["install", "/shared"],
        "essential": false,
        "user": OUR_USER,
        "mountPoints": [mount(APP_ENTRYPOINT, "/shared", false)],
    })
}
