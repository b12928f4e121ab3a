//! Tasks whose containers exit, are restarted, or are started again.

use super::metadata::is_rfc3339_in_utc;
use super::*;

#[tokio::test]
async fn task_runs_on_after_a_non_essential_container_exits() {
    let cluster = Cluster::new("exit").await;
    cluster.run_pause(&[]);
    cluster.run_app("init", &["--label", "ecs-mesh.essential=false"], &["/demo-app", "get", "127.0.0.1:1"]);
    let task = cluster.until_task("init has exited", |task| container(task, "init")["KnownStatus"] == "STOPPED").await;
    let init = container(&task, "init");
    assert_eq!((&init["ExitCode"], &init["DesiredStatus"]), (&1.into(), &"RUNNING".into()));
    assert!(is_rfc3339_in_utc(&init["FinishedAt"]), "{init}");
    assert_eq!((&task["DesiredStatus"], &task["KnownStatus"]), (&"RUNNING".into(), &"RUNNING".into()));
    let pause = container(&task, "pause");
    assert_eq!((pause.get("ExitCode"), pause.get("FinishedAt")), (None, None));
}

#[tokio::test]
async fn essential_container_that_exits_stops_its_task() {
    let cluster = Cluster::new("essential").await;
    cluster.run_pause(&[]);
    let serve =
        |port: &'static str, delay: &'static str| ["/demo-app", "serve", "--listen", port, "--term-delay", delay];
    cluster.run_app("slow", &["--label", "ecs-mesh.stop-timeout=10"], &serve("127.0.0.1:8001", "2s"));
    cluster.run_app("deaf", &["--label", "ecs-mesh.stop-timeout=1"], &serve("127.0.0.1:8002", "60s"));
    cluster.run_app("web", &[], &serve("127.0.0.1:8003", "0s"));
    let format = "{{.Action}} {{index .Actor.Attributes \"signal\"}} \
                  {{index .Actor.Attributes \"com.amazonaws.ecs.container-name\"}}";
    let label = format!("label=com.amazonaws.ecs.cluster={}", cluster.name);
    let mut command = Command::new("docker");
    command.args(["events", "--filter", &label, "--filter", "event=kill", "--filter", "event=die"]);
    // An exit before ecs-local asks the engine for events counts too.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    command.args(["--since", &now.to_string(), "--format", format]);
    let events = Process::spawn(&mut command);
    docker(&["kill", "--signal", "TERM", &cluster.docker_name("web")]).unwrap();

    let stopping = cluster.until_task("the task is to stop", |task| task["DesiredStatus"] == "STOPPED").await;
    assert_eq!(stopping["KnownStatus"], "RUNNING", "{stopping}");
    assert!(is_rfc3339_in_utc(&stopping["ExecutionStoppedAt"]));
    for container in stopping["Containers"].as_array().unwrap() {
        assert_eq!(container["DesiredStatus"], "STOPPED", "{container}");
    }
    let stopped = cluster.until_task("the task has stopped", |task| task["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&stopped, "web")["ExitCode"], 0);
    assert_eq!(container(&stopped, "slow")["ExitCode"], 0);
    assert_eq!(container(&stopped, "deaf")["ExitCode"], 137, "KILL after its stop timeout");
    assert_eq!(container(&stopped, "pause")["ExitCode"], 0);
    events.says("die  pause", SOON).await;
    let events = events.output();
    let at = |event: &str| events.lines().position(|line| line == event).unwrap_or_else(|| panic!("{event}: {events}"));
    let dies = ["slow", "deaf"].map(|container| at(&format!("die  {container}")));
    for term in ["kill 15 slow", "kill 15 deaf"] {
        assert!(at("die  web") < at(term) && dies.iter().all(|die| at(term) < *die), "all get TERM at once: {events}");
    }
    assert!(dies.iter().all(|die| *die < at("kill 15 pause")), "the pause container is the last: {events}");
}

#[tokio::test]
async fn restart_policy_restarts_a_container_that_ran_long_enough() {
    let mut cluster = Cluster::new("restart").await;
    let mesh = cluster.network("");
    cluster.run_pause(&[&mesh]);
    let serve = |port: u16| ["/demo-app".to_owned(), "serve".to_owned(), format!("--listen=0.0.0.0:{port}")];
    for (name, port, period) in [("web", 8080, ""), ("heals", 8081, "0"), ("ends", 8082, "3600")] {
        let label = format!("ecs-mesh.restart-attempt-period={period}");
        let policy = if period.is_empty() { vec![] } else { vec!["--label", &label] };
        cluster.run_app(name, &policy, &serve(port).each_ref().map(String::as_str));
    }
    for count in [1, 2] {
        docker(&["kill", &cluster.docker_name("heals")]).unwrap();
        let what = format!("it is started again, the {count}. time");
        let task = cluster
            .until_task(&what, |task| {
                let heals = container(task, "heals");
                heals["RestartCount"] == count && heals["KnownStatus"] == "RUNNING"
            })
            .await;
        assert_eq!((&task["DesiredStatus"], container(&task, "web").get("RestartCount")), (&"RUNNING".into(), None));
    }
    docker(&["kill", &cluster.docker_name("ends")]).unwrap();
    let task = cluster.until_task("the task stops", |task| task["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&task, "ends")["RestartCount"], 0);
    assert_eq!(container(&task, "heals")["RestartCount"], 2, "{task}");
}

#[tokio::test]
async fn restarted_task_is_a_new_run() {
    let cluster = Cluster::new("again").await;
    cluster.run_pause(&[]);
    cluster.run_app("web", &[], &["/demo-app", "serve"]);
    docker(&["kill", &cluster.docker_name("web")]).unwrap();
    let ecs_local = cluster.process.as_ref().unwrap();
    ecs_local.says("stopped arn:", SOON).await;

    docker(&["start", &cluster.docker_name("pause")]).unwrap();
    let task = cluster.task().await.unwrap();
    assert_eq!(task["DesiredStatus"], "RUNNING", "{task}");
    docker(&["start", &cluster.docker_name("web")]).unwrap();
    cluster.until_task("the task runs again", |task| container(task, "web")["KnownStatus"] == "RUNNING").await;
    // Events come in order: ecs-local reports the wrong label after it has handled all earlier starts.
    cluster.run_app(
        "later",
        &["--label", "ecs-mesh.essential=maybe"],
        &["/demo-app", "serve", "--listen", "127.0.0.1:0"],
    );
    ecs_local.says("label ecs-mesh.essential is", SOON).await;
    assert_eq!(ecs_local.output().matches("stopping arn:").count(), 1, "{}", ecs_local.output());
    let task = cluster.task().await.unwrap();
    assert_eq!((&task["DesiredStatus"], &task["KnownStatus"]), (&"RUNNING".into(), &"RUNNING".into()));
    assert_eq!(container(&task, "web").get("FinishedAt"), None);
}

#[tokio::test]
async fn essential_exit_while_ecs_local_is_down_stops_the_task() {
    let mut cluster = Cluster::new("away").await;
    cluster.run_pause(&[]);
    cluster.run_app("web", &[], &["/demo-app", "serve"]);
    let process = cluster.process.as_mut().unwrap();
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(SOON).await, 0);

    docker(&["kill", &cluster.docker_name("web")]).unwrap();
    cluster.start().await;
    cluster.until_task("the task has stopped", |task| task["KnownStatus"] == "STOPPED").await;
}

#[tokio::test]
async fn ready_while_ecs_local_and_docker_answer() {
    let cluster = Cluster::new("ready").await;
    let ready = async |port: u16| {
        run(Command::new(binary("ecs-local")).args(["ready", "--listen", &format!("0.0.0.0:{port}")]), SOON).await
    };
    assert_eq!(ready(cluster.port).await.code, 0);
    let not = ready(free_port()).await;
    assert_eq!(not.code, 1);
    assert!(not.stderr.starts_with("ecs-local: not ready: cannot reach http://127.0.0.1:"), "{}", not.stderr);
}

#[tokio::test]
async fn ecs_local_without_docker_fails_with_one_line() {
    let cases = [
        (
            "unix:///nonexistent/docker.sock",
            "cannot reach the Docker engine at unix:///nonexistent/docker.sock (is it running?): ",
        ),
        ("tcp://127.0.0.1:2375", "DOCKER_HOST is \"tcp://127.0.0.1:2375\": expected unix:// and the path"),
    ];
    for (host, says) in cases {
        let mut command = Command::new(binary("ecs-local"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).env("DOCKER_HOST", host);
        let finished = run(&mut command, SOON).await;
        assert_eq!(finished.code, 1);
        assert!(finished.stderr.starts_with(&format!("ecs-local: {says}")), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}
