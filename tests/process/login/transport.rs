//! Mutual TLS and a unix socket.

use super::*;

/// Checks that mesh-init and health-sync do their work when these variables say how to reach the agent.
async fn serves_both(agent: &Agent, variables: &[(&str, &str)]) {
    let task = Task::new();
    task.starts(variables).await;
    let service = agent.call("GET", "/v1/agent/service/web-f1a2", &Value::Null).await;
    assert_eq!(service["Service"], "web");
    let mut sync = Process::spawn(&mut task.command("health-sync", variables));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    assert_eq!(checks["web-f1a2-app-consul-ecs"]["Status"], "critical");
}

#[tokio::test]
async fn https_works_with_a_private_authority_and_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = file("ca.pem", &params.self_signed(&key).unwrap().pem());
    let authority = Issuer::new(params, key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["server.dc1.consul".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &authority).unwrap().pem();
        (file(&format!("{name}.pem"), &certificate), file(&format!("{name}-key.pem"), &key.serialize_pem()))
    };
    let (server, client) = (signed("server"), signed("client"));
    let https = free_port();
    let config = json!({
        "ca_file": ca, "cert_file": server.0, "key_file": server.1, "verify_incoming": true,
        "ports": { "https": https }
    });
    let agent = Agent::start_with(&config).await;
    let address = format!("https://127.0.0.1:{https}");
    let variables = [
        ("CONSUL_HTTP_ADDR", address.as_str()),
        ("CONSUL_CACERT", &ca),
        ("CONSUL_CLIENT_CERT", &client.0),
        ("CONSUL_CLIENT_KEY", &client.1),
    ];
    serves_both(&agent, &variables).await;

    let task = Task::new();
    task.fails_with(&variables[..2], &["for mutual TLS, CONSUL_CLIENT_CERT"]).await;
    let foreign = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let foreign = file("foreign.pem", &foreign.cert.pem());
    let untrusted = [variables[0], ("CONSUL_CACERT", foreign.as_str()), variables[2], variables[3]];
    task.fails_with(&untrusted, &["such as CONSUL_CACERT"]).await;
    let swapped = [variables[0], variables[1], variables[2], ("CONSUL_CLIENT_KEY", server.1.as_str())];
    task.fails_with(&swapped, &["CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, cannot be used"]).await;
    let missing = [variables[0], variables[1], ("CONSUL_CLIENT_CERT", "/no/cert.pem"), variables[3]];
    task.fails_with(&missing, &["CONSUL_CLIENT_CERT: cannot read /no/cert.pem"]).await;
}

#[tokio::test]
async fn agent_at_a_unix_socket_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", dir.path().join("consul.sock").display());
    let agent = Agent::start_with(&json!({ "addresses": { "http": format!("127.0.0.1 {socket}") } })).await;
    serves_both(&agent, &[("CONSUL_HTTP_ADDR", &socket)]).await;
    let nowhere = format!("{socket}.none");
    let line = ["cannot reach unix:///", "consul.sock.none: No such file or directory"];
    Task::new().fails_with(&[("CONSUL_HTTP_ADDR", &nowhere)], &line).await;
}
