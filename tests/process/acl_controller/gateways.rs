//! The rights of a terminating gateway's token: it has the identities of the gateway and of each service that its config entry links.

use super::*;

impl World {
    async fn link(&self, services: &[&str]) {
        let services = services.iter().map(|name| json!({ "Name": name })).collect::<Vec<_>>();
        let entry = json!({ "Kind": "terminating-gateway", "Name": "tgw", "Services": services });
        self.agent.call("PUT", "/v1/config", &entry).await;
    }

    /// Waits until the gateway's token has these identities, and returns its accessor ID.
    async fn speaks_for(&self, services: &[&str]) -> String {
        eventually(&format!("the gateway speaks for {services:?}"), BOUND, async || {
            let token = self.token_of("p-tgw").await?;
            let identities = token["ServiceIdentities"].as_array().into_iter().flatten();
            let mut names = identities.map(|identity| identity["ServiceName"].as_str().unwrap()).collect::<Vec<_>>();
            names.sort_unstable();
            if names == services {
                Ok(token["AccessorID"].as_str().unwrap().to_owned())
            } else {
                Err(token.to_string())
            }
        })
        .await
    }

    /// Whether Consul gives the gateway the certificate of a service.
    async fn may_have_leaf(&self, service: &str) -> bool {
        let token = self.aws.secret("p-tgw")["token"].as_str().unwrap().to_owned();
        let url = self.agent.url(&format!("/v1/agent/connect/ca/leaf/{service}"));
        http::request("GET", &url, &[("X-Consul-Token", &token)], "").await.unwrap().0 == 200
    }
}

#[tokio::test]
async fn terminating_gateway_token_follows_its_links() {
    let world = World::new(&["tgw", "web"]).await;
    world.aws.run("1", "tgw");
    world.aws.run("2", "web");
    world.link(&["legacy", "*"]).await;
    let controller = world.start();
    let accessor = world.speaks_for(&["legacy", "tgw"]).await;
    assert!(world.may_have_leaf("tgw").await && world.may_have_leaf("legacy").await);
    assert!(!world.may_have_leaf("billing").await && !world.may_have_leaf("web").await);
    controller.says("links \"*\", and its token gets no right for this service", BOUND).await;

    world.link(&["billing", "legacy"]).await;
    assert_eq!(world.speaks_for(&["billing", "legacy", "tgw"]).await, accessor);
    world.link(&["billing"]).await;
    assert_eq!(world.speaks_for(&["billing", "tgw"]).await, accessor);
    world.agent.call("DELETE", "/v1/config/terminating-gateway/tgw", &Value::Null).await;
    assert_eq!(world.speaks_for(&["tgw"]).await, accessor);
    // The tokens of other services did not change.
    world.settles("web").await;
    assert_eq!(controller.output().matches("links \"*\"").count(), 1, "said once");
    world.silent(&controller);
}

#[tokio::test]
async fn foreign_grants_of_a_gateway_token_are_removed() {
    let world = World::new(&["tgw"]).await;
    world.aws.run("1", "tgw");
    world.link(&["legacy"]).await;
    let _controller = world.start();
    let accessor = world.speaks_for(&["legacy", "tgw"]).await;
    let path = format!("/v1/acl/token/{accessor}");
    let mut token = world.agent.call("GET", &path, &Value::Null).await;
    token["ServiceIdentities"] =
        json!([{ "ServiceName": "tgw" }, { "ServiceName": "legacy" }, { "ServiceName": "web" }]);
    world.agent.call("PUT", &path, &token).await;
    assert_eq!(world.speaks_for(&["legacy", "tgw"]).await, accessor);
}

#[tokio::test]
async fn mesh_gateway_token_may_route_to_every_service() {
    let world = World::new(&["mgw", "web"]).await;
    let mesh = |id, service, kind| {
        let tags = [
            ("consul.hashicorp.com/mesh", "true"),
            ("consul.hashicorp.com/service-name", service),
            ("consul.hashicorp.com/gateway-kind", kind),
        ];
        world.aws.put_task(id, "family", &tags, SystemTime::now())
    };
    let task = mesh("1", "mgw", "mesh-gateway");
    mesh("2", "web", "terminating-gateway");
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    let has_policy = async || {
        let token = world.token_of("p-mgw").await?;
        let right = token["Policies"]
            .as_array()
            .is_some_and(|policies| policies.len() == 1 && policies[0]["Name"] == "p-mesh-gateway-policy");
        if right && token["ServiceIdentities"] == json!([{ "ServiceName": "mgw" }]) {
            Ok(token["AccessorID"].clone())
        } else {
            Err(token.to_string())
        }
    };
    let accessor = eventually("the gateway has its policy", BOUND, has_policy).await;
    world.settles("web").await;
    let secret = world.aws.secret("p-mgw")["token"].as_str().unwrap().to_owned();
    let token = [("X-Consul-Token", secret.as_str())];
    for path in ["/v1/catalog/nodes", "/v1/health/service/consul"] {
        let (status, seen) = http::request("GET", &world.agent.url(path), &token, "").await.unwrap();
        assert!(status == 200 && seen.contains("127.0.0.1"), "{path}: {status} {seen}");
    }
    let policies = world.agent.call("GET", "/v1/acl/policies", &Value::Null).await;
    let policy = policies.as_array().unwrap().iter().find(|policy| policy["Name"] == "p-mesh-gateway-policy").unwrap();
    let path = format!("/v1/acl/policy/{}", policy["ID"].as_str().unwrap());
    let rules = async || world.agent.call("GET", &path, &Value::Null).await["Rules"].as_str().unwrap().to_owned();
    assert_eq!(rules().await, readme("hcl", 4).trim_end());
    let wrong = json!({ "Name": "p-mesh-gateway-policy", "Rules": "operator = \"write\"" });
    world.agent.call("PUT", &path, &wrong).await;
    eventually("the policy is repaired", BOUND, async || {
        let rules = rules().await;
        if rules == readme("hcl", 4).trim_end() { Ok(()) } else { Err(rules) }
    })
    .await;
    // ECS deletes a stopping task's tags. Then the service has no task for a while, and a new controller has never seen a task of it.
    world.aws.stop(&task);
    cycles(&address, 3.0).await;
    assert_eq!(has_policy().await.unwrap(), accessor);
    world.aws.forget(&task);
    controller.says("service mgw: has no tasks", BOUND).await;
    drop(controller);
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    controller.says("holding the lock", TAKEOVER).await;
    cycles(&address, 3.0).await;
    assert_eq!(has_policy().await.unwrap(), accessor);
}
