//! Secrets that cannot be read, have no value, or hold somebody else's token.

use super::*;

#[tokio::test]
async fn secret_without_a_value_is_filled() {
    let world = World::new(&[]).await;
    for secret in ["p-consul-client-token", "p-web"] {
        world.aws.add_secret(secret);
    }
    world.aws.run("1", "web");
    let controller = world.start();
    world.settles("web").await;
    world.clients_settle().await;
    assert!(!controller.output().contains("does not exist"), "{}", controller.output());
}

#[tokio::test]
async fn unreadable_secret_still_has_its_token_repaired() {
    let errors = [
        ("decrypt", "DecryptionFailure: Secrets Manager can't decrypt the protected secret text"),
        ("request", "InvalidRequestException: You can't perform this operation"),
        (
            "deleted",
            "InvalidRequestException: You can't perform this operation on the secret because it was marked for deletion.",
        ),
    ];
    let world = World::new(&errors.map(|(service, _)| service)).await;
    let tasks = errors.map(|(service, _)| world.aws.run(service, service));
    let controller = world.start_with(&["--grace", "3s"]);
    let mut accessors = Vec::new();
    for (service, error) in errors {
        accessors.push(world.settles(service).await);
        world.aws.refuse(&format!("GetSecretValue p-{service}"), error);
        world.aws.refuse(&format!("PutSecretValue p-{service}"), error);
        // A new version, so that the controller reads the secret.
        world.aws.set_secret(&format!("p-{service}"), "{}");
        let (code, _) = error.split_once(':').unwrap();
        controller.says(&format!("service {service}: secretsmanager:GetSecretValue: {code}"), BOUND).await;
    }
    for (service, _) in errors {
        let mut token = world.tokens(service).await.remove(0);
        token["Policies"] = json!([{ "Name": "global-management" }]);
        world.agent.call("PUT", &format!("/v1/acl/token/{}", token["AccessorID"].as_str().unwrap()), &token).await;
        eventually(&format!("the token of {service} is repaired"), 3 * BOUND, async || {
            let token = world.tokens(service).await.remove(0);
            if token["Policies"].is_null() { Ok(()) } else { Err(token.to_string()) }
        })
        .await;
    }
    for task in &tasks {
        world.aws.forget(task);
    }
    for accessor in &accessors {
        eventually(&format!("{accessor} goes"), 3 * BOUND, async || match world.listed(accessor).await {
            None => Ok(()),
            Some(token) => Err(token.to_string()),
        })
        .await;
    }
}

#[tokio::test]
async fn token_of_a_read_only_secret_ends_after_the_grace() {
    let world = World::new(&["web"]).await;
    let task = world.aws.run("1", "web");
    let controller = world.start_with(&["--grace", "1s"]);
    let accessor = world.settles("web").await;
    world.aws.refuse("PutSecretValue p-web", "AccessDeniedException");
    world.aws.forget(&task);
    eventually("the token goes", BOUND, async || match world.listed(&accessor).await {
        None => Ok(()),
        Some(token) => Err(token.to_string()),
    })
    .await;
    controller
        .says(
            "service web: its tokens are deleted, but the secret cannot be cleared; secretsmanager:PutSecretValue",
            BOUND,
        )
        .await;
}

#[tokio::test]
async fn secret_with_a_token_of_another_consul_is_left_alone() {
    let world = World::new(&["web", "moving", "ours"]).await;
    let other = json!({ "accessor_id": "0a0a0a0a-0000-4000-8000-000000000001", "token": "0a0a0a0a-0000-4000-8000-000000000002" });
    world.aws.set_secret("p-moving", &other.to_string());
    for service in ["web", "ours"] {
        world.aws.run(service, service);
    }
    let moving = world.aws.run("moving", "moving");
    let mut command = world.command("key");
    let address = listens(&command);
    let mut first = Process::spawn(command.args(["--grace", "1ms"]));
    world.settles("web").await;
    let ours = world.settles("ours").await;
    first.says("service moving: the secret p-moving holds the token 0a0a0a0a-0000-4000-8000-000000000001", BOUND).await;
    assert_eq!(world.aws.secret("p-moving"), other);
    assert!(world.tokens("moving").await.is_empty(), "no token is made, because no task could get it");
    // The controller does not clear the secret when the last task is gone.
    world.aws.forget(&moving);
    cycles(&address, 4.0).await;
    assert_eq!(world.aws.secret("p-moving"), other);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(BOUND).await, 0);
    world.agent.call("DELETE", &format!("/v1/acl/token/{ours}"), &Value::Null).await;
    let _second = world.start();
    assert_ne!(world.settles("ours").await, ours);
    // The operator empties the secret.
    world.aws.run("moving", "moving");
    world.aws.set_secret("p-moving", "{}");
    world.settles("moving").await;
}

#[tokio::test]
async fn colliding_prefixes_overwrite_no_secrets() {
    let world = World::new(&[]).await;
    let green = "arn:aws:ecs:eu-north-1:210987654321:cluster/green";
    let b = "consul.hashicorp.com/cluster";
    // The token of the service "web" in the cluster green. The prefix of that cluster is p-b.
    let token = json!({
        "Description": format!("Token for web service\n{b}: {green}\nconsul.hashicorp.com/service-name: web"),
        "ServiceIdentities": [{ "ServiceName": "web" }]
    });
    let web = world.agent.call("PUT", "/v1/acl/token", &token).await;
    let token = json!({
        "Description": format!("ECS Consul client Token\nconsul.hashicorp.com/consul-clients-of: {green}")
    });
    let clients = world.agent.call("PUT", "/v1/acl/token", &token).await;
    let policy = json!({ "Name": "p-b-consul-client-policy", "Rules": "" });
    world.agent.call("PUT", "/v1/acl/policy", &policy).await;
    let secrets = [("p-b-web", web), ("p-b-consul-client-token", clients)];
    for (secret, token) in &secrets {
        let value = json!({ "accessor_id": token["AccessorID"], "token": token["SecretID"] });
        world.aws.set_secret(secret, &value.to_string());
    }
    for service in ["b-web", "b-consul-client-token", "db"] {
        world.aws.run(service, service);
    }
    world.aws.set_secret("p-db", "{}");
    let before = secrets.each_ref().map(|(secret, _)| world.aws.secret(secret));
    let controller = world.start();
    world.settles("db").await;
    controller.says("the secrets of another controller have the prefix \"p-b\", those of this one \"p\"", BOUND).await;
    controller.says("service b-web: the secret p-b-web holds the token", BOUND).await;
    controller.says("service b-consul-client-token: ", BOUND).await;
    assert_eq!(secrets.each_ref().map(|(secret, _)| world.aws.secret(secret)), before);
    assert!(world.tokens("b-web").await.is_empty());
}

#[tokio::test]
async fn enterprise_secret_name_of_0_4_is_refused() {
    let world = World::new(&["web-default-default", "api-shop-eu"]).await;
    world.aws.run("1", "web");
    let key = |key: &str| format!("consul.hashicorp.com/{key}");
    let tags = [(key("mesh"), "true"), (key("namespace"), "shop"), (key("partition"), "eu")];
    let tags = tags.iter().map(|(key, value)| (key.as_str(), *value)).collect::<Vec<_>>();
    world.aws.put_task("2", "api", &tags, SystemTime::now());
    let controller = world.start();
    for (service, found) in [("web", "p-web-default-default"), ("api", "p-api-shop-eu")] {
        let text =
            format!("service {service}: the secret p-{service} does not exist. acl-controller does not use {found}");
        controller.says(&text, BOUND).await;
        assert_eq!(world.aws.secret(found), json!({}));
    }
}
