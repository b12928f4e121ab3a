//! The rights that the token of a mesh gateway needs.

use mesh_tests::consul::certificates;

use super::tls::start_with_tls;
use super::*;

/// The rights beside the service identity. The controller gives a mesh gateway these and `mesh = "write"`.
const READS: &str = r#"peering = "read" node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;

#[tokio::test]
async fn mesh_gateway_needs_mesh_write_once_a_service_is_exported_to_a_peer() {
    let certificates = certificates().await;
    let servers = start_with_tls(certificates.path()).await;
    let server = servers.any();
    let (url, peer) = (server.url("/v1/peering/token"), json!({ "PeerName": "other" }).to_string());
    let token = [("X-Consul-Token", server.management.as_str())];
    // A new server refuses this until the catalog has its gRPC port.
    eventually("there is a peer", BOUND, async || match http::request("POST", &url, &token, &peer).await? {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let api = json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" });
    let exported = json!({ "Kind": "exported-services", "Name": "default",
        "Services": [{ "Name": "api", "Consumers": [{ "Peer": "other" }] }] });
    for entry in [api, exported] {
        server.call("PUT", "/v1/config", &entry).await;
    }
    let proxy = json!({ "ID": "api-1-sidecar-proxy", "Service": "api-sidecar-proxy", "Kind": "connect-proxy", "Port": 20000,
        "Proxy": { "DestinationServiceName": "api", "DestinationServiceID": "api-1" } });
    for service in [json!({ "ID": "api-1", "Service": "api", "Port": 8080 }), proxy] {
        let registration = json!({ "Node": NODE, "SkipNodeUpdate": true, "Service": service });
        server.call("PUT", "/v1/catalog/register", &registration).await;
    }
    let gateway = async |task: &str, rules: &str| {
        let policy = json!({ "Name": task, "Rules": rules });
        server.call("PUT", "/v1/acl/policy", &policy).await;
        let token = json!({ "ServiceIdentities": [{ "ServiceName": "edge" }], "Policies": [{ "Name": task }] });
        let token = server.call("PUT", "/v1/acl/token", &token).await;
        let mut task = Task::new(&servers, "edge", task, 0);
        for unused in ["service", "proxy", "healthSyncContainers"] {
            task.document.as_object_mut().expect("an object").remove(unused);
        }
        task.document["gateway"] = json!({
            "kind": "mesh-gateway", "name": "edge", "lanAddress": { "port": free_port() }, "healthCheckPort": free_port(),
        });
        task.document["consulServers"] = json!({
            "hosts": "127.0.0.1", "http": { "port": servers.http_port() }, "grpc": { "port": servers.grpc },
            "defaults": {
                "caCertFile": certificates.path().join("consul-agent-ca.pem"), "tlsServerName": "server.dc1.consul",
            },
        });
        let task = task.with("CONSUL_HTTP_TOKEN", token["SecretID"].as_str().expect("a token has a secret"));
        task.register().await;
        task.starts().await
    };

    // Consul signs no certificate for this gateway.
    let refused = gateway("g1", READS).await;
    eventually("Consul refuses the gateway its certificate", BOUND, async || {
        let (output, exported) = (server.output(), has_exported(&refused).await?);
        assert!(!exported, "without a certificate, the gateway has no exported service");
        if output.contains("lacks permission 'mesh:write'") { Ok(()) } else { Err(output) }
    })
    .await;
    drop(refused);

    let allowed = gateway("g2", &format!("mesh = \"write\" {READS}")).await;
    eventually("Envoy has the exported service", BOUND, async || {
        if has_exported(&allowed).await? { Ok(()) } else { Err(allowed.dataplane.output()) }
    })
    .await;
}

/// Whether the gateway's Envoy serves a service to peers.
async fn has_exported(gateway: &Member) -> Result<bool, String> {
    let dump = gateway.get(gateway.task.admin, "/config_dump").await?;
    Ok(dump.contains("mesh_gateway_local_peered"))
}
