//! What happens after TERM.

use super::*;

#[tokio::test]
async fn term_sets_checks_critical_and_maintenance() {
    for synced in [&["app"][..], &[]] {
        let agent = Agent::start().await;
        let metadata = Metadata::start("shop", app("HEALTHY"));
        let mut sync = Process::spawn(&mut command(&agent.http, &metadata.uri, synced));
        eventually("service and proxy are registered", BOUND, async || {
            let services = agent.call("GET", "/v1/agent/services", &Value::Null).await;
            if services[SERVICES[1]].is_object() { Ok(()) } else { Err(services.to_string()) }
        })
        .await;
        if !synced.is_empty() {
            becomes(&agent, CHECK, "passing").await;
        }
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 0);
        // The process has ended, so no write can follow.
        if !synced.is_empty() {
            assert_eq!(status(&agent, CHECK).await.as_deref(), Some("critical"));
        }
        for service in SERVICES {
            let maintenance = status(&agent, &format!("_service_maintenance:{service}")).await;
            assert_eq!(maintenance.as_deref(), Some("critical"), "{service}");
        }
        // ECS may restart the container in the same task. The new health-sync ends the maintenance.
        let _again = Process::spawn(&mut command(&agent.http, &metadata.uri, synced));
        eventually("no maintenance", BOUND, async || match status(&agent, "_service_maintenance:shop-f1a2").await {
            None => Ok(()),
            Some(status) => Err(status),
        })
        .await;
    }
}

#[tokio::test]
async fn critical_wins_over_a_passing_write_under_way() {
    // The first write ends in time. The second takes long, and health-sync cuts it off.
    for delay in [Duration::from_millis(60), Duration::from_secs(3)] {
        let agent = Agent::start().await;
        let metadata = Metadata::start("shop", app("UNHEALTHY"));
        let (way, held) = slow_relay(&agent.http, "\"passing\"", delay);
        let mut sync = Process::spawn(&mut command(&way, &metadata.uri, &["app"]));
        sync.says("check critical", BOUND).await;
        metadata.set_containers(app("HEALTHY"));
        eventually("a write of passing is under way", BOUND, async || held.try_recv().map_err(|e| e.to_string())).await;
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 0);
        let all = async || {
            let mut all = vec![status(&agent, CHECK).await];
            for service in SERVICES {
                all.push(status(&agent, &format!("_service_maintenance:{service}")).await);
            }
            all
        };
        let critical = vec![Some("critical".to_owned()); 3];
        assert_eq!(all().await, critical, "{}", sync.output());
        // The cancelled write may still reach the agent and set the check. The maintenance remains.
        tokio::time::sleep(delay + Duration::from_millis(200)).await;
        assert_eq!(all().await[1..], critical[1..]);
    }
}

#[tokio::test]
async fn missing_or_frozen_agent_does_not_delay_the_end() {
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let frozen = frozen.local_addr().unwrap().to_string();
    let gone = format!("127.0.0.1:{}", free_port());
    for agent in [gone, frozen] {
        let mut sync = Process::spawn(&mut command(&agent, &metadata.uri, &["app"]));
        sync.says("syncing the health of shop-f1a2", BOUND).await;
        sync.signal(Signal::TERM);
        assert_eq!(sync.exit_code(BOUND).await, 1);
        sync.says("health-sync: not written to Consul within 1s: check shop-f1a2-app-consul-ecs critical: ", BOUND)
            .await;
        sync.says("maintenance of shop-f1a2-sidecar-proxy: ", BOUND).await;
    }
}

/// Here the servers are down. A test of the mesh suite has servers that hang.
#[tokio::test]
async fn servers_that_are_down_do_not_delay_the_end() {
    let serf = free_port();
    let server = Agent::start_with(&json!({ "ports": { "serf_lan": serf } })).await;
    let client = json!({ "server": false, "bootstrap": false, "node_name": "client", "leave_on_terminate": true,
        "retry_join": [format!("127.0.0.1:{serf}")] });
    let mut client = Agent::start_with(&client).await;
    let metadata = Metadata::start("shop", app("HEALTHY"));
    let mut sync = Process::spawn(&mut command(&client.http, &metadata.uri, &["app"]));
    becomes(&client, CHECK, "passing").await;

    drop(server);
    sync.signal(Signal::TERM);
    // The agent accepts writes that it cannot send to the servers.
    assert_eq!(sync.exit_code(BOUND).await, 0, "{}", sync.output());
    assert_eq!(status(&client, CHECK).await.unwrap(), "critical");
    assert_eq!(client.stop(BOUND).await, 0, "{}", client.output());
}

#[tokio::test]
async fn term_before_the_first_metadata_ends_it() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let mut sync = Process::spawn(&mut command(&nobody, &format!("http://{nobody}/v4/x"), &["app"]));
    sync.says("no task metadata: ", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before there was any task metadata: nothing was written to Consul", BOUND).await;
}
