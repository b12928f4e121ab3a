//! The answers of the task metadata endpoint.

use super::*;

/// Objects with keys that are data, not field names.
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
const FARGATE_TASK: &str = include_str!("../../../crates/ecs-local/tests/fargate_task.json");

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
/// The keys that a container has unless it is a pause container.
const CONTAINER_NORMAL: &[(&str, &str)] =
    &[(".LogDriver", "string"), (".LogOptions", "object"), (".LogOptions.*", "string"), (".ContainerARN", "string")];
/// The keys of a task in AWS's examples for EC2, without the keys of its containers. `ServiceName` is not among them, because a local task
/// belongs to no ECS service.
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
/// The keys of AWS's example for Fargate that a local task does not have. They exist only on Fargate.
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
/// The keys that a local task has and AWS's example for Fargate does not have.
const NOT_ON_FARGATE: &[(&str, &str)] = &[(".VPCID", "string")];

pub(super) fn is_rfc3339_in_utc(time: &Value) -> bool {
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
async fn metadata_has_the_keys_and_types_of_the_aws_examples() {
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

    // The container's own endpoint has the same answer.
    assert_eq!(get_json(&cluster.endpoint("web")).await.unwrap(), *web);
    // Only /taskWithTags has the tags.
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
async fn unknown_metadata_path_gets_404() {
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
async fn container_without_health_check_shows_no_health() {
    let mut cluster = Cluster::new("health").await;
    let mesh = cluster.network("");
    cluster.run_pause(&[&mesh]);
    // Docker's --health-cmd needs a shell, and a scratch image has none. So the health check comes from the image.
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
    // As long as the status does not change, its time does not change, although Docker stores only the last five checks.
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
