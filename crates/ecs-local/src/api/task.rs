//! A task as the API shows it ("Task" in the Amazon ECS API Reference).

use std::collections::BTreeMap;

use ecs_meta::Status;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::documented;
use crate::monitor::{StopRequest, TaskMonitor, short_name};
use crate::task::Task;

/// A task as JSON. Fields without a value are left out. The tags are left out unless the request asks for them.
pub(super) fn shown(monitor: &TaskMonitor, task: &Task, with_tags: bool) -> Value {
    show(task, monitor.stopping(&task.arn), monitor.stop_request(task), with_tags)
}

fn show(task: &Task, stopping: Option<OffsetDateTime>, request: Option<StopRequest>, with_tags: bool) -> Value {
    let metadata = task.metadata(stopping, false);
    let labels = &task.containers[0].labels;
    let (arn, family) = (&task.arn, &labels.family);
    let (partition, region, account) = (arn.partition(), arn.region(), arn.account());
    let containers = metadata.containers.iter().zip(&task.containers).filter(|(_, container)| !container.is_pause());
    let containers = containers.map(|(metadata, _)| container(metadata, task));
    let stopped_at = task.containers.iter().filter_map(|container| container.finished_at).max();
    let definition = format!("arn:{partition}:ecs:{region}:{account}:task-definition/{family}:{}", labels.revision);
    let mut shown = json!({
        "taskArn": arn.to_string(),
        "clusterArn": arn.cluster_arn(short_name(&labels.cluster)).to_string(),
        "taskDefinitionArn": definition,
        "group": format!("family:{family}"),
        "launchType": metadata.launch_type,
        "availabilityZone": metadata.availability_zone,
        "connectivity": "CONNECTED",
        "healthStatus": task.health().as_str(),
        "desiredStatus": metadata.desired_status.as_str(),
        "lastStatus": last_status(&metadata.known_status),
        "createdAt": epoch(task.containers.iter().filter_map(|container| container.created_at).min()),
        "startedAt": epoch(task.containers.iter().filter_map(|container| container.started_at).min()),
        "stoppedAt": epoch(stopped_at.filter(|_| metadata.known_status == Status::Stopped)),
        "containers": containers.collect::<Vec<_>>(),
    });
    if metadata.desired_status == Status::Stopped {
        let (at, code, reason) = match &request {
            Some(StopRequest { at, reason }) => (Some(*at), "UserInitiated", reason.clone()),
            None => {
                let at = task.essential_exit().and_then(|exited| exited.finished_at);
                (at, "EssentialContainerExited", "Essential container in task exited".to_owned())
            }
        };
        shown["stoppingAt"] = epoch(at);
        shown["stopCode"] = code.into();
        shown["stoppedReason"] = reason.into();
    }
    if with_tags {
        // StopTask deletes them.
        let tags = if request.is_none() { task.tags() } else { BTreeMap::new() };
        shown["tags"] = tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    }
    without_nulls(shown)
}

fn container(metadata: &documented::Container, task: &Task) -> Value {
    let health = metadata.health.as_ref().map_or("UNKNOWN", |health| health.status.as_str());
    let addresses = metadata.networks.iter().flat_map(|network| &network.ipv4_addresses);
    let interfaces = addresses.map(|address| json!({ "privateIpv4Address": address })).collect::<Vec<_>>();
    without_nulls(json!({
        "containerArn": metadata.container_arn,
        "taskArn": task.arn.to_string(),
        "name": metadata.name,
        "image": metadata.image,
        "runtimeId": metadata.docker_id,
        "lastStatus": last_status(&metadata.known_status),
        "exitCode": metadata.exit_code,
        "healthStatus": health,
        "networkInterfaces": interfaces,
    }))
}

/// The API's name of a status. Before `RUNNING` the API has fewer statuses than the metadata ("Amazon ECS task lifecycle").
fn last_status(known: &Status) -> &str {
    match known {
        Status::None | Status::ManifestPulled | Status::Pulled | Status::Created => "PENDING",
        Status::ResourcesProvisioned => "RUNNING",
        status => status.as_str(),
    }
}

/// A time in the form of AWS JSON 1.1: seconds since 1970.
fn epoch(time: Option<OffsetDateTime>) -> Value {
    time.map(|time| time.unix_timestamp_nanos() as f64 / 1e9).into()
}

fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::container;

    fn task(changes: Value) -> Task {
        Task::of(vec![container("web", &[("ecs-mesh.tag.team", "red")], changes)]).unwrap()
    }

    #[test]
    fn a_running_task_has_no_stop_fields_and_tags_on_request() {
        let shown = show(&task(json!({})), None, None, false);
        assert_eq!((&shown["lastStatus"], &shown["desiredStatus"]), (&"RUNNING".into(), &"RUNNING".into()));
        assert_eq!((&shown["createdAt"], &shown["startedAt"]), (&1_925_089_445.1.into(), &1_925_089_446.0.into()));
        for absent in ["stoppingAt", "stoppedAt", "stopCode", "stoppedReason", "tags"] {
            assert_eq!(shown.get(absent), None, "{absent}");
        }
        let shown = show(&task(json!({})), None, None, true);
        assert_eq!(shown["tags"], json!([{ "key": "team", "value": "red" }]));
    }

    #[test]
    fn a_task_that_is_created_and_not_started_is_pending() {
        let shown = show(
            &task(json!({"State": {"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}})),
            None,
            None,
            false,
        );
        assert_eq!((&shown["lastStatus"], shown.get("startedAt")), (&"PENDING".into(), None));
        assert_eq!(shown["containers"][0]["lastStatus"], "PENDING");
    }

    #[test]
    fn a_stopped_task_has_its_stop_time_and_the_reason() {
        let exited = json!({"State": {"Status": "exited", "ExitCode": 3, "FinishedAt": "2031-01-02T03:04:08Z"}});
        let shown = show(&task(exited.clone()), None, None, false);
        assert_eq!(
            (&shown["stopCode"], &shown["stoppedAt"]),
            (&"EssentialContainerExited".into(), &1_925_089_448.0.into())
        );
        assert_eq!(shown["containers"][0]["exitCode"], 3);
        let shown = show(&task(exited.clone()), None, None, true);
        assert_eq!(shown["tags"][0]["key"], "team", "nobody called StopTask");

        let request =
            StopRequest { at: OffsetDateTime::from_unix_timestamp(1_925_089_447).unwrap(), reason: "r".into() };
        let shown = show(&task(exited), None, Some(request), true);
        assert_eq!((&shown["stopCode"], &shown["stoppedReason"]), (&"UserInitiated".into(), &"r".into()));
        assert_eq!(shown["stoppingAt"], 1_925_089_447.0);
        assert_eq!(shown["tags"], json!([]), "StopTask deletes them");
    }
}
