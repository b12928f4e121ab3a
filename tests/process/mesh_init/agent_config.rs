//! `mesh-init agent-config`, and real agents that run with what it writes.

use super::*;

/// A server with ACLs and gossip encryption, and its gossip key.
async fn closed_cluster() -> (Agent, &'static str) {
    let key = "pUqJrVyVRj5jsiYEkM/tFQ==";
    (Agent::start_with_acls_and(json!({ "encrypt": key })).await, key)
}

/// A client token as the acl-controller makes it.
async fn client_token(agent: &Agent) -> String {
    let rules = readme("acl-controller", "hcl", 3);
    agent.call("PUT", "/v1/acl/policy", &json!({ "Name": "client", "Rules": rules })).await;
    let token = json!({ "Policies": [{ "Name": "client" }] });
    agent.call("PUT", "/v1/acl/token", &token).await["SecretID"].as_str().unwrap().to_owned()
}

fn agent_config(task: &Task, output: &Path, data: &Path) -> Command {
    let mut command = task.command();
    command.env_remove("CONSUL_HTTP_TOKEN").env_remove("CONSUL_ECS_CONFIG_JSON");
    command.env("MESH_INIT_CONSUL_VERSION", mesh_tests::consul::version().to_string());
    command.arg("agent-config").arg("--output").arg(output).arg("--data-dir").arg(data);
    command
}

#[tokio::test]
async fn agent_joins_with_the_written_configuration() {
    let (server, key) = closed_cluster().await;
    let token = client_token(&server).await;
    let itself = server.call("GET", "/v1/agent/self", &Value::Null).await;
    let serf = itself["DebugConfig"]["SerfPortLAN"].as_u64().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (output, data) = (directory.path().join("agent.json"), directory.path().join("data"));
    let secret = directory.path().join("token");
    std::fs::write(&secret, format!("{token}\n")).unwrap();

    let client_http = free_port();
    let service_token = server.service_token("web").await;
    let task = Task::new(&format!("127.0.0.1:{client_http}"), &service_token)
        .with("CONSUL_RETRY_JOIN", format!("127.0.0.1:{serf}, "))
        .with("CONSUL_DATACENTER", "dc1")
        .with("CONSUL_CLIENT_TOKEN_FILE", secret.to_str().unwrap())
        .with("CONSUL_GOSSIP_KEY", key);
    let written = run(&mut agent_config(&task, &output, &data), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    assert!(!written.stderr.contains(&token) && !written.stderr.contains(key));
    assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o640);
    let again = run(&mut agent_config(&task, &output, &data), BOUND).await;
    assert!(again.stderr.contains("is as it should be"), "{}", again.stderr);
    // A token in a variable, as ECS injects it, gives the same file.
    let mut by_variable = agent_config(&task, &output, &data);
    by_variable.env_remove("CONSUL_CLIENT_TOKEN_FILE").env("CONSUL_CLIENT_TOKEN", &token);
    let by_variable = run(&mut by_variable, BOUND).await;
    assert!(by_variable.stderr.contains("is as it should be"), "{}", by_variable.stderr);
    assert_eq!(by_variable.code, 0);

    let validated = run(Command::new(part("consul")).arg("validate").arg(&output), BOUND).await;
    assert_eq!(validated.code, 0, "{}{}", validated.stdout, validated.stderr);

    // The client runs on the host of the server, so it needs other ports than in a task.
    let ports = directory.path().join("ports.json");
    let (grpc, serf_lan) = (free_port(), free_port());
    let other = json!({ "ports": { "http": client_http, "grpc": grpc, "serf_lan": serf_lan, "dns": -1 } });
    std::fs::write(&ports, other.to_string()).unwrap();
    let mut consul = Command::new(part("consul"));
    consul.arg("agent").arg("-config-file").arg(&output).arg("-config-file").arg(&ports);
    let client = Process::spawn(&mut consul);
    // mesh-init runs at once. The agent is not up at first, then has no servers, then accepts the registration.
    task.starts().await;
    eventually("the catalog has the task on its own node", BOUND, async || {
        let instances = server.call("GET", "/v1/catalog/service/web", &Value::Null).await;
        match (instances[0]["Node"].as_str(), instances[0]["Address"].as_str()) {
            (Some("Web-f1a2"), Some("127.0.0.1")) => Ok(()),
            _ => Err(instances.to_string()),
        }
    })
    .await;

    // An agent that was killed and lost its data joins as the same node. The servers would refuse another node of the same name as long as
    // they believe that the first one is alive.
    drop(client);
    std::fs::remove_dir_all(&data).unwrap();
    let _client = Process::spawn(&mut consul);
    let mut task = task;
    task.document["service"]["tags"] = json!(["green"]);
    task.starts().await;
    eventually(
        "the catalog has the registration of the agent that lost its data",
        Duration::from_secs(20),
        async || {
            let instances = server.call("GET", "/v1/catalog/service/web", &Value::Null).await;
            if instances[0]["ServiceTags"] == json!(["green"]) { Ok(()) } else { Err(instances.to_string()) }
        },
    )
    .await;
}

#[tokio::test]
async fn agent_with_a_ca_gets_its_certificate_from_the_servers() {
    let directory = certificates().await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let authority = path("consul-agent-ca.pem");
    let server = Agent::start_with(&json!({
        "ca_file": authority, "cert_file": path("dc1-server-consul-0.pem"), "key_file": path("dc1-server-consul-0-key.pem"),
        "verify_incoming_rpc": true, "verify_outgoing": true, "verify_server_hostname": true,
        "auto_encrypt": { "allow_tls": true },
    }))
    .await;
    let ports = server.call("GET", "/v1/agent/self", &Value::Null).await["DebugConfig"].take();

    let config_dir = directory.path().join("config");
    std::fs::create_dir(&config_dir).unwrap();
    let task = Task::new("", "").with("CONSUL_CACERT", &authority);
    let task = task.with("CONSUL_RETRY_JOIN", format!("127.0.0.1:{}", ports["SerfPortLAN"]));
    let output = config_dir.join("agent.json");
    let written = run(&mut agent_config(&task, &output, &directory.path().join("data")), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    let copy = std::fs::read(config_dir.join("tls/ca.pem")).unwrap();
    assert_eq!(copy, std::fs::read(&authority).unwrap());

    let (http_port, grpc_port) = (free_port(), free_port());
    let other = json!({ "ports": { "http": http_port, "grpc": grpc_port, "serf_lan": free_port(), "dns": -1,
        // The port of the servers' RPC, at which a client asks for its certificate.
        "server": ports["ServerPort"] } });
    std::fs::write(config_dir.join("ports.json"), other.to_string()).unwrap();
    let _client = Process::spawn(Command::new(part("consul")).arg("agent").arg("-config-dir").arg(&config_dir));
    eventually("the client answers from the servers", BOUND, async || {
        let nodes = http::get(&format!("http://127.0.0.1:{http_port}/v1/catalog/nodes")).await?;
        if nodes.contains("Web-f1a2") { Ok(()) } else { Err(nodes) }
    })
    .await;
    // HTTP/2 in plain text begins with the server's settings.
    let mut grpc = std::net::TcpStream::connect(("127.0.0.1", grpc_port)).unwrap();
    grpc.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    grpc.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "{frame:?} is no settings frame");
}

#[tokio::test]
async fn joined_agent_logs_no_deprecation() {
    let directory = certificates().await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (authority, key) = (path("consul-agent-ca.pem"), "pUqJrVyVRj5jsiYEkM/tFQ==");
    let tls = json!({
        "ca_file": authority, "cert_file": path("dc1-server-consul-0.pem"), "key_file": path("dc1-server-consul-0-key.pem"),
        "verify_incoming": false, "verify_outgoing": true,
    });
    let server = Agent::start_with_acls_and(json!({
        "encrypt": key, "auto_encrypt": { "allow_tls": true },
        "tls": { "defaults": tls, "internal_rpc": { "verify_incoming": true, "verify_server_hostname": true } },
    }))
    .await;
    let ports = server.call("GET", "/v1/agent/self", &Value::Null).await["DebugConfig"].take();

    let config_dir = directory.path().join("config");
    std::fs::create_dir(&config_dir).unwrap();
    let task = Task::new("", "")
        .with("CONSUL_CACERT", &authority)
        .with("CONSUL_DATACENTER", "dc1")
        .with("CONSUL_GOSSIP_KEY", key)
        .with("CONSUL_CLIENT_TOKEN", client_token(&server).await)
        .with("CONSUL_RETRY_JOIN", format!("127.0.0.1:{}", ports["SerfPortLAN"]));
    let mut for_a_current_consul = agent_config(&task, &config_dir.join("agent.json"), &directory.path().join("data"));
    let written = run(for_a_current_consul.env_remove("MESH_INIT_CONSUL_VERSION"), BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
    let other = json!({ "ports": { "http": free_port(), "grpc": free_port(), "serf_lan": free_port(), "dns": -1,
        "server": ports["ServerPort"] } });
    std::fs::write(config_dir.join("ports.json"), other.to_string()).unwrap();
    let client = Process::spawn(Command::new(part("consul")).arg("agent").arg("-config-dir").arg(&config_dir));
    // The agent warns before it joins.
    eventually("the client has joined", BOUND, async || {
        let node = server.call("GET", "/v1/health/node/Web-f1a2", &Value::Null).await;
        if node[0]["Status"] == "passing" { Ok(()) } else { Err(format!("{node} {}", client.output())) }
    })
    .await;
    let log = client.output();
    assert!(log.contains("Web-f1a2"), "{log}");
    let deprecated = |line: &&str| line.to_lowercase().contains("deprecat") || line.contains("skipping file");
    assert_eq!(log.lines().filter(deprecated).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn failing_agent_config_gives_one_line_and_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let (output, data) = (directory.path().join("agent.json"), directory.path().join("data"));
    let task = || Task::new("", "").with("CONSUL_RETRY_JOIN", "a");
    let cases = [
        (task().with("CONSUL_RETRY_JOIN", ""), "CONSUL_RETRY_JOIN is not set"),
        (task().with("CONSUL_GOSSIP_KEY", "s3cr3t"), "CONSUL_GOSSIP_KEY is not a gossip key"),
        (
            task().with("CONSUL_CLIENT_TOKEN_FILE", "/nowhere"),
            "CONSUL_CLIENT_TOKEN_FILE: cannot read the secret in /nowhere",
        ),
        (
            task().with("CONSUL_CLIENT_TOKEN_FILE", "/dev/null"),
            "CONSUL_CLIENT_TOKEN_FILE: cannot read the secret in /dev/null: it is empty",
        ),
        (task().with("CONSUL_CACERT", "/nowhere"), "CONSUL_CACERT: cannot read /nowhere"),
        (task().with("ECS_CONTAINER_METADATA_URI_V4", ""), "ECS_CONTAINER_METADATA_URI_V4 is not set"),
    ];
    for (task, text) in cases {
        let finished = run(agent_config(&task, &output, &data).env("LOG_LEVEL", "error"), BOUND).await;
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        assert!(finished.stderr.contains(text) && finished.stderr.lines().count() == 1, "{text}: {}", finished.stderr);
        assert!(!finished.stderr.contains("s3cr3t"));
    }
    let yaml = Path::new("/nowhere/agent.yaml");
    let finished = run(agent_config(&task(), yaml, &data).env("LOG_LEVEL", "error"), BOUND).await;
    assert!(
        finished.stderr.contains("--output (MESH_INIT_AGENT_CONFIG) is /nowhere/agent.yaml"),
        "{}",
        finished.stderr
    );
    let nowhere = Path::new("/nowhere/agent.json");
    let finished = run(agent_config(&task(), nowhere, &data).env("LOG_LEVEL", "error"), BOUND).await;
    assert!(finished.code == 1 && finished.stderr.contains("cannot write /nowhere/agent.json"), "{}", finished.stderr);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
