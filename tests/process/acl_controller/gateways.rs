//! What a terminating gateway's token may do: it speaks for itself and for each service that its config entry links.

use super::*;

impl World {
    async fn link(&self, services: &[&str]) {
        let services = services.iter().map(|name| json!({ "Name": name })).collect::<Vec<_>>();
        let entry = json!({ "Kind": "terminating-gateway", "Name": "tgw", "Services": services });
        self.agent.call("PUT", "/v1/config", &entry).await;
    }

    /// Waits until the gateway's token has these identities, and gives its accessor ID.
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

    /// Whether Consul lets the gateway have the certificate of a service.
    async fn may_have_leaf(&self, service: &str) -> bool {
        let token = self.aws.secret("p-tgw")["token"].as_str().unwrap().to_owned();
        let url = self.agent.url(&format!("/v1/agent/connect/ca/leaf/{service}"));
        http::request("GET", &url, &[("X-Consul-Token", &token)], "").await.unwrap().0 == 200
    }
}

#[tokio::test]
async fn a_terminating_gateway_s_token_follows_its_links_and_stays_the_same_token() {
    let world = World::new(&["tgw", "web"]).await;
    world.aws.run("1", "tgw");
    world.aws.run("2", "web");
    world.link(&["legacy", "*"]).await;
    let controller = world.start();
    let accessor = world.speaks_for(&["legacy", "tgw"]).await;
    assert!(world.may_have_leaf("tgw").await && world.may_have_leaf("legacy").await);
    assert!(!world.may_have_leaf("billing").await && !world.may_have_leaf("web").await);
    controller.says("links \"*\", which no service identity can name", BOUND).await;

    world.link(&["billing", "legacy"]).await;
    assert_eq!(world.speaks_for(&["billing", "legacy", "tgw"]).await, accessor);
    world.link(&["billing"]).await;
    assert_eq!(world.speaks_for(&["billing", "tgw"]).await, accessor);
    world.agent.call("DELETE", "/v1/config/terminating-gateway/tgw", &Value::Null).await;
    assert_eq!(world.speaks_for(&["tgw"]).await, accessor);
    // No other's token had any part in it.
    world.settles("web").await;
    assert_eq!(controller.output().matches("links \"*\"").count(), 1, "said once");
    world.silent(&controller);
}

#[tokio::test]
async fn what_somebody_adds_to_a_gateway_s_token_is_taken_back() {
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
