//! The rules for a task that becomes a mesh task. README.md lists them by name.

use std::collections::BTreeMap;

use mesh_config::{GATEWAY_PORT, GatewayKind, Role, is_sidecar};
use serde_json::{Map, Value, json};

use crate::problem::Collected;
use crate::settings::{Mode, Settings};
use crate::sidecars::{self, APP_ENTRYPOINT, VOLUMES};
use crate::task::{Container, Task, objects, read};

/// The longest stop timeout that Fargate accepts, in seconds.
const FARGATE_STOP_TIMEOUT: u64 = 120;

/// The longest stop timeout that the task may have. None if the task cannot run on Fargate.
pub(crate) fn stop_limit(definition: &Map<String, Value>) -> Option<u64> {
    let places = definition.get("requiresCompatibilities").and_then(Value::as_array);
    let elsewhere = places.is_some_and(|places| !places.is_empty() && !places.iter().any(|place| place == "FARGATE"));
    (!elsewhere).then_some(FARGATE_STOP_TIMEOUT)
}

/// Whether the task is sized for Fargate.
pub(crate) fn is_fargate(definition: &Map<String, Value>) -> bool {
    let places = definition.get("requiresCompatibilities").and_then(Value::as_array);
    places.is_some_and(|places| places.iter().any(|place| place == "FARGATE"))
}

pub(crate) fn check(settings: &Settings, task: &Task, of_settings: &mut Collected, found: &mut Collected) {
    of_the_task(task, found);
    names(task, found);
    volumes(task, found);
    stop_timeouts(settings, task, of_settings, found);
    delays(settings, task, of_settings, found);
    depends_on(settings, task, found);
    if let Some(role) = settings.role() {
        ports(settings, role, task, of_settings, found);
        listener_ports(settings, role, of_settings);
        health_sync_containers(settings, task, of_settings);
        if matches!(role, Role::Service(_)) && task.containers.is_empty() && task.definition.contains_key("family") {
            found.missing("containerDefinitions", "at least one container, the app", None);
        }
    }
}

fn of_the_task(task: &Task, found: &mut Collected) {
    let definition = &task.definition;
    match definition.get("networkMode") {
        Some(mode) if mode == "awsvpc" => {}
        Some(mode) => {
            found.wrong("networkMode", mode, "awsvpc: the containers share a network interface", Some("awsvpc"))
        }
        None => found.missing("networkMode", "awsvpc: the containers share a network interface", Some("awsvpc")),
    }
    if let Some(proxy) = definition.get("proxyConfiguration") {
        let expected = "no proxyConfiguration: with it, App Mesh's proxy would take the task's traffic";
        found.wrong("proxyConfiguration", proxy, expected, Some("app-mesh"));
    }
    let family = definition.get("runtimePlatform").and_then(|platform| platform.get("operatingSystemFamily"));
    if let Some(family) = family.filter(|family| *family != "LINUX") {
        found.wrong("runtimePlatform.operatingSystemFamily", family, "LINUX", Some("linux"));
    }
}

fn names(task: &Task, found: &mut Collected) {
    for (index, container) in task.containers.iter().enumerate() {
        let path = format!("{}.name", container.path);
        let name = json!(container.name);
        if is_sidecar(&container.name) {
            found.wrong(&path, &name, "another name: a sidecar has this one", Some("name-of-a-sidecar"));
        }
        if !container.name.is_empty() && task.containers[..index].iter().any(|other| other.name == container.name) {
            found.wrong(path, &name, "a name that no other container has", None);
        }
    }
}

fn volumes(task: &Task, found: &mut Collected) {
    for (index, volume) in objects(&task.definition, "", "volumes", found) {
        let name = volume.get("name").and_then(Value::as_str);
        if let Some(name) = name.filter(|name| VOLUMES.contains(name)) {
            let expected = "another name: a volume of the sidecars has this one";
            found.wrong(format!("volumes[{index}].name"), &json!(name), expected, Some("volume-of-a-sidecar"));
        }
    }
    for container in &task.containers {
        for (index, mount) in objects(&container.fields, &container.path, "mountPoints", found) {
            let volume = mount.get("sourceVolume").and_then(Value::as_str);
            if let Some(volume) = volume.filter(|volume| VOLUMES.contains(volume)) {
                let path = format!("{}.mountPoints[{index}].sourceVolume", container.path);
                let expected = "another volume: only sidecars may mount this one, because it holds their tokens";
                found.wrong(path, &json!(volume), expected, Some("volume-of-a-sidecar"));
            }
        }
        for (index, from) in objects(&container.fields, &container.path, "volumesFrom", found) {
            let source = from.get("sourceContainer").and_then(Value::as_str);
            if let Some(source) = source.filter(|source| is_sidecar(source)) {
                let path = format!("{}.volumesFrom[{index}].sourceContainer", container.path);
                let expected = "another container: the volumes of a sidecar hold tokens that the app must not have";
                found.wrong(path, &json!(source), expected, Some("volume-of-a-sidecar"));
            }
        }
    }
}

/// The containers that get app-entrypoint: those that the settings name. Otherwise all except log routers, containers whose end others wait
/// for, and containers that already run under an app-entrypoint.
pub(crate) fn delayed<'a>(settings: &Settings, task: &'a Task) -> Vec<&'a Container> {
    let gateway = settings.config.gateway.is_some();
    if settings.shutdown_delay.is_none() || gateway {
        return Vec::new();
    }
    let ends = |name: &str| {
        let mut all = task.containers.iter().flat_map(Container::depends_on);
        all.any(|(on, condition)| on == name && matches!(condition, "SUCCESS" | "COMPLETE"))
    };
    let named = &settings.shutdown_delay_containers;
    let is_meant = |container: &&Container| {
        !container.is_log_router()
            && if named.is_empty() { !ends(&container.name) } else { named.contains(&container.name) }
    };
    task.containers.iter().filter(is_meant).filter(|container| !container.has_own_wrapper()).collect()
}

fn stop_timeouts(settings: &Settings, task: &Task, of_settings: &mut Collected, found: &mut Collected) {
    let limit = stop_limit(&task.definition);
    if let (Some((text, delay)), Some(limit), Some(_)) = (&settings.shutdown_delay, limit, &settings.config.gateway)
        && delay.as_secs() >= limit
    {
        let expected = format!("less than {limit}s: Fargate kills the gateway's Envoy after {limit} seconds");
        of_settings.wrong("shutdownDelay".to_owned(), &json!(text), expected, Some("stop-timeout"));
    }
    for container in &task.containers {
        let path = format!("{}.stopTimeout", container.path);
        let seconds =
            read(&container.fields, &container.path, "stopTimeout", "a number of seconds", found, Value::as_u64);
        if let (Some(seconds), Some(limit)) = (seconds, limit)
            && seconds > limit
        {
            let expected = format!("at most {limit} seconds: Fargate takes no more");
            found.wrong(path, &json!(seconds), expected, Some("stop-timeout"));
        }
    }
    let Some((text, delay)) = &settings.shutdown_delay else { return };
    for container in delayed(settings, task) {
        if delay.as_secs_f64() >= f64::from(u32::try_from(container.stop_timeout()).unwrap_or(u32::MAX)) {
            let path = format!("{}.stopTimeout", container.path);
            let expected =
                format!("more seconds than the shutdown delay of {text}, or ECS kills the container during the delay");
            match container.fields.get("stopTimeout") {
                Some(seconds) => found.wrong(path, seconds, expected, Some("stop-timeout")),
                None => {
                    found.missing(path, format!("{expected}; without it ECS waits 30 seconds"), Some("stop-timeout"))
                }
            }
        }
    }
}

fn delays(settings: &Settings, task: &Task, of_settings: &mut Collected, found: &mut Collected) {
    for container in delayed(settings, task) {
        let words = container.fields.get("entryPoint");
        match (words, container.entry_point()) {
            (_, Some(words)) => {
                let no_command = container.fields.get("command").is_none_or(|command| command == &json!([]));
                if words == [""] && no_command {
                    let expected =
                        "the command to run: an entry point of the task definition replaces the image's command too";
                    found.missing(format!("{}.command", container.path), expected, Some("entry-point"));
                }
            }
            (Some(words), None) if words != &json!([]) => {
                found.wrong(format!("{}.entryPoint", container.path), words, "an array of strings", None);
            }
            _ => {
                let expected = "the entry point of the container's image, which `docker inspect` shows ([\"\"] if it has none): app-entrypoint \
                replaces it and needs it; or list other containers in `shutdownDelayContainers`";
                found.missing(format!("{}.entryPoint", container.path), expected, Some("entry-point"));
            }
        }
    }
    for (index, name) in settings.shutdown_delay_containers.iter().enumerate() {
        if !task.containers.iter().any(|container| container.name == *name && !container.is_log_router()) {
            let expected = "a container of the task definition that is not a log router";
            of_settings.wrong(format!("shutdownDelayContainers[{index}]"), &json!(name), expected, None);
        }
    }
}

/// The ports of the mesh's listeners, each with the listener's name.
fn taken(settings: &Settings, role: Role<'_>) -> BTreeMap<u64, &'static str> {
    let mut ports = match settings.mode {
        Mode::Agent(_) => BTreeMap::from([
            (8500, "the HTTP API of the task's Consul agent"),
            (8501, "the HTTPS API of a Consul agent"),
            (8502, "gRPC of the task's Consul agent"),
            (8600, "DNS of the task's Consul agent"),
            (8301, "gossip of the task's Consul agent"),
        ]),
        Mode::Agentless => BTreeMap::from([
            (8600, "Consul's DNS in the task"),
            (20300, "the status page of mesh-dataplane"),
            (sidecars::readiness_port(settings, role).into(), "Envoy's readiness listener"),
        ]),
    };
    ports.insert(19000, "Envoy's admin page");
    match role {
        Role::Service(_) => {
            let proxy = &settings.config.proxy;
            ports.insert(proxy.public_listener_port.into(), "Envoy's public listener");
            for upstream in &proxy.upstreams {
                ports.insert(upstream.local_bind_port.into(), "Envoy's listener of an upstream");
            }
            let exposed = proxy.expose.iter().flat_map(|expose| &expose.paths);
            for port in exposed.filter_map(|path| path.listener_port) {
                ports.insert(port.into(), "Envoy's listener of an exposed path");
            }
            for option in ["envoy_prometheus_bind_addr", "envoy_stats_bind_addr"] {
                // The options' names are valid in any case.
                let mut options = proxy.config.iter();
                let address = options.find(|(name, _)| name.eq_ignore_ascii_case(option)).map(|(_, value)| value);
                let port = address.and_then(Value::as_str).and_then(|address| address.rsplit(':').next()?.parse().ok());
                ports.extend(port.map(|port| (port, "Envoy's listener for metrics")));
            }
        }
        Role::Gateway(gateway) => {
            let port = gateway.lan_address.as_ref().and_then(|address| address.port);
            ports.insert(port.filter(|port| *port != 0).unwrap_or(GATEWAY_PORT).into(), "the gateway");
        }
    }
    ports
}

fn ports(settings: &Settings, role: Role<'_>, task: &Task, of_settings: &mut Collected, found: &mut Collected) {
    let mut taken = taken(settings, role);
    for port in &settings.listener_ports {
        taken.entry((*port).into()).or_insert("a listener of the gateway");
    }
    // The document's rules already compare `service.port` with the other ports.
    if settings.config.service.as_ref().is_some_and(|service| service.port == 8501) {
        of_settings.wrong("service.port", &json!(8501), another_port(taken[&8501]), Some("port-of-the-mesh"));
    }
    for container in &task.containers {
        for (index, mapping) in objects(&container.fields, &container.path, "portMappings", found) {
            let path = format!("{}.portMappings[{index}]", container.path);
            let udp = mapping.get("protocol").is_some_and(|protocol| protocol == "udp");
            let listens = |port: u64| !udp || matches!(port, 8301 | 8600);
            let port = read(mapping, &path, "containerPort", "a port", found, Value::as_u64);
            if let Some((port, what)) = port.and_then(|port| Some((port, taken.get(&port)?)))
                && listens(port)
            {
                found.wrong(
                    format!("{path}.containerPort"),
                    &json!(port),
                    another_port(what),
                    Some("port-of-the-mesh"),
                );
            }
            let range = |value: &Value| {
                let (from, to) = value.as_str()?.split_once('-')?;
                Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?))
            };
            let range = read(mapping, &path, "containerPortRange", "a range such as 8000-8010", found, range);
            if let Some((from, to)) = range
                && from <= to
            {
                for (port, what) in taken.range(from..=to).filter(|(port, _)| listens(**port)) {
                    let got = json!(format!("{from}-{to}, with {port}"));
                    let path = format!("{path}.containerPortRange");
                    found.wrong(path, &got, another_port(what), Some("port-of-the-mesh"));
                }
            }
        }
    }
}

/// Only an ingress gateway has listeners of its own, and they need ports on which nothing else of the task listens.
fn listener_ports(settings: &Settings, role: Role<'_>, of_settings: &mut Collected) {
    let is_ingress = matches!(role, Role::Gateway(gateway) if gateway.kind == GatewayKind::Ingress);
    if !is_ingress && !settings.listener_ports.is_empty() {
        let expected = "nothing: only an ingress gateway has listeners of its own";
        of_settings.wrong("listenerPorts", &json!(settings.listener_ports), expected, None);
        return;
    }
    let taken = taken(settings, role);
    for (index, port) in settings.listener_ports.iter().enumerate() {
        if let Some(what) = taken.get(&(*port).into()) {
            let path = format!("listenerPorts[{index}]");
            of_settings.wrong(path, &json!(port), another_port(what), Some("port-of-the-mesh"));
        }
    }
}

fn another_port(what: &str) -> String {
    format!("another port: this one is taken by {what}")
}

fn health_sync_containers(settings: &Settings, task: &Task, of_settings: &mut Collected) {
    for (index, name) in settings.config.health_sync_containers.iter().enumerate() {
        let container = task.containers.iter().find(|container| container.name == *name);
        if container.is_none_or(|container| !container.fields.contains_key("healthCheck")) {
            let expected =
                "a container of the task definition with a `healthCheck`: without one, ECS reports no health";
            of_settings.wrong(format!("healthSyncContainers[{index}]"), &json!(name), expected, Some("health-check"));
        }
    }
}

/// Every container named in `dependsOn` must exist, and no container may wait for itself, because ECS would start none of them.
fn depends_on(settings: &Settings, task: &Task, found: &mut Collected) {
    let added = sidecars::dependencies(&settings.mode);
    let delayed: Vec<_> = delayed(settings, task).into_iter().map(|container| container.name.as_str()).collect();
    let routers: Vec<_> =
        task.containers.iter().filter(|one| one.is_log_router()).map(|one| one.name.as_str()).collect();
    let through_router = |logs: bool| if logs { routers.clone() } else { Vec::new() };
    let sidecars_log = settings.log_configuration.as_ref().is_some_and(|log| log["logDriver"] == "awsfirelens");
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, on) in added {
        let mut on: Vec<_> = on.iter().map(|(name, _)| *name).collect();
        on.extend(through_router(sidecars_log));
        edges.insert(name, on);
    }
    if !delayed.is_empty() {
        edges.insert(APP_ENTRYPOINT, through_router(sidecars_log));
    }
    for container in &task.containers {
        let mut on = Vec::new();
        for (index, entry) in objects(&container.fields, &container.path, "dependsOn", found) {
            let path = format!("{}.dependsOn[{index}]", container.path);
            let name = read(entry, &path, "containerName", "a container's name", found, Value::as_str);
            let known = |name: &str| {
                task.containers.iter().any(|other| other.name == name)
                    || added.iter().any(|(other, _)| *other == name)
                    || (name == APP_ENTRYPOINT && !delayed.is_empty())
            };
            match name {
                Some("health-sync") if entry.get("condition").is_some_and(|condition| condition == "HEALTHY") => {
                    let expected =
                        "no dependency on the health of health-sync, which becomes healthy only after the app";
                    found.wrong(path, &json!("health-sync HEALTHY"), expected, Some("depends-on-circle"));
                }
                Some(name) if known(name) => on.push(name),
                Some(name) => {
                    let expected = "a container of the task definition or a sidecar";
                    found.wrong(format!("{path}.containerName"), &json!(name), expected, None);
                }
                None if !entry.contains_key("containerName") => {
                    found.missing(format!("{path}.containerName"), "a container's name", None);
                }
                None => {}
            }
        }
        if !container.is_log_router() {
            on.push(sidecars::proxy(&settings.mode));
            on.extend(through_router(container.logs_by_firelens()));
        }
        if delayed.contains(&container.name.as_str()) {
            on.push(APP_ENTRYPOINT);
        }
        // A container with a sidecar's name has been refused already.
        if !is_sidecar(&container.name) {
            edges.insert(&container.name, on);
        }
    }
    let mut reported: Vec<&str> = Vec::new();
    for container in &task.containers {
        let name = container.name.as_str();
        if !reported.contains(&name)
            && let Some(circle) = circle(&edges, name)
        {
            let got = json!([&circle[..], &[name]].concat().join(" -> "));
            let expected = "no container that waits for itself";
            found.wrong(format!("{}.dependsOn", container.path), &got, expected, Some("depends-on-circle"));
            reported.extend(circle);
        }
    }
}

/// The shortest way from a container back to itself.
fn circle<'a>(edges: &BTreeMap<&'a str, Vec<&'a str>>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = Vec::new();
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| edges.get(last)).into_iter().flatten() {
            if *next == start {
                return Some(way);
            }
            if !seen.contains(next) {
                seen.push(*next);
                ways.push_back([&way[..], &[*next]].concat());
            }
        }
    }
    None
}
