//! A task that stops: it gets no new requests, it can still send requests, and no request fails.

use std::process::Command;
use std::time::Duration;

use bollard::Docker;
use futures_util::future::join_all;
use local_mesh::events::What;
use local_mesh::load::{Load, Options};
use local_mesh::task::{self, StopOrder};
use local_mesh::tasks::CLUSTER_ARN;
use local_mesh::watch::{Stopped, Watch};
use local_mesh::{docker, mesh, workspace};
use mesh_tests::process::run;
use mesh_tests::{binary, eventually};
use serde_json::Value;

use crate::{BOUND, consul_get, restored, whole};

const ORDERS: [StopOrder; 2] = [StopOrder::AllAtOnce, StopOrder::DependsOn];

/// The times of two probes may differ by this many nanoseconds. Each probe asks every 50 ms, and the machine may be busy.
const RESOLUTION: i64 = 500_000_000;

const LOAD: Options<'_> =
    Options { url: "http://127.0.0.1:1234/", rate: 100, connections: 8, fresh: "0.2", shutdown_delay: "0s" };

/// When a container of the stopped task exited.
fn exited(stopped: &Stopped, container: &str) -> i64 {
    let exit =
        stopped.events.iter().find(|event| event.container == container && matches!(event.what, What::Exited(_)));
    exit.unwrap_or_else(|| panic!("{container} did not exit: {:?}", stopped.events)).at
}

/// When a container of the stopped task was first sent TERM.
fn term(stopped: &Stopped, container: &str) -> i64 {
    let mut events = stopped.events.iter().filter(|event| event.container == container);
    let term = events.find(|event| event.what == What::Signalled(15));
    term.unwrap_or_else(|| panic!("{container} got no TERM: {:?}", stopped.events)).at
}

#[tokio::test]
async fn stopping_task_gets_no_request_once_others_know() {
    let docker = whole().await;
    gets_no_request_once_others_know(&docker, "api-1").await;
}

/// Checks that a stopping task of api gets no request once web's Envoy knows, and that no request fails.
pub async fn gets_no_request_once_others_know(docker: &Docker, name: &str) {
    let proxy = docker::proxy(docker, name).await.unwrap();
    for order in ORDERS {
        let watch = Watch::start(docker, name).await.unwrap();
        let load = Load::start(docker, "web", LOAD).await.unwrap();
        assert!(watch.flowing().await, "requests reach {name}");
        task::stop(docker, name, order).await.unwrap();
        let stopped = watch.end().await;
        let report = load.end().await.unwrap();
        let Stopped { checks_critical, removed, last_inbound, events, .. } = &stopped;
        let said =
            format!("{order:?}: critical {checks_critical:?}, {removed:?}, last in {last_inbound:?}, {events:?}");
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{said}");
        let critical = stopped.checks_critical.expect("the servers have the critical checks");
        let removed = stopped.removed["web"].expect("web's Envoy has removed the endpoint");
        let last = stopped.last_inbound.expect("there was load");
        assert!(
            last <= removed + RESOLUTION,
            "{order:?}: a request came {} ms after web's Envoy had removed the endpoint",
            (last - removed) / 1_000_000
        );
        let app = exited(&stopped, "app");
        assert!(critical < app && removed < app, "{order:?}: the servers and web's Envoy know before the app ends");
        assert!(exited(&stopped, proxy) > app, "{order:?}: Envoy outlives the app");
        if stopped.has_agent {
            its_agent_left(&stopped, order, &said);
        } else {
            assert!(exited(&stopped, "health-sync") > exited(&stopped, proxy), "{order:?}: it deregisters the task");
        }
        task::start(docker, name, &[]).await.unwrap();
        task::in_rotation(docker, name).await.unwrap();
    }
}

/// Checks the stop of a task with an agent.
fn its_agent_left(stopped: &Stopped, order: StopOrder, said: &str) {
    let (critical, app) = (stopped.checks_critical.unwrap(), exited(stopped, "app"));
    assert!(stopped.left.is_some(), "{order:?}: the node left the catalog");
    // If all containers get TERM at once, the node has left by now, and web's Envoy has closed its connections. With depends-on, the
    // agent still runs, and the instance is only unhealthy: idle connections stay open until Envoy ends, but no request comes over
    // them.
    let before = stopped.samples.iter().rev().find(|sample| sample.at < app && sample.seen.is_some()).unwrap();
    if order == StopOrder::AllAtOnce {
        assert_eq!(before.seen.as_ref().unwrap().connections, 0, "{said}");
    }
    assert!(exited(stopped, "health-sync") < app && exited(stopped, "consul-client") > critical);
    // With depends-on, the agent gets TERM only after sidecar-proxy, which depends on it, has ended.
    let agent_held = term(stopped, "consul-client") > exited(stopped, "sidecar-proxy");
    assert_eq!(agent_held, order == StopOrder::DependsOn, "{said}");
}

#[tokio::test]
async fn request_begun_before_term_completes() {
    let docker = whole().await;
    completes_begun_requests(&docker, "api-1").await;
}

/// Checks that a request to a task of api completes if it has begun before TERM.
pub async fn completes_begun_requests(docker: &Docker, name: &str) {
    for order in ORDERS {
        let watch = Watch::start(docker, name).await.unwrap();
        let id = task::running(docker, name).await.unwrap().id;
        let inbound = || watch.seen(name).map_or(0, |seen| seen.inbound);
        let before = inbound();
        // Each answer takes 4 s, less than the app's shutdown delay. Half of the requests go to each task of api.
        let requests = (0..4).map(|_| mesh::fetch("web", "http://127.0.0.1:1234/?delay=4s"));
        let stopped = async {
            eventually(&format!("{name} has got a request"), BOUND, async || {
                if inbound() > before { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
            task::stop(docker, name, order).await.unwrap();
        };
        let (answers, ()) = tokio::join!(join_all(requests), stopped);
        let answers = answers.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        assert!(answers.iter().any(|answer| answer.contains(&id)), "{order:?}: {answers:?}");
        drop(watch);
        task::start(docker, name, &[]).await.unwrap();
        task::in_rotation(docker, name).await.unwrap();
    }
}

#[tokio::test]
async fn slow_app_reaches_others_until_it_exits() {
    let docker = whole().await;
    web_reaches_others_until_it_exits(&docker).await;
    restored().await;
}

/// Checks that a slow app of web can call api until it exits.
pub async fn web_reaches_others_until_it_exits(docker: &Docker) {
    let proxy = docker::proxy(docker, "web").await.unwrap();
    task::stop(docker, "web", StopOrder::AllAtOnce).await.unwrap();
    for order in ORDERS {
        // web's own app exits at once. The load is another container of the task, and runs for five more seconds.
        task::start(docker, "web", &[("SHUTDOWN_DELAY", "0s")]).await.unwrap();
        let watch = Watch::start(docker, "web").await.unwrap();
        let load = Load::start(docker, "web", Options { shutdown_delay: "5s", ..LOAD }).await.unwrap();
        assert!(watch.flowing().await, "web sends requests");
        task::stop(docker, "web", order).await.unwrap();
        let stopped = watch.end().await;
        let report = load.end().await.unwrap();
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{order:?}: {report:?}");
        let first = stopped.events.iter().find(|event| event.what == What::Signalled(15)).unwrap().at;
        let last = stopped.last_outbound.expect("there was load");
        assert!(
            last - first >= 4_500_000_000,
            "{order:?}: the last request {} ms after TERM",
            (last - first) / 1_000_000
        );
        assert!(exited(&stopped, "app") < last && last < exited(&stopped, proxy), "{order:?}");
        assert_eq!(term(&stopped, proxy) > last, order == StopOrder::DependsOn, "{order:?}");
    }
}

#[tokio::test]
async fn slowly_stopping_task_learns_of_other_tasks() {
    let docker = whole().await;
    let watch = Watch::start(&docker, "web").await.unwrap();
    let gone = task::endpoint(&docker, "api-2").await.unwrap();
    // The load plays an app that needs nearly half a minute to finish its work.
    let load = Load::start(&docker, "web", Options { shutdown_delay: "25s", ..LOAD }).await.unwrap();
    assert!(watch.flowing().await, "web sends requests");
    let meanwhile = async {
        // By then, an agent that had got TERM together with the app would have closed its connection to Envoy.
        eventually("web's app has ended", BOUND, async || {
            let app = docker::task(&docker, "web").await.unwrap()["app"].state.clone().unwrap();
            if app.running == Some(true) { Err("it runs".to_owned()) } else { Ok(()) }
        })
        .await;
        task::stop(&docker, "api-2", StopOrder::AllAtOnce).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(task::stop(&docker, "web", StopOrder::DependsOn), meanwhile);
    stopped.unwrap();
    let stopped = watch.end().await;
    let report = load.end().await.unwrap();
    assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{report:?}");
    let begun = term(&stopped, "health-sync");
    let after = stopped.samples.iter().filter(|sample| sample.at > begun).filter_map(|sample| sample.seen.as_ref());
    let knew = after.map(|seen| seen.endpoints.contains(&gone)).collect::<Vec<_>>();
    assert_eq!((knew.first(), knew.last()), (Some(&true), Some(&false)), "api-2 was {gone}: {knew:?}");
    assert!(term(&stopped, "consul-client") > exited(&stopped, "sidecar-proxy"));
    restored().await;
}

#[tokio::test]
async fn replaced_tasks_leave_nothing_in_consul() {
    let mut docker = whole().await;
    for name in ["api-1", "api-2"] {
        let load = Load::start(&docker, "web", LOAD).await.unwrap();
        task::stop(&docker, name, StopOrder::AllAtOnce).await.unwrap();
        task::start(&docker, name, &[]).await.unwrap();
        task::in_rotation(&docker, name).await.unwrap();
        let report = load.end().await.unwrap();
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{name}");
        assert!(report.sent > 0);
    }
    // The load runs in web. Like the app, it ends some seconds after the task gets TERM.
    let load = Load::start(&docker, "web", Options { shutdown_delay: "6s", ..LOAD }).await.unwrap();
    let watch = Watch::start(&docker, "web").await.unwrap();
    assert!(watch.flowing().await);
    task::stop(&docker, "web", StopOrder::AllAtOnce).await.unwrap();
    drop(watch);
    let report = load.end().await.unwrap();
    assert_eq!((report.failed, &report.failures), (0, &Default::default()), "web");
    task::start(&docker, "web", &[]).await.unwrap();

    // Every minute the servers compare the catalog with the cluster's members. The test waits for that, because it might bring a node back.
    docker.lend(Duration::from_secs(60)).await;
    let tasks = docker::tasks(&docker).await.unwrap();
    let running = tasks.values().filter(|task| task.running);
    let mut nodes = running.map(docker::Task::node).collect::<Vec<_>>();
    nodes.extend((1..=3).map(|number| format!("consul-server-{number}")));
    // acl-controller keeps the node of tasks without an agent.
    nodes.push(CLUSTER_ARN.to_owned());
    nodes.sort();
    let names = |list: &Value, key: &str| {
        let mut names =
            list.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        names.sort();
        names
    };
    let get = async |path: &str| consul_get(&format!("/v1{path}")).await.unwrap();
    assert_eq!(names(&get("/catalog/nodes").await, "Node"), nodes);
    let mut expected = Vec::new();
    for (service, count) in [("web", 1), ("api", 2)] {
        for name in [service.to_owned(), format!("{service}-sidecar-proxy")] {
            let instances = names(&get(&format!("/catalog/service/{name}")).await, "ServiceID");
            assert_eq!(instances.len(), count, "{instances:?}");
            let of_task = |id: &String| tasks.values().any(|task| id.contains(&task.id));
            assert!(instances.iter().all(of_task), "{instances:?}");
            expected.push(name);
        }
    }
    expected.push("consul".to_owned());
    expected.sort();
    let services = get("/catalog/services").await;
    assert_eq!(services.as_object().unwrap().keys().cloned().collect::<Vec<_>>(), expected);
    let checks = get("/health/state/any").await;
    for check in checks.as_array().unwrap() {
        assert_eq!(check["Status"], "passing", "{check}");
        assert!(nodes.contains(&check["Node"].as_str().unwrap().to_owned()), "{check}");
    }
}

#[tokio::test]
async fn xtask_prints_and_draws_a_stop_and_a_start() {
    let _mesh = whole().await;
    for (verb, marks, file) in
        [("stop", &["T0", "T1", "T2", "T3"][..], "shutdown-api-1"), ("start", &["T0", "T1", "T2"], "startup-api-1")]
    {
        let picture = workspace().join(format!("target/timeline/{file}.svg"));
        let _ = std::fs::remove_file(&picture);
        let done = run(Command::new(binary("xtask")).args([verb, "api-1"]), 2 * BOUND).await;
        assert_eq!(done.code, 0, "{}", done.stderr);
        let svg = std::fs::read_to_string(picture).unwrap();
        for mark in marks {
            let line = done.stdout.lines().find(|line| line.starts_with(&format!("  {mark} ")));
            assert!(line.is_some_and(|line| line.contains(" ms ")), "{mark}: {}", done.stdout);
            assert!(svg.contains(&format!(">{mark}<")), "{mark}: {svg}");
        }
    }
}

#[tokio::test]
async fn stopped_task_is_not_stopped_again() {
    let docker = whole().await;
    let running = task::start(&docker, "api-2", &[]).await.unwrap_err().to_string();
    assert_eq!(running, "task api-2 runs: `cargo xtask stop api-2` first");
    task::stop(&docker, "api-2", StopOrder::DependsOn).await.unwrap();
    let stopped = task::stop(&docker, "api-2", StopOrder::DependsOn).await.unwrap_err().to_string();
    assert_eq!(stopped, r#"there is no running task "api-2": there are api-1, web"#);
    let unknown = task::start(&docker, "api-9", &[]).await.unwrap_err().to_string();
    let known = "api-1, api-2, ingress-gateway, mesh-gateway, web";
    assert_eq!(unknown, format!(r#"there is no task "api-9" in docker-compose.yml: expected one of {known}"#));
    task::start(&docker, "api-2", &[]).await.unwrap();
    eventually("both answer again", BOUND, async || {
        crate::answered_by(&docker, &["api-1", "api-2"]).await;
        Ok::<_, String>(())
    })
    .await;
}
