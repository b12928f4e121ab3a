//! The calls of the controller: their targets, credentials and number, and the errors of failed calls.

use super::*;

#[tokio::test]
async fn idle_cycle_makes_only_list_calls() {
    let names = (0..120).map(|number| format!("service-{number:03}")).collect::<Vec<_>>();
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for task in 0..250 {
        world.aws.run(&format!("{task:04}"), &names[task % 120]);
    }
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    eventually("all have tokens", BOUND, async || {
        let metrics = metrics(&address).await;
        let created = metrics.get("acl_controller_tokens_total{change=\"created\"}");
        if created == Some(&121.0) { Ok(()) } else { Err(format!("{created:?}")) }
    })
    .await;
    // The controller does not read again what it has written. Only a new leader does.
    cycles(&address, 2.0).await;
    let _ = world.aws.take_calls();
    let before = metrics(&address).await;
    cycles(&address, 3.0).await;
    let calls = world.aws.take_calls();
    let after = metrics(&address).await;
    let grown = |call: &str| {
        let name = |(name, _): &(&String, &f64)| name.contains(call);
        let count = |metrics: &BTreeMap<String, f64>| metrics.iter().filter(name).map(|(_, value)| value).sum::<f64>();
        count(&after) - count(&before)
    };
    let lists = ["ListTasks", "DescribeTasks", "ListSecrets"];
    assert!(calls.iter().all(|call| lists.contains(&call.name.as_str())), "{calls:?}");
    // Three pages of running tasks. The cycles under way at both ends are left out.
    let begins = |call: &Made, list: &str, token: &str| {
        call.name == list && call.body[token].is_null() && call.body["desiredStatus"] != "STOPPED"
    };
    let tasks = calls.iter().filter(|call| call.name.ends_with("Tasks")).collect::<Vec<_>>();
    let starts = (0..tasks.len()).filter(|at| begins(tasks[*at], "ListTasks", "nextToken")).collect::<Vec<_>>();
    assert!(starts.len() > 2, "{calls:?}");
    for cycle in starts.windows(2).map(|ends| &tasks[ends[0]..ends[1]]) {
        let lists = cycle.iter().filter(|call| call.name == "ListTasks").map(|call| &call.body["desiredStatus"]);
        assert_eq!(lists.collect::<Vec<_>>(), ["RUNNING"; 3]);
        assert_eq!(cycle.len(), 3 + 3, "{cycle:?}");
    }
    let secrets = calls.iter().filter(|call| call.name == "ListSecrets").collect::<Vec<_>>();
    let starts = (0..secrets.len()).filter(|at| begins(secrets[*at], "ListSecrets", "NextToken")).collect::<Vec<_>>();
    assert!(starts.len() > 2 && starts.windows(2).all(|ends| ends[1] - ends[0] == 2), "{secrets:?}");
    for call in
        ["ReadToken", "CreateToken", "UpdateToken", "DeleteToken", "ReadPolicy", "GetSecretValue", "PutSecretValue"]
    {
        assert_eq!(grown(&format!("call=\"{call}\"")), 0.0, "{call}");
    }
    // All numbers come from one reading of the counters, so a pause of the machine does not change them.
    let ended = grown("cycle_seconds_count");
    for call in ["ListTokens", "ListPolicies", "ListTerminatingGateways"] {
        assert!((grown(&format!("call=\"{call}\"")) - ended).abs() <= 1.0, "{call}");
    }
    // ECS lists a stopped task for an hour. The controller describes only the tasks that still run.
    let arn = |task: usize| format!("{CLUSTER}/{task:04}").replace(":cluster/", ":task/");
    let stopped = (1..150).map(arn).collect::<Vec<_>>();
    world.aws.set_status(&arn(0), "STOPPED", "STOPPING");
    stopped.iter().for_each(|arn| world.aws.set_status(arn, "STOPPED", "STOPPED"));
    cycles(&address, 2.0).await;
    let _ = world.aws.take_calls();
    cycles(&address, 3.0).await;
    let calls = world.aws.take_calls();
    assert!(calls.iter().all(|call| call.body["desiredStatus"] != "STOPPED"), "{calls:?}");
    let described = calls.iter().filter_map(|call| call.body["tasks"].as_array()).flatten();
    let described = described.map(|arn| arn.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert!(described.contains(&arn(0)), "it still runs");
    assert!(!described.iter().any(|arn| stopped.contains(arn)), "{described:?}");
    assert_eq!(http::request("GET", &format!("{address}/healthz"), &[], "").await.unwrap().0, 200);
    assert_eq!(http::request("GET", &format!("{address}/readyz"), &[], "").await.unwrap().0, 200);
    drop(controller);
}

#[tokio::test]
async fn denied_call_error_names_the_needed_policy() {
    let world = World::new(&[]).await;
    let rows = [
        ("ListTasks", "ecs:ListTasks", "*"),
        ("DescribeTasks", "ecs:DescribeTasks", "arn:aws:ecs:eu-north-1:210987654321:task/blue/*"),
        ("ListSecrets", "secretsmanager:ListSecrets", "*"),
        (
            "PutSecretValue",
            "secretsmanager:PutSecretValue",
            "arn:aws:secretsmanager:eu-north-1:210987654321:secret:p-*",
        ),
    ];
    world.aws.run("1", "web");
    let controller = world.start();
    for (call, action, resource) in rows {
        world.aws.refuse(call, "AccessDeniedException");
        world.aws.set_secret("p-consul-client-token", "{}");
        let policy = format!(r#"{{"Effect":"Allow","Action":"{action}","Resource":"{resource}"}}"#);
        controller.says(&policy, BOUND).await;
        world.aws.refuse_nothing();
    }
    // The secret is encrypted with the account's own KMS key.
    let rows = [("GetSecretValue", r#""kms:Decrypt""#), ("PutSecretValue", r#"["kms:Decrypt","kms:GenerateDataKey"]"#)];
    for (call, actions) in rows {
        world.aws.refuse(call, "AccessDeniedException: Access to KMS is not allowed");
        world.aws.set_secret("p-consul-client-token", "{}");
        let policy = format!(
            r#"{{"Effect":"Allow","Action":{actions},"Resource":"arn:aws:kms:eu-north-1:210987654321:key/KEY"}}"#
        );
        controller.says(&format!("secretsmanager:{call}: Access to KMS is not allowed; the task"), BOUND).await;
        controller.says(&policy, BOUND).await;
        world.aws.refuse_nothing();
    }
    let rows = [
        (
            "session_prefix \"\" { policy = \"write\" }\nkey_prefix \"\" { policy = \"write\" }",
            "must have acl = \"write\"",
        ),
        (
            "acl = \"write\"\nkey_prefix \"\" { policy = \"write\" }",
            "must have session_prefix \"\" { policy = \"write\" }",
        ),
        (
            "acl = \"write\"\nsession_prefix \"\" { policy = \"write\" }",
            "key_prefix \"ecs-mesh/acl-controller/\" { policy",
        ),
    ];
    drop(controller);
    for (number, (rules, needs)) in rows.into_iter().enumerate() {
        let token = limited(&world.agent, &format!("less-{number}"), rules).await;
        let controller = Process::spawn(world.command("key").env("CONSUL_HTTP_TOKEN", &token));
        controller.says(needs, BOUND).await;
    }
    let unknown = "5ee71e55-0000-4000-8000-000000000000";
    let controller = Process::spawn(world.command("key").env("CONSUL_HTTP_TOKEN", unknown));
    controller.says("Consul does not know the controller's token (CONSUL_HTTP_TOKEN)", BOUND).await;
    assert!(!controller.output().contains("must have"), "{}", controller.output());
}

#[tokio::test]
async fn read_only_token_overwrites_no_secret() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    let controller = world.start();
    world.settles("web").await;
    eventually("the clients' token", BOUND, async || world.token_of("p-consul-client-token").await).await;
    drop(controller);
    let before = ["p-web", "p-consul-client-token"].map(|secret| world.aws.secret(secret));
    let rules = readme("hcl", 0).replace("acl = \"write\"", "acl = \"read\"");
    let token = limited(&world.agent, "reader", &rules).await;
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.env("CONSUL_HTTP_TOKEN", &token));
    let text = "service web: the Consul policy of the controller's token (CONSUL_HTTP_TOKEN) must have acl = \"write\"";
    // The lock of the killed controller must expire first.
    controller.says(text, TAKEOVER + BOUND).await;
    cycles(&address, 2.0).await;
    assert_eq!(["p-web", "p-consul-client-token"].map(|secret| world.aws.secret(secret)), before);
}

#[tokio::test]
async fn throttled_calls_are_counted_and_retried() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    world.aws.refuse("ListSecrets", "ThrottlingException");
    world.aws.refuse("PutSecretValue p-web", "ThrottlingException");
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    let throttled = async |call: &str| {
        let name =
            format!("acl_controller_api_calls_total{{api=\"secretsmanager\",call=\"{call}\",result=\"throttled\"}}");
        eventually(&name, BOUND, async || metrics(&address).await.get(&name).copied().ok_or_else(String::new)).await;
    };
    throttled("ListSecrets").await;
    let tries = world.aws.take_calls().iter().filter(|call| call.name == "ListSecrets").count();
    assert!(tries < 20, "{tries} tries: it backs off");
    controller.says("secretsmanager:ListSecrets: ThrottlingException", BOUND).await;
    world.aws.allow("ListSecrets");
    throttled("PutSecretValue").await;
    world.aws.refuse_nothing();
    world.settles("web").await;
}

#[tokio::test]
async fn stale_list_of_secrets_causes_no_extra_reads() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    world.aws.lag(true);
    let mut command = world.command("key");
    let address = listens(&command);
    let _controller = Process::spawn(&mut command);
    let first = world.settles("web").await;
    eventually("the clients' token", BOUND, async || world.token_of("p-consul-client-token").await).await;
    let reads = async || {
        let of = |metrics: &BTreeMap<String, f64>, call: &str| {
            let name = format!("call=\"{call}\"");
            metrics.iter().filter(|(key, _)| key.contains(&name)).map(|(_, value)| value).sum::<f64>()
        };
        let metrics = metrics(&address).await;
        ["GetSecretValue", "PutSecretValue", "ReadToken"].map(|call| of(&metrics, call))
    };
    let nothing_is_read = async || {
        // The current cycle may be the one that wrote.
        cycles(&address, 2.0).await;
        let before = reads().await;
        cycles(&address, 5.0).await;
        assert_eq!(reads().await, before);
    };
    nothing_is_read().await;
    // The list is two changes late: its version is neither the first one that was read nor the last one that was written.
    world.agent.call("DELETE", &format!("/v1/acl/token/{first}"), &Value::Null).await;
    assert_ne!(world.settles("web").await, first);
    nothing_is_read().await;
    world.aws.lag(false);
    nothing_is_read().await;
}

#[tokio::test]
async fn only_nodes_of_ended_tasks_are_removed() {
    let world = World::new(&["web"]).await;
    let running = world.aws.run("alive", "web");
    let gone = running.replace("alive", "gone");
    let rows = [
        ("gone", "critical", json!({ "source": "consul-ecs", "task-arn": gone })),
        ("a-fails", "critical", json!({ "source": "consul-ecs", "task-arn": format!("{gone}-a") })),
        ("z-fails", "critical", json!({ "source": "consul-ecs", "task-arn": format!("{gone}-z") })),
        ("healthy", "passing", json!({ "source": "consul-ecs", "task-arn": gone })),
        ("running", "critical", json!({ "source": "consul-ecs", "task-arn": running })),
        ("not-ecs", "critical", json!({ "task-arn": gone })),
        ("green", "critical", json!({ "source": "consul-ecs", "task-arn": gone.replace("blue", "green") })),
        (
            "elsewhere",
            "critical",
            json!({ "source": "consul-ecs", "task-arn": gone.replace("eu-north-1", "us-east-1") }),
        ),
    ];
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    // The test waits first, because a new Consul leader removes nodes that gossip does not know.
    world.settles("web").await;
    for (node, status, meta) in &rows {
        let service = json!({ "ID": "web-1", "Service": "web", "Meta": meta });
        let check = json!({ "Name": "gossip", "CheckID": "serfHealth", "Status": status, "Node": node });
        let node = json!({ "Node": node, "Address": "127.0.0.9", "Service": service, "Check": check });
        world.agent.call("PUT", "/v1/catalog/register", &node).await;
    }
    let nodes = async || {
        let nodes = world.agent.call("GET", "/v1/catalog/nodes", &Value::Null).await;
        nodes.as_array().unwrap().iter().map(|node| node["Node"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    cycles(&address, 2.0).await;
    assert!(nodes().await.contains(&"gone".to_owned()), "not without the flag");
    drop(controller);
    // If one call fails, the others continue, whether they come before or after it.
    for fails in ["a", "z"] {
        world.aws.refuse(&format!("DescribeTasks {gone}-{fails}"), "ServerException");
    }
    let controller = world.start_with(&["--deregister-nodes"]);
    controller.says("node gone: its task is gone; removed from Consul", BOUND).await;
    world
        .agent
        .call(
            "PUT",
            "/v1/catalog/register",
            &json!({ "Node": "last", "Address": "127.0.0.9",
        "Service": { "Service": "web", "Meta": rows[0].2 },
        "Check": { "Name": "gossip", "CheckID": "serfHealth", "Status": "critical", "Node": "last" } }),
        )
        .await;
    controller.says("node last: its task is gone", BOUND).await;
    controller.says("node a-fails: cannot remove it: ecs:DescribeTasks: ServerException", BOUND).await;
    let left = nodes().await;
    for node in ["healthy", "running", "not-ecs", "green", "elsewhere", "a-fails", "z-fails"] {
        assert!(left.contains(&node.to_owned()), "{node} of {left:?}");
    }
}

#[tokio::test]
async fn task_settings_come_from_ecs() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    let metadata = Metadata::start("acl-controller", json!([]));
    let credentials = Server::start(|_| {
        Answer::ok(json!({
            "AccessKeyId": "from-ecs", "SecretAccessKey": "b1g-s3cr3t-key", "Token": "b1g-s3cr3t-session",
            "Expiration": "2099-01-01T00:00:00Z"
        }))
    });
    let credentials = format!("{}/role", credentials.url());
    let mut command = Command::new(binary("acl-controller"));
    command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).env("LOG_LEVEL", "trace");
    command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", credentials).env("AWS_ENDPOINT_URL_ECS", &world.aws.url);
    command.env("AWS_ENDPOINT_URL_SECRETS_MANAGER", &world.aws.url).env("CONSUL_HTTP_ADDR", &world.agent.http);
    // Every flag has a variable.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &world.token).unwrap();
    command.env("CONSUL_HTTP_TOKEN_FILE", file.path()).env("ACL_CONTROLLER_SECRET_NAME_PREFIX", "p");
    command
        .env("ACL_CONTROLLER_POLL_INTERVAL", "200ms")
        .env("ACL_CONTROLLER_LISTEN", format!("127.0.0.1:{}", free_port()));
    let controller = Process::spawn(&mut command);
    world.settles("web").await;
    assert!(world.aws.take_calls().iter().all(|call| call.key == "from-ecs"));
    world.silent(&controller);
}

#[tokio::test]
async fn moto_accepts_every_call_with_the_readme_policy() {
    let agent = Agent::start_with_acls().await;
    let moto = Moto::start().await;
    let aws = async |arguments: &[&str]| -> Value {
        let ended = moto.aws(arguments).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap_or_default()
    };
    aws(&["ecs", "create-cluster", "--cluster-name", "blue"]).await;
    aws(&["secretsmanager", "create-secret", "--name", "p-consul-client-token", "--secret-string", "{}"]).await;
    aws(&["secretsmanager", "create-secret", "--name", "p-web", "--secret-string", "{}"]).await;
    let container = r#"[{"name":"app","image":"app","memory":64}]"#;
    aws(&["ecs", "register-task-definition", "--family", "web", "--container-definitions", container]).await;
    let subnets = aws(&["ec2", "describe-subnets"]).await;
    let subnet = subnets["Subnets"][0]["SubnetId"].as_str().expect("moto has subnets").to_owned();
    let network = format!("awsvpcConfiguration={{subnets=[{subnet}]}}");
    aws(&[
        "ecs",
        "run-task",
        "--cluster",
        "blue",
        "--task-definition",
        "web",
        "--launch-type",
        "FARGATE",
        "--network-configuration",
        &network,
        "--tags",
        "key=consul.hashicorp.com/mesh,value=true",
    ])
    .await;
    let policy = readme("json", 0).replace("REGION", "eu-north-1").replace("ACCOUNT", "123456789012");
    let policy = policy.replace("CLUSTER", "blue").replace("PREFIX", "p");
    // moto does not support the resources of these calls. The test checks that these actions are enough.
    let mut policy: Value = serde_json::from_str(&policy).unwrap();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        statement["Resource"] = "*".into();
        statement.as_object_mut().unwrap().remove("Condition");
    }
    let [id, secret] = moto.user("controller", Some(&policy.to_string())).await;
    moto.require_authorization().await;
    let token = limited(&agent, "controller", &readme("hcl", 0)).await;
    let mut command = Command::new(binary("acl-controller"));
    command.env_clear().env("AWS_REGION", "eu-north-1").env("AWS_ENDPOINT_URL", &moto.url);
    command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    command.env("CONSUL_HTTP_ADDR", &agent.http).env("CONSUL_HTTP_TOKEN", token);
    command.args(["--cluster", "blue", "--secret-name-prefix", "p", "--poll-interval", "200ms"]);
    command.args(["--listen", &format!("127.0.0.1:{}", free_port())]);
    let controller = Process::spawn(&mut command);
    for subject in ["client token", "service web"] {
        controller.says(&format!("{subject}: token"), BOUND).await;
    }
    // The controller stores a token after it has logged its accessor ID.
    cycles(&listens(&command), 2.0).await;
    // The next controller reads what the first one stored, so both calls are well-formed.
    drop(controller);
    let tokens = agent.call("GET", "/v1/acl/tokens", &Value::Null).await.as_array().unwrap().len();
    let again = Process::spawn(&mut command);
    again.says("holding the lock", TAKEOVER).await;
    let address = listens(&command);
    cycles(&address, 2.0).await;
    assert_eq!(agent.call("GET", "/v1/acl/tokens", &Value::Null).await.as_array().unwrap().len(), tokens);
    assert!(!again.output().contains("repaired") && !again.output().contains("ERROR"), "{}", again.output());
}

#[tokio::test]
async fn memory_stays_flat_over_a_thousand_cycles() {
    let world = World::new(&["web", "api"]).await;
    world.aws.run("1", "web");
    world.aws.run("2", "api");
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.env("LOG_LEVEL", "info").args(["--poll-interval", "1ms"]));
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", controller.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    world.settles("web").await;
    eventually("the first cycles", BOUND, async || http::get(&format!("{address}/readyz")).await).await;
    let reach = async |count: f64| {
        eventually("cycles", Duration::from_secs(240), async || {
            let cycles = metrics(&address).await["acl_controller_cycle_seconds_count"];
            if cycles >= count { Ok(()) } else { Err(cycles.to_string()) }
        })
        .await;
    };
    reach(200.0).await;
    let before = resident();
    reach(1200.0).await;
    let after = resident();
    println!("resident after 200 cycles {before} KiB, after 1,200 {after} KiB");
    // The memory that an allocator does not return differs from run to run. A leak of 4 KiB per cycle would exceed this limit.
    assert!(after < before + 4096, "{before} KiB, then {after} KiB");
}

#[tokio::test]
async fn bad_input_ends_in_one_line() {
    type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);
    let rows: [Row; 10] = [
        (&[], &[], 2, "--secret-name-prefix"),
        (&["--secret-name-prefix", "prod/mesh"], &[], 2, "expected letters, digits, _ and -"),
        (&["--secret-name-prefix", "p", "--rotate-after", "soon"], &[], 2, "expected a duration such as 12h or 30days"),
        (
            &["--secret-name-prefix", "p"],
            &[],
            1,
            "set --cluster and AWS_REGION: ECS_CONTAINER_METADATA_URI_V4 is not set",
        ),
        (&["--secret-name-prefix", "p", "--cluster", "c"], &[("AWS_REGION", "r")], 1, "no AWS credentials"),
        (
            &["--secret-name-prefix", "p", "--cluster", "c", "--consul-http-addr", "ftp://a"],
            &[("AWS_REGION", "r"), ("AWS_ACCESS_KEY_ID", "a")],
            1,
            "--consul-http-addr (CONSUL_HTTP_ADDR) is \"ftp://a\"",
        ),
        (
            &["--agentless", "--cluster", "c"],
            &[("AWS_REGION", "r"), ("AWS_ACCESS_KEY_ID", "a")],
            1,
            "cannot find out this task's address for the node of the tasks without an agent: set --node-address",
        ),
        (&["--agentless", "--node-address", "here"], &[], 2, "--node-address"),
        (&["--secret-name-prefix", "p", "--auth-method", "m"], &[], 2, "--agentless"),
        (
            &["--secret-name-prefix", "p", "--cluster", "c", "--listen", "192.0.2.1:1"],
            &[("AWS_REGION", "r"), ("AWS_ACCESS_KEY_ID", "a")],
            1,
            "cannot listen on 192.0.2.1:1 (--listen)",
        ),
    ];
    for (arguments, variables, code, text) in rows {
        let mut command = Command::new(binary("acl-controller"));
        command.env_clear().args(arguments).envs(variables.iter().copied());
        let ended = run(&mut command, BOUND).await;
        assert_eq!((ended.code, ended.stderr.lines().count()), (code, 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
    }
}
