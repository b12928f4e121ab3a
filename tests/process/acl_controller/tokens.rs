//! How the controller creates, repairs, rotates and deletes tokens and secrets.

use super::*;

#[tokio::test]
async fn each_service_gets_one_token_with_minimal_rights() {
    let world = World::new(&["web", "api", "slow"]).await;
    let now = SystemTime::now();
    world.aws.run("1", "web");
    world.aws.run("2", "web");
    world.aws.put_task("3", "API", &[("consul.hashicorp.com/mesh", "true")], now);
    world.aws.put_task("4", "outside", &[], now);
    // A task that is stopping, a task that has stopped, and a task that disappears before it is described.
    let stopping = world.aws.run("5", "slow");
    world.aws.set_status(&stopping, "STOPPED", "DEACTIVATING");
    let stopped = world.aws.run("6", "stopped");
    world.aws.set_status(&stopped, "STOPPED", "STOPPED");
    let vanished = world.aws.run("7", "vanished");
    world.aws.vanish(&vanished);
    let controller = world.start();
    for service in ["web", "api", "slow"] {
        world.settles(service).await;
    }
    let token = &world.tokens("web").await[0];
    assert!(token["Description"].as_str().unwrap().lines().any(|line| line == CLUSTER_LINE), "{token}");
    eventually("the clients' token", BOUND, async || {
        let token = world.token_of("p-consul-client-token").await?;
        assert!(token["ServiceIdentities"].is_null());
        assert_eq!(token["Policies"][0]["Name"], "p-consul-client-policy");
        Ok(())
    })
    .await;
    let policy = world.agent.call("GET", "/v1/acl/policy/name/p-consul-client-policy", &Value::Null).await;
    let policy =
        if policy.is_null() { world.agent.call("GET", "/v1/acl/policies", &Value::Null).await } else { policy };
    assert!(policy.to_string().contains("p-consul-client-policy"), "{policy}");
    for service in ["outside", "stopped", "vanished"] {
        assert!(world.tokens(service).await.is_empty(), "{service}");
    }
    world.silent(&controller);
}

#[tokio::test]
async fn crash_between_token_and_secret_makes_no_second_token() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    world.aws.refuse("PutSecretValue p-web", "InternalServiceError");
    let controller = world.start();
    let accessor = eventually("the token exists", BOUND, async || match &world.tokens("web").await[..] {
        [token] => Ok(token["AccessorID"].as_str().unwrap().to_owned()),
        tokens => Err(format!("{tokens:?}")),
    })
    .await;
    assert_eq!(world.aws.secret("p-web"), json!({}), "the token comes first");
    drop(controller);
    world.aws.refuse_nothing();
    let _controller = world.start();
    assert_eq!(world.settles("web").await, accessor);
}

#[tokio::test]
async fn each_kind_of_drift_is_repaired() {
    let world = World::new(&["web", "api"]).await;
    world.aws.run("1", "web");
    world.aws.run("2", "api");
    // Foreign tokens. One has nearly the description of the controller's tokens.
    let foreign = json!({ "Description": "consul.hashicorp.com/cluster: blue-2", "ServiceIdentities": [{ "ServiceName": "far" }] });
    let foreign = world.agent.call("PUT", "/v1/acl/token", &foreign).await;
    let controller = world.start();
    let (mut web, api) = (world.settles("web").await, world.settles("api").await);

    let path = |accessor: &str| format!("/v1/acl/token/{accessor}");
    world.agent.call("DELETE", &path(&web), &Value::Null).await;
    let new = world.settles("web").await;
    assert_ne!(new, web, "a deleted token is replaced");
    web = new;

    world.aws.set_secret("p-web", "{}");
    assert_eq!(world.settles("web").await, web, "a secret that was reset gets the token again");

    world.aws.set_secret("p-web", &json!({ "accessor_id": web, "token": "another" }).to_string());
    assert_eq!(world.settles("web").await, web, "secret and token disagree");

    world.aws.set_secret("p-web", &world.aws.secret("p-api").to_string());
    assert_eq!(world.settles("web").await, web, "a secret that holds another service's token");

    let far = json!({ "accessor_id": foreign["AccessorID"], "token": foreign["SecretID"] });
    world.aws.set_secret("p-web", &far.to_string());
    controller.says("service web: the secret p-web holds the token", BOUND).await;
    assert_eq!(
        world.aws.secret("p-web"),
        far,
        "a live token that somebody else made for another purpose stays in the secret"
    );
    world.aws.set_secret("p-web", "{}");
    assert_eq!(world.settles("web").await, web);

    let mut changed = world.agent.call("GET", &path(&web), &Value::Null).await;
    changed["ServiceIdentities"] = json!([{ "ServiceName": "api" }]);
    changed["Policies"] = json!([{ "Name": "global-management" }]);
    world.agent.call("PUT", &path(&web), &changed).await;
    assert_eq!(world.settles("web").await, web, "a token with another identity");
    assert_eq!(world.settles("api").await, api);

    let duplicate = json!({ "Description": changed["Description"], "ServiceIdentities": [{ "ServiceName": "web" }] });
    world.agent.call("PUT", "/v1/acl/token", &duplicate).await;
    assert_eq!(world.settles("web").await, web, "a duplicate goes");

    let policies = world.agent.call("GET", "/v1/acl/policies", &Value::Null).await;
    let policy = policies.as_array().unwrap().iter().find(|policy| policy["Name"] == "p-consul-client-policy").unwrap();
    let id = policy["ID"].as_str().unwrap();
    let right = readme("hcl", 3);
    let right = right.trim_end();
    for wrong in [json!({ "Rules": "operator = \"write\"" }), json!({ "Rules": right, "Datacenters": ["elsewhere"] })] {
        let mut wrong = wrong;
        wrong["Name"] = "p-consul-client-policy".into();
        world.agent.call("PUT", &format!("/v1/acl/policy/{id}"), &wrong).await;
        eventually("the policy is repaired", BOUND, async || {
            let policy = world.agent.call("GET", &format!("/v1/acl/policy/{id}"), &Value::Null).await;
            if policy["Rules"] == right && policy["Datacenters"].is_null() { Ok(()) } else { Err(policy.to_string()) }
        })
        .await;
    }

    let clients = world.token_of("p-consul-client-token").await.unwrap();
    world.agent.call("DELETE", &path(clients["AccessorID"].as_str().unwrap()), &Value::Null).await;
    eventually("the client token is replaced", BOUND, async || world.token_of("p-consul-client-token").await).await;
    assert_eq!(world.tokens("far").await[0], {
        let mut listed = world.tokens("far").await[0].clone();
        listed["ModifyIndex"] = foreign["ModifyIndex"].clone();
        listed
    });
}

#[tokio::test]
async fn older_duplicate_is_deleted_unless_a_task_may_use_it() {
    let world = World::new(&["web"]).await;
    let older =
        json!({ "Description": format!("by hand\n{CLUSTER_LINE}"), "ServiceIdentities": [{ "ServiceName": "web" }] });
    let make = async || world.agent.call("PUT", "/v1/acl/token", &older).await;
    let store = |token: &Value| {
        let value = json!({ "accessor_id": token["AccessorID"], "token": token["SecretID"] });
        world.aws.set_secret("p-web", &value.to_string());
    };
    let (first, second) = (make().await, make().await);
    store(&first);
    let task = world.aws.run("1", "web");
    // Somebody stores a newer token in the secret. The task may have either token.
    store(&second);
    let mut command = world.command("key");
    let address = listens(&command);
    let _controller = Process::spawn(&mut command);
    cycles(&address, 3.0).await;
    assert_eq!(world.tokens("web").await.len(), 2);
    world.aws.run_at("2", "web", SystemTime::now() + Duration::from_secs(120));
    world.aws.forget(&task);
    assert_eq!(world.settles("web").await, second["AccessorID"].as_str().unwrap());
    // Without an older task, the second token is a plain duplicate.
    let (first, second) = (make().await, world.aws.secret("p-web"));
    world.settles("web").await;
    assert_ne!(first["AccessorID"], second["accessor_id"]);
    assert_eq!(world.aws.secret("p-web"), second);
}

#[tokio::test]
async fn failing_service_does_not_affect_others() {
    let services = ["garbage", "other", "half", "forbidden", "web"];
    let world = World::new(&services).await;
    world.aws.set_secret("p-garbage", "{\"accessor_id\": hunter2");
    world.aws.set_secret("p-other", r#"{"username":"admin","password":"hunter2"}"#);
    world.aws.set_secret("p-half", r#"{"token":"hunter2"}"#);
    world.aws.refuse("GetSecretValue p-forbidden", "AccessDeniedException");
    for (number, service) in services.iter().chain(&["missing", "consul-client-token", "a b"]).enumerate() {
        world.aws.run(&number.to_string(), service);
    }
    let controller = world.start();
    world.settles("web").await;
    for text in [
        "service garbage: the secret p-garbage does not hold a token",
        "service other: the secret p-other does not hold a token",
        "service half: the secret p-half does not hold a token",
        "service forbidden: secretsmanager:GetSecretValue: User: arn:aws:sts::210987654321:role is refused: GetSecretValue; the \
         task role's policy must have {\"Effect\":\"Allow\",\"Action\":\"secretsmanager:GetSecretValue\",\"Resource\":\
         \"arn:aws:secretsmanager:eu-north-1:210987654321:secret:p-*\"}",
        "service missing: the secret p-missing does not exist",
        "its secret would have the name of a secret for consul-clients",
        "is not a name that Consul accepts",
    ] {
        controller.says(text, BOUND).await;
    }
    assert_eq!(world.aws.secret("p-other")["password"], "hunter2", "what is not ours stays");
    assert_eq!(world.aws.secret("p-half")["token"], "hunter2", "a secret with only one of the two fields stays too");
    assert!(!controller.output().contains("hunter2"));
    for service in ["garbage", "other", "half", "forbidden", "missing"] {
        assert!(world.tokens(service).await.is_empty(), "{service}");
    }
    let _ = world.aws.take_calls();
    world.aws.set_secret("p-garbage", "{}");
    world.settles("garbage").await;
    let calls = world.aws.take_calls();
    let tries = calls.iter().filter(|call| call.body["SecretId"] == "p-missing").count();
    let cycles = calls.iter().filter(|call| call.name == "ListSecrets").count();
    assert!(tries <= cycles.div_ceil(2), "{tries} tries in {cycles} cycles: it backs off");
    world.aws.refuse_nothing();
    world.aws.set_secret("p-missing", "{}");
    for service in ["forbidden", "missing"] {
        world.settles(service).await;
    }
}

#[tokio::test]
async fn token_of_an_unusable_secret_ends_after_the_grace() {
    let services = ["garbage", "forbidden", "missing"];
    let world = World::new(&services).await;
    let tasks = services.map(|service| world.aws.run(service, service));
    let controller = world.start_with(&["--grace", "3s"]);
    for service in services {
        world.settles(service).await;
    }
    world.aws.refuse("GetSecretValue p-forbidden", "AccessDeniedException");
    world.aws.set_secret("p-garbage", "no token");
    world.aws.set_secret("p-forbidden", "{}");
    world.aws.remove_secret("p-missing");
    for (service, says) in services.into_iter().zip(["does not hold a token", "is refused", "does not exist"]) {
        controller.says(&format!("service {service}: "), BOUND).await;
        controller.says(says, BOUND).await;
        let mut token = world.tokens(service).await.remove(0);
        token["Policies"] = json!([{ "Name": "global-management" }]);
        world.agent.call("PUT", &format!("/v1/acl/token/{}", token["AccessorID"].as_str().unwrap()), &token).await;
    }
    for service in services {
        eventually(&format!("the additional rights of the token of {service} are removed"), 2 * BOUND, async || {
            let token = world.tokens(service).await.remove(0);
            if token["Policies"].is_null() { Ok(()) } else { Err(token.to_string()) }
        })
        .await;
    }
    for task in &tasks {
        world.aws.forget(task);
    }
    for service in services {
        eventually(&format!("the token of {service} goes"), 3 * BOUND, async || {
            let tokens = world.tokens(service).await;
            if tokens.is_empty() { Ok(()) } else { Err(format!("{tokens:?}")) }
        })
        .await;
    }
    // The failure ends too, because no service needs the secret any more.
    for service in ["garbage", "forbidden"] {
        controller
            .says(&format!("service {service}: its tokens are deleted, but the secret cannot be cleared; "), BOUND)
            .await;
    }
    assert!(world.aws.texts().contains(&"no token".to_owned()), "what is not ours stays");
    assert_eq!(world.aws.secret("p-forbidden"), json!({}));
}

#[tokio::test]
async fn service_without_tasks_loses_its_token_after_the_grace() {
    let world = World::new(&["web", "api"]).await;
    let task = world.aws.run("1", "web");
    let api = world.aws.run("2", "api");
    let controller = world.start_with(&["--grace", "4s"]);
    let web = world.settles("web").await;
    world.settles("api").await;
    // A task that is stopping still counts, because it still runs.
    world.aws.set_status(&api, "STOPPED", "STOPPING");
    world.aws.set_status(&task, "STOPPED", "STOPPED");
    controller.says("service web: has no tasks", BOUND).await;
    let since = Instant::now();
    // The task runs again. When it ends again, a new grace begins.
    world.aws.set_status(&task, "RUNNING", "RUNNING");
    assert_eq!(world.settles("web").await, web);
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(since.elapsed())).await;
    assert_eq!(world.settles("web").await, web, "it has tasks");
    let before = Instant::now();
    world.aws.forget(&task);
    world.aws.refuse("PutSecretValue p-web", "InternalServiceError");
    controller.says("service web: secretsmanager:PutSecretValue: InternalServiceError", BOUND).await;
    assert_eq!(world.tokens("web").await.len(), 1, "not while the secret holds it");
    world.aws.refuse_nothing();
    eventually("the token goes", BOUND, async || match &world.tokens("web").await[..] {
        [] => Ok(()),
        tokens => Err(format!("{tokens:?}")),
    })
    .await;
    assert!(before.elapsed() >= Duration::from_secs(4), "{:?}", before.elapsed());
    assert_eq!(world.aws.secret("p-web"), json!({}));
    assert!(!controller.output().contains("service api: has no tasks"), "{}", controller.output());
    world.settles("api").await;
    world.silent(&controller);
}

#[tokio::test]
async fn token_is_rotated_without_an_outage() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let first = {
        let _controller = world.start();
        world.settles("web").await
    };
    let old = world.aws.secret("p-web")["token"].clone();
    let known = async |token: &Value| {
        let token = [("X-Consul-Token", token.as_str().unwrap())];
        http::request("GET", &world.agent.url("/v1/acl/token/self"), &token, "").await.unwrap().0 == 200
    };
    {
        let controller = world.start_with(&["--rotate-after", "1s"]);
        controller.says(&format!("token {first} superseded by"), BOUND).await;
        world.silent(&controller);
    }
    assert_ne!(world.token_of("p-web").await.unwrap()["AccessorID"], first.as_str());
    assert!(known(&old).await, "the task from before the change still has it");
    // A new controller recognises the rotation by the tokens' descriptions.
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    controller.says("holding the lock", TAKEOVER).await;
    cycles(&address, 3.0).await;
    assert!(known(&old).await);
    world.aws.run_at("2", "web", SystemTime::now() + Duration::from_secs(120));
    cycles(&address, 3.0).await;
    assert!(known(&old).await, "a task from after the change changes nothing");
    world.aws.forget(&task);
    world.settles("web").await;
    assert!(!known(&old).await, "the last task that had it is gone");
}

#[tokio::test]
async fn undescribed_task_keeps_a_replaced_token() {
    let world = World::new(&["web", "gone"]).await;
    let task = world.aws.run("1", "web");
    let last = world.aws.run("2", "gone");
    let first = {
        let _controller = world.start();
        world.settles("gone").await;
        world.settles("web").await
    };
    {
        let controller = world.start_with(&["--rotate-after", "1s"]);
        controller.says(&format!("token {first} superseded by"), TAKEOVER + BOUND).await;
    }
    let lives = async || world.tokens("web").await.iter().any(|token| token["AccessorID"] == first.as_str());
    assert!(lives().await);
    world.aws.undescribed(&task, true);
    world.aws.run_at("3", "web", SystemTime::now() + Duration::from_secs(120));
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    controller.says("this cycle removes nothing that the task may use", TAKEOVER + BOUND).await;
    cycles(&address, 3.0).await;
    assert!(lives().await, "the task that ECS does not describe may have this token");
    // No grace begins, but the controller still repairs tokens and secrets.
    world.aws.forget(&last);
    world.aws.set_secret("p-gone", "{}");
    eventually("the secret is repaired", BOUND, async || world.token_of("p-gone").await).await;
    assert!(!controller.output().contains("service gone: has no tasks"));
    world.aws.forget(&task);
    world.aws.undescribed(&task, false);
    world.settles("web").await;
    controller.says("service gone: has no tasks", BOUND).await;
}

#[tokio::test]
async fn during_the_grace_drift_is_repaired_and_secrets_of_others_stay() {
    let world = World::new(&["web", "api", "moved"]).await;
    let tasks = ["web", "api", "moved"].map(|service| world.aws.run(service, service));
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.args(["--grace", "15s"]));
    let (web, api) = (world.settles("web").await, world.settles("api").await);
    world.settles("moved").await;
    let foreign = json!({
        "Description": "consul.hashicorp.com/cluster: green", "ServiceIdentities": [{ "ServiceName": "moved" }]
    });
    let foreign = world.agent.call("PUT", "/v1/acl/token", &foreign).await;
    let theirs = json!({ "accessor_id": foreign["AccessorID"], "token": foreign["SecretID"] });
    for task in &tasks {
        world.aws.forget(task);
    }
    for service in ["web", "api", "moved"] {
        controller.says(&format!("service {service}: has no tasks"), BOUND).await;
    }
    world.aws.set_secret("p-web", "{}");
    world.aws.set_secret("p-moved", &theirs.to_string());
    world.agent.call("DELETE", &format!("/v1/acl/token/{api}"), &Value::Null).await;
    assert_eq!(world.settles("web").await, web, "a secret that was reset gets the token again");
    let emptied = async |secret: &str| {
        eventually(&format!("{secret} is empty"), BOUND, async || match world.aws.secret(secret) {
            value if value == json!({}) => Ok(()),
            value => Err(value.to_string()),
        })
        .await;
    };
    emptied("p-api").await;
    assert!(world.tokens("api").await.is_empty(), "and no new one is made");
    emptied("p-web").await;
    eventually("only the other cluster's token is left", BOUND, async || {
        match (&world.tokens("web").await[..], &world.tokens("moved").await[..]) {
            ([], [token]) if token["AccessorID"] == foreign["AccessorID"] => Ok(()),
            tokens => Err(format!("{tokens:?}")),
        }
    })
    .await;
    assert_eq!(world.aws.secret("p-moved"), theirs);
    // The controller does not read or write the secret of a service that is gone.
    cycles(&address, 2.0).await;
    let _ = world.aws.take_calls();
    cycles(&address, 2.0).await;
    let calls = world.aws.take_calls();
    assert!(calls.iter().all(|call| call.name != "GetSecretValue" && call.name != "PutSecretValue"), "{calls:?}");
}

#[tokio::test]
async fn stopping_task_without_tags_keeps_its_replaced_token() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let controller = world.start();
    let first = world.settles("web").await;
    end(controller).await;
    let controller = world.start_with(&["--rotate-after", "1s"]);
    controller.says(&format!("token {first} superseded by"), BOUND).await;
    end(controller).await;
    let lives = async || world.tokens("web").await.iter().any(|token| token["AccessorID"] == first.as_str());

    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    cycles(&address, 3.0).await;
    world.aws.run_at("2", "web", SystemTime::now() + Duration::from_secs(120));
    world.aws.stop(&task);
    cycles(&address, 5.0).await;
    assert!(lives().await, "its containers still run");
    end(controller).await;

    // This controller never saw the task's tags.
    let stop_timeout = Duration::from_secs(6);
    let began = Instant::now();
    let controller = world.start_with(&["--stop-timeout", "6s"]);
    controller.says(&format!("token {first} deleted"), BOUND).await;
    assert!(began.elapsed() >= stop_timeout, "{:?}", began.elapsed());
    world.settles("web").await;
}

#[tokio::test]
async fn stopping_task_without_tags_counts_for_its_service() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.args(["--grace", "1s"]));
    let web = world.settles("web").await;
    world.aws.stop(&task);
    cycles(&address, 10.0).await;
    assert_eq!(world.settles("web").await, web);
    assert!(!controller.output().contains("has no tasks"), "{}", controller.output());
    world.aws.forget(&task);
    controller.says(&format!("token {web} deleted"), BOUND).await;
}

#[tokio::test]
async fn seen_tags_are_kept_though_another_list_failed() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    // ListSecrets is slow, so that the tasks are listed before it fails.
    world.aws.slow("ListSecrets", Duration::from_secs(3));
    world.aws.refuse("ListSecrets", "InternalServiceError");
    let controller = world.start();
    controller.says("the cycle failed: secretsmanager:ListSecrets", BOUND).await;
    world.aws.stop(&task);
    world.aws.refuse_nothing();
    world.settles("web").await;
}

#[tokio::test]
async fn replaced_token_ends_with_the_last_task_of_its_window() {
    let world = World::new(&["web"]).await;
    // The task still runs. It may have a token that the secret held up to 30 s after the task's start, because clocks may differ.
    world.aws.run_at("1", "web", SystemTime::now() - Duration::from_secs(5));
    let mut command = world.command("key");
    let address = listens(&command);
    let _controller = Process::spawn(command.args(["--rotate-after", "4s"]));
    let first = eventually("the first token", BOUND, async || {
        let value = world.aws.secret("p-web");
        value["accessor_id"].as_str().map(str::to_owned).ok_or(value.to_string())
    })
    .await;
    let deleted = "acl_controller_tokens_total{change=\"deleted\"}";
    eventually("later tokens go", 4 * BOUND, async || match metrics(&address).await.get(deleted) {
        Some(count) if *count >= 2.0 => Ok(()),
        count => Err(format!("{count:?}")),
    })
    .await;
    let tokens = world.tokens("web").await;
    assert!(tokens.iter().any(|token| token["AccessorID"] == first.as_str()), "{tokens:?}");
    let current = world.token_of("p-web").await.unwrap();
    assert!(tokens.iter().any(|token| token["AccessorID"] == current["AccessorID"]), "{tokens:?}");
}

/// Waits until a service has no token, and returns the value of its secret.
async fn goes(world: &World, service: &str) -> Value {
    eventually(&format!("the token of {service} goes"), BOUND, async || match &world.tokens(service).await[..] {
        [] => Ok(()),
        tokens => Err(format!("{tokens:?}")),
    })
    .await;
    world.aws.secret(&format!("p-{service}"))
}

async fn end(mut controller: Process) {
    controller.signal(Signal::TERM);
    assert_eq!(controller.exit_code(BOUND).await, 0);
}

#[tokio::test]
async fn takeover_does_not_restart_the_grace() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let grace = ["--grace", "20s", "--stop-timeout", "1s"];
    let controller = world.start_with(&grace);
    world.settles("web").await;
    let since = Instant::now();
    world.aws.forget(&task);
    controller.says("service web: has no tasks; if none starts, its token will be deleted after 20s", BOUND).await;
    let noted = eventually("it is noted", BOUND, async || {
        let keys = world.agent.call("GET", "/v1/kv/ecs-mesh/acl-controller/?keys", &Value::Null).await;
        let key = keys.as_array().into_iter().flatten().filter_map(Value::as_str).find(|key| key.ends_with("/web"));
        let key = key.ok_or(keys.to_string())?.to_owned();
        let note = world.agent.call("GET", &format!("/v1/kv/{key}?raw"), &Value::Null).await;
        if note["without_tasks_since"].is_string() { Ok(note) } else { Err(note.to_string()) }
    })
    .await;
    end(controller).await;
    // Half of the grace is over when the next controller begins.
    tokio::time::sleep(Duration::from_secs(10).saturating_sub(since.elapsed())).await;
    let controller = world.start_with(&grace);
    controller.says("holding the lock", BOUND).await;
    let took_over = Instant::now();
    assert_eq!(goes(&world, "web").await, json!({}));
    assert!(took_over.elapsed() < Duration::from_secs(20), "a new grace began: {:?}, {noted}", took_over.elapsed());
    assert!(since.elapsed() >= Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test]
async fn kept_secret_gives_the_next_task_the_same_token() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let flags = ["--keep-secrets", "--grace", "1s"];
    let controller = world.start_with(&flags);
    let web = world.settles("web").await;
    let stored = world.aws.secret("p-web");
    world.aws.forget(&task);
    assert_eq!(goes(&world, "web").await, stored);
    controller.says(&format!("token {web} deleted"), BOUND).await;
    world.silent(&controller);
    end(controller).await;

    // The next day, another controller runs.
    let task = world.aws.run("2", "web");
    let controller = world.start_with(&flags);
    assert_eq!(world.settles("web").await, web);
    assert_eq!(world.aws.secret("p-web"), stored);
    controller.says(&format!("token {web} created again"), BOUND).await;
    world.silent(&controller);

    // If somebody deletes a token in use, the controller does not create the same token again, because it may have been stolen.
    world.agent.call("DELETE", &format!("/v1/acl/token/{web}"), &Value::Null).await;
    let new = eventually("there is another token", BOUND, async || match world.settles("web").await {
        accessor if accessor != web => Ok(accessor),
        accessor => Err(accessor),
    })
    .await;
    world.aws.forget(&task);
    let kept = goes(&world, "web").await;
    assert_eq!(kept["accessor_id"], new.as_str());
}
