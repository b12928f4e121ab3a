//! Servers that fail, under load.

use std::time::Instant;

use super::*;

impl Member {
    /// Which server its xDS stream goes to: the index.
    pub(super) fn server(&self) -> usize {
        let output = self.dataplane.output();
        let line = output.lines().rev().find(|line| line.contains("stream goes to Consul's server at 127.0.0."));
        let server = line.and_then(|line| line.split("127.0.0.").nth(1)).and_then(|rest| rest.split(':').next());
        server.unwrap_or_else(|| panic!("{output}")).parse::<usize>().unwrap() - 1
    }
}

#[tokio::test]
async fn killed_server_fails_no_request_and_is_replaced_fast() {
    let mut mesh = Mesh::start(3, 2).await;
    let load = Load::start(&mesh.upstream);
    let server = mesh.web.server();
    mesh.servers.kept = (server + 1) % 3;
    let broken = "mesh_dataplane_streams_ended_total{end=\"broken\"}";
    let before = mesh.web.metric(broken).await;
    let leader = mesh.servers.any().call("GET", "/v1/status/leader", &Value::Null).await;
    let is_leader = leader.as_str().is_some_and(|leader| leader.starts_with(&format!("127.0.0.{}:", server + 1)));
    mesh.servers.all[server].kill();
    let begin = Instant::now();
    eventually("the stream has moved", BOUND, async || {
        if mesh.web.server() == server { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    println!("Envoy's stream was at another server {:?} after the kill (of the leader: {is_leader})", begin.elapsed());
    assert!(mesh.web.metric(broken).await > before);
    // Writes need a leader, so the change waits for the election if the leader was killed.
    eventually("a write succeeds", BOUND, async || {
        let token = [("X-Consul-Token", mesh.servers.any().management.as_str())];
        let url = mesh.servers.any().url("/v1/kv/probe");
        match http::request("PUT", &url, &token, "x").await? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    mesh.api[0].set_status(&mesh.servers, "critical").await;
    let begin = Instant::now();
    mesh.web.has_endpoints(1).await;
    println!("a changed endpoint was in Envoy after {:?}", begin.elapsed());
    let report = load.end().await;
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(mesh.web.get(mesh.web.task.status, "/ready").await.unwrap(), "ready\n");
}
