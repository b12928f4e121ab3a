//! What health-sync restores in the catalog.

use std::time::Instant;

use super::*;

/// ECS may restart the container in the same task.
#[tokio::test]
async fn maintenance_of_an_earlier_run_ends() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let first = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    drop(first);
    let maintenance = |id: &str, notes: &str| {
        json!({
            "CheckID": format!("_service_maintenance:{id}"), "ServiceID": id, "Name": "m", "Status": "critical", "Notes": notes,
        })
    };
    let checks = [maintenance(SERVICES[0], "by an operator"), maintenance(SERVICES[1], REASON)];
    let body = json!({ "Node": NODE, "SkipNodeUpdate": true, "Checks": checks });
    mesh.agent.call("PUT", "/v1/catalog/register", &body).await;
    let _again = Process::spawn(&mut mesh.command());
    eventually("the proxy's maintenance has ended", BOUND, async || {
        let (_, checks) = on_node(&mesh.agent).await;
        if checks[format!("_service_maintenance:{}", SERVICES[1])].is_null() { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    let (_, checks) = on_node(&mesh.agent).await;
    assert!(checks[format!("_service_maintenance:{}", SERVICES[0])].is_object(), "an operator's stays: {checks}");
}

#[tokio::test]
async fn lost_registration_is_back_with_its_statuses() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let mut sync = Process::spawn(&mut mesh.command());
    mesh.become_all("passing").await;
    let registered = on_node(&mesh.agent).await.0;
    assert_eq!(registered[SERVICES[1]]["Proxy"]["DestinationServiceID"], SERVICES[0]);
    // A changed status is a write, and that fails. Without one, the read-back comes within a minute.
    mesh.deregister(json!({})).await;
    mesh.metadata.set_containers(containers("HEALTHY", "UNHEALTHY"));
    sync.says("expected a token with the service identity shop, and in the catalog the node arn:aws:ecs:eu-north-1:210987654321:cluster/blue", BOUND).await;
    register_node(&mesh.agent).await;
    mesh.become_within(BOUND, ["passing", "critical", "critical"]).await;
    mesh.metadata.set_containers(containers("HEALTHY", "HEALTHY"));
    mesh.become_all("passing").await;
    let without_indexes = |mut services: Value| {
        for id in SERVICES {
            for key in ["CreateIndex", "ModifyIndex"] {
                services[id].as_object_mut().unwrap().remove(key);
            }
        }
        services
    };
    assert_eq!(without_indexes(on_node(&mesh.agent).await.0), without_indexes(registered));
    sync.signal(Signal::TERM);
    mesh.become_all("critical").await;
    mesh.ends(&mut sync).await;
}

/// No write of health-sync fails here, so this waits for the read-back.
#[tokio::test]
async fn overwritten_status_and_lost_service_are_restored_within_a_minute() {
    let mesh = Mesh::start("HEALTHY", "HEALTHY").await;
    let (way, reads) = counting(&mesh.agent.http, "GET ");
    let sync = Process::spawn(&mut mesh.command_by(&way));
    mesh.become_all("passing").await;
    // The start is over: a failed first write causes a second read-back.
    let mut before = (0, Instant::now());
    eventually("three seconds without a read", BOUND, async || {
        let now = reads.load(Ordering::SeqCst);
        if now != before.0 {
            before = (now, Instant::now());
        }
        if before.1.elapsed() >= Duration::from_secs(3) { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    mesh.deregister(json!({ "ServiceID": SERVICES[0] })).await;
    mesh.write(PROXY, SERVICES[1], "critical", "by hand").await;
    mesh.become_within(Duration::from_secs(60), ["passing"; 3]).await;
    // One read-back found both. It reads each service once.
    assert_eq!(reads.load(Ordering::SeqCst), before.0 + 2, "{}", sync.output());
}
