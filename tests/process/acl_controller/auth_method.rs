//! The auth method of type aws-iam with its roles, policies and binding rules: they are made, repaired, and shared with consul-ecs.

use super::*;

const METHOD: &str = "iam-ecs-service-token";
const ANONYMOUS: &str = "/v1/acl/token/00000000-0000-0000-0000-000000000002";
const KIND: &str = r#"entity_tags["consul.hashicorp.com.gateway-kind"]"#;
const ROLES: [&str; 3] =
    ["consul-ecs-api-gateway-role", "consul-ecs-mesh-gateway-role", "consul-ecs-terminating-gateway-role"];

impl World {
    /// Starts a controller that keeps the auth method. Returns its metrics' address too.
    fn start_with_logins(&self) -> (Process, String) {
        let mut command = self.command("key");
        let address = listens(&command);
        command.args(["--agentless", "--node-address", "10.0.0.14", "--auth-method", METHOD]);
        (Process::spawn(&mut command), address)
    }

    async fn get(&self, path: &str) -> Value {
        let url = self.agent.url(path);
        let token = [("X-Consul-Token", self.agent.management.as_str())];
        let (status, body) = http::request("GET", &url, &token, "").await.unwrap();
        if status == 404 { Value::Null } else { serde_json::from_str(&body).unwrap() }
    }

    async fn put(&self, path: &str, body: Value) {
        self.agent.call("PUT", path, &body).await;
    }

    async fn method(&self) -> Value {
        self.get(&format!("/v1/acl/auth-method/{METHOD}")).await
    }

    async fn role(&self, name: &str) -> Value {
        self.get(&format!("/v1/acl/role/name/{name}")).await
    }

    async fn policy(&self, name: &str) -> Value {
        self.get(&format!("/v1/acl/policy/name/{name}")).await
    }

    async fn rules(&self) -> Vec<Value> {
        self.get(&format!("/v1/acl/binding-rules?authmethod={METHOD}")).await.as_array().unwrap().clone()
    }

    /// All that a login needs, with the index of each part.
    async fn everything(&self) -> Value {
        let mut all = vec![self.method().await, self.rules().await.into(), self.get(ANONYMOUS).await];
        for role in ROLES {
            all.push(self.role(role).await);
        }
        for policy in ["consul-ecs-api-gateway-policy", "consul-ecs-mesh-gateway-policy", "anonymous-token-policy"] {
            all.push(self.policy(policy).await);
        }
        all.into()
    }

    /// Waits until everything has its names and effects.
    async fn logins_settle(&self) -> Value {
        eventually("a task can log in", BOUND, async || {
            let all = self.everything().await;
            let config = &all[0]["Config"];
            let has = |list: &Value, item: &str| list.as_array().is_some_and(|list| list.contains(&item.into()));
            let mut right = all[0]["Type"] == "aws-iam"
                && config["EnableIAMEntityDetails"] == true
                && has(&config["BoundIAMPrincipalARNs"], "arn:aws:iam::210987654321:role/consul-ecs/*");
            for tag in ["service-name", "namespace", "gateway-kind"] {
                right &= has(&config["IAMEntityTags"], &format!("consul.hashicorp.com.{tag}"));
            }
            let rule = |selector: &str, kind: &str, name: &str| {
                all[1].as_array().unwrap().iter().any(|rule| {
                    (&rule["Selector"], &rule["BindType"], &rule["BindName"])
                        == (&selector.into(), &kind.into(), &name.into())
                })
            };
            right &= rule("", "service", "${entity_tags.consul.hashicorp.com.service-name}");
            for kind in ["api-gateway", "mesh-gateway", "terminating-gateway"] {
                right &= rule(&format!("{KIND} == \"{kind}\""), "role", &format!("consul-ecs-{kind}-role"));
            }
            let links = |object: &Value, policy: &str| object["Policies"].to_string().contains(policy);
            right &= links(&all[2], "anonymous-token-policy")
                && links(&all[3], "consul-ecs-api-gateway-policy")
                && links(&all[4], "consul-ecs-mesh-gateway-policy")
                && all[5].is_object();
            let words = |rules: &str| rules.split_whitespace().collect::<Vec<_>>().join(" ");
            for (number, policy) in [6, 7, 8].into_iter().enumerate() {
                let rules = all[6 + number]["Rules"].as_str().unwrap_or_default();
                right &= words(rules) == words(&readme("hcl", policy));
            }
            if right { Ok(all) } else { Err(all.to_string()) }
        })
        .await
    }
}

#[tokio::test]
async fn auth_method_is_set_up_and_repaired() {
    let world = World::agentless(&[]).await;
    let (controller, address) = world.start_with_logins();
    let first = world.logins_settle().await;
    assert_eq!(first[1].as_array().unwrap().len(), 4);
    cycles(&address, 3.0).await;
    assert_eq!(world.everything().await, first, "what is right is not written again");

    let mut method = world.method().await;
    method["MaxTokenTTL"] = "1h0m0s".into();
    method["Config"]["BoundIAMPrincipalARNs"] = json!(["arn:aws:iam::210987654321:role/shop"]);
    method["Config"]["IAMEntityTags"] = json!(["team"]);
    world.put(&format!("/v1/acl/auth-method/{METHOD}"), method).await;
    let by_kind = |kind: &str| {
        let rule = first[1].as_array().unwrap().iter().find(|rule| rule["Selector"].as_str().unwrap().contains(kind));
        rule.unwrap().clone()
    };
    let mut edited = by_kind("mesh-gateway");
    let id = |object: &Value| object["ID"].as_str().unwrap().to_owned();
    edited["Selector"] = "".into();
    world.put(&format!("/v1/acl/binding-rule/{}", id(&edited)), edited.clone()).await;
    let deleted = format!("/v1/acl/binding-rule/{}", id(&by_kind("api-gateway")));
    world.agent.call("DELETE", &deleted, &Value::Null).await;
    let own = json!({ "AuthMethod": METHOD, "Selector": "", "BindType": "role", "BindName": "of-a-team" });
    world.put("/v1/acl/binding-rule", own).await;
    let mut role = world.role(ROLES[1]).await;
    role["Policies"] = json!([]);
    role["ServiceIdentities"] = json!([{ "ServiceName": "billing" }]);
    world.put(&format!("/v1/acl/role/{}", id(&role)), role).await;
    world.agent.call("DELETE", &format!("/v1/acl/role/{}", id(&world.role(ROLES[2]).await)), &Value::Null).await;
    let policy = world.policy("consul-ecs-api-gateway-policy").await;
    let wrong = json!({ "Name": "consul-ecs-api-gateway-policy", "Rules": "operator = \"write\"" });
    world.put(&format!("/v1/acl/policy/{}", id(&policy)), wrong).await;
    let policy = world.policy("consul-ecs-mesh-gateway-policy").await;
    world.agent.call("DELETE", &format!("/v1/acl/policy/{}", id(&policy)), &Value::Null).await;
    world.put("/v1/acl/policy", json!({ "Name": "team", "Rules": "" })).await;
    world.put(ANONYMOUS, json!({ "Description": "ours", "Policies": [{ "Name": "team" }] })).await;

    let repaired = world.logins_settle().await;
    assert_eq!(repaired[0]["MaxTokenTTL"], "1h0m0s");
    let config = &repaired[0]["Config"];
    assert_eq!(
        (&config["BoundIAMPrincipalARNs"][0], &config["IAMEntityTags"][0]),
        (&json!("arn:aws:iam::210987654321:role/shop"), &json!("team"))
    );
    let rules = repaired[1].as_array().unwrap();
    assert_eq!(rules.len(), 5, "no rule is there twice: {rules:?}");
    assert!(rules.iter().any(|rule| rule["BindName"] == "of-a-team"));
    assert!(rules.iter().any(|rule| rule["ID"] == edited["ID"] && rule["Selector"] != ""));
    assert_eq!(repaired[4]["ServiceIdentities"], json!([{ "ServiceName": "billing" }]));
    assert!(repaired[2]["Policies"].to_string().contains("\"team\"") && repaired[2]["Description"] == "ours");
    world.silent(&controller);
}

#[tokio::test]
async fn what_consul_ecs_has_set_up_is_taken_over_as_it_is() {
    let world = World::agentless(&[]).await;
    let tags = ["gateway-kind", "namespace", "service-name"].map(|tag| format!("consul.hashicorp.com.{tag}"));
    let config = json!({
        "BoundIAMPrincipalARNs": ["arn:aws:iam::210987654321:role/consul-ecs/*"], "EnableIAMEntityDetails": true,
        "IAMEntityTags": tags,
    });
    // consul-ecs writes the same rules over several lines.
    let lines = |number| readme("hcl", number).replace("{ policy", "{\n\t\tpolicy").replace("\" }", "\"\n\t}\n");
    for (name, rules) in [
        ("consul-ecs-api-gateway-policy", lines(6)),
        ("consul-ecs-mesh-gateway-policy", lines(7)),
        ("anonymous-token-policy", lines(8)),
    ] {
        world.put("/v1/acl/policy", json!({ "Name": name, "Description": "of consul-ecs", "Rules": rules })).await;
    }
    for (role, policies) in [
        (ROLES[0], json!([{ "Name": "consul-ecs-api-gateway-policy" }])),
        (ROLES[1], json!([{ "Name": "consul-ecs-mesh-gateway-policy" }])),
        (ROLES[2], json!([])),
    ] {
        world.put("/v1/acl/role", json!({ "Name": role, "Description": "of consul-ecs", "Policies": policies })).await;
    }
    let method = json!({ "Name": METHOD, "Type": "aws-iam", "Description": "of consul-ecs", "Config": config });
    world.put("/v1/acl/auth-method", method).await;
    let service = "${entity_tags.consul.hashicorp.com.service-name}".to_owned();
    let kinds = ["api-gateway", "terminating-gateway", "mesh-gateway"];
    let roles = kinds.map(|kind| (format!("{KIND} == \"{kind}\""), "role", format!("consul-ecs-{kind}-role")));
    for (selector, kind, name) in [(String::new(), "service", service)].into_iter().chain(roles) {
        let rule = json!({ "AuthMethod": METHOD, "Description": format!("for {name}"), "Selector": selector,
                           "BindType": kind, "BindName": name });
        world.put("/v1/acl/binding-rule", rule).await;
    }
    world.put(ANONYMOUS, json!({ "Policies": [{ "Name": "anonymous-token-policy" }] })).await;
    let node = json!({ "Node": CLUSTER, "Address": "10.0.0.14", "NodeMeta": { "synthetic-node": "true" } });
    world.put("/v1/catalog/register", node).await;
    let path = format!("/v1/catalog/node/{}", CLUSTER.replace('/', "%2F"));
    let before = (world.everything().await, world.get(&path).await);
    let (controller, address) = world.start_with_logins();
    cycles(&address, 4.0).await;
    world.logins_settle().await;
    // The answers contain each ModifyIndex.
    assert_eq!((world.everything().await, world.get(&path).await), before);
    assert!(!controller.output().contains("ERROR"), "{}", controller.output());
}

#[tokio::test]
async fn auth_method_of_another_type_is_left_alone() {
    let world = World::agentless(&[]).await;
    let key = rcgen::KeyPair::generate().unwrap().public_key_pem();
    let method = json!({ "Name": METHOD, "Type": "jwt",
                         "Config": { "JWTValidationPubKeys": [key], "JWTSupportedAlgs": ["ES256"] } });
    world.put("/v1/acl/auth-method", method).await;
    let before = world.method().await;
    let (controller, _) = world.start_with_logins();
    let line =
        "cannot set up the auth method iam-ecs-service-token: the auth method iam-ecs-service-token has the type jwt";
    controller.says(line, BOUND).await;
    assert_eq!(world.method().await, before);
    assert_eq!(world.role(ROLES[0]).await, Value::Null);
}

#[tokio::test]
async fn consul_without_aws_iam_gives_one_error_line() {
    let world = World::agentless(&["web"]).await;
    world.aws.run("1", "web");
    let (controller, _) = world.start_with_logins();
    controller.says("auth methods of the type aws-iam need Consul 1.12 or later", BOUND).await;
    // The rest goes on.
    world.settles("web").await;
    assert_eq!(world.role(ROLES[0]).await, Value::Null);
}

/// The controller of consul-ecs 0.10, in a task whose address is 10.0.0.14.
fn consul_ecs(world: &World, metadata: &Metadata) -> Process {
    let (host, port) = world.agent.http.split_once(':').unwrap();
    let document = json!({
        "bootstrapDir": "/tmp",
        "controller": { "iamRolePath": "/consul-ecs/" },
        "consulServers": {
            "hosts": host, "skipServerWatch": true, "defaults": { "tls": false },
            "http": { "https": false, "port": port.parse::<u16>().unwrap() }, "grpc": { "port": world.agent.grpc_port },
        },
    });
    let program = std::env::var("CONSUL_ECS").expect("CONSUL_ECS names the program of consul-ecs");
    let mut command = Command::new(program);
    command.arg("controller").env_clear().env("CONSUL_ECS_CONFIG_JSON", document.to_string());
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).env("AWS_REGION", "eu-north-1");
    command.env("AWS_ENDPOINT_URL", &world.aws.url).env("CONSUL_HTTP_TOKEN", &world.agent.management);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "b1g-s3cr3t-key");
    Process::spawn(&mut command)
}

#[tokio::test]
#[ignore = "needs CONSUL_ECS, the program of consul-ecs 0.10, and CONSUL, a Consul since 1.16"]
async fn consul_ecs_0_10_hands_over_and_takes_back() {
    let world = World::agentless(&[]).await;
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.0.14"] }]);
    let metadata = Metadata::start("controller", json!([{ "Name": "controller", "Networks": networks }]));
    let theirs = consul_ecs(&world, &metadata);
    world.logins_settle().await;
    let path = format!("/v1/catalog/node/{}", CLUSTER.replace('/', "%2F"));
    let node_is_there = async || {
        eventually("the node is there", BOUND, async || {
            let node = world.agent.call("GET", &path, &Value::Null).await;
            if node["Node"].is_object() { Ok(node) } else { Err(node.to_string()) }
        })
        .await
    };
    let node = node_is_there().await;
    drop(theirs);

    let before = world.everything().await;
    let (ours, address) = world.start_with_logins();
    cycles(&address, 4.0).await;
    assert_eq!((world.everything().await, node_is_there().await), (before.clone(), node), "nothing was written");
    let mut method = world.method().await;
    method["MaxTokenTTL"] = "1h0m0s".into();
    world.put(&format!("/v1/acl/auth-method/{METHOD}"), method).await;
    cycles(&address, 2.0).await;
    assert!(!ours.output().contains("ERROR"), "{}", ours.output());
    drop(ours);

    // Theirs registers the node at the end of its start.
    world.put("/v1/catalog/deregister", json!({ "Node": CLUSTER })).await;
    let _theirs = consul_ecs(&world, &metadata);
    node_is_there().await;
    let after = world.logins_settle().await;
    assert_eq!((after[0]["MaxTokenTTL"].as_str(), after[1].as_array().unwrap().len()), (Some("1h0m0s"), 4));
}
