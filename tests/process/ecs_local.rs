//! ecs-local against the real Docker engine.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_tests::http::{get_json, request};
use mesh_tests::moto::aws;
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(20);

/// A Docker command; gives its output, trimmed.
pub fn docker(arguments: &[&str]) -> Result<String, String> {
    // The classic builder alone builds FROM scratch without anything else installed.
    let output = Command::new("docker").env("DOCKER_BUILDKIT", "0").args(arguments).output();
    let output = output.map_err(|error| format!("cannot run docker ({error}): install Docker and start it"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let hint = if error.contains("Cannot connect to the Docker daemon") { " (start Docker)" } else { "" };
    Err(format!("docker {}: {error}{hint}", arguments.join(" ")))
}

/// An ecs-local for one cluster of its own, and the containers of one task; all goes with it.
pub struct Cluster {
    pub name: String,
    url: String,
    port: u16,
    api_port: u16,
    pub process: Option<Process>,
    /// The image of the next container, and those it is built from.
    images: Vec<String>,
    networks: Vec<String>,
}

pub const TASK_ID: &str = "0123456789abcdef0123456789abcdef";

impl Cluster {
    pub async fn new(test: &str) -> Self {
        let name = format!("ecs-mesh-test-{test}-{}", std::process::id());
        let port = free_port();
        let mut cluster = Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            api_port: free_port(),
            process: None,
            images: Vec::new(),
            networks: Vec::new(),
            name,
        };
        cluster.build("FROM scratch\nCOPY ecs-local demo-app /\n");
        cluster.start().await;
        cluster
    }

    /// Builds the image of the next containers.
    fn build(&mut self, dockerfile: &str) {
        let context = tempfile::tempdir().unwrap();
        for program in ["ecs-local", "demo-app"] {
            std::fs::copy(binary(program), context.path().join(program)).unwrap();
        }
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        self.images.push(format!("{}:{}", self.name, self.images.len()));
        // Another test may remove what the builder would take from its cache.
        docker(&["build", "--quiet", "--no-cache", "--tag", self.image(), context.path().to_str().unwrap()]).unwrap();
    }

    fn image(&self) -> &str {
        self.images.last().expect("an image has been built")
    }

    async fn start(&mut self) {
        let mut command = Command::new(binary("ecs-local"));
        command.args(["serve", "--listen", &format!("127.0.0.1:{}", self.port), "--cluster", &self.name]);
        command.args(["--api-listen", &format!("127.0.0.1:{}", self.api_port)]);
        let process = Process::spawn(&mut command);
        process.says("answering on", SOON).await;
        self.process = Some(process);
    }

    pub fn network(&mut self, subnet: &str) -> String {
        let network = format!("{}-{}", self.name, self.networks.len());
        let subnet = if subnet.is_empty() { vec![] } else { vec!["--subnet", subnet] };
        docker(&[&["network", "create"], &subnet[..], &[&network]].concat()).unwrap();
        self.networks.push(network.clone());
        network
    }

    pub fn docker_name(&self, container: &str) -> String {
        format!("{}-{container}", self.name)
    }

    /// The ARN of a task in this cluster.
    pub fn arn(&self, task_id: &str) -> String {
        format!("arn:aws:ecs:eu-north-1:210987654321:task/{}/{task_id}", self.name)
    }

    /// The URL of its ECS API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}/", self.api_port)
    }

    pub fn endpoint(&self, container: &str) -> String {
        format!("{}/v4/{TASK_ID}-{container}", self.url)
    }

    /// Creates a container of the task; options go before the image, the command after it.
    pub fn create(&self, container: &str, options: &[&str], command: &[&str]) {
        self.create_named(&self.docker_name(container), (TASK_ID, "web"), container, options, command);
    }

    /// Creates a container, with this name for Docker, of a task of this ID and family.
    pub fn create_named(
        &self,
        name: &str,
        (task_id, family): (&str, &str),
        container: &str,
        options: &[&str],
        command: &[&str],
    ) {
        let labels = [
            format!("com.amazonaws.ecs.cluster={}", self.name),
            format!("com.amazonaws.ecs.task-arn={}", self.arn(task_id)),
            format!("com.amazonaws.ecs.task-definition-family={family}"),
            "com.amazonaws.ecs.task-definition-version=3".to_owned(),
            format!("com.amazonaws.ecs.container-name={container}"),
        ];
        let mut arguments = vec!["create", "--name", name];
        for label in &labels {
            arguments.extend(["--label", label]);
        }
        arguments.extend(options);
        arguments.push(self.image());
        arguments.extend(command);
        docker(&arguments).unwrap();
    }

    fn run(&self, container: &str, options: &[&str], command: &[&str]) {
        self.create(container, options, command);
        docker(&["start", &self.docker_name(container)]).unwrap();
        if command.contains(&"serve") {
            self.until_it_listens(container);
        }
    }

    /// Waits until a container's demo-app listens or has exited. Before that it has no handler for TERM yet, and the kernel
    /// drops what PID 1 doesn't handle.
    fn until_it_listens(&self, container: &str) {
        let mut command = Command::new("docker");
        let follow = ["logs", "--follow", &self.docker_name(container)];
        let mut logs = command.args(follow).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(logs.stderr.take().unwrap()).lines().map_while(Result::ok);
        lines.take_while(|line| !line.contains(" listens on ")).for_each(drop);
        let _ = logs.kill();
        let _ = logs.wait();
    }

    pub fn run_pause(&self, networks: &[&str]) {
        let mut options = vec!["--label", "ecs-mesh.type=CNI_PAUSE", "--label", "ecs-mesh.stop-timeout=2"];
        options.extend(["--network", networks.first().copied().unwrap_or("none")]);
        self.create("pause", &options, &["/ecs-local", "pause"]);
        for network in networks.iter().skip(1) {
            docker(&["network", "connect", network, &self.docker_name("pause")]).unwrap();
        }
        docker(&["start", &self.docker_name("pause")]).unwrap();
    }

    /// Runs an app in the pause container's network namespace.
    pub fn run_app(&self, container: &str, options: &[&str], command: &[&str]) {
        let joined = format!("container:{}", self.docker_name("pause"));
        self.run(container, &[&["--network", &joined], options].concat(), command);
    }

    /// Sends StopTask of this task; the status and the answer.
    async fn stop_task(&self, cluster: &str, task: &str, order: &str) -> (u16, Value) {
        let headers =
            [("x-amz-target", "AmazonEC2ContainerServiceV20141113.StopTask"), ("x-ecs-local-stop-order", order)];
        let body = serde_json::json!({ "cluster": cluster, "task": task, "reason": "a test" }).to_string();
        let (status, body) = request("POST", &self.api(), &headers, &body).await.unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The real AWS CLI's `ecs stop-task`.
    async fn aws_stop_task(&self, cluster: &str, task: &str) -> Finished {
        let stop = ["ecs", "stop-task", "--cluster", cluster, "--task", task, "--reason", "a test"];
        aws(&self.api(), &stop).await
    }

    /// How many TERMs a container has got, by Docker's events since `since`.
    fn terms(&self, container: &str, since: u64) -> usize {
        let until = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 1;
        let name = format!("container={}", self.docker_name(container));
        let events = docker(&[
            "events",
            "--since",
            &since.to_string(),
            "--until",
            &until.to_string(),
            "--filter",
            &name,
            "--filter",
            "event=kill",
            "--format",
            "{{.Actor.Attributes.signal}}",
        ]);
        events.unwrap().lines().filter(|signal| *signal == "15").count()
    }

    pub async fn task(&self) -> Result<Value, String> {
        // Any of its containers will do.
        get_json(&format!("{}/task", self.endpoint("pause"))).await
    }

    pub async fn until_task(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, async || {
            let task = self.task().await?;
            if holds(&task) { Ok(task) } else { Err(task.to_string()) }
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.process = None;
        let label = format!("label=com.amazonaws.ecs.cluster={}", self.name);
        if let Ok(ids) = docker(&["ps", "--all", "--quiet", "--filter", &label]) {
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat());
            }
        }
        for network in &self.networks {
            let _ = docker(&["network", "rm", network]);
        }
        for image in self.images.iter().rev() {
            let _ = docker(&["rmi", image]);
        }
    }
}

pub fn container<'a>(task: &'a Value, name: &str) -> &'a Value {
    let containers = task["Containers"].as_array().unwrap();
    containers.iter().find(|container| container["Name"] == name).unwrap_or_else(|| panic!("no {name} in {task}"))
}

/// Objects whose keys are data.
const MAPS: [&str; 3] = ["Labels", "LogOptions", "TaskTags"];

/// Every key's path and JSON type, through all objects and arrays.
pub fn shape(value: &Value) -> BTreeSet<(String, &'static str)> {
    fn walk(path: &str, value: &Value, shape: &mut BTreeSet<(String, &'static str)>) {
        let type_ = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        shape.insert((path.to_owned(), type_));
        let key = path.rsplit(['.', ']']).next().unwrap_or_default();
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(&format!("{path}[]"), item, shape)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    let name = if MAPS.contains(&key) { "*" } else { name };
                    walk(&format!("{path}.{name}"), field, shape);
                }
            }
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk("", value, &mut found);
    found
}

/// A task with the keys and types of AWS's page "Amazon ECS task metadata v4 examples for tasks on Fargate".
const FARGATE_TASK: &str = include_str!("../../crates/ecs-local/tests/fargate_task.json");

pub fn documented(keys: &[(&str, &'static str)]) -> BTreeSet<(String, &'static str)> {
    keys.iter().map(|(path, type_)| ((*path).to_owned(), *type_)).collect()
}

/// The keys of a container in AWS's examples for EC2.
const CONTAINER: &[(&str, &str)] = &[
    ("", "object"),
    (".DockerId", "string"),
    (".Name", "string"),
    (".DockerName", "string"),
    (".Image", "string"),
    (".ImageID", "string"),
    (".Labels", "object"),
    (".Labels.*", "string"),
    (".DesiredStatus", "string"),
    (".KnownStatus", "string"),
    (".Limits", "object"),
    (".Limits.CPU", "number"),
    (".Limits.Memory", "number"),
    (".CreatedAt", "string"),
    (".StartedAt", "string"),
    (".Type", "string"),
    (".Networks", "array"),
    (".Networks[]", "object"),
    (".Networks[].NetworkMode", "string"),
    (".Networks[].IPv4Addresses", "array"),
    (".Networks[].IPv4Addresses[]", "string"),
    (".Networks[].AttachmentIndex", "number"),
    (".Networks[].MACAddress", "string"),
    (".Networks[].IPv4SubnetCIDRBlock", "string"),
    (".Networks[].PrivateDNSName", "string"),
    (".Networks[].SubnetGatewayIpv4Address", "string"),
];
/// And of those that are not pause containers.
const CONTAINER_NORMAL: &[(&str, &str)] =
    &[(".LogDriver", "string"), (".LogOptions", "object"), (".LogOptions.*", "string"), (".ContainerARN", "string")];
/// The keys of a task in AWS's examples for EC2, but for what is in its containers; without `ServiceName`, which a local
/// task, being of no ECS service, does not have.
const TASK: &[(&str, &str)] = &[
    ("", "object"),
    (".Cluster", "string"),
    (".TaskARN", "string"),
    (".Family", "string"),
    (".Revision", "string"),
    (".DesiredStatus", "string"),
    (".KnownStatus", "string"),
    (".PullStartedAt", "string"),
    (".PullStoppedAt", "string"),
    (".AvailabilityZone", "string"),
    (".LaunchType", "string"),
    (".Containers", "array"),
    (".VPCID", "string"),
];
/// What a task of AWS's example for Fargate has and a local one lacks. Nothing but Fargate has it.
const ONLY_ON_FARGATE: &[(&str, &str)] = &[
    (".Limits", "object"),
    (".Limits.CPU", "number"),
    (".Limits.Memory", "number"),
    (".ClockDrift", "object"),
    (".ClockDrift.ClockErrorBound", "number"),
    (".ClockDrift.ReferenceTimestamp", "string"),
    (".ClockDrift.ClockSynchronizationStatus", "string"),
    (".EphemeralStorageMetrics", "object"),
    (".EphemeralStorageMetrics.Utilized", "number"),
    (".EphemeralStorageMetrics.Reserved", "number"),
    (".FaultInjectionEnabled", "boolean"),
    (".Containers[].Networks[].DomainNameServers", "array"),
    (".Containers[].Networks[].DomainNameServers[]", "string"),
    (".Containers[].Networks[].DomainNameSearchList", "array"),
    (".Containers[].Networks[].DomainNameSearchList[]", "string"),
    (".Containers[].Snapshotter", "string"),
];
/// The other way round.
const NOT_ON_FARGATE: &[(&str, &str)] = &[(".VPCID", "string")];

fn is_rfc3339_in_utc(time: &Value) -> bool {
    let text = time.as_str().unwrap_or_default();
    let Some((seconds, fraction)) = text.strip_suffix('Z').map(|text| text.split_once('.').unwrap_or((text, "0")))
    else {
        return false;
    };
    let pattern = "dddd-dd-ddTdd:dd:dd";
    let alike = |(c, p): (char, char)| if p == 'd' { c.is_ascii_digit() } else { c == p };
    seconds.len() == pattern.len()
        && seconds.chars().zip(pattern.chars()).all(alike)
        && fraction.chars().all(|c| c.is_ascii_digit())
}

#[tokio::test]
async fn ecs_local_answers_with_the_keys_and_types_of_aws_s_examples() {
    let mut cluster = Cluster::new("shape").await;
    let (mesh, metadata) = (cluster.network(""), cluster.network("169.254.213.0/24"));
    cluster.run_pause(&[&metadata, &mesh]);
    let log = ["--log-opt", "max-size=1m", "--memory", "64m", "--cpu-shares", "128"];
    let tag = ["--label", "ecs-mesh.tag.team=blue"];
    cluster.run_app("web", &[&log[..], &tag[..]].concat(), &["/demo-app", "serve"]);

    let task = cluster.task().await.unwrap();
    let (pause, web) = (container(&task, "pause"), container(&task, "web"));
    let all = |parts: &[&[(&str, &'static str)]]| documented(&parts.concat());
    assert_eq!(shape(pause), documented(CONTAINER));
    assert_eq!(shape(web), all(&[CONTAINER, CONTAINER_NORMAL]));
    let mut of_task = task.clone();
    of_task["Containers"] = Value::Array(Vec::new());
    assert_eq!(shape(&of_task), documented(TASK));

    // Fargate shows no pause container.
    let mut as_on_fargate = task.clone();
    as_on_fargate["Containers"] = serde_json::json!([web]);
    let (own, fargate) = (shape(&as_on_fargate), shape(&serde_json::from_str(FARGATE_TASK).unwrap()));
    assert_eq!(fargate.difference(&own).cloned().collect::<BTreeSet<_>>(), documented(ONLY_ON_FARGATE));
    assert_eq!(own.difference(&fargate).cloned().collect::<BTreeSet<_>>(), documented(NOT_ON_FARGATE));

    // The container's own endpoint says the same of it.
    assert_eq!(get_json(&cluster.endpoint("web")).await.unwrap(), *web);
    // Tags come with /taskWithTags alone.
    assert_eq!(task.get("TaskTags"), None);
    let tagged = get_json(&format!("{}/taskWithTags", cluster.endpoint("web"))).await.unwrap();
    assert_eq!(tagged["TaskTags"], serde_json::json!({"team": "blue"}));

    assert_eq!(task["Cluster"], *cluster.name);
    assert_eq!(task["TaskARN"], format!("arn:aws:ecs:eu-north-1:210987654321:task/{}/{TASK_ID}", cluster.name));
    assert_eq!((&task["Family"], &task["Revision"]), (&"web".into(), &"3".into()));
    assert_eq!((&task["DesiredStatus"], &task["KnownStatus"]), (&"RUNNING".into(), &"RUNNING".into()));
    assert_eq!(task["LaunchType"], "EC2");
    assert_eq!((&pause["Type"], &pause["KnownStatus"]), (&"CNI_PAUSE".into(), &"RESOURCES_PROVISIONED".into()));
    assert_eq!((&web["Type"], &web["KnownStatus"]), (&"NORMAL".into(), &"RUNNING".into()));
    assert_eq!(web["Limits"], serde_json::json!({"CPU": 128, "Memory": 64}));
    for time in [&task["PullStartedAt"], &task["PullStoppedAt"], &web["CreatedAt"], &web["StartedAt"]] {
        assert!(is_rfc3339_in_utc(time), "{time}");
    }
    let format = format!("{{{{(index .NetworkSettings.Networks \"{mesh}\").IPAddress}}}}");
    let address = docker(&["inspect", "--format", &format, &cluster.docker_name("pause")]).unwrap();
    for container in [pause, web] {
        assert_eq!(container["Networks"].as_array().unwrap().len(), 1);
        assert_eq!(container["Networks"][0]["IPv4Addresses"], serde_json::json!([address]));
    }
}

#[tokio::test]
async fn ecs_local_answers_404_for_what_it_does_not_know() {
    let cluster = Cluster::new("unknown").await;
    cluster.run_pause(&[]);
    for path in ["/v4/nobody", "/v4/nobody/task", "/v4/", "/", "/v3/x", "/v4/nobody/taskWithTags"] {
        assert_eq!(request("GET", &format!("{}{path}", cluster.url), &[], "").await.unwrap().0, 404, "{path}");
    }
    assert_eq!(request("GET", &cluster.endpoint("pause"), &[], "").await.unwrap().0, 200);
    assert_eq!(request("GET", &format!("{}/stats", cluster.endpoint("pause")), &[], "").await.unwrap().0, 404);
    assert_eq!(request("PUT", &cluster.endpoint("pause"), &[], "").await.unwrap().0, 405);
    docker(&["rm", "--force", &cluster.docker_name("pause")]).unwrap();
    assert_eq!(request("GET", &cluster.endpoint("pause"), &[], "").await.unwrap().0, 404);
}

#[tokio::test]
async fn ecs_local_follows_a_container_s_health_and_shows_none_without_a_health_check() {
    let mut cluster = Cluster::new("health").await;
    let mesh = cluster.network("");
    cluster.run_pause(&[&mesh]);
    // Docker's --health-cmd wants a shell, which a scratch image has not: the check comes from an image.
    let check = "HEALTHCHECK --interval=200ms --retries=1 CMD [\"/demo-app\", \"health\"]";
    cluster.build(&format!("FROM {}\n{check}\n", cluster.image()));
    let joined = format!("container:{}", cluster.docker_name("pause"));
    cluster.create("web", &["--network", &joined], &["/demo-app", "serve", "--listen", "0.0.0.0:8080"]);
    let created = get_json(&cluster.endpoint("web")).await.unwrap();
    assert!(created["Health"].is_object() && created["Health"]["status"].is_null(), "left out as ECS does: {created}");
    docker(&["start", &cluster.docker_name("web")]).unwrap();

    let health = async |status: &str| {
        eventually(&format!("web is {status}"), SOON, async || {
            let web = get_json(&cluster.endpoint("web")).await?;
            if web["Health"]["status"] == status { Ok(web["Health"].clone()) } else { Err(web.to_string()) }
        })
        .await
    };
    let healthy = health("HEALTHY").await;
    assert_eq!(healthy["output"], "200 \"healthy\"\n");
    assert!(is_rfc3339_in_utc(&healthy["statusSince"]), "{healthy}");
    assert_eq!(healthy.get("exitCode"), None);
    // The time stays while the status does, though Docker keeps only the last five checks.
    let checks = || {
        let format = "{{range .State.Health.Log}}{{.Start.UnixNano}} {{end}}";
        docker(&["inspect", "--format", format, &cluster.docker_name("web")]).unwrap()
    };
    let first: BTreeSet<String> = checks().split_whitespace().map(str::to_owned).collect();
    assert!(!first.is_empty());
    eventually("the first checks are forgotten", SOON, async || {
        let now = checks();
        if now.split_whitespace().any(|check| first.contains(check)) { Err(now) } else { Ok(()) }
    })
    .await;
    assert_eq!(health("HEALTHY").await["statusSince"], healthy["statusSince"]);

    let web = get_json(&cluster.endpoint("web")).await.unwrap();
    let address = web["Networks"][0]["IPv4Addresses"][0].as_str().unwrap();
    let turn = format!("http://{address}:8080/health?status=unhealthy");
    assert_eq!(request("PUT", &turn, &[], "").await.unwrap().0, 200);
    let unhealthy = health("UNHEALTHY").await;
    assert_eq!(unhealthy["exitCode"], 1);
    assert_ne!(unhealthy["statusSince"], healthy["statusSince"]);

    let task = cluster.task().await.unwrap();
    assert_eq!(container(&task, "pause").get("Health"), None);
}

#[tokio::test]
async fn ecs_local_shows_exit_code_and_end_of_a_container_that_exited_and_the_task_goes_on_if_it_is_not_essential() {
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
async fn ecs_local_stops_a_task_whose_essential_container_exits_the_pause_container_last() {
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
    // What happens before the engine is asked for its events counts too.
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
async fn ecs_local_starts_a_container_with_a_restart_policy_again_unless_it_ran_too_short_or_the_task_stops() {
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
async fn ecs_local_takes_a_task_that_is_started_again_for_a_new_run() {
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
    // Events come in order: what it says of a wrong label comes after all it did about the starts before.
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
async fn ecs_local_stops_a_task_whose_essential_container_exited_while_it_was_away() {
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
async fn ecs_local_is_ready_while_it_answers_and_its_docker_does() {
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
async fn ecs_local_without_docker_says_so_on_one_line_and_fails() {
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

const DEPENDS_ON_PROXY: [&str; 2] = ["--label", "ecs-mesh.depends-on=proxy:HEALTHY"];

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[tokio::test]
async fn stop_task_tells_all_at_once_and_kills_what_outlives_its_stop_timeout() {
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
    // Whoever asks now hears that all of it is to stop, though it still runs.
    let task = cluster.task().await.unwrap();
    assert_eq!((&task["DesiredStatus"], &task["KnownStatus"]), (&"STOPPED".into(), &"RUNNING".into()));
    assert!(task["Containers"].as_array().unwrap().iter().all(|container| container["DesiredStatus"] == "STOPPED"));
    let task =
        cluster.until_task("quick has stopped", |task| container(task, "quick")["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&task, "stubborn")["KnownStatus"], "RUNNING", "it did not wait for the other");
    // Asked again, and an essential container has exited meanwhile: nobody is told twice.
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "").await.0, 200);
    let task = cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    assert_eq!(container(&task, "stubborn")["ExitCode"], 137);
    for name in ["quick", "stubborn", "pause"] {
        assert_eq!(cluster.terms(name, since), 1, "{name}");
    }
    assert_eq!(cluster.stop_task(&cluster.name, TASK_ID, "").await.0, 200, "it has stopped, which is no error");
}

#[tokio::test]
async fn in_the_order_of_depends_on_what_others_need_is_told_last() {
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
async fn containers_that_depend_on_each_other_in_a_circle_are_stopped_all_the_same() {
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
async fn the_aws_cli_stops_a_task_and_understands_why_not() {
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
async fn what_the_api_does_not_know_is_refused_in_its_own_words() {
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
