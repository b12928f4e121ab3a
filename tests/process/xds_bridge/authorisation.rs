//! Who may connect to an Envoy, and the token with which it asks Consul.

use super::*;

/// The Envoys of a caller and a callee, the caller's local port for the callee, and the app behind the callee's Envoy.
async fn caller_and_callee(bridge: &Bridge) -> (Envoy, Envoy, u16, JoinHandle<()>) {
    let (app_port, app) = app("the app").await;
    let callee = callee(bridge, "a", app_port).await;
    let (caller, a) = caller(bridge, "a").await;
    let answer = eventually("an answer through both Envoys", BOUND, async || ask(a).await).await;
    assert_eq!(answer, "the app");
    (caller, callee, a, app)
}

#[tokio::test]
async fn intentions_authorise_inbound_connections() {
    let bridge = Bridge::start().await;
    let (_caller, callee, a, _app) = caller_and_callee(&bridge).await;
    // Later versions send their intentions to Envoy, which then does not ask the agent.
    let asks_the_agent = !version().serves_xds_v3();
    if asks_the_agent {
        assert!(callee.stat("ext_authz.connect_authz.ok").await > 0);
    }

    let deny = json!({"SourceName": "web", "DestinationName": "a", "SourceType": "consul", "Action": "deny"});
    bridge.call("POST", "/v1/connect/intentions", &deny).await;
    eventually("the intention holds", BOUND, async || match ask(a).await {
        Ok(answer) => Err(answer),
        Err(_) => Ok(()),
    })
    .await;
    if asks_the_agent {
        assert!(callee.stat("ext_authz.connect_authz.denied").await > 0);
        assert_eq!(callee.stat("ext_authz.connect_authz.error").await, 0);
    }
}

/// By default, Envoy waits 200 ms for the authorisation. A busy agent sometimes needs longer.
#[tokio::test]
async fn connection_waits_for_a_slow_agent() {
    let bridge = Bridge::start().await;
    let (_caller, callee, a, _app) = caller_and_callee(&bridge).await;
    let consul = bridge.consul().unwrap();

    kill_process(consul, Signal::STOP).unwrap();
    let goes_on = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        kill_process(consul, Signal::CONT).unwrap();
    };
    let (answer, ()) = tokio::join!(ask(a), goes_on);
    assert_eq!(answer, Ok("the app".to_owned()));
    assert_eq!(callee.stat("ext_authz.connect_authz.error").await, 0);
}

/// Envoy authorises connections with the token of its xDS stream.
#[tokio::test]
async fn token_of_the_stream_reaches_consul() {
    let bridge = Bridge::start().await;
    let (envoy, _) = two_upstreams(&bridge, bridge.port).await;
    let listener = envoy.listener("public_listener").await.unwrap().to_string();
    assert!(listener.contains(TOKEN));
    assert!(!bridge.process.output().contains(TOKEN), "a token in the log");
}

#[tokio::test]
async fn inbound_is_authorised_until_consul_has_left() {
    let mut bridge = Bridge::start().await;
    let (_caller, callee, a, _app) = caller_and_callee(&bridge).await;
    let before = callee.stat("ext_authz.connect_authz.ok").await;

    bridge.process.signal(Signal::TERM);
    bridge.process.says("server starting leave", BOUND).await;
    ask(a).await.unwrap();
    assert!(callee.stat("ext_authz.connect_authz.ok").await > before);
    assert_eq!(bridge.process.exit_code(BOUND).await, 0);
}
