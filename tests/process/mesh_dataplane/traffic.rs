//! Requests between two tasks without an agent.

use super::*;

#[tokio::test]
async fn requests_go_through_two_dataplanes_and_the_bootstrap_has_no_token() {
    let mesh = Mesh::start(1, 1).await;
    assert!(http::get(&mesh.upstream).await.is_ok());
    let token = mesh.web.task.variables.iter().find(|(name, _)| *name == "CONSUL_HTTP_TOKEN").unwrap().1.clone();
    let text = std::fs::read_to_string(mesh.web.task.file("envoy-bootstrap.json")).unwrap();
    assert!(!text.contains(&token) && !text.contains("x-consul-token"), "{text}");
    let bootstrap: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bootstrap["node"]["metadata"]["node_name"], NODE);
    assert!(!mesh.web.dataplane.output().contains(&token));
    // A critical check takes the only instance out, and a passing one brings it back.
    mesh.api[0].set_status(&mesh.servers, "critical").await;
    mesh.web.has_endpoints(0).await;
    mesh.api[0].set_status(&mesh.servers, "passing").await;
    mesh.web.has_endpoints(1).await;
    assert_eq!(mesh.web.get(mesh.web.task.status, "/ready").await.unwrap(), "ready\n");
    assert_eq!(mesh.web.metric("mesh_dataplane_connected").await, 1);
}
