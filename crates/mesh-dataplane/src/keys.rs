//! The keys of the file. consul-dataplane's file may have more keys. mesh-dataplane does not start with a key that it would ignore.

use serde_json::Value;

/// An object of the file, and its keys.
const KEYS: [(&str, &[&str]); 13] = [
    ("", &["consul", "proxy", "envoy", "logging", "xdsServer"]),
    ("consul", &["addresses", "grpcPort", "serverWatchDisabled", "tls", "http", "credentials"]),
    ("consul.tls", TLS),
    ("consul.http", &["port", "tls"]),
    ("consul.http.tls", TLS),
    ("consul.credentials", &["type", "static", "login"]),
    ("consul.credentials.static", &["token"]),
    ("consul.credentials.login", &["authMethod", "datacenter", "partition", "meta", "aws", BEARER_TOKEN]),
    ("consul.credentials.login.aws", &["includeEntity", "region", "stsEndpoint", "serverIdHeaderValue"]),
    ("proxy", &["nodeName", "id", "namespace", "partition"]),
    ("envoy", &["readyBindAddress", "readyBindPort"]),
    ("logging", &["logLevel"]),
    // consul-ecs writes it. Envoy's configuration comes through a socket here.
    ("xdsServer", &["bindAddress"]),
];
const TLS: &[&str] = &["disabled", "caCertsPath", "serverName", "tlsServerName"];
const BEARER_TOKEN: &str = "bearerToken";

/// The first key that has a value and no effect here, and what to do instead.
pub(crate) fn without_effect(file: &Value) -> Option<(String, &'static str)> {
    for (path, keys) in KEYS {
        let object = path.split('.').filter(|key| !key.is_empty()).try_fold(file, |value, key| value.get(key));
        let Some(fields) = object.and_then(Value::as_object) else { continue };
        let is_known = |key: &str, value: &Value| match key {
            BEARER_TOKEN => keys.contains(&key) && is_signed_request(value),
            _ => keys.contains(&key),
        };
        if let Some((key, _)) = fields.iter().find(|(key, value)| is_set(value) && !is_known(key, value)) {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let cure = cure(&full);
            return Some((full, cure));
        }
    }
    None
}

/// consul-ecs writes a signed AWS request, which is JSON. It is valid for some minutes only, so mesh-dataplane signs its own.
fn is_signed_request(proof: &Value) -> bool {
    proof.as_str().is_some_and(|proof| proof.starts_with('{'))
}

/// `false`, `0` and empty values turn nothing on.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_on) => *is_on,
        Value::Number(number) => number.as_u64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => fields.values().any(is_set),
    }
}

fn cure(key: &str) -> &'static str {
    match key {
        "consul.tls.certFile" | "consul.tls.keyFile" => {
            "remove it, and let Consul's servers ask for no client certificate on the gRPC port"
        }
        "consul.tls.insecureSkipVerify" => "name the servers' CA certificate in consul.tls.caCertsPath",
        "consul.credentials.login.bearerToken" | "consul.credentials.login.bearerTokenPath" => {
            "set CONSUL_LOGIN_BEARER_TOKEN or CONSUL_LOGIN_BEARER_TOKEN_FILE"
        }
        "proxy.nodeID" => "set proxy.nodeName",
        "proxy.idPath" | "service" => "set proxy.id and proxy.nodeName",
        key if ["dnsServer", "telemetry", "envoy."].iter().any(|flags| key.starts_with(flags)) => {
            "remove it; `mesh-dataplane --help` lists the flags for DNS, metrics and Envoy"
        }
        _ => "remove it",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_files_that_consul_ecs_writes_have_no_other_key() {
        let file = json!({
            "consul": { "addresses": "10.0.0.11", "grpcPort": 8503, "serverWatchDisabled": true,
                "tls": { "disabled": false, "caCertsPath": "/consul/ca.pem", "tlsServerName": "server.dc1.consul" },
                "credentials": { "type": "login", "login": { "authMethod": "iam-ecs-service-token", "datacenter": "",
                    "bearerToken": "{\"iam_http_request_method\":\"POST\"}", "meta": { "any.key/of-a-user": "x" } } } },
            "proxy": { "nodeName": "n", "id": "p", "namespace": "", "partition": "" },
            "xdsServer": { "bindAddress": "127.0.0.1" },
            "envoy": { "readyBindAddress": "127.0.0.1", "readyBindPort": 22000 },
            "logging": { "logLevel": "DEBUG" },
        });
        assert_eq!(without_effect(&file), None);
    }

    #[test]
    fn a_key_of_consul_dataplane_without_effect_has_a_cure() {
        let cases = [
            (json!({ "consul": { "tls": { "certFile": "/c.pem" } } }), "consul.tls.certFile", "no client certificate"),
            (
                json!({ "consul": { "tls": { "insecureSkipVerify": true } } }),
                "consul.tls.insecureSkipVerify",
                "caCertsPath",
            ),
            (
                json!({ "consul": { "credentials": { "login": { "bearerToken": "ey5ec3e7" } } } }),
                "consul.credentials.login.bearerToken",
                "CONSUL_LOGIN_BEARER_TOKEN_FILE",
            ),
            (json!({ "proxy": { "nodeID": "5" } }), "proxy.nodeID", "proxy.nodeName"),
            (json!({ "service": { "serviceID": "web" } }), "service", "proxy.id"),
            (json!({ "envoy": { "adminBindPort": 19001 } }), "envoy.adminBindPort", "--help"),
            (json!({ "telemetry": { "prometheus": { "mergePort": 20101 } } }), "telemetry", "--help"),
            (json!({ "mode": "dns-proxy" }), "mode", "remove it"),
        ];
        for (file, key, cure) in cases {
            let (found, cures) = without_effect(&file).expect(key);
            assert_eq!(found, key);
            assert!(cures.contains(cure) && !cures.contains("5ec3e7"), "{key}: {cures}");
        }
        let off = json!({ "consul": { "tls": { "insecureSkipVerify": false, "keyFile": "" } }, "telemetry": { "mergePort": 0 } });
        assert_eq!(without_effect(&off), None);
    }
}
