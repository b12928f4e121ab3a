//! acl-controller before, after and at the same time as the controllers of consul-ecs 0.2 to 0.4.
//!
//! [`consul_ecs`] simulates one cycle of consul-ecs 0.4.1, according to its source: it claims, deletes and creates the same tokens.

use super::*;

/// How consul-ecs names the cluster: by its ARN on Fargate, by its name on EC2.
const SHORT: &str = "blue";

/// One cycle of consul-ecs 0.4.1 in a cluster with this name or ARN. The running tasks belong to these services.
async fn consul_ecs(world: &World, cluster: &str, services: &[&str]) {
    let line = format!("consul.hashicorp.com/cluster: {cluster}");
    let all = async |kind: &str| world.agent.call("GET", &format!("/v1/acl/{kind}"), &Value::Null).await;
    let (policies, tokens) = (all("policies").await, all("tokens").await);
    let claimed = |all: &Value, what: &str| {
        let service = |entry: &Value| {
            let description = entry["Description"].as_str().unwrap().to_owned();
            let first = description.lines().next().unwrap_or_default();
            let name = first.strip_prefix(&format!("{what} for ")).and_then(|rest| rest.strip_suffix(" service"));
            description.contains(&line).then(|| (name.unwrap_or_default().to_owned(), entry.clone()))
        };
        all.as_array().unwrap().iter().filter_map(service).collect::<Vec<_>>()
    };
    let (policies, tokens) = (claimed(&policies, "Policy"), claimed(&tokens, "Token"));
    for (service, token) in &tokens {
        if !services.contains(&service.as_str()) {
            let path = format!("/v1/acl/token/{}", token["AccessorID"].as_str().unwrap());
            world.agent.call("DELETE", &path, &Value::Null).await;
        }
    }
    for (service, policy) in &policies {
        if !services.contains(&service.as_str()) {
            let path = format!("/v1/acl/policy/{}", policy["ID"].as_str().unwrap());
            world.agent.call("DELETE", &path, &Value::Null).await;
        }
    }
    for service in services {
        let has = |all: &[(String, Value)]| all.iter().any(|(name, _)| name == service);
        if has(&policies) && has(&tokens) {
            continue;
        }
        let name = format!("{service}-service");
        if !policy_exists(world, &name).await {
            let rules = format!("service \"{service}\" {{ policy = \"write\" }}");
            let policy =
                json!({ "Name": name, "Rules": rules, "Description": format!("Policy for {service} service\n{line}") });
            world.agent.call("PUT", "/v1/acl/policy", &policy).await;
        }
        let secret = format!("p-{service}");
        let mut value = world.aws.secret(&secret);
        if value["accessor_id"].is_null() {
            let id = |of: u8| format!("{of:02x}00000{}-0000-4000-8000-{:012x}", service.len() % 10, u64::from(of));
            let of = service.bytes().fold(0_u8, u8::wrapping_add);
            value = json!({ "accessor_id": id(of), "token": id(of.wrapping_add(1)) });
            world.aws.set_secret(&secret, &value.to_string());
        }
        if world.listed(value["accessor_id"].as_str().unwrap()).await.is_none() {
            let token = json!({
                "AccessorID": value["accessor_id"], "SecretID": value["token"], "Policies": [{ "Name": name }],
                "Description": format!("Token for {service} service\n{line}")
            });
            world.agent.call("PUT", "/v1/acl/token", &token).await;
        }
    }
}

/// Creates the token that consul-ecs 0.2 to 0.4 creates for the consul-clients at its start. Returns the token's accessor ID.
async fn consul_ecs_clients(world: &World) -> String {
    let policy = json!({
        "Name": "p-consul-client-policy", "Description": "Consul Client Token Policy for ECS",
        "Rules": readme("hcl", 3).trim_end()
    });
    world.agent.call("PUT", "/v1/acl/policy", &policy).await;
    let token = json!({ "Description": "ECS Consul client Token", "Policies": [{ "Name": "p-consul-client-policy" }] });
    let token = world.agent.call("PUT", "/v1/acl/token", &token).await;
    let value = json!({ "accessor_id": token["AccessorID"], "token": token["SecretID"] });
    world.aws.set_secret("p-consul-client-token", &value.to_string());
    token["AccessorID"].as_str().unwrap().to_owned()
}

async fn policy_exists(world: &World, name: &str) -> bool {
    let policies = world.agent.call("GET", "/v1/acl/policies", &Value::Null).await;
    policies.as_array().unwrap().iter().any(|policy| policy["Name"] == name)
}

#[tokio::test]
async fn consul_ecs_0_4_deletes_no_token_of_a_running_task() {
    let world = World::new(&["web", "api"]).await;
    world.aws.run("1", "web");
    let api = world.aws.run("2", "api");
    let controller = world.start_with(&["--grace", "2s"]);
    let accessors = [world.settles("web").await, world.settles("api").await, world.clients_settle().await];
    for cluster in [CLUSTER, SHORT] {
        consul_ecs(&world, cluster, &["web", "api"]).await;
        for accessor in &accessors {
            assert!(world.listed(accessor).await.is_some(), "{cluster} {accessor}");
        }
        assert!(policy_exists(&world, "web-service").await);
        // consul-ecs creates policies that nothing uses.
        eventually("its policies go", BOUND, async || {
            for name in ["web-service", "api-service"] {
                if policy_exists(&world, name).await {
                    return Err(name.to_owned());
                }
            }
            Ok(())
        })
        .await;
    }
    drop(controller);
    // After a move back, consul-ecs deletes the tokens of its own services, and tokens that look like its own.
    world.aws.forget(&api);
    consul_ecs(&world, CLUSTER, &["web"]).await;
    assert!(world.listed(&accessors[1]).await.is_none());
    for accessor in [&accessors[0], &accessors[2]] {
        assert!(world.listed(accessor).await.is_some(), "{accessor}");
    }
    // After another move forward, the service's secret still holds the deleted token, and the controller knows that it had made this token.
    world.aws.run("3", "api");
    let _controller = world.start();
    assert_ne!(world.settles("api").await, accessors[1]);
    assert_eq!(
        [world.settles("web").await, world.clients_settle().await],
        [accessors[0].clone(), accessors[2].clone()]
    );
}

#[tokio::test]
async fn tokens_of_consul_ecs_are_taken_over() {
    let world = World::new(&["fargate", "ec2", "idle", "Caps", "two", "elsewhere"]).await;
    for (task, service) in ["fargate", "ec2", "two"].iter().enumerate() {
        world.aws.run(&task.to_string(), service);
    }
    let idle = world.aws.run("idle", "idle");
    let clients = consul_ecs_clients(&world).await;
    consul_ecs(&world, CLUSTER, &["fargate", "Caps"]).await;
    consul_ecs(&world, SHORT, &["ec2", "idle"]).await;
    let make = async |description: &str, identity: &str| {
        let token = json!({ "Description": description, "ServiceIdentities": [{ "ServiceName": identity }] });
        world.agent.call("PUT", "/v1/acl/token", &token).await
    };
    // A token of consul-ecs 0.2. The controller of a cluster with the same name in another account makes equal tokens for its services.
    let two = make(&format!("Token for two service\nconsul.hashicorp.com/cluster: {SHORT}"), "two").await;
    let value = json!({ "accessor_id": two["AccessorID"], "token": two["SecretID"] });
    world.aws.set_secret("p-two", &value.to_string());
    let elsewhere = format!("Token for elsewhere service\nconsul.hashicorp.com/cluster: {SHORT}");
    let elsewhere = make(&elsewhere, "elsewhere").await["AccessorID"].as_str().unwrap().to_owned();
    let held = |service: &str| world.aws.secret(&format!("p-{service}"))["accessor_id"].as_str().unwrap().to_owned();
    let before = ["fargate", "ec2", "two", "idle", "Caps"].map(held);
    world.aws.forget(&idle);
    let untouched = async || (world.listed(&before[4]).await, world.listed(&elsewhere).await);
    let others = untouched().await;
    assert!(others.0.is_some() && others.1.is_some());

    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.args(["--grace", "3s"]));
    for (service, accessor) in ["fargate", "ec2", "two"].into_iter().zip(&before) {
        assert_eq!(world.settles(service).await, *accessor, "{service}: the same token");
        eventually("it is described as this cluster's", BOUND, async || {
            let token = world.listed(accessor).await.ok_or("it is gone")?;
            let description = token["Description"].as_str().unwrap_or_default().to_owned();
            let begins = format!("Token for {service} service\n{CLUSTER_LINE}\n");
            if description.starts_with(&begins) { Ok(()) } else { Err(description) }
        })
        .await;
    }
    assert_eq!(world.clients_settle().await, clients);
    // The token of a service without tasks is taken over. After the grace it is deleted like every token of this cluster.
    eventually("the idle service's token goes", BOUND, async || match world.listed(&before[3]).await {
        None => Ok(()),
        Some(token) => Err(token.to_string()),
    })
    .await;
    assert_eq!(world.aws.secret("p-idle"), json!({}));
    eventually("the policies that nothing links go", BOUND, async || {
        for name in ["fargate-service", "ec2-service", "idle-service"] {
            if policy_exists(&world, name).await {
                return Err(name.to_owned());
            }
        }
        Ok(())
    })
    .await;
    assert!(policy_exists(&world, "Caps-service").await, "its token links it");
    assert_eq!(untouched().await, others);
    // A foreign token that was read once is not read again.
    cycles(&address, 2.0).await;
    let _ = world.aws.take_calls();
    cycles(&address, 2.0).await;
    let calls = world.aws.take_calls();
    assert!(calls.iter().all(|call| call.name != "GetSecretValue"), "{calls:?}");
    world.silent(&controller);
}

#[tokio::test]
async fn token_taken_over_late_is_not_replaced() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    let clients = consul_ecs_clients(&world).await;
    consul_ecs(&world, SHORT, &["web"]).await;
    let web = world.aws.secret("p-web")["accessor_id"].as_str().unwrap().to_owned();
    for secret in ["p-web", "p-consul-client-token"] {
        world.aws.refuse_once(&format!("GetSecretValue {secret}"), "InternalServiceError");
    }
    let controller = world.start();
    for owner in ["service web", "client token"] {
        controller.says(&format!("{owner}: secretsmanager:GetSecretValue: InternalServiceError"), BOUND).await;
    }
    assert_eq!([world.settles("web").await, world.clients_settle().await], [web, clients]);
    for owner in ["service web", "client token"] {
        controller.says(&format!("{owner}: works again"), BOUND).await;
    }
}

#[tokio::test]
async fn cluster_name_and_arn_share_one_leader() {
    let world = World::new(&["web"]).await;
    world.aws.run("1", "web");
    let first = world.start();
    first.says("holding the lock", BOUND).await;
    world.settles("web").await;
    // The region comes from the cluster's ARN.
    let second = Process::spawn(world.command_for("key", CLUSTER).env("AWS_REGION", "us-east-1"));
    second.says("standing by", BOUND).await;
    drop(first);
    second.says("holding the lock", TAKEOVER).await;
    world.aws.set_secret("p-api", "{}");
    world.aws.run("2", "api");
    world.settles("api").await;
}
