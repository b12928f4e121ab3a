//! The profile `gateways`: a mesh gateway and an ingress gateway as tasks like others.

use local_mesh::task::{self, StopOrder};
use mesh_tests::{eventually, http};
use serde_json::{Value, json};

use crate::{BOUND, consul_get, whole};

/// The URL of the ingress gateway for clients outside of the mesh.
const INGRESS: &str = "http://127.0.0.1:8081/";

/// The kinds, ports and check statuses of a gateway's instances, as Consul's servers have them. xds-bridge's copy of a gateway without an
/// agent is left out: Consul 1.8 needs it to serve the gateway's Envoy.
pub async fn instances(gateway: &str) -> Result<Vec<Value>, String> {
    let found = consul_get(&format!("/v1/health/service/{gateway}")).await?;
    let is_copy = |check: &Value| check["CheckID"].as_str().is_some_and(|id| id.ends_with("-copy"));
    let instance = |found: &&Value| !found["Checks"].as_array().into_iter().flatten().any(is_copy);
    let described = |found: &Value| {
        let checks = found["Checks"].as_array().into_iter().flatten().map(|check| check["Status"].clone());
        json!([found["Service"]["Kind"], found["Service"]["Port"], checks.collect::<Vec<_>>()])
    };
    Ok(found.as_array().into_iter().flatten().filter(instance).map(described).collect())
}

#[tokio::test]
async fn outside_request_enters_through_the_ingress_gateway() {
    let docker = whole().await;
    for gateway in ["ingress-gateway", "mesh-gateway"] {
        task::start(&docker, gateway, &[]).await.unwrap();
        // The two checks are the node's own one and the listener's.
        assert_eq!(instances(gateway).await.unwrap(), [json!([gateway, 8443, ["passing", "passing"]])]);
    }
    let entered = async || {
        let answer = http::get_json(INGRESS).await?;
        let through = answer["service"] == "web" && answer["upstreams"]["api"]["status"] == 200;
        if through { Ok(()) } else { Err(answer.to_string()) }
    };
    eventually("a request enters through the ingress", BOUND, entered).await;

    for gateway in ["ingress-gateway", "mesh-gateway"] {
        task::stop(&docker, gateway, StopOrder::AllAtOnce).await.unwrap();
        assert_eq!(instances(gateway).await.unwrap(), [] as [Value; 0], "{gateway} has left");
    }
    http::get_json(INGRESS).await.unwrap_err();
}
