//! ecs-local's types preserve every field that AWS documents, for EC2 and for Fargate.
//!
//! The key names and types come from four AWS pages: "Amazon ECS task metadata v4 examples", "Amazon ECS task metadata v4 examples for
//! tasks on Fargate", and the two pages on the JSON response. For fields that are not in the examples, they come from the agent's types.
//! The values are invented.

use ecs_local::documented::{Container, Task};
use ecs_meta::{ContainerType, HealthStatus, Status};
use serde_json::{Value, json};

fn container_on_ec2() -> Value {
    json!({
        "DockerId": "d1", "Name": "app", "DockerName": "ecs-f-7-app-aa", "Image": "registry/app:1", "ImageID": "sha256:aa",
        "Ports": [{"ContainerPort": 8080, "Protocol": "tcp", "HostPort": 32768, "HostIp": "10.1.0.4"}],
        "Labels": {"com.amazonaws.ecs.container-name": "app"},
        "DesiredStatus": "STOPPED", "KnownStatus": "STOPPED", "ExitCode": 137,
        "Limits": {"CPU": 512, "Memory": 64},
        "CreatedAt": "2031-01-02T03:04:05.678Z", "StartedAt": "2031-01-02T03:04:06Z", "FinishedAt": "2031-01-02T03:05:06Z",
        "Type": "NORMAL",
        "Health": {
            "status": "UNHEALTHY", "statusSince": "2031-01-02T03:04:56.7Z", "exitCode": 3, "output": "no answer\n",
        },
        "Networks": [{
            "NetworkMode": "awsvpc", "IPv4Addresses": ["10.1.0.9"], "IPv6Addresses": ["fd00::9"], "AttachmentIndex": 0,
            "MACAddress": "02:00:00:00:00:09", "IPv4SubnetCIDRBlock": "10.1.0.0/24", "IPv6SubnetCIDRBlock": "fd00::/64",
            "PrivateDNSName": "ip-10-1-0-9.example.internal",
            "SubnetGatewayIpv4Address": "10.1.0.1/24", "SubnetGatewayIpv6Address": "fe80::1/64",
        }],
        "Volumes": [{"DockerName": "ecs-f-7-v", "Source": "/var/lib/v", "Destination": "/v"}],
        "LogDriver": "awslogs", "LogOptions": {"awslogs-group": "/g"},
        "ContainerARN": "arn:aws:ecs:eu-north-1:210987654321:container/c1", "RestartCount": 2,
    })
}

fn task_on_ec2() -> Value {
    json!({
        "Cluster": "blue", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b", "Family": "f", "Revision": "7",
        "ServiceName": "svc", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
        "PullStartedAt": "2031-01-02T03:04:04Z", "PullStoppedAt": "2031-01-02T03:04:05Z",
        "ExecutionStoppedAt": "2031-01-02T03:06:05Z", "AvailabilityZone": "eu-north-1c", "LaunchType": "EC2",
        "VPCID": "vpc-1", "TaskTags": {"a": "b"}, "ContainerInstanceTags": {"c": "d"},
        "Errors": [{
            "ErrorField": "TaskTags", "ErrorCode": "AccessDenied", "ErrorMessage": "no", "StatusCode": 400,
            "RequestId": "r1", "ResourceARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b",
        }],
        "FaultInjectionEnabled": true,
        "Containers": [
            {
                "DockerId": "d0", "Name": "~internal~ecs~pause", "DockerName": "p", "Image": "pause", "ImageID": "",
                "DesiredStatus": "RESOURCES_PROVISIONED", "KnownStatus": "RESOURCES_PROVISIONED", "Type": "CNI_PAUSE",
            },
            container_on_ec2(),
        ],
    })
}

fn task_on_fargate() -> Value {
    let clock = json!({
        "ClockErrorBound": 0.25, "ReferenceTimestamp": "2031-01-02T03:00:00Z",
        "ClockSynchronizationStatus": "SYNCHRONIZED",
    });
    json!({
        "Cluster": "arn:aws:ecs:eu-north-1:210987654321:cluster/blue",
        "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b", "Family": "f", "Revision": "7",
        "DesiredStatus": "RUNNING", "KnownStatus": "NONE", "Limits": {"CPU": 0.25, "Memory": 512},
        "PullStartedAt": "2031-01-02T03:04:04Z", "PullStoppedAt": "2031-01-02T03:04:05Z",
        "AvailabilityZone": "eu-north-1c", "LaunchType": "FARGATE", "ClockDrift": clock,
        "EphemeralStorageMetrics": {"Utilized": 11, "Reserved": 22}, "FaultInjectionEnabled": false,
        "Containers": [{
            "DockerId": "0a1b-77", "Name": "app", "DockerName": "app", "Image": "registry/app:1", "ImageID": "sha256:aa",
            "DesiredStatus": "RUNNING", "KnownStatus": "PULLED", "Limits": {"CPU": 0.5}, "Type": "NORMAL",
            "Networks": [{
                "NetworkMode": "awsvpc", "IPv4Addresses": ["10.1.0.9"], "AttachmentIndex": 0,
                "DomainNameServers": ["10.1.0.2"], "DomainNameSearchList": ["example.internal"],
            }],
            "ClockDrift": clock, "Snapshotter": "overlayfs",
        }],
    })
}

#[test]
fn every_documented_field_is_read_and_kept() {
    for documented in [task_on_ec2(), task_on_fargate()] {
        let task: Task = serde_json::from_value(documented.clone()).unwrap();
        assert_eq!(serde_json::to_value(&task).unwrap(), documented);
    }
    let container: Container = serde_json::from_value(container_on_ec2()).unwrap();
    assert_eq!(serde_json::to_value(&container).unwrap(), container_on_ec2());
}

/// The sidecars parse the same answers, with a type that has fewer fields.
#[test]
fn what_sidecars_ask_for_is_found() {
    let task: ecs_meta::Task = serde_json::from_value(task_on_ec2()).unwrap();
    assert_eq!((task.task_id().as_str(), task.private_ip()), ("0a1b", Some("10.1.0.9")));
    let [pause, app] = &task.containers[..] else { panic!() };
    assert_eq!((&pause.type_, &pause.known_status), (&ContainerType::CniPause, &Status::ResourcesProvisioned));
    assert_eq!((&pause.health, &pause.log_driver), (&None, &None));
    assert_eq!(app.health.as_ref().unwrap().status, HealthStatus::Unhealthy);
    assert_eq!((&app.known_status, app.log_driver.as_deref()), (&Status::Stopped, Some("awslogs")));
    for task in [task_on_ec2(), task_on_fargate()] {
        let task: ecs_meta::Task = serde_json::from_value(task).unwrap();
        assert_eq!(task.cluster_arn().unwrap().to_string(), "arn:aws:ecs:eu-north-1:210987654321:cluster/blue");
    }
}

#[test]
fn unknown_fields_are_ignored_and_unknown_words_kept() {
    let task: Task = serde_json::from_value(json!({
        "Cluster": "blue", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/0a1b", "Family": "f", "Later": {"a": 1},
        "Containers": [
            {"Name": "app", "KnownStatus": "PAUSED", "Health": {"status": "DEGRADED"}, "Later": []},
            // A health check without a result yet.
            {"Name": "new", "KnownStatus": "RUNNING", "Health": {}},
        ],
    }))
    .unwrap();
    let new = task.containers[1].health.as_ref().unwrap();
    assert_eq!(new.status, HealthStatus::Unknown);
    assert_eq!(serde_json::to_value(new).unwrap(), json!({}));
    let app = &task.containers[0];
    assert_eq!(app.known_status, Status::Other("PAUSED".to_owned()));
    assert_eq!(app.health.as_ref().unwrap().status, HealthStatus::Other("DEGRADED".to_owned()));
    assert_eq!((app.exit_code, &app.type_), (None, &ContainerType::Normal));
    assert_eq!(task.desired_status, Status::None);
}
