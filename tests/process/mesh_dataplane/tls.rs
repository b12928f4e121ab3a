//! Servers that are reached by TLS.

use std::path::Path;

use mesh_tests::catalog::register_node;
use mesh_tests::consul::{Agent, certificates};

use super::*;
use crate::login::{METHOD, Platform, logins};

/// A server whose ports for tasks have TLS, with a certificate of this directory.
pub(super) async fn start_with_tls(certificates: &Path) -> Servers {
    let file = |name: &str| certificates.join(name);
    let (grpc, https) = (free_port(), free_port());
    let config = json!({
        "ca_file": file("consul-agent-ca.pem"), "cert_file": file("dc1-server-consul-0.pem"),
        "key_file": file("dc1-server-consul-0-key.pem"), "ports": { "grpc_tls": grpc, "https": https },
    });
    let all = vec![Agent::start_with_acls_and(config).await];
    let servers = Servers { all, grpc, http: Some(https), kept: 0 };
    register_node(servers.any()).await;
    servers
}

#[tokio::test]
async fn servers_with_tls_are_known_by_their_name() {
    let directory = certificates().await;
    let servers = start_with_tls(directory.path()).await;
    let platform = Platform::trusted_by(servers.any(), "${value.service}").await;
    let proof = platform.proof("web");
    let (mut web, _) = web(&servers);
    // The certificate also has the address of the server. So only a wrong name shows that the name is used.
    web.document["consulServers"] = json!({
        "hosts": "127.0.0.1", "http": { "port": servers.http_port() }, "grpc": { "port": servers.grpc },
        "defaults": { "caCertFile": directory.path().join("consul-agent-ca.pem"), "tlsServerName": "server.dc1.consul" },
    });
    web.document["consulLogin"] = json!({ "enabled": true, "method": METHOD });
    let web = web.with("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap());
    web.register().await;
    let web = web.starts().await;
    web.has_listener().await;
    assert_eq!(logins(servers.any()).await.len(), 1, "mesh-init has logged out by HTTPS");
    // The HTTP API says by HTTPS when the token expires.
    assert!(!web.dataplane.output().contains("no server's HTTP API says"), "{}", web.dataplane.output());

    let text = std::fs::read_to_string(web.task.file("dataplane.json")).unwrap();
    let wrong = web.task.with("MESH_DATAPLANE_TIMEOUT", "2s");
    drop(web.dataplane);
    std::fs::write(wrong.file("dataplane.json"), text.replace("server.dc1.consul", "server.dc2.consul")).unwrap();
    wrong.fails_with(&["cannot log in at Consul's servers", "certificate", "server.dc2.consul"]).await;
}
