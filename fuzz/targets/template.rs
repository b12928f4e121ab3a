//! The template in `envoy_bootstrap_json_tpl`: no text makes parsing or filling it panic, and an error is one line.
#![no_main]

use std::net::Ipv4Addr;

use envoy_bootstrap::{Bootstrap, Endpoint, Prometheus, ProxyOptions, XdsAddress};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use sidecar_kit::env::Env;

fuzz_target!(|text: &str| {
    let config = Map::from_iter([("envoy_bootstrap_json_tpl".to_owned(), Value::from(text))]);
    let filled = ProxyOptions::parse(&config, &Env::default()).and_then(|options| {
        let localhost = Ipv4Addr::LOCALHOST.into();
        Bootstrap {
            service: "web",
            proxy_id: "web-f1a2-sidecar-proxy",
            node: None,
            namespace: None,
            partition: None,
            datacenter: None,
            token: None,
            xds: &XdsAddress { endpoint: Endpoint::Tcp(localhost, 8502), authorities: None },
            admin: (localhost, 19000),
            prometheus: &Prometheus::default(),
            ready_bind: None,
            admin_access_log_path: "/dev/null",
            access_log: None,
            options: &options,
        }
        .to_json()
    });
    match filled {
        Ok(bootstrap) => assert!(bootstrap.is_object()),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
