//! Answers that are not as AWS documents them.

use ecs_meta::{Container, ContainerType, HealthStatus, Status, Task};
use serde_json::{Value, json};

fn task(containers: Value) -> Value {
    json!({
        "Cluster": "blue", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b", "Family": "f",
        "DesiredStatus": "RUNNING", "Containers": containers,
    })
}

#[test]
fn a_wrong_value_in_an_unused_field_is_ignored() {
    let fields_of_a_task = [
        "Revision",
        "ServiceName",
        "Limits",
        "PullStartedAt",
        "PullStoppedAt",
        "ExecutionStoppedAt",
        "AvailabilityZone",
        "LaunchType",
        "VPCID",
        "TaskTags",
        "ContainerInstanceTags",
        "Errors",
        "ClockDrift",
        "EphemeralStorageMetrics",
        "FaultInjectionEnabled",
        "Later",
    ];
    let fields_of_a_container = [
        "DockerName",
        "Image",
        "ImageID",
        "Ports",
        "Labels",
        "ExitCode",
        "Limits",
        "CreatedAt",
        "StartedAt",
        "FinishedAt",
        "Volumes",
        "LogOptions",
        "ContainerARN",
        "Snapshotter",
        "RestartCount",
        "ClockDrift",
        "Later",
    ];
    for wrong in [json!(null), json!(-1.5), json!("x"), json!([1, null]), json!({ "Utilized": 1.5 })] {
        let mut app = json!({ "Name": "app", "KnownStatus": "RUNNING", "Health": { "status": "HEALTHY" } });
        for field in fields_of_a_container {
            app[field] = wrong.clone();
        }
        for field in ["statusSince", "exitCode", "output"] {
            app["Health"][field] = wrong.clone();
        }
        app["Networks"] = json!([{ "IPv4Addresses": ["10.1.0.9"], "AttachmentIndex": wrong, "NetworkMode": wrong }]);
        let mut answer = task(json!([app]));
        for field in fields_of_a_task {
            answer[field] = wrong.clone();
        }
        let task: Task = serde_json::from_value(answer).unwrap_or_else(|error| panic!("{wrong}: {error}"));
        assert_eq!((task.desired_status.clone(), task.private_ip()), (Status::Running, Some("10.1.0.9")));
        assert_eq!(task.containers[0].health.as_ref().unwrap().status, HealthStatus::Healthy);
    }
}

#[test]
fn null_is_the_same_as_an_omitted_field() {
    let app = json!({
        "Name": "app", "DockerId": null, "DesiredStatus": null, "KnownStatus": null, "Type": null, "Networks": null,
        "LogDriver": null, "Health": null,
    });
    let addresses = json!({ "Name": "b", "Networks": [{ "IPv4Addresses": null, "IPv6Addresses": ["fd00::9"] }] });
    let task: Task = serde_json::from_value(task(json!([app, addresses]))).unwrap();
    let expected: Container = serde_json::from_value(json!({ "Name": "app" })).unwrap();
    assert_eq!(task.containers[0], expected);
    assert_eq!((&expected.type_, &expected.known_status), (&ContainerType::Normal, &Status::None));
    assert_eq!(task.private_ip(), Some("fd00::9"));
    let undecided: Container = serde_json::from_value(json!({ "Name": "app", "Health": { "status": null } })).unwrap();
    assert_eq!(undecided.health.unwrap().status, HealthStatus::Unknown);
}

#[test]
fn an_empty_address_hides_no_later_one() {
    let network = |v4: &[&str], v6: &[&str]| json!({ "IPv4Addresses": v4, "IPv6Addresses": v6 });
    let rows = [
        (json!([network(&[""], &[]), network(&["10.1.0.9"], &[])]), Some("10.1.0.9")),
        (json!([network(&["", "10.1.0.9"], &["fd00::9"])]), Some("10.1.0.9")),
        (json!([network(&[""], &["", "fd00::9"])]), Some("fd00::9")),
        (json!([network(&[""], &[""])]), None),
    ];
    for (networks, expected) in rows {
        let nowhere = json!({ "Name": "first", "Networks": [network(&[""], &[""])] });
        let app = json!({ "Name": "app", "Networks": networks });
        let task: Task = serde_json::from_value(task(json!([nowhere, app]))).unwrap();
        assert_eq!(task.private_ip(), expected, "{networks}");
    }
}

#[test]
fn an_arn_that_is_not_a_cluster_s_is_refused() {
    let mut answer = task(json!([]));
    answer["Cluster"] = json!("arn:aws:ecs:eu-north-1:210987654321:service/blue/x");
    let task: Task = serde_json::from_value(answer).unwrap();
    assert!(task.cluster_arn().is_err());
}
