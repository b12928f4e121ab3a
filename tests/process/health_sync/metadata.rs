//! Metadata that say nothing, or that are missing.

use super::*;

#[tokio::test]
async fn empty_metadata_changes_no_check() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("check passing", BOUND).await;
    rounds(&metadata, 2).await;
    for nothing in [Value::Null, json!([]), app("UNHEALTHY"), json!([{ "Name": "app", "Health": 5 }])] {
        metadata.set_field("Containers", nothing.clone());
        rounds(&metadata, 4).await;
        assert_eq!(status(&agent, CHECK).await.unwrap(), "passing", "{nothing}");
    }
    sync.says("no task metadata: the task metadata lists containers, but not this one; trying again", BOUND).await;
    metadata.set_containers(json!([{ "Name": "app", "KnownStatus": "STOPPED", "Health": { "status": "HEALTHY" } }]));
    becomes(&agent, CHECK, "critical").await;
}

#[tokio::test]
async fn first_metadata_without_own_container_is_ignored() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", json!([]));
    metadata.set_field("Containers", app("HEALTHY"));
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("no task metadata: the task metadata lists containers, but not this one; trying again", BOUND).await;
    rounds(&metadata, 4).await;
    assert_eq!(status(&agent, CHECK).await, None, "nothing is written: {}", sync.output());
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
}

#[tokio::test]
async fn missing_metadata_is_polled_without_end() {
    let agent = Agent::start().await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    metadata.set_failing(true);
    let sync = Process::spawn(&mut command(&agent.http, &metadata.uri, &["app"]));
    sync.says("no task metadata: the endpoint answered 500", BOUND).await;
    for wrong in [Value::Null, json!("nonsense"), json!([])] {
        metadata.set_field("Containers", wrong);
        metadata.set_failing(false);
        rounds(&metadata, 2).await;
    }
    metadata.set_containers(app("HEALTHY"));
    becomes(&agent, CHECK, "passing").await;
}
