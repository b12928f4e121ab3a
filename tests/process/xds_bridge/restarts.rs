//! Connections that break, and a Consul or an Envoy that starts again.

use http_fixture::{Pass, Relay};

use super::*;

#[tokio::test]
async fn reconnect_sends_only_changes() {
    let bridge = Bridge::start().await;
    let relay = Relay::start(&format!("127.0.0.1:{}", bridge.port), |_, _| Pass::On, |_, _| {});
    let port = relay.address.rsplit(':').next().unwrap().parse().unwrap();
    let (envoy, _) = two_upstreams(&bridge, port).await;
    let (before, mark) = (envoy.updates().await, bridge.mark());
    let opened = || bridge.process.output().matches("Envoy opened a stream").count();
    let streams = opened();

    relay.cut();
    eventually("Envoy is back", BOUND, async || if opened() > streams { Ok(()) } else { Err(String::new()) }).await;
    // Everything that the reconnect sends comes before this change.
    bridge.instance("b", 3).await;
    envoy.has_endpoints("b", &["127.9.0.2", "127.9.0.3"]).await;

    let sent = bridge.sent(mark);
    assert!(matches!(&sent[..], [one] if one.starts_with("kind=endpoint resources=[\"b.")), "{sent:?}");
    only_increased(&before, &envoy.updates().await, "cluster.b");
}

#[tokio::test]
async fn restart_of_consul_removes_no_resource() {
    let mut bridge = Bridge::start().await;
    let (envoy, _) = two_upstreams(&bridge, bridge.port).await;

    assert_eq!(bridge.stop().await, 0, "Consul's own exit code");
    envoy.cluster("b").await.unwrap();
    envoy.listener("b").await.unwrap();
    bridge.start_again().await;
    bridge.instance("b", 3).await;
    envoy.has_endpoints("b", &["127.9.0.2", "127.9.0.3"]).await;

    envoy.nothing_warms().await;
    assert_eq!(envoy.stat("cluster_manager.cluster_removed").await, 0);
    assert_eq!(envoy.stat("listener_manager.listener_removed").await, 0);
}

#[tokio::test]
async fn restarted_envoy_gets_every_resource() {
    let bridge = Bridge::start().await;
    let (envoy, _) = two_upstreams(&bridge, bridge.port).await;
    drop(envoy);

    let envoy = Envoy::start("web-proxy", bridge.port).await;
    envoy.has_endpoints("a", &["127.9.0.1"]).await;
    envoy.has_endpoints("b", &["127.9.0.2"]).await;
    for listener in ["public_listener", "a", "b"] {
        eventually(&format!("the listener {listener}"), BOUND, async || envoy.listener(listener).await).await;
    }
    envoy.nothing_warms().await;
}
