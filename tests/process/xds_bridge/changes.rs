//! Which resources a change in Consul sends to Envoy.

use super::*;

#[tokio::test]
async fn one_changed_endpoint_sends_one_resource() {
    let bridge = Bridge::start().await;
    let (envoy, _) = two_upstreams(&bridge, bridge.port).await;
    let (before, mark) = (envoy.updates().await, bridge.mark());
    let clusters = envoy.dump("dynamic_active_clusters").await.unwrap();
    let listeners = envoy.dump("dynamic_listeners").await.unwrap();

    bridge.instance("b", 3).await;
    envoy.has_endpoints("b", &["127.9.0.2", "127.9.0.3"]).await;

    only_increased(&before, &envoy.updates().await, "cluster.b");
    let sent = bridge.sent(mark);
    assert!(matches!(&sent[..], [one] if one.starts_with("kind=endpoint resources=[\"b.")), "{sent:?}");
    // The dumps include the time of each resource's last update, so nothing else was updated.
    assert_eq!(envoy.dump("dynamic_active_clusters").await.unwrap(), clusters);
    assert_eq!(envoy.dump("dynamic_listeners").await.unwrap(), listeners);
}

#[tokio::test]
async fn unsubscribed_resource_is_not_sent() {
    let bridge = Bridge::start().await;
    let ports = [free_port(), free_port(), free_port()];
    bridge.instance("a", 1).await;
    bridge.instance("b", 2).await;
    // Consul sends endpoints even for a user's own cluster that does not ask for endpoints.
    let own = |cluster: Value| upstream("b", ports[2], json!({"envoy_cluster_json": cluster.to_string()}));
    let eds = json!({"eds_config": {"ads": {}}});
    let discovers = json!({"name": "own", "type": "EDS", "connect_timeout": "5s", "eds_cluster_config": eds});
    let knows = json!({"name": "own", "type": "STATIC", "connect_timeout": "5s", "hosts":
        [{"socket_address": {"address": "127.9.9.9", "port_value": 1}}]});
    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({})), own(discovers)])).await;
    let envoy = Envoy::start("web-proxy", bridge.port).await;
    envoy.has_endpoints("a", &["127.9.0.1"]).await;
    envoy.has_endpoints("own", &["127.9.0.2"]).await;

    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({})), own(knows)])).await;
    eventually("Envoy knows the endpoints itself", BOUND, async || {
        let cluster = envoy.cluster("own").await?;
        if cluster["cluster"]["type"] == "STATIC" { Ok(()) } else { Err(cluster.to_string()) }
    })
    .await;
    envoy.nothing_warms().await;
    bridge.process.says("Envoy unsubscribed", BOUND).await;
    let mark = bridge.mark();
    bridge.instance("b", 3).await;
    bridge.instance("a", 4).await;
    envoy.has_endpoints("a", &["127.9.0.1", "127.9.0.4"]).await;

    let sent = bridge.sent(mark);
    assert!(!sent.is_empty() && !sent.iter().any(|sent| sent.contains("\"own\"")), "{sent:?}");
}

#[tokio::test]
async fn removal_in_consul_removes_from_envoy() {
    let bridge = Bridge::start().await;
    let (envoy, ports) = two_upstreams(&bridge, bridge.port).await;

    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({}))])).await;
    eventually("b is gone", BOUND, async || match (envoy.cluster("b").await, envoy.listener("b").await) {
        (Err(_), Err(_)) => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    envoy.cluster("a").await.unwrap();
    envoy.listener("a").await.unwrap();
    envoy.listener("public_listener").await.unwrap();
    assert_eq!(envoy.stat("listener_manager.listener_removed").await, 1);
    assert_eq!(envoy.stat("cluster_manager.cluster_removed").await, 1);

    // It comes back.
    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({})), upstream("b", ports[2], json!({}))])).await;
    envoy.has_endpoints("b", &["127.9.0.2"]).await;
    eventually("b is back", BOUND, async || envoy.listener("b").await).await;
    envoy.nothing_warms().await;
}

#[tokio::test]
async fn refusal_is_logged_and_a_later_version_accepted() {
    let bridge = Bridge::start().await;
    let (envoy, ports) = two_upstreams(&bridge, bridge.port).await;
    let own = |filter: Value| {
        let listener = json!({"name": "own", "filter_chains": [{"filters": [filter]}],
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[2]}}});
        let config = json!({"envoy_listener_json": listener.to_string()});
        web(ports[0], &[upstream("a", ports[1], json!({})), upstream("b", ports[2], config)])
    };

    bridge.register(&own(json!({"name": "no.such.filter", "config": {"x": 1}}))).await;
    bridge.process.says("Envoy refused a change", BOUND).await;
    let output = bridge.process.output();
    let refusal = output.lines().find(|line| line.contains("Envoy refused a change")).unwrap();
    for part in ["WARN", "node=\"web-proxy\"", "kind=listener", "no.such.filter"] {
        assert!(refusal.contains(part), "{part} in {refusal}");
    }
    // Other changes still reach Envoy.
    bridge.instance("a", 3).await;
    envoy.has_endpoints("a", &["127.9.0.1", "127.9.0.3"]).await;

    bridge
        .register(&own(json!({"name": "envoy.tcp_proxy", "config": {"stat_prefix": "own", "cluster": "local_app"}})))
        .await;
    eventually("the good version", BOUND, async || envoy.listener("own").await).await;
    assert!(!bridge.process.output().contains(TOKEN), "a token in the log");
}

#[tokio::test]
async fn resources_sent_again_do_not_stay_warming() {
    let bridge = Bridge::start().await;
    let protocol = |protocol: &str| json!({"Kind": "service-defaults", "Name": "b", "Protocol": protocol});
    bridge.config(&protocol("http")).await;
    let routes = json!([{"Match": {"HTTP": {"PathPrefix": "/x"}}, "Destination": {"NumRetries": 3}}]);
    bridge.config(&json!({"Kind": "service-router", "Name": "b", "Routes": routes})).await;
    let (envoy, ports) = two_upstreams(&bridge, bridge.port).await;
    let route = envoy.dump("dynamic_route_configs").await.unwrap()[0]["route_config"].to_string();
    assert!(route.contains("\"num_retries\":3"), "{route}");

    // Another cluster of the same name, with the same endpoints.
    let limited = upstream("b", ports[2], json!({"limits": {"max_connections": 7}}));
    bridge.register(&web(ports[0], &[upstream("a", ports[1], json!({})), limited.clone()])).await;
    eventually("the new cluster", BEFORE_ENVOY_GIVES_UP, async || {
        let cluster = envoy.cluster("b").await?.to_string();
        if cluster.contains("\"max_connections\":7") { Ok(()) } else { Err(cluster) }
    })
    .await;
    envoy.nothing_warms().await;
    envoy.has_endpoints("b", &["127.9.0.2"]).await;

    // Another listener of the same name, with the same routes.
    bridge.config(&protocol("http2")).await;
    eventually("the new listener", BEFORE_ENVOY_GIVES_UP, async || {
        let listener = envoy.listener("b").await?.to_string();
        if listener.contains("http2_protocol_options") { Ok(()) } else { Err(listener) }
    })
    .await;
    envoy.nothing_warms().await;
}
