//! ACLs in the local mesh: calls are denied by default, and acl-controller creates, repairs and deletes every token.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveVolumeOptions, RestartContainerOptions};
use consul_api::IntentionAction;
use ecs_local::secrets_manager::Version;
use local_mesh::compose::Compose;
use local_mesh::docker::{self, PROJECT_LABEL, containers, label};
use local_mesh::task::{self, StopOrder};
use local_mesh::{consul, mesh, secrets, workspace};
use mesh_tests::{eventually, http};
use serde_json::{Value, json};
use sidecar_kit::secret::Secret;

use crate::{BOUND, answered_by, answering_task, consul_get, restored, whole};

/// How long a client agent caches a token: Consul's default of 30 s, and a second more.
const TOKEN_TTL: Duration = Duration::from_secs(31);

/// The longest takeover, which is twice the session's TTL plus the lock-delay, and the cycle after it.
const TAKEOVER: Duration = Duration::from_secs(21 + 10);

/// A new leader deletes no token for 120 s, which is longer than the grace in docker-compose.yml. The rest is for some cycles.
const GRACE: Duration = Duration::from_secs(120 + 40);

/// The accessor ID and the token in a service's secret. An error if the secret holds no token yet.
async fn secret_of(service: &str) -> Result<(String, Secret), String> {
    let version = Version::current(&format!("{}-{service}", secrets::PREFIX));
    let value = secrets::manager().unwrap().get(&version).await.map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_str(value.expose()).map_err(|error| error.to_string())?;
    match (value["accessor_id"].as_str(), value["token"].as_str()) {
        (Some(accessor), Some(token)) => Ok((accessor.to_owned(), Secret::new(token))),
        _ => Err(format!("the secret of {service} holds no token")),
    }
}

/// The token of a service.
pub async fn token_of(service: &str) -> String {
    secret_of(service).await.unwrap().1.expose().to_owned()
}

async fn kill(docker: &Docker, container: &str) {
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(container, Some(kill)).await.unwrap();
}

#[tokio::test]
async fn intention_allows_web_to_call_api_within_two_seconds() {
    let docker = whole().await;
    web_needs_an_intention(&docker).await;
}

/// Checks that no request from web reaches a task of api until an intention allows it, and that each task answers then.
pub async fn web_needs_an_intention(docker: &Docker) {
    let consul = consul::client().await.unwrap();
    let intention = consul.intentions().await.unwrap().into_iter().find(|one| one.source_name == "web").unwrap();
    // Consul authorises a connection only when it is opened, so this test starts web again. The start also runs setup, which must not allow
    // web to call api again.
    task::stop(docker, "web", StopOrder::AllAtOnce).await.unwrap();
    consul.delete_intention(&intention).await.unwrap();
    task::start(docker, "web", &[("ALLOW", "web:nobody")]).await.unwrap();
    for api in ["api-1", "api-2"] {
        task::in_rotation(docker, api).await.unwrap();
    }
    for _ in 0..20 {
        let refused = answering_task().await.unwrap_err();
        // Consul 1.8 closes the connection. Later versions let Envoy answer.
        assert!(refused.contains("503") || refused.contains("RBAC: access denied"), "{refused}");
    }
    // Once an intention was written without an ID, Consul refuses new ones with an ID.
    if intention.id.is_empty() {
        consul.put_intention("web", "api", IntentionAction::Allow).await.unwrap();
    } else {
        consul.create_intention("web", "api", IntentionAction::Allow).await.unwrap();
    }
    eventually("web may call api", Duration::from_secs(2), answering_task).await;
    let nobody = consul.intentions().await.unwrap().into_iter().find(|one| one.destination_name == "nobody").unwrap();
    consul.delete_intention(&nobody).await.unwrap();
    answered_by(docker, &["api-1", "api-2"]).await;
}

#[tokio::test]
async fn each_token_has_minimal_rights() {
    let _mesh = whole().await;
    // Reads a token's own entry with the token itself.
    let itself = async |token: &Secret| {
        let token = [("X-Consul-Token", token.expose())];
        let (status, body) =
            http::request("GET", &format!("{}/v1/acl/token/self", consul::ADDRESS), &token, "").await.unwrap();
        assert_eq!(status, 200, "{body}");
        let token = serde_json::from_str::<Value>(&body).unwrap();
        for other in ["Roles", "NodeIdentities"] {
            assert!(token[other].is_null(), "{other}: {token}");
        }
        token
    };
    for service in ["web", "api"] {
        let token = itself(&secret_of(service).await.unwrap().1).await;
        assert_eq!(token["ServiceIdentities"], json!([{ "ServiceName": service }]), "{token}");
        assert!(token["Policies"].is_null(), "{token}");
    }
    let controller = Version::current(secrets::ACL_CONTROLLER_TOKEN);
    let controller = secrets::token_in(&secrets::manager().unwrap().get(&controller).await.unwrap()).unwrap();
    let clients = secret_of("consul-client-token").await.unwrap().1;
    for (token, policy) in [(controller, "acl-controller"), (clients, "ecs-mesh-consul-client-policy")] {
        let token = itself(&token).await;
        let policies = token["Policies"].as_array().unwrap().iter().map(|policy| policy["Name"].as_str().unwrap());
        assert_eq!(policies.collect::<Vec<_>>(), [policy], "{token}");
        assert!(token["ServiceIdentities"].is_null(), "{token}");
    }
    // Consul shows every key as "hidden", even if there is none. But the gossip statistics say whether gossip is encrypted.
    let itself = consul_get("/v1/agent/self").await.unwrap();
    assert_eq!(itself["Stats"]["serf_lan"]["encrypted"], "true");
    let settings = &itself["DebugConfig"];
    let tls = match &settings["TLS"]["InternalRPC"] {
        // Before Consul 1.12.
        Value::Null => ["VerifyIncomingRPC", "VerifyOutgoing", "VerifyServerHostname"].map(|name| &settings[name]),
        tls => ["VerifyIncoming", "VerifyOutgoing", "VerifyServerHostname"].map(|name| &tls[name]),
    };
    assert_eq!(tls, [true, true, true]);
    for setting in ["AutoEncryptAllowTLS", "ACLsEnabled"] {
        assert_eq!(settings[setting], true, "{setting}");
    }
    let nodes = http::get_json(&format!("{}/v1/catalog/nodes", consul::ADDRESS)).await.unwrap();
    assert_eq!(nodes, json!([]), "without a token nothing is visible");
}

#[tokio::test]
async fn third_service_has_a_token_until_its_last_task_ends() {
    let docker = whole().await;
    let over = workspace().join("tests/mesh/third.yml");
    let third = Compose { over: Some(&over), ..Compose::default() };
    let services = ["third-mesh-init", "third-consul-client", "third-consul-config", "third-secrets", "third"];
    // A platform engineer does only this for a new service. acl-controller does the rest.
    secrets::manager().unwrap().create("ecs-mesh-third", &Secret::new("{}")).await.unwrap();
    third.run(&["up", "--detach", "third-mesh-init"]).await.unwrap();
    eventually("it joins", BOUND, async || {
        let registered = consul_get("/v1/catalog/service/third-sidecar-proxy").await?;
        if registered.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(registered.to_string()) }
    })
    .await;

    let (accessor, token) = secret_of("third").await.unwrap();
    let node = task::running(&docker, "third").await.unwrap().node();
    let register = async |service: &str| {
        let header = [("X-Consul-Token", token.expose())];
        let body =
            json!({ "Node": node, "Address": "127.0.0.1", "SkipNodeUpdate": true, "Service": { "Service": service } });
        http::request("PUT", &format!("{}/v1/catalog/register", consul::ADDRESS), &header, &body.to_string())
            .await
            .unwrap()
    };
    let (status, said) = register("api").await;
    assert_eq!((status, said.contains("Permission denied")), (403, true), "{said}");
    assert_eq!(register("third").await.0, 200);

    // This asks the agent of another task, which caches tokens.
    let url = format!("http://127.0.0.1:8500/v1/agent/services?token={}", token.expose());
    let taken = async || mesh::fetch("web", &url).await.is_ok();
    assert!(taken().await);
    task::stop(&docker, "third", StopOrder::AllAtOnce).await.unwrap();
    third.run(&[&["rm", "--force", "-v"], &services[..]].concat()).await.unwrap();
    eventually("its token is gone", GRACE, async || match consul_get(&format!("/v1/acl/token/{accessor}")).await {
        // These requests keep the token in the agent's cache until it is deleted.
        Ok(_) => Err(format!("it still exists; the agent accepts it: {}", taken().await)),
        Err(_) => Ok(()),
    })
    .await;
    secret_of("third").await.unwrap_err();
    eventually("the agent refuses the deleted token", TOKEN_TTL, async || match taken().await {
        true => Err("the agent accepts it".to_owned()),
        false => Ok(()),
    })
    .await;
    for volume in ["third-mesh", "third-config", "third-secrets"] {
        docker.remove_volume(&format!("ecs-mesh_{volume}"), None::<RemoveVolumeOptions>).await.unwrap();
    }
}

#[tokio::test]
async fn no_token_is_lost_when_leaders_die() {
    let docker = whole().await;
    let before = (secret_of("web").await.unwrap().0, secret_of("api").await.unwrap().0);
    // A session's name contains the host name of its controller, which is the container's ID.
    let sessions = consul_get("/v1/session/list").await.unwrap();
    let names = sessions.as_array().unwrap().iter().map(|session| session["Name"].as_str().unwrap_or_default());
    let names = names.collect::<Vec<_>>();
    let leader = consul_get("/v1/status/leader").await.unwrap();
    let leader = leader.as_str().unwrap().split(':').next().unwrap().to_owned();
    let (mut controller, mut server) = (None, None);
    for container in containers(&docker, &[PROJECT_LABEL]).await.unwrap() {
        let id = container.id.clone().unwrap();
        let service = label(&container, "com.docker.compose.service").unwrap_or_default();
        let inspected = docker::inspect(&docker, &id).await.unwrap();
        let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        if service.starts_with("consul-server") && networks.values().any(|one| one.ip_address.as_ref() == Some(&leader))
        {
            server = Some(id.clone());
        }
        let holds = names.iter().any(|name| name.contains(&id[..12]));
        if service.starts_with("acl-controller-") && holds && docker::is_running(&container) {
            controller = Some(id);
        }
    }
    kill(&docker, &controller.expect("one of the controllers holds the lock")).await;
    secrets::manager().unwrap().put("ecs-mesh-web", &Secret::new("{}")).await.unwrap();
    kill(&docker, &server.expect("one of the servers leads")).await;
    // The lock's session may not end before Consul's servers have a new leader.
    let repaired =
        eventually("the other controller repairs the secret", 2 * TAKEOVER, async || secret_of("web").await).await;
    mesh::start_all(&docker).await.unwrap();
    assert_eq!((repaired.0, secret_of("api").await.unwrap().0), before, "the same tokens as before");
    restored().await;
}

#[tokio::test]
async fn lost_secrets_are_restored_with_the_same_tokens() {
    let docker = whole().await;
    let before = (secret_of("web").await.unwrap().0, secret_of("api").await.unwrap().0);
    let of_moto = "com.docker.compose.service=moto";
    let moto = containers(&docker, &[PROJECT_LABEL, of_moto]).await.unwrap().remove(0);
    // moto keeps its data in memory, so a restart loses all secrets.
    docker.restart_container(&moto.id.unwrap(), None::<RestartContainerOptions>).await.unwrap();
    mesh::start_all(&docker).await.unwrap();
    let after = eventually("acl-controller fills the secrets", BOUND, async || {
        Ok::<_, String>((secret_of("web").await?.0, secret_of("api").await?.0))
    })
    .await;
    assert_eq!(after, before);
    restored().await;
}
