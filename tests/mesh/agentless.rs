//! Tasks without a Consul agent beside tasks with one: `cargo xtask up --agentless web,api-2`.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, StartContainerOptions};
use local_mesh::compose::{self, Compose};
use local_mesh::docker::{self, PROJECT_LABEL, containers, label};
use local_mesh::load::{Load, Options};
use local_mesh::task::{self, StopOrder};
use local_mesh::tasks::{self, Agentless, Own};
use mesh_tests::eventually;
use mesh_tests::platform::{METHOD, Platform, of_logins};
use serde_json::{Map, Value, json};

use crate::acl::web_needs_an_intention;
use crate::gateways::instances;
use crate::{BOUND, answered_by, answering_task, consul_call, consul_get, restored, shutdown, up, whole};

/// The life of a login's token: the shortest that Consul allows.
const TOKEN_LIFE: Duration = Duration::from_secs(60);

pub const LOAD: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 100, connections: 8, fresh: "0.2", shutdown_delay: "0s" };

pub fn without_an_agent(tasks: &[&str]) -> Own {
    let agentless = Agentless::Tasks(tasks.iter().map(|task| (*task).to_owned()).collect());
    tasks::read(&[], &[], &[], agentless).unwrap()
}

/// The nodes on which Consul has the instances of api, by the task's ID.
async fn nodes_of_api() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listed = consul_get("/v1/catalog/service/api").await.unwrap();
    let node = |one: &Value| (text(&one["ServiceMeta"]["task-id"]), text(&one["Node"]));
    listed.as_array().unwrap().iter().map(node).collect()
}

/// Stops a task and starts it again, in both orders, while web calls api.
async fn is_replaced_without_a_failed_request(docker: &Docker, name: &str) {
    for order in [StopOrder::AllAtOnce, StopOrder::DependsOn] {
        let load = Load::start(docker, "web", LOAD).await.unwrap();
        task::stop(docker, name, order).await.unwrap();
        task::start(docker, name, &[]).await.unwrap();
        task::in_rotation(docker, name).await.unwrap();
        let report = load.end().await.unwrap();
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{name}, {order:?}: {report:?}");
        assert!(report.sent > 0);
    }
}

#[tokio::test]
async fn tasks_of_both_kinds_call_each_other_and_are_replaced() {
    let docker = whole().await;
    // From a task with an agent to both kinds.
    up(&without_an_agent(&["api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    let tasks = docker::tasks(&docker).await.unwrap();
    let nodes = nodes_of_api().await;
    let node = |task: &str| &nodes.iter().find(|(id, _)| *id == tasks[task].id).unwrap().1;
    assert!(node("api-2").ends_with(":cluster/ecs-mesh"), "{nodes:?}");
    assert_eq!(*node("api-1"), tasks["api-1"].node());
    is_replaced_without_a_failed_request(&docker, "api-2").await;
    web_needs_an_intention(&docker).await;

    // From a task without an agent to both kinds.
    up(&without_an_agent(&["web", "api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    for task in ["api-1", "api-2"] {
        is_replaced_without_a_failed_request(&docker, task).await;
    }
    web_needs_an_intention(&docker).await;

    // Back to tasks with an agent. Nothing of the others stays in Consul.
    up(&Own::default()).await;
    restored().await;
    eventually("the tasks without an agent are gone", BOUND, async || {
        let nodes = nodes_of_api().await;
        if nodes.iter().any(|(_, node)| node.contains(":cluster/")) { Err(format!("{nodes:?}")) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn tasks_without_an_agent_stop_like_those_with_one() {
    let docker = whole().await;
    up(&without_an_agent(&["web", "api-2", "mesh-gateway"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    shutdown::gets_no_request_once_others_know(&docker, "api-2").await;
    shutdown::completes_begun_requests(&docker, "api-2").await;
    shutdown::web_reaches_others_until_it_exits(&docker).await;
    // A gateway has one check, that of its Envoy.
    task::start(&docker, "mesh-gateway", &[]).await.unwrap();
    assert_eq!(instances("mesh-gateway").await.unwrap(), [json!(["mesh-gateway", 8443, ["passing"]])]);
    task::stop(&docker, "mesh-gateway", StopOrder::AllAtOnce).await.unwrap();
    assert_eq!(instances("mesh-gateway").await.unwrap(), [] as [Value; 0]);
    up(&Own::default()).await;
    restored().await;
}

#[tokio::test]
async fn logins_that_expire_fail_no_request() {
    let docker = whole().await;
    up(&without_an_agent(&["web", "api-2"])).await;
    let platform = Platform::new();
    consul_call("PUT", "/v1/acl/auth-method", &platform.method("1m")).await.unwrap();
    consul_call("PUT", "/v1/acl/binding-rule", &Platform::rule("${value.service}")).await.unwrap();
    for (task, service) in [("web", "web"), ("api-2", "api")] {
        starts_with_a_login(&docker, task, &platform.signed(service)).await;
    }
    answered_by(&docker, &["api-1", "api-2"]).await;
    let load = Load::start(&docker, "web", LOAD).await.unwrap();
    // mesh-dataplane and health-sync of each task hold a login.
    let first = eventually("four logins", BOUND, async || logins(4).await).await;
    let begun = Instant::now();
    eventually("the first tokens have expired, and others are in use", 2 * TOKEN_LIFE, async || {
        let ids = logins(4).await?;
        let renewed = ids.iter().all(|id| !first.contains(id));
        if renewed && begun.elapsed() > TOKEN_LIFE { Ok(()) } else { Err(format!("{first:?}, {ids:?}")) }
    })
    .await;
    // Each side still learns of changes, and writes its own.
    task::stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    eventually("api-1 alone answers", Duration::from_secs(5), async || only_api_1_answers(&docker).await).await;
    let report = load.end().await.unwrap();
    assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{report:?}");
    eventually("the stopped task has logged out", BOUND, async || logins(2).await).await;
    up(&Own::default()).await;
    restored().await;
    consul_call("DELETE", &format!("/v1/acl/auth-method/{METHOD}"), &Value::Null).await.unwrap();
}

/// Starts a running task anew. Its sidecars log in with this proof, and have no token of their own.
async fn starts_with_a_login(docker: &Docker, task: &str, proof: &str) {
    let containers = docker::task(docker, task).await.unwrap();
    let mut services = Map::new();
    for sidecar in ["mesh-init", "dataplane", "health-sync"] {
        let set = containers[sidecar].config.clone().unwrap().env.unwrap();
        let document = set.iter().find_map(|set| set.strip_prefix("CONSUL_ECS_CONFIG_JSON="));
        let mut environment = json!({ "CONSUL_HTTP_TOKEN_FILE": "", "CONSUL_LOGIN_BEARER_TOKEN": proof });
        if let Some(document) = document {
            let mut document: Value = serde_json::from_str(document).unwrap();
            document["consulLogin"] = json!({ "enabled": true, "method": METHOD });
            environment["CONSUL_ECS_CONFIG_JSON"] = document.to_string().into();
        }
        services.insert(format!("{task}-{sidecar}"), json!({ "environment": environment }));
    }
    let over = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    std::fs::write(over.path(), json!({ "services": services }).to_string()).unwrap();
    task::stop(docker, task, StopOrder::AllAtOnce).await.unwrap();
    let names = compose::services(task).unwrap();
    let names = names.iter().map(String::as_str).collect::<Vec<_>>();
    let over = Compose { over: Some(over.path()), ..Compose::default() };
    over.run(&[&["up", "--detach"], names.as_slice()].concat()).await.unwrap();
    task::ready(docker, task).await.unwrap();
}

/// The accessor IDs of the tokens of all logins. An error if there are more or fewer.
async fn logins(count: usize) -> Result<Vec<String>, String> {
    let tokens = of_logins(&consul_get("/v1/acl/tokens").await?);
    let ids = tokens.iter().map(|token| token["AccessorID"].to_string()).collect::<Vec<_>>();
    if ids.len() == count { Ok(ids) } else { Err(format!("{ids:?}")) }
}

async fn only_api_1_answers(docker: &Docker) -> Result<(), String> {
    let answered = answering_task().await?;
    let known = docker::tasks(docker).await.map_err(|error| error.to_string())?;
    if answered == known["api-1"].id { Ok(()) } else { Err(answered) }
}

#[tokio::test]
async fn dead_servers_fail_no_request() {
    let docker = whole().await;
    up(&without_an_agent(&["web", "api-2"])).await;
    answered_by(&docker, &["api-1", "api-2"]).await;
    let load = Load::start(&docker, "web", LOAD).await.unwrap();
    for server in servers(&docker).await {
        let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        docker.kill_container(&server, Some(kill)).await.unwrap();
        docker.start_container(&server, None::<StartContainerOptions>).await.unwrap();
        // The next server may die only when this one takes part again.
        eventually("the servers are healthy", BOUND, async || {
            let health = consul_get("/v1/operator/autopilot/health").await?;
            if health["FailureTolerance"] == 1 { Ok(()) } else { Err(health.to_string()) }
        })
        .await;
    }
    let report = load.end().await.unwrap();
    assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{report:?}");
    // Changes still arrive.
    task::stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    eventually("api-1 answers", Duration::from_secs(5), async || only_api_1_answers(&docker).await).await;
    up(&Own::default()).await;
    restored().await;
}

/// The containers of Consul's servers.
async fn servers(docker: &Docker) -> Vec<String> {
    let all = containers(docker, &[PROJECT_LABEL]).await.unwrap();
    let is_server = |container: &&bollard::models::ContainerSummary| {
        label(container, "com.docker.compose.service").is_some_and(|name| name.starts_with("consul-server"))
    };
    let servers: Vec<_> = all.iter().filter(is_server).filter_map(|container| container.id.clone()).collect();
    assert_eq!(servers.len(), 3);
    servers
}
