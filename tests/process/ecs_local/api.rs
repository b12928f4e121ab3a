//! The real AWS CLI calls ecs-local's ECS API. The tests also compare its answers with those of moto.

use std::collections::BTreeSet;

use mesh_tests::http::{get, request};
use mesh_tests::moto::{Moto, aws};
use mesh_tests::process::Finished;
use serde_json::{Value, json};

use super::metadata::{documented, shape};
use super::{Cluster, SOON, TASK_ID, docker};

const TARGET: &str = "AmazonEC2ContainerServiceV20141113.";

fn task_id(number: u32) -> String {
    format!("{number:032x}")
}

/// Creates a task with one container that never starts.
fn create_task(cluster: &Cluster, number: u32, family: &str, options: &[&str]) -> String {
    let (id, name) = (task_id(number), cluster.docker_name(&number.to_string()));
    cluster.create_named(&name, (&id, family), "app", options, &["/demo-app", "serve"]);
    cluster.arn(&id)
}

/// Runs `aws ecs …`.
async fn ecs(endpoint: &str, arguments: &[&str]) -> Finished {
    aws(endpoint, &[&["ecs"], arguments].concat()).await
}

/// Runs `aws ecs …` and returns its output.
async fn answered(endpoint: &str, arguments: &[&str]) -> Value {
    let answer = ecs(endpoint, arguments).await;
    assert_eq!(answer.code, 0, "{arguments:?}: {}", answer.stderr);
    serde_json::from_str(&answer.stdout).unwrap()
}

/// The error's name as the CLI shows it, and the whole line.
async fn refused(endpoint: &str, arguments: &[&str]) -> (String, String) {
    let answer = ecs(endpoint, arguments).await;
    assert_ne!(answer.code, 0, "{arguments:?}: {}", answer.stdout);
    let said = answer.stderr.trim().to_owned();
    let kind = said.split_once("An error occurred (").and_then(|(_, rest)| rest.split_once(')'));
    (kind.unwrap_or_else(|| panic!("{arguments:?}: {said}")).0.to_owned(), said)
}

/// Sends a request to ecs-local without the CLI, which checks some parameters itself.
async fn raw(cluster: &Cluster, action: &str, input: &Value) -> (u16, Value) {
    let target = format!("{TARGET}{action}");
    let headers = [("x-amz-target", target.as_str()), ("content-type", "application/x-amz-json-1.1")];
    let (status, body) = request("POST", &cluster.api(), &headers, &input.to_string()).await.unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

fn arns(answer: &Value) -> Vec<String> {
    let arns = answer["taskArns"].as_array().unwrap_or_else(|| panic!("{answer}"));
    arns.iter().map(|arn| arn.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn aws_cli_lists_each_task_once_page_by_page() {
    let cluster = Cluster::new("list").await;
    let all = [1, 2, 3].map(|number| create_task(&cluster, number, "web", &[]));
    let list = ["list-tasks", "--cluster", &cluster.name];
    let list = async |more: &[&str]| answered(&cluster.api(), &[&list[..], more].concat()).await;

    assert_eq!(arns(&list(&[]).await), all);
    assert_eq!(arns(&list(&["--page-size", "1"]).await), all);
    assert_eq!(arns(&list(&["--page-size", "2"]).await), all);
    let first = list(&["--page-size", "1", "--max-items", "2"]).await;
    assert_eq!(arns(&first), all[..2]);
    let token = first["NextToken"].as_str().unwrap();
    assert_eq!(arns(&list(&["--page-size", "1", "--starting-token", token]).await), all[2..]);
    // The CLI stops when it has enough tasks. So this test looks at the API's answers: every page except the last has a token.
    let input = |token: Option<&Value>| json!({ "cluster": cluster.name, "maxResults": 2, "nextToken": token });
    let (_, page) = raw(&cluster, "ListTasks", &input(None)).await;
    assert_eq!(arns(&page), all[..2]);
    let (_, last) = raw(&cluster, "ListTasks", &input(page.get("nextToken"))).await;
    assert_eq!((arns(&last), last.get("nextToken")), (all[2..].to_vec(), None));

    // A token continues after the same task, even if tasks have come or gone.
    docker(&["rm", &cluster.docker_name("2")]).unwrap();
    let added = create_task(&cluster, 4, "web", &[]);
    let (_, last) = raw(&cluster, "ListTasks", &input(page.get("nextToken"))).await;
    assert_eq!(arns(&last), [all[2].clone(), added]);
}

#[tokio::test]
async fn aws_cli_filters_tasks() {
    let cluster = Cluster::new("filter").await;
    let web = create_task(&cluster, 1, "web", &[]);
    let api = create_task(&cluster, 2, "api", &[]);
    let cluster_arn = format!("arn:aws:ecs:eu-north-1:210987654321:cluster/{}", cluster.name);
    let rows: [(&[&str], &[&String]); 8] = [
        (&["--family", "web"], &[&web]),
        (&["--family", "we"], &[]),
        (&["--desired-status", "RUNNING"], &[&web, &api]),
        (&["--desired-status", "PENDING"], &[]),
        (&["--desired-status", "STOPPED"], &[]),
        (&["--launch-type", "EC2"], &[&web, &api]),
        (&["--launch-type", "FARGATE"], &[]),
        (&["--started-by", "me"], &[]),
    ];
    for (filter, expected) in rows {
        let list = ["list-tasks", "--cluster", &cluster_arn];
        let listed = answered(&cluster.api(), &[&list[..], filter].concat()).await;
        assert_eq!(arns(&listed).iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
    let rows: [(&[&str], &str); 9] = [
        (&["--cluster", "elsewhere"], "ClusterNotFoundException"),
        (&["--service-name", "web"], "ServiceNotFoundException"),
        (&["--container-instance", "0a1b"], "InvalidParameterException"),
        (&["--daemon-name", "d"], "InvalidParameterException"),
        (&["--desired-status", "DONE"], "InvalidParameterException"),
        (&["--launch-type", "LAMBDA"], "InvalidParameterException"),
        (&["--page-size", "0"], "InvalidParameterException"),
        (&["--page-size", "101"], "InvalidParameterException"),
        (&["--next-token", "abc"], "InvalidParameterException"),
    ];
    for (wrong, kind) in rows {
        let list = ["list-tasks", "--cluster", &cluster.name];
        let (found, said) = refused(&cluster.api(), &[&list[..], wrong].concat()).await;
        assert_eq!(found, kind, "{wrong:?}: {said}");
    }
    // Without a cluster ECS takes the cluster `default`, which does not exist here.
    assert_eq!(refused(&cluster.api(), &["list-tasks"]).await.0, "ClusterNotFoundException");
}

#[tokio::test]
async fn aws_cli_describes_tasks_tags_and_missing_tasks() {
    let cluster = Cluster::new("describe").await;
    let tags = ["ecs-mesh.tag.team=blue", "ecs-mesh.tag.consul.hashicorp.com/mesh=true"];
    let web = create_task(&cluster, 1, "web", &["--label", tags[0], "--label", tags[1]]);
    let api = create_task(&cluster, 2, "api", &[]);
    let gone = cluster.arn(&task_id(3));
    let describe = ["describe-tasks", "--cluster", &cluster.name, "--tasks"];
    let describe = async |more: &[&str]| answered(&cluster.api(), &[&describe[..], more].concat()).await;

    let described = describe(&[&web, &task_id(3), &task_id(2), &task_id(1), "--include", "TAGS"]).await;
    let tasks = described["tasks"].as_array().unwrap();
    assert_eq!(tasks.iter().map(|task| &task["taskArn"]).collect::<Vec<_>>(), [&web, &api], "{described}");
    let of_web = json!([
        { "key": "consul.hashicorp.com/mesh", "value": "true" }, { "key": "team", "value": "blue" },
    ]);
    assert_eq!((&tasks[0]["tags"], &tasks[1]["tags"]), (&of_web, &json!([])));
    assert_eq!(described["failures"], json!([{ "arn": gone, "reason": "MISSING" }]));
    assert_eq!((&tasks[0]["group"], &tasks[1]["lastStatus"]), (&"family:web".into(), &"PENDING".into()));
    let definition = "arn:aws:ecs:eu-north-1:210987654321:task-definition/web:3";
    assert_eq!(tasks[0]["taskDefinitionArn"], definition);

    let described = describe(&[&web]).await;
    assert_eq!((described["tasks"][0].get("tags"), &described["failures"]), (None, &json!([])));

    let many = (0..101).map(task_id).collect::<Vec<_>>();
    let many = many.iter().map(String::as_str).collect::<Vec<_>>();
    let described = describe(&many[..100]).await;
    let counts = ["tasks", "failures"].map(|what| described[what].as_array().unwrap().len());
    assert_eq!(counts, [2, 98]);
    let rows: [(&[&str], &[&str], &str); 4] = [
        (&[], &many, "InvalidParameterException"),
        (&[], &[], "InvalidParameterException"),
        (&["--include", "EVERYTHING"], &many[..1], "InvalidParameterException"),
        (&["--cluster", "elsewhere"], &many[..1], "ClusterNotFoundException"),
    ];
    for (wrong, tasks, kind) in rows {
        let arguments = [&["describe-tasks", "--cluster", &cluster.name], wrong, &["--tasks"], tasks].concat();
        let (found, said) = refused(&cluster.api(), &arguments).await;
        assert_eq!(found, kind, "{wrong:?}: {said}");
    }
    let (status, answer) = raw(&cluster, "DescribeTasks", &json!({ "cluster": cluster.name })).await;
    assert_eq!((status, &answer["__type"]), (400, &"InvalidParameterException".into()), "{answer}");
}

#[tokio::test]
async fn stopped_task_is_listed_with_its_reason_until_removed() {
    let cluster = Cluster::new("stopped").await;
    cluster.run_pause(&[]);
    cluster.run_app("app", &["--label", "ecs-mesh.tag.team=blue"], &["/demo-app", "serve"]);
    let list = async |status: &str| {
        let list = ["list-tasks", "--cluster", &cluster.name, "--desired-status", status];
        arns(&answered(&cluster.api(), &list).await)
    };
    let describe = async || {
        let describe = json!({ "cluster": cluster.name, "tasks": [TASK_ID], "include": ["TAGS"] });
        let (_, described) = raw(&cluster, "DescribeTasks", &describe).await;
        described["tasks"][0].clone()
    };
    let running = describe().await;
    assert_eq!((&running["lastStatus"], &running["desiredStatus"]), (&"RUNNING".into(), &"RUNNING".into()));
    assert!(running["createdAt"].as_f64() < running["startedAt"].as_f64(), "{running}");
    assert_eq!(running["tags"][0]["value"], "blue");
    let arn = cluster.arn(TASK_ID);
    assert_eq!((list("RUNNING").await, list("STOPPED").await), (vec![arn.clone()], vec![]));

    let stop = ["stop-task", "--cluster", &cluster.name, "--task", &arn, "--reason", "a test"];
    answered(&cluster.api(), &stop).await;
    // From now on the desired status is STOPPED, even if the task still runs, and its tags are deleted.
    assert_eq!(describe().await["tags"], json!([]));
    let metadata = get(&format!("{}/taskWithTags", cluster.endpoint("app"))).await.unwrap();
    assert!(!metadata.contains("TaskTags"), "{metadata}");
    assert_eq!((list("RUNNING").await, list("STOPPED").await), (vec![], vec![arn.clone()]));
    cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    cluster.process.as_ref().unwrap().says("stopped arn:", SOON).await;
    let stopped = describe().await;
    assert_eq!((&stopped["lastStatus"], &stopped["desiredStatus"]), (&"STOPPED".into(), &"STOPPED".into()));
    assert_eq!((&stopped["stopCode"], &stopped["stoppedReason"]), (&"UserInitiated".into(), &"a test".into()));
    assert!(running["startedAt"].as_f64() < stopped["stoppingAt"].as_f64(), "{stopped}");
    assert!(stopped["stoppingAt"].as_f64() < stopped["stoppedAt"].as_f64(), "{stopped}");
    assert_eq!(stopped["containers"][0]["exitCode"], 0);
    assert_eq!((list("RUNNING").await, list("STOPPED").await), (vec![], vec![arn.clone()]));

    // The task runs again. If it then stops because its container exits, this is the reason.
    docker(&["start", &cluster.docker_name("pause"), &cluster.docker_name("app")]).unwrap();
    let again = describe().await;
    assert_eq!((&again["lastStatus"], again.get("stopCode")), (&"RUNNING".into(), None));
    docker(&["kill", &cluster.docker_name("app")]).unwrap();
    cluster.until_task("all have stopped", |task| task["KnownStatus"] == "STOPPED").await;
    assert_eq!(describe().await["stopCode"], "EssentialContainerExited");

    docker(&["rm", &cluster.docker_name("pause"), &cluster.docker_name("app")]).unwrap();
    // When no container is left, ecs-local still knows the cluster of `--cluster`.
    assert_eq!((list("RUNNING").await, list("STOPPED").await), (vec![], vec![]));
}

/// The fields of a task or its container that moto has and ecs-local does not have. ecs-local has no task definition, and no `startedBy`.
/// moto shows `exitCode` and `stoppedReason` although the task runs.
const ONLY_MOTO: &[(&str, &str)] = &[
    (".attachments", "array"),
    (".containers[].cpu", "string"),
    (".containers[].exitCode", "number"),
    (".containers[].memory", "string"),
    (".overrides", "object"),
    (".startedBy", "string"),
    (".stoppedReason", "string"),
];
/// The fields of a running task that AWS documents and moto leaves out ("Task", "Container").
const ONLY_ECS_LOCAL: &[(&str, &str)] = &[
    (".availabilityZone", "string"),
    (".connectivity", "string"),
    (".containers[].networkInterfaces[]", "object"),
    (".containers[].networkInterfaces[].privateIpv4Address", "string"),
    (".containers[].runtimeId", "string"),
    (".createdAt", "number"),
    (".healthStatus", "string"),
    (".startedAt", "number"),
];

#[tokio::test]
async fn tasks_and_errors_have_the_shape_of_those_of_moto() {
    let moto = Moto::start().await;
    let mut cluster = Cluster::new("moto").await;
    let network = cluster.network("");
    cluster.run_pause(&[&network]);
    cluster.run_app("app", &["--label", "ecs-mesh.tag.team=blue"], &["/demo-app", "serve"]);
    let ours = cluster.api();
    answered(&moto.url, &["create-cluster", "--cluster-name", &cluster.name]).await;
    let containers = r#"[{"name":"app","image":"app:1","memory":64,"cpu":10}]"#;
    answered(&moto.url, &["register-task-definition", "--family", "web", "--container-definitions", containers]).await;
    let run = ["run-task", "--cluster", &cluster.name, "--task-definition", "web", "--launch-type", "FARGATE"];
    let ran = answered(&moto.url, &[&run[..], &["--tags", "key=team,value=blue"]].concat()).await;
    let in_moto = ran["tasks"][0]["taskArn"].as_str().unwrap();

    let list = ["list-tasks", "--cluster", &cluster.name, "--family", "web"];
    assert_eq!(shape(&answered(&ours, &list).await), shape(&answered(&moto.url, &list).await));
    let list = ["list-tasks", "--cluster", &cluster.name, "--family", "nobody"];
    assert_eq!(answered(&ours, &list).await, answered(&moto.url, &list).await);

    let describe = async |endpoint: &str, task: &str| {
        answered(endpoint, &["describe-tasks", "--cluster", &cluster.name, "--include", "TAGS", "--tasks", task]).await
    };
    let (own, other) = (describe(&ours, TASK_ID).await, describe(&moto.url, in_moto).await);
    assert_eq!((&own["failures"], &own["tasks"][0]["tags"]), (&other["failures"], &other["tasks"][0]["tags"]));
    let (own_shape, other_shape) = (shape(&own["tasks"][0]), shape(&other["tasks"][0]));
    let beyond = |one: &BTreeSet<_>, other: &BTreeSet<_>| one.difference(other).cloned().collect::<BTreeSet<_>>();
    assert_eq!(beyond(&other_shape, &own_shape), documented(ONLY_MOTO));
    assert_eq!(beyond(&own_shape, &other_shape), documented(ONLY_ECS_LOCAL));
    // The CLI prints only the fields in AWS's description of the API. All fields of ecs-local are printed.
    let input = json!({ "cluster": cluster.name, "tasks": [TASK_ID], "include": ["TAGS"] });
    assert_eq!(raw(&cluster, "DescribeTasks", &input).await.1, own);

    let rows: [&[&str]; 4] = [
        &["list-tasks", "--cluster", "elsewhere"],
        &["describe-tasks", "--cluster", "elsewhere", "--tasks", TASK_ID],
        &["stop-task", "--cluster", "elsewhere", "--task", TASK_ID],
        &["describe-tasks", "--cluster", &cluster.name, "--tasks"],
    ];
    for wrong in rows {
        assert_eq!(refused(&ours, wrong).await, refused(&moto.url, wrong).await, "{wrong:?}");
    }

    let stop = async |endpoint: &str, task: &str| {
        let stopped = answered(endpoint, &["stop-task", "--cluster", &cluster.name, "--task", task]).await;
        stopped["task"]["desiredStatus"].clone()
    };
    assert_eq!(stop(&ours, TASK_ID).await, stop(&moto.url, in_moto).await);
}
