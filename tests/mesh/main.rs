//! Tests of the local mesh. `cargo xtask test mesh` brings the mesh up, runs these tests, and takes the mesh down.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::RemoveVolumeOptions;

mod acl;
mod agentless;
mod consul_gone;
mod demo;
mod dies;
mod gateways;
mod own;
mod peer;
mod shutdown;

use local_mesh::command;
use local_mesh::compose::{self, Compose};
use local_mesh::docker::{self, PROJECT_LABEL, containers, is_running, label};
use local_mesh::events::{Recorder, What};
use local_mesh::mesh::Up;
use local_mesh::task::{StopOrder, start, stop};
use local_mesh::tasks::Own;
use local_mesh::version::{self, Version};
use local_mesh::{consul, mesh, secrets, vendors, workspace};
use mesh_tests::{eventually, http};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

/// How long the mesh may take to follow a change, for example until all proxies know that a task has started or stopped.
const BOUND: Duration = Duration::from_secs(90);

/// The task of `api` that answered a request to web's app, sent from the host.
async fn answering_task() -> Result<String, String> {
    let answer = http::get_json(mesh::FRONT).await?;
    let task = answer["upstreams"]["api"]["answer"]["task"].as_str();
    task.map(str::to_owned).ok_or_else(|| answer.to_string())
}

/// Waits until exactly these tasks answer. In 20 requests in a row, each of them must answer, and no other task.
async fn answered_by(docker: &Docker, tasks: &[&str]) {
    let known = docker::tasks(docker).await.unwrap();
    let wanted = tasks.iter().map(|task| known[*task].id.clone()).collect::<BTreeSet<_>>();
    eventually(&format!("{tasks:?} and no other answers"), BOUND, async || {
        let mut answered = BTreeSet::new();
        for _ in 0..20 {
            answered.insert(answering_task().await?);
        }
        if answered == wanted { Ok(()) } else { Err(format!("{answered:?}")) }
    })
    .await;
}

/// The running services of docker-compose.yml, each with the hash of its definition.
async fn running(docker: &Docker) -> BTreeMap<String, String> {
    let all = containers(docker, &[PROJECT_LABEL]).await.unwrap();
    let of_compose =
        |container, name| label(container, &format!("com.docker.compose.{name}")).unwrap_or_default().to_owned();
    let running = all.iter().filter(|container| is_running(container));
    running.map(|container| (of_compose(container, "service"), of_compose(container, "config-hash"))).collect()
}

/// The mesh, while one test uses it alone.
struct Mesh {
    docker: Docker,
    alone: Option<MutexGuard<'static, ()>>,
}

static ALONE: Mutex<()> = Mutex::const_new(());

impl Mesh {
    /// Lets other tests use the mesh for at least this time. Then takes it back, and brings it back to its first state.
    async fn lend(&mut self, time: Duration) {
        drop(self.alone.take());
        tokio::time::sleep(time).await;
        self.alone = Some(ALONE.lock().await);
        restored().await;
    }
}

impl Deref for Mesh {
    type Target = Docker;

    fn deref(&self) -> &Docker {
        &self.docker
    }
}

/// Waits until no other test uses the mesh, and brings it to the state in which `up` left it.
async fn whole() -> Mesh {
    let alone = Some(ALONE.lock().await);
    Mesh { docker: restored().await, alone }
}

/// Brings the mesh back to the state in which `up` left it. No other test may use the mesh meanwhile.
async fn restored() -> Docker {
    static WHOLE: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let docker = docker::connect().await.unwrap();
    // Compose needs seconds even if there is nothing to do, so it is called only if a container is missing or differs.
    if WHOLE.get() != Some(&running(&docker).await) {
        mesh::start_all(&docker).await.unwrap();
    }
    answered_by(&docker, &["api-1", "api-2"]).await;
    if WHOLE.get().is_none() {
        WHOLE.set(running(&docker).await).unwrap();
    }
    docker
}

/// What Consul's servers answer to a GET with the management token.
async fn consul_get(path: &str) -> Result<Value, String> {
    consul_call("GET", path, &Value::Null).await
}

/// What Consul's servers answer to a request with the management token.
async fn consul_call(method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let token = secrets::bootstrap_token().await.map_err(|error| error.to_string())?;
    let token = [("X-Consul-Token", token.expose())];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, body) = http::request(method, &format!("{}{path}", consul::ADDRESS), &token, &body).await?;
    if status != 200 {
        return Err(format!("{path}: {status}: {body}"));
    }
    serde_json::from_str(&body).map_err(|error| error.to_string())
}

/// The sum of all of a task's Envoy statistics whose names match.
async fn statistic(task: &str, filter: &str) -> u64 {
    let url = format!("http://127.0.0.1:19000/stats?filter={filter}");
    let stats = mesh::fetch(task, &url).await.unwrap();
    stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum()
}

/// When each container of a task last started.
async fn started(docker: &Docker, name: &str) -> Vec<(String, Option<String>)> {
    let containers = docker::task(docker, name).await.unwrap().into_iter();
    let mut started = containers
        .map(|(name, container)| (name, container.state.and_then(|state| state.started_at)))
        .collect::<Vec<_>>();
    started.sort();
    started
}

/// Runs `up` with the programs that the mesh was built with, and with these tasks of a user.
async fn up(own: &Own) -> Up {
    let stand_ins = version::of_mesh().is_none_or(|version| version == Version::DEBIAN_11);
    mesh::up(&local_mesh::Quiet, &vendors::choose(stand_ins).await, own).await.unwrap()
}

#[tokio::test]
async fn request_passes_both_envoys_with_mutual_tls() {
    let _mesh = whole().await;
    const UPSTREAM: &str = "^cluster.api.default.dc1.internal.*upstream_rq_2xx$";
    const INBOUND: &str = "^http.public_listener.*downstream_rq_2xx$";
    let handshakes_out = "^cluster.api.default.dc1.internal.*ssl.handshake$";
    let handshakes_in = "^listener.0.0.0.0_20000.ssl.handshake$";
    let inbound = async || statistic("api-1", INBOUND).await + statistic("api-2", INBOUND).await;
    // Envoy counts each request also under a name with `internal` or `external`. This filter selects only the plain name.
    let upstream = "^cluster.api.default.dc1.internal.[^.]*.consul.upstream_rq_2xx$";
    assert!(statistic("web", UPSTREAM).await > 0);
    let before = (statistic("web", upstream).await, inbound().await);
    for _ in 0..20 {
        answering_task().await.unwrap();
    }
    let after = (statistic("web", upstream).await, inbound().await);
    assert_eq!(after.0 - before.0, 20, "web's Envoy sent each request upstream");
    assert_eq!(after.1 - before.1, 20, "api's Envoys received each of them");
    assert!(statistic("web", handshakes_out).await > 0, "web's Envoy spoke TLS");
    for task in ["api-1", "api-2"] {
        assert!(statistic(task, handshakes_in).await > 0, "the Envoy of {task} spoke TLS");
    }
    // Consul has told web's Envoy about both instances.
    let clusters = mesh::fetch("web", "http://127.0.0.1:19000/clusters").await.unwrap();
    let endpoints = clusters.lines().filter(|line| line.starts_with("api.default") && line.contains("::cx_active::"));
    assert_eq!(endpoints.count(), 2, "{clusters}");
}

#[tokio::test]
async fn public_listener_refuses_plain_text() {
    let _mesh = whole().await;
    const CONNECTIONS: &str = "^listener.0.0.0.0_20000.downstream_cx_total$";
    const REQUESTS: &str = "^http.public_listener.*downstream_rq_total$";
    const NO_TLS: &str = "^listener.0.0.0.0_20000.ssl.connection_error$";
    let before = (statistic("api-1", CONNECTIONS).await, statistic("api-1", REQUESTS).await);
    let errors = statistic("api-1", NO_TLS).await;
    let refused = mesh::fetch("api-1", "http://127.0.0.1:20000/").await;
    assert!(refused.is_err(), "a request without TLS was answered: {refused:?}");
    assert!(statistic("api-1", CONNECTIONS).await > before.0, "the listener accepted the connection");
    assert!(statistic("api-1", NO_TLS).await > errors, "the listener refused it because it was not TLS");
    assert_eq!(statistic("api-1", REQUESTS).await, before.1, "no request was counted");
}

#[tokio::test]
async fn each_container_starts_after_what_it_depends_on() {
    let docker = whole().await;
    stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    let mut recorder = Recorder::start(&docker);
    restored().await;
    let mut events = recorder.events();
    events.retain(|event| event.task == "api-2" && !event.holder);
    events.sort_by_key(|event| event.at);
    // health-sync and app-entrypoint start beside the others, in no fixed order, so they are left out.
    events.retain(|event| !["health-sync", "app-entrypoint"].contains(&event.container.as_str()));
    let order = events.iter().map(|event| (event.container.as_str(), event.what.clone())).collect::<Vec<_>>();
    let order = &order[..8];
    let expected = [
        ("consul-config", What::Started),
        ("consul-config", What::Exited(0)),
        ("consul-client", What::Started),
        ("mesh-init", What::Started),
        ("mesh-init", What::Exited(0)),
        ("sidecar-proxy", What::Started),
        ("sidecar-proxy", What::Healthy),
        ("app", What::Started),
    ];
    assert_eq!(order, expected);
}

#[tokio::test]
async fn entry_point_installs_itself_into_a_fresh_volume() {
    let docker = docker::connect().await.unwrap();
    let volume = "ecs-mesh_installed";
    for program in ["app-entrypoint", "envoy-entrypoint"] {
        let run = async |options: &[&str], image: &str, arguments: &[&str]| {
            let mut command = Command::new("docker");
            command.args(["run", "--rm", "--pull", "never", "--read-only", "--cap-drop", "ALL"]).args(options);
            command::run(command.arg(format!("ecs-mesh/{image}:dev")).args(arguments)).await.unwrap()
        };
        run(&["--volume", &format!("{volume}:/shared")], program, &["install", "/shared"]).await;
        let installed = format!("/shared/{program}");
        let as_another = ["--user", "12345", "--volume", &format!("{volume}:/shared:ro"), "--entrypoint", &installed];
        assert!(run(&as_another, "demo-app", &["--version"]).await.starts_with(program));
        docker.remove_volume(volume, None::<RemoveVolumeOptions>).await.unwrap();
    }
}

#[tokio::test]
async fn requests_follow_a_task_that_stops_and_starts() {
    let docker = whole().await;
    let before = docker::tasks(&docker).await.unwrap()["api-1"].id.clone();
    stop(&docker, "api-1", StopOrder::AllAtOnce).await.unwrap();
    answered_by(&docker, &["api-2"]).await;
    let nodes = consul_get("/v1/health/service/api?passing").await.unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
    start(&docker, "api-1", &[]).await.unwrap();
    assert_ne!(docker::tasks(&docker).await.unwrap()["api-1"].id, before);
    answered_by(&docker, &["api-1", "api-2"]).await;
}

#[tokio::test]
async fn failing_mesh_init_stops_its_task_and_no_other() {
    let docker = whole().await;
    let services = compose::services("api-2").unwrap();
    let services = services.iter().map(String::as_str).collect::<Vec<_>>();
    let before = (started(&docker, "web").await, started(&docker, "api-1").await);
    stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    compose::run(&[&["rm", "--force", "-v"], services.as_slice()].concat()).await.unwrap();
    let broken = workspace().join("tests/mesh/broken-api-2.yml");
    let broken = Compose { over: Some(&broken), ..Compose::default() };
    let failed = broken.run(&[&["up", "--detach"], services.as_slice()].concat()).await;
    assert!(failed.is_err(), "compose reports that the task failed");
    let containers = docker::task(&docker, "api-2").await.unwrap();
    assert_eq!(containers["mesh-init"].state.clone().unwrap().exit_code, Some(1));
    for later in ["sidecar-proxy", "app"] {
        let state = containers.get(later).and_then(|container| container.state.clone());
        assert!(state.is_none_or(|state| state.running != Some(true)), "{later} runs");
    }
    answered_by(&docker, &["api-1"]).await;
    assert_eq!((started(&docker, "web").await, started(&docker, "api-1").await), before);
    compose::run(&[&["rm", "--stop", "--force", "-v"], services.as_slice()].concat()).await.unwrap();
    restored().await;
}

#[tokio::test]
async fn dead_envoy_stops_its_task_and_no_other() {
    let docker = whole().await;
    let before = (started(&docker, "web").await, started(&docker, "api-1").await);
    let containers = docker::task(&docker, "api-2").await.unwrap();
    let envoy = containers["sidecar-proxy"].id.clone().unwrap();
    docker.kill_container(&envoy, None).await.unwrap();
    answered_by(&docker, &["api-1"]).await;
    eventually("ecs-local stops the task's other containers", BOUND, async || {
        let containers = docker::task(&docker, "api-2").await.unwrap();
        let running =
            containers.iter().filter(|(_, c)| c.state.as_ref().is_some_and(|state| state.running == Some(true)));
        let running = running.map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?} run")) }
    })
    .await;
    assert_eq!((started(&docker, "web").await, started(&docker, "api-1").await), before);
    restored().await;
}

#[tokio::test]
async fn second_setup_changes_no_config_entry() {
    let _mesh = whole().await;
    let read = async || consul_get("/v1/config/service-defaults").await.unwrap();
    let entries = read().await;
    let names = entries.as_array().unwrap().iter().map(|entry| (entry["Name"].clone(), entry["Protocol"].clone()));
    let names = names.collect::<Vec<(Value, Value)>>();
    assert_eq!(names, [("api".into(), "http".into()), ("web".into(), "http".into())]);
    compose::run(&["run", "--rm", "--no-deps", "setup"]).await.unwrap();
    let again = read().await;
    for (entry, again) in entries.as_array().unwrap().iter().zip(again.as_array().unwrap()) {
        assert_eq!(entry["ModifyIndex"], again["ModifyIndex"]);
    }
}

#[tokio::test]
async fn second_up_restarts_no_running_container() {
    let docker = whole().await;
    let running = async || {
        let mut all = Vec::new();
        for name in ["web", "api-1", "api-2"] {
            let containers = started(&docker, name).await.into_iter();
            all.extend(containers.filter(|(container, _)| {
                !["consul-config", "mesh-init", "app-entrypoint"].contains(&container.as_str())
            }));
        }
        all
    };
    let before = running().await;
    let index = async || {
        let nodes = consul_get("/v1/catalog/service/api-sidecar-proxy").await.unwrap();
        let mut indexes =
            nodes.as_array().unwrap().iter().map(|node| node["ModifyIndex"].to_string()).collect::<Vec<_>>();
        indexes.sort();
        indexes
    };
    let registered = index().await;
    let up = up(&Own::default()).await;
    assert_eq!(up.status, 200);
    assert_eq!(running().await, before);
    assert_eq!(index().await, registered, "mesh-init ran again and changed nothing");
}
