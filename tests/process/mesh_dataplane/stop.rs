//! The end of a task.

use super::*;

#[tokio::test]
async fn envoy_runs_on_after_term_until_the_apps_have_stopped() {
    let mesh = Mesh::start(1, 1).await;
    let Mesh { mut web, upstream, servers, .. } = mesh;
    web.dataplane.signal(Signal::TERM);
    web.dataplane.says("waiting for app", BOUND).await;
    http::get(&upstream).await.unwrap();
    // Envoy still gets changes.
    mesh.api[0].set_status(&servers, "critical").await;
    web.has_endpoints(0).await;
    web.task.metadata.set_containers(json!([{ "DockerId": "1", "Name": "app", "KnownStatus": "STOPPED" }]));
    assert_eq!(web.dataplane.exit_code(BOUND).await, 0, "{}", web.dataplane.output());
    assert!(!web.task.file("xds.sock").exists());
}
