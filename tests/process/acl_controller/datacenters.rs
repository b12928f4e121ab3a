//! A controller in a secondary datacenter, whose tokens are written in the primary and replicated.

use super::*;

/// The accessor IDs of the tokens for a service on the servers of this datacenter.
async fn tokens(agent: &Agent, datacenter: &str, service: &str) -> Vec<String> {
    let path = format!("/v1/acl/tokens?dc={datacenter}");
    let tokens = agent.call("GET", &path, &Value::Null).await;
    let has = |token: &&Value| token["ServiceIdentities"] == json!([{ "ServiceName": service }]);
    let tokens = tokens.as_array().unwrap().iter().filter(has);
    tokens.map(|token| token["AccessorID"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn secondary_datacenter_creates_each_token_once() {
    let (primary, secondary) = Agent::start_two_datacenters().await;
    let world = World::at(secondary, &["web", "api"]).await;
    let replicated = async |service: &str, accessor: &str| {
        eventually(&format!("the token of {service} is replicated"), 3 * BOUND, async || {
            let tokens = tokens(&world.agent, "dc2", service).await;
            if tokens == [accessor] { Ok(()) } else { Err(format!("{tokens:?} instead of {accessor}")) }
        })
        .await;
    };
    let made = async |service: &str| {
        eventually(&format!("the token of {service} is stored"), BOUND, async || {
            let value = world.aws.secret(&format!("p-{service}"));
            value["accessor_id"].as_str().map(str::to_owned).ok_or(value.to_string())
        })
        .await
    };
    // The controller's own token must be replicated too.
    eventually("the controller's token is replicated", BOUND, async || {
        let url = world.agent.url("/v1/acl/token/self");
        match http::request("GET", &url, &[("X-Consul-Token", &world.token)], "").await?.0 {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    world.aws.run("1", "web");
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    let web = made("web").await;
    replicated("web", &web).await;

    world.agent.replicate(false).await;
    world.aws.run("2", "api");
    let api = made("api").await;
    cycles(&address, 10.0).await;
    assert_eq!(tokens(&world.agent, "dc2", "api").await, [""; 0], "replication is broken");
    assert_eq!(tokens(&primary, "dc1", "api").await, [api.as_str()]);

    world.agent.replicate(true).await;
    replicated("api", &api).await;
    cycles(&address, 10.0).await;
    for (service, accessor) in [("web", &web), ("api", &api)] {
        assert_eq!(&made(service).await, accessor);
        assert_eq!(&tokens(&primary, "dc1", service).await, std::slice::from_ref(accessor));
        assert_eq!(&tokens(&world.agent, "dc2", service).await, std::slice::from_ref(accessor));
    }
    // One token for each service and one for the consul-clients.
    assert_eq!(metrics(&address).await["acl_controller_tokens_total{change=\"created\"}"], 3.0);
    assert!(!controller.output().contains("repaired"), "{}", controller.output());
}
