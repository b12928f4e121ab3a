//! `StopTask`: its order, its stop timeouts, and what it refuses.

use super::*;

const DEPENDS_ON_PROXY: [&str; 2] = ["--label", "ecs-mesh.depends-on=proxy:HEALTHY"];

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[tokio::test]
async fn stop_task_kills_containers_after_their_stop_timeout() {
    let cluster = Cluster::new("stop").await;
    cluster.run_pause(&[]);
    cluster.run_app("quick", &[], &["/demo-app", "serve"]);
    let stubborn = ["--label", "ecs-mesh.stop-timeout=3", "--env", "LISTEN=127.0.0.1:8081"];
    cluster.run_app("stubborn", &stubborn, &["/demo-app", "serve", "--term-delay", "5m"]);
    let since = now();
    let (status, answer) = cluster.stop_task(&cluster.name, TASK_ID, "").await;
    assert_eq!(status, 200, "{answer}");
    let stopped = &answer["task"];
    assert_eq!((&stopped["desiredStatus"], &stopped["lastStatus"]), (&"STOPPED".into(), &"RUNNING".into()), "{answer}");
    assert_eq!((&stopped["stopCode"], &stopped["stoppedReason"]), (&"UserInitiated".into(), &"a test".into()));
    assert_eq!(stopped["containers"].as_array().unwrap().len(), 2, "without the pause container: {answer}");
    // From now on every container has the desired status STOPPED, although it still runs.
    let task = cluster.task().await.unwrap();
    assert_eq!((&task["DesiredStatus"], &task["KnownStatus"]), (&"STOPPED".into(), &"RUNNING".into()));
    assert!(task["Containers"].as_array().unwrap().iter().all(|container| container["DesiredStatus"] == "STOPPED"));
    let task =
        cluster.until_task("quick has stopped", |task| container(task, "quick")["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&task, "stubborn")["KnownStatus"], "RUNNING", "it did not wait for the other");
    // Neither a second StopTask nor the exit of an essential container causes a second TERM.
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "").await.0, 200);
    let task = cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&task, "stubborn")["ExitCode"], 137);
    for name in ["quick", "stubborn", "pause"] {
        assert_eq!(cluster.terms(name, since), 1, "{name}");
    }
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "").await.0, 200, "it has stopped, which is no error");
}

#[tokio::test]
async fn depends_on_order_stops_dependencies_last() {
    let cluster = Cluster::new("order").await;
    cluster.run_pause(&[]);
    let one_shot = [&["--label", "ecs-mesh.essential=false"][..], &["--label", "ecs-mesh.depends-on=agent:START"]];
    cluster.run_app("init", &one_shot.concat(), &["/demo-app", "--version"]);
    cluster.run_app("agent", &["--env", "LISTEN=127.0.0.1:8081"], &["/demo-app", "serve"]);
    cluster.run_app("proxy", &["--env", "LISTEN=127.0.0.1:8082"], &["/demo-app", "serve"]);
    cluster.run_app("app", &DEPENDS_ON_PROXY, &["/demo-app", "serve", "--term-delay", "2s"]);
    cluster.until_task("init has exited", |task| container(task, "init")["KnownStatus"] == "STOPPED").await;
    let since = now();
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "depends-on").await.0, 200);
    let task = cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    let finished = |name: &str| container(&task, name)["FinishedAt"].as_str().unwrap().to_owned();
    assert!(finished("agent") < finished("app"), "nothing that runs needs the agent: {task}");
    assert!(finished("app") < finished("proxy"), "the app needs the proxy: {task}");
    assert!(finished("proxy") < finished("pause"), "{task}");
    for name in ["agent", "app", "proxy", "pause"] {
        assert_eq!(cluster.terms(name, since), 1, "{name}");
    }
}

#[tokio::test]
async fn containers_with_circular_dependencies_are_stopped() {
    let cluster = Cluster::new("circle").await;
    cluster.run_pause(&[]);
    cluster.run_app("app", &DEPENDS_ON_PROXY, &["/demo-app", "serve"]);
    let proxy = ["--label", "ecs-mesh.depends-on=app:START", "--env", "LISTEN=127.0.0.1:8082"];
    cluster.run_app("proxy", &proxy, &["/demo-app", "serve"]);
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "depends-on").await.0, 200);
    cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    cluster.process.as_ref().unwrap().says("depend on each other in a circle", SOON).await;
}

#[tokio::test]
async fn aws_cli_stops_a_task_and_shows_refusals() {
    let cluster = Cluster::new("cli").await;
    cluster.run_pause(&[]);
    cluster.run_app("app", &[], &["/demo-app", "serve"]);
    let unknown = cluster.aws_stop_task(&cluster.name, "ffffffffffffffffffffffffffffffff").await;
    assert_ne!(unknown.code, 0);
    assert!(
        unknown.stderr.contains(
            "(InvalidParameterException) when calling the StopTask operation: The referenced task was not found."
        ),
        "{}",
        unknown.stderr
    );
    let unknown = cluster.aws_stop_task("elsewhere", TASK_ID).await;
    assert!(
        unknown.stderr.contains("(ClusterNotFoundException) when calling the StopTask operation: Cluster not found."),
        "{}",
        unknown.stderr
    );
    let arn = cluster.arn(TASK_ID);
    let cluster_arn = format!("arn:aws:ecs:eu-north-1:210987654321:cluster/{}", cluster.name);
    let stopped = cluster.aws_stop_task(&cluster_arn, &arn).await;
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    let stopped: Value = serde_json::from_str(&stopped.stdout).unwrap();
    assert_eq!((&stopped["task"]["taskArn"], &stopped["task"]["clusterArn"]), (&arn.into(), &cluster_arn.into()));
    assert_eq!(stopped["task"]["containers"][0]["name"], "app");
    assert!(stopped["task"]["stoppingAt"].is_number(), "the CLI prints a time as it came: {stopped}");
    cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
}

#[tokio::test]
async fn unknown_api_call_is_refused_as_by_aws() {
    let cluster = Cluster::new("api").await;
    let url = cluster.api();
    let target = |action: &'static str| [("x-amz-target", action)];
    let stop = "AmazonEC2ContainerServiceV20141113.StopTask";
    let rows = [
        ("GET", stop, "", "UnknownOperationException"),
        ("POST", "AmazonEC2ContainerServiceV20141113.RunTask", "{}", "UnknownOperationException"),
        ("POST", stop, "{", "SerializationException"),
        ("POST", stop, "{}", "SerializationException"),
    ];
    for (method, action, body, kind) in rows {
        let (status, answer) = request(method, &url, &target(action), body).await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["__type"]), (400, &kind.into()), "{answer}");
    }
    let (status, answer) = cluster.stop_task(&cluster.name, TASK_ID, "sideways").await;
    assert_eq!((status, &answer["__type"]), (400, &"InvalidParameterException".into()), "{answer}");
}
