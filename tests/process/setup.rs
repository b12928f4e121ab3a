//! `mesh-setup` beside a real Consul and moto.

use std::process::Command;
use std::time::Duration;

use ecs_local::secrets_manager::{SecretsManager, Version};
use mesh_setup::{keys, secrets};
use mesh_tests::consul::Agent;
use mesh_tests::moto::Moto;
use mesh_tests::process::run;
use mesh_tests::{binary, http, readme};
use serde_json::{Value, json};
use sidecar_kit::env::Env;

const BOUND: Duration = Duration::from_secs(60);

#[tokio::test]
async fn deleted_controller_token_is_replaced_in_its_secret() {
    let agent = Agent::start_with_acls().await;
    let moto = Moto::start().await;
    // An earlier run of setup would have stored the management token like this. Here the test itself bootstrapped the agent.
    let management = json!({ "accessor_id": "", "token": agent.management }).to_string();
    let create = ["create-secret", "--name", secrets::BOOTSTRAP_TOKEN, "--secret-string", &management];
    assert_eq!(moto.aws(&[&["secretsmanager"], &create[..]].concat()).await.code, 0);
    let [id, key] = moto.user("setup", Some(&readme("mesh-setup", "json", 0))).await;
    moto.require_authorization().await;
    let directory = tempfile::tempdir().unwrap();
    let config = json!({ "encrypt": "pUqJrVyVRj5jsiYEkM/tFQ==" });
    std::fs::write(directory.path().join(keys::CONFIG), config.to_string()).unwrap();
    std::fs::write(directory.path().join(keys::CA_FILE), "a certificate").unwrap();
    let variables = [
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", moto.url.as_str()),
        ("AWS_REGION", "eu-north-1"),
        ("AWS_ACCESS_KEY_ID", &id),
        ("AWS_SECRET_ACCESS_KEY", &key),
    ];
    let manager = SecretsManager::from_env(&Env::from_iter(variables)).unwrap();
    let sets_up = async || {
        let mut setup = Command::new(binary("mesh-setup"));
        setup.env_clear().envs(variables).arg("--keys").arg(directory.path()).arg("--state").arg(directory.path());
        let server = format!("http://{}", agent.http);
        let ended = run(setup.args(["--http-service", "web", "--server", &server]), BOUND).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let value = manager.get(&Version::current(secrets::ACL_CONTROLLER_TOKEN)).await.unwrap();
        assert!(!ended.stderr.contains(value.expose()));
        value
    };
    // Reads the entry of the secret's token, with the token itself.
    let itself = async |value| {
        let token = secrets::token_in(value).unwrap();
        let token = [("X-Consul-Token", token.expose())];
        let (status, body) = http::request("GET", &agent.url("/v1/acl/token/self"), &token, "").await.unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let first = sets_up().await;
    let accessor = itself(&first).await["AccessorID"].take();
    agent.call("DELETE", &format!("/v1/acl/token/{}", accessor.as_str().unwrap()), &Value::Null).await;
    let second = sets_up().await;
    let token = itself(&second).await;
    assert_ne!(token["AccessorID"], accessor);
    assert_eq!(token["Policies"][0]["Name"], "acl-controller");
    assert_eq!(sets_up().await, second, "a third run changes nothing");
}
