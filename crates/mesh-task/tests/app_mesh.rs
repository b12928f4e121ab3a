//! The conversion of App Mesh's resources. tests/process/app_mesh.rs gives the entries to a real Consul.

use std::path::Path;

use mesh_task::app_mesh::{Converted, convert};
use serde_json::{Value, json};

fn converted(resources: Value) -> Converted {
    convert(&[("shop.json".to_owned(), resources)]).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn errors(resources: Value) -> Vec<String> {
    convert(&[("shop.json".to_owned(), resources)]).unwrap_err()
}

fn entry<'a>(converted: &'a Converted, kind: &str, name: &str) -> &'a Value {
    let found = converted.entries.iter().find(|entry| entry["Kind"] == kind && entry["Name"] == name);
    found.unwrap_or_else(|| panic!("{kind} {name}: {:#?}", converted.entries))
}

fn has(converted: &Converted, kind: &str, name: &str) -> bool {
    converted.entries.iter().any(|entry| entry["Kind"] == kind && entry["Name"] == name)
}

fn node(name: &str, protocol: &str) -> Value {
    let listener = json!({ "portMapping": { "port": 8080, "protocol": protocol } });
    json!({ "meshName": "shop", "virtualNodeName": name, "spec": { "listeners": [listener] } })
}

/// The nodes `a` and `b`, and the virtual service `s` with these routes.
fn routed(protocol: &str, routes: &[Value]) -> Value {
    let provider = json!({ "virtualRouter": { "virtualRouterName": "r" } });
    let listener = json!({ "portMapping": { "port": 8080, "protocol": protocol } });
    let mut list = vec![
        node("a", protocol),
        node("b", protocol),
        json!({ "meshName": "shop", "virtualServiceName": "s", "spec": { "provider": provider } }),
        json!({ "meshName": "shop", "virtualRouterName": "r", "spec": { "listeners": [listener] } }),
    ];
    for (number, spec) in routes.iter().enumerate() {
        let name = format!("route{number}");
        list.push(json!({ "meshName": "shop", "virtualRouterName": "r", "routeName": name, "spec": spec }));
    }
    list.into()
}

fn to_a() -> Value {
    json!({ "weightedTargets": [{ "virtualNode": "a", "weight": 1 }] })
}

fn http(more: Value) -> Value {
    let mut route = json!({ "match": { "prefix": "/" }, "action": to_a() });
    route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "httpRoute": route })
}

fn criteria(of_match: Value) -> Value {
    let converted = converted(routed("http", &[http(json!({ "match": of_match }))]));
    entry(&converted, "service-router", "s")["Routes"][0]["Match"]["HTTP"].clone()
}

fn block<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    page.split(&format!("```{language}\n")).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_guide_shows_what_its_example_becomes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let example = std::fs::read_to_string(docs.join("examples/app-mesh/shop.json")).unwrap();
    let guide = std::fs::read_to_string(docs.join("app-mesh.md")).unwrap();
    let converted = converted(serde_json::from_str(&example).unwrap());
    let shown: Vec<_> = block(&guide, "text")[0].lines().collect();
    assert_eq!(converted.reports, shown);
    for shown in block(&guide, "json") {
        let shown: Value = serde_json::from_str(shown).unwrap();
        assert!(converted.entries.contains(&shown), "{shown:#}");
    }
}

#[test]
fn outputs_of_describe_are_the_same_as_inputs_of_create() {
    let inputs = routed("http", &[http(json!({}))]);
    let kinds = ["virtualNode", "virtualNode", "virtualService", "virtualRouter", "route"];
    let described: Vec<Value> = inputs
        .as_array()
        .unwrap()
        .iter()
        .zip(kinds)
        .map(|(input, kind)| {
            let mut resource = input.clone();
            resource["metadata"] = json!({ "arn": "arn:aws:appmesh:eu-west-1:111122223333:mesh/shop", "version": 1 });
            resource["status"] = json!({ "status": "ACTIVE" });
            json!({ kind: resource })
        })
        .collect();
    let each_alone: Vec<_> = described.into_iter().map(|one| ("one.json".to_owned(), one)).collect();
    assert_eq!(convert(&each_alone).unwrap(), converted(inputs));
}

#[test]
fn retry_events_become_conditions_and_statuses() {
    let retries = |policy: Value| {
        let converted = converted(routed("http", &[http(json!({ "retryPolicy": policy }))]));
        entry(&converted, "service-router", "s")["Routes"][0]["Destination"].clone()
    };
    let all = ["server-error", "gateway-error", "client-error", "stream-error"];
    let given = json!({ "maxRetries": 2, "httpRetryEvents": all, "tcpRetryEvents": ["connection-error"] });
    let statuses = [409, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511];
    let expected = json!({ "Service": "a", "NumRetries": 2, "RetryOnConnectFailure": true, "RetryOn": ["refused-stream"],
        "RetryOnStatusCodes": statuses });
    assert_eq!(retries(given), expected);
    // Consul would take 0 as its default.
    assert_eq!(retries(json!({ "maxRetries": 0, "httpRetryEvents": all })), json!({ "Service": "a" }));

    let policy = json!({ "maxRetries": 1, "grpcRetryEvents": ["cancelled", "unavailable"] });
    let route = json!({ "grpcRoute": { "match": {}, "action": to_a(), "retryPolicy": policy } });
    let converted = converted(routed("grpc", &[route]));
    let destination = &entry(&converted, "service-router", "s")["Routes"][0]["Destination"];
    assert_eq!(destination["RetryOn"], json!(["cancelled", "unavailable"]));
}

#[test]
fn timeouts_keep_their_unit() {
    let timeout = json!({ "perRequest": { "unit": "ms", "value": 1500 }, "idle": { "unit": "s", "value": 90 } });
    let found = converted(routed("http", &[http(json!({ "timeout": timeout }))]));
    let destination = &entry(&found, "service-router", "s")["Routes"][0]["Destination"];
    assert_eq!((&destination["RequestTimeout"], &destination["IdleTimeout"]), (&json!("1500ms"), &json!("90s")));

    let off = json!({ "perRequest": { "unit": "s", "value": 0 } });
    let found = converted(routed("http", &[http(json!({ "timeout": off }))]));
    assert_eq!(entry(&found, "service-router", "s")["Routes"][0]["Destination"], json!({ "Service": "a" }));
    let line = "route[r/route0].spec.httpRoute.timeout.perRequest: 0 switches the timeout off. Consul can't: give a long timeout";
    assert_eq!(found.reports, [line]);
}

#[test]
fn each_criterion_has_its_counterpart() {
    assert_eq!(criteria(json!({ "prefix": "/a", "method": "GET" })), json!({ "PathPrefix": "/a", "Methods": ["GET"] }));
    assert_eq!(criteria(json!({ "path": { "exact": "/a" } })), json!({ "PathExact": "/a" }));
    assert_eq!(criteria(json!({ "path": { "regex": "/a.*" }, "port": 8080 })), json!({ "PathRegex": "/a.*" }));
    let parameters = json!([{ "name": "a", "match": { "exact": "1" } }, { "name": "b" }]);
    let expected = json!([{ "Name": "a", "Exact": "1" }, { "Name": "b", "Present": true }]);
    assert_eq!(criteria(json!({ "queryParameters": parameters }))["QueryParam"], expected);
    let headers = json!([
        { "name": "a", "match": { "prefix": "x" } }, { "name": "b", "match": { "suffix": "x" }, "invert": true },
        { "name": "c", "match": { "regex": "x" } }, { "name": "d", "invert": false },
    ]);
    let expected = json!([
        { "Name": "a", "Prefix": "x" }, { "Name": "b", "Suffix": "x", "Invert": true }, { "Name": "c", "Regex": "x" },
        { "Name": "d", "Present": true },
    ]);
    assert_eq!(criteria(json!({ "headers": headers }))["Header"], expected);

    let grpc = |of_match: Value| {
        let route = json!({ "grpcRoute": { "match": of_match, "action": to_a() } });
        let converted = converted(routed("grpc", &[route]));
        entry(&converted, "service-router", "s")["Routes"][0]["Match"]["HTTP"].clone()
    };
    assert_eq!(grpc(json!({ "serviceName": "a.B", "methodName": "C" })), json!({ "PathExact": "/a.B/C" }));
    let metadata = json!([{ "name": "m", "match": { "exact": "1" } }]);
    let expected = json!({ "PathPrefix": "/a.B/", "Header": [{ "Name": "m", "Exact": "1" }] });
    assert_eq!(grpc(json!({ "serviceName": "a.B", "metadata": metadata })), expected);
}

#[test]
fn route_with_a_criterion_that_consul_lacks_is_left_out() {
    let range = json!([{ "name": "a", "match": { "range": { "start": 1, "end": 9 } } }]);
    let cases = [
        ("headers[0].match.range", json!({ "prefix": "/x", "headers": range })),
        ("scheme", json!({ "prefix": "/x", "scheme": "https" })),
        ("port", json!({ "prefix": "/x", "port": 9090 })),
    ];
    for (place, of_match) in cases {
        let lost = http(json!({ "match": of_match, "timeout": { "idle": { "unit": "s", "value": 1 } } }));
        let converted = converted(routed("http", &[lost, http(json!({}))]));
        assert_eq!(entry(&converted, "service-router", "s")["Routes"].as_array().unwrap().len(), 1);
        let line = format!(
            "route[r/route0].spec.httpRoute.match.{place}: Consul cannot match this, so the whole route is left out"
        );
        assert_eq!(converted.reports, [line]);
    }
}

#[test]
fn routes_are_tried_by_priority_then_by_the_length_of_the_path() {
    let mut first = http(json!({ "match": { "prefix": "/first" } }));
    first["priority"] = json!(3);
    let routes = [http(json!({})), http(json!({ "match": { "prefix": "/longer" } })), first];
    let converted = converted(routed("http", &routes));
    let routes = entry(&converted, "service-router", "s")["Routes"].as_array().unwrap();
    let paths: Vec<_> = routes.iter().map(|route| route["Match"]["HTTP"]["PathPrefix"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/first", "/longer", "/"]);
}

#[test]
fn requests_that_no_route_takes_are_reported() {
    let converted = converted(routed("http", &[http(json!({ "match": { "prefix": "/a" } }))]));
    let line = "virtualService[s].spec: no route takes all requests. App Mesh answers the others with 404, Consul sends them to the service \
                \"s\"";
    assert_eq!(converted.reports, [line]);
}

#[test]
fn tcp_has_one_target() {
    let action =
        json!({ "weightedTargets": [{ "virtualNode": "a", "weight": 1 }, { "virtualNode": "b", "weight": 1 }] });
    let two = converted(routed("tcp", &[json!({ "tcpRoute": { "action": action } })]));
    assert!(!has(&two, "service-resolver", "s") && !has(&two, "service-splitter", "r-route0"));
    let lines = [
        "route[r/route0].spec.tcpRoute.action.weightedTargets: Consul splits no TCP between services, so the whole route is left out",
        "virtualService[s].spec: none of its routes could be converted, so it has no entry",
    ];
    assert_eq!(two.reports, lines);

    let timeout = json!({ "idle": { "unit": "s", "value": 5 } });
    let one = converted(routed("tcp", &[json!({ "tcpRoute": { "action": to_a(), "timeout": timeout } })]));
    assert_eq!(entry(&one, "service-resolver", "s")["Redirect"], json!({ "Service": "a" }));
    assert_eq!(one.reports, ["route[r/route0].spec.tcpRoute.timeout: Consul has no idle timeout for TCP"]);
}

#[test]
fn listener_of_a_node_becomes_its_defaults() {
    let mut of_node = node("a", "http");
    let listener = &mut of_node["spec"]["listeners"][0];
    listener["connectionPool"] = json!({ "http": { "maxConnections": 9, "maxPendingRequests": 3 } });
    listener["timeout"] =
        json!({ "http": { "perRequest": { "unit": "s", "value": 2 }, "idle": { "unit": "s", "value": 9 } } });
    listener["tls"] = json!({ "mode": "PERMISSIVE", "certificate": { "sds": { "secretName": "a" } } });
    of_node["spec"]["listeners"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "portMapping": { "port": 1, "protocol": "tcp" } }));
    of_node["tags"] = json!([{ "key": "team", "value": "a" }]);
    let converted = converted(json!([of_node]));
    let expected = json!({ "Kind": "service-defaults", "Name": "a", "Protocol": "http", "MaxInboundConnections": 9,
        "LocalRequestTimeoutMs": 2000 });
    assert_eq!(converted.entries, [expected]);
    let places: Vec<_> = converted.reports.iter().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = [
        "virtualNode[a].spec.listeners[0].tls.mode",
        "virtualNode[a].spec.listeners[0].connectionPool.http.maxPendingRequests",
        "virtualNode[a].spec.listeners[0].timeout.http.idle",
        "virtualNode[a].spec.listeners[0].tls.certificate",
        "virtualNode[a].spec.listeners[1]",
        "virtualNode[a].tags",
    ];
    assert_eq!(places, expected, "{:#?}", converted.reports);
}

/// A virtual gateway with this listener, and with these gateway routes to the virtual service `s`.
fn with_gateway(listener: Value, routes: &[Value]) -> Value {
    let mut all = routed("http", &[http(json!({}))]);
    let list = all.as_array_mut().unwrap();
    list.push(json!({ "meshName": "shop", "virtualGatewayName": "edge", "spec": { "listeners": [listener] } }));
    let target = json!({ "virtualService": { "virtualServiceName": "s" } });
    for (number, of_match) in routes.iter().enumerate() {
        let rewrite = of_match.get("rewrite").cloned().unwrap_or_else(|| json!({}));
        let mut of_match = of_match.clone();
        of_match.as_object_mut().unwrap().remove("rewrite");
        let mut rewrite = rewrite;
        rewrite["hostname"] = json!({ "defaultTargetHostname": "DISABLED" });
        let route = json!({ "match": of_match, "action": { "target": target, "rewrite": rewrite } });
        list.push(json!({ "meshName": "shop", "virtualGatewayName": "edge", "gatewayRouteName": format!("g{number}"),
            "spec": { "httpRoute": route } }));
    }
    all
}

fn listener() -> Value {
    json!({ "portMapping": { "port": 443, "protocol": "http" } })
}

#[test]
fn gateway_routes_by_host_and_rewrites_prefixes() {
    let routes = [
        json!({ "prefix": "/", "hostname": { "exact": "s.example" } }),
        json!({ "prefix": "/a", "hostname": { "suffix": ".shop.example" } }),
        json!({ "prefix": "/kept", "hostname": { "suffix": ".shop.example" }, "rewrite": { "prefix": { "defaultPrefix": "DISABLED" } } }),
        json!({ "path": { "exact": "/old" }, "rewrite": { "path": { "exact": "/new" } } }),
    ];
    let converted = converted(with_gateway(listener(), &routes));
    let services = &entry(&converted, "ingress-gateway", "edge")["Listeners"][0]["Services"];
    let expected = json!([
        { "Name": "edge-routes", "Hosts": ["*"] },
        { "Name": "edge-s-example", "Hosts": ["s.example"] },
        { "Name": "edge-shop-example", "Hosts": ["*.shop.example"] },
    ]);
    assert_eq!(*services, expected);
    let routes = |name: &str| {
        let routes = entry(&converted, "service-router", name)["Routes"].as_array().unwrap().iter();
        let short = |route: &Value| {
            let path =
                route["Match"]["HTTP"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
            (path, route["Destination"]["PrefixRewrite"].as_str().unwrap_or_default().to_owned())
        };
        routes.map(short).collect::<Vec<_>>()
    };
    let pairs =
        |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    // A route without a host is for all hosts. The entry for `/a/` prevents that `/a/b` becomes `//b`.
    let expected = [("/kept", ""), ("/old", "/new"), ("/a/", "/"), ("/a", "/")];
    assert_eq!(routes("edge-shop-example"), pairs(&expected));
    assert_eq!(routes("edge-s-example"), pairs(&[("/old", "/new"), ("/", "")]));
    let allowed = &entry(&converted, "service-intentions", "a")["Sources"];
    assert_eq!(*allowed, json!([{ "Name": "edge", "Action": "allow" }]));
}

#[test]
fn gateway_with_tls_has_no_wildcard_host() {
    let mut listener = listener();
    listener["tls"] = json!({ "mode": "STRICT", "certificate": { "acm": { "certificateArn": "arn:aws:acm:…" } } });
    let converted = converted(with_gateway(listener, &[json!({ "prefix": "/" })]));
    let gateway = entry(&converted, "ingress-gateway", "edge");
    assert_eq!(
        (&gateway["TLS"], &gateway["Listeners"][0]["Services"]),
        (&json!({ "Enabled": true }), &json!([{ "Name": "s" }]))
    );
    assert!(converted.reports.iter().any(|line| line.starts_with("virtualGateway[edge].spec.listeners[0].tls: ")));
}

#[test]
fn errors_of_the_input_are_one_line_each() {
    let mut unknown = routed("http", &[http(json!({}))]);
    unknown[4]["spec"]["httpRoute"]["action"]["weightedTargets"][0] =
        json!({ "virtualNode": "nowhere", "weight": "1" });
    let line = "route[r/route0].spec.httpRoute.action.weightedTargets[0].virtualNode: expected a virtual node of the given files, got \
                \"nowhere\"";
    assert_eq!(errors(unknown), [line]);

    let mut mixed = routed("http", &[http(json!({}))]);
    mixed[0] = node("a", "http2");
    let line = "route[r/route0].spec.httpRoute.action.weightedTargets[0].virtualNode: the route has the protocol http, and the node http2: \
                Consul needs the same protocol in both";
    assert_eq!(errors(mixed), [line]);

    let mut wrong = routed("http", &[http(json!({}))]);
    wrong[4]["spec"]["httpRoute"]["action"]["weightedTargets"][0]["weight"] = json!("many");
    let line =
        "route[r/route0].spec.httpRoute.action.weightedTargets[0].weight: expected a number, 0 or more, got \"many\"";
    assert_eq!(errors(wrong), [line]);

    let clash = errors(json!([node("a.b", "http"), node("a-b", "http")]));
    assert_eq!(
        clash,
        [
            "virtualNode[a.b]: its name in Consul is \"a-b\", and virtualNode[a-b] has the same one: rename one of the two"
        ]
    );
    assert_eq!(errors(json!([node("a", "http"), node("a", "http")])), ["shop.json: virtualNode[a] occurs twice"]);
    let mut of_two = node("b", "http");
    of_two["meshName"] = json!("other");
    let two = errors(json!([node("a", "http"), of_two]));
    assert_eq!(two, ["the files have resources of several meshes (other, shop): convert each mesh alone"]);
    let nothing = "shop.json: expected a resource of App Mesh, such as {\"virtualNodeName\": …, \"spec\": …}";
    assert_eq!(errors(json!({ "family": "web" })), [nothing]);
}

#[test]
fn virtual_service_may_have_the_name_of_its_node() {
    let provider = json!({ "virtualNode": { "virtualNodeName": "a" } });
    let service = json!({ "meshName": "shop", "virtualServiceName": "a", "spec": { "provider": provider } });
    assert_eq!(converted(json!([node("a", "http"), service])).entries.len(), 1, "only the node's defaults");
    // Requests to the node `b` would go to `a`.
    let other = json!({ "meshName": "shop", "virtualServiceName": "b", "spec": { "provider": provider } });
    let clash = errors(json!([node("a", "http"), node("b", "http"), other]));
    assert_eq!(
        clash,
        ["virtualService[b]: its name in Consul is \"b\", and virtualNode[b] has the same one: rename one of the two"]
    );
}
