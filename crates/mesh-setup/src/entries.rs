//! Consul's config entries.

use std::collections::BTreeMap;

use consul_api::{Client, Error};
use serde_json::{Value, json};

/// A listener of an ingress gateway. It sends every request on its port to one service.
#[derive(Debug, Clone)]
pub(crate) struct Ingress {
    gateway: String,
    port: u16,
    service: String,
}

impl Ingress {
    /// Reads `GATEWAY:PORT:SERVICE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':').filter(|part| !part.is_empty()).map(str::to_owned);
        let mut read = || {
            let (gateway, port, service) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
            Some(Self { gateway, port, service })
        };
        read().ok_or("expected GATEWAY:PORT:SERVICE".to_owned())
    }

    fn listener(&self) -> Value {
        let services = json!([{ "Name": self.service, "Hosts": ["*"] }]);
        json!({ "Port": self.port, "Protocol": "http", "Services": services })
    }
}

/// One `ingress-gateway` entry for each gateway, with all its listeners.
pub(crate) fn of_ingress_gateways(ingress: &[Ingress]) -> Vec<Value> {
    let mut gateways = BTreeMap::<&str, Vec<Value>>::new();
    for ingress in ingress {
        gateways.entry(&ingress.gateway).or_default().push(ingress.listener());
    }
    let entry = |(gateway, listeners)| json!({ "Kind": "ingress-gateway", "Name": gateway, "Listeners": listeners });
    gateways.into_iter().map(entry).collect()
}

/// Writes a config entry, unless Consul has an equal one. Writing an equal entry would raise its index and wake all its watchers.
pub(crate) async fn write(client: &Client, entry: &Value) -> Result<(), Error> {
    let (kind, name) = (entry["Kind"].as_str().unwrap_or_default(), entry["Name"].as_str().unwrap_or_default());
    let written = match client.config_entry(kind, name).await {
        Ok(written) => written,
        Err(Error::NotFound { .. }) => Value::Null,
        Err(error) => return Err(error),
    };
    if contains(&written, entry) {
        tracing::info!("{kind} of {name} is up to date");
        return Ok(());
    }
    client.put_config_entry(entry).await?;
    tracing::info!("wrote {kind} of {name}");
    Ok(())
}

/// Whether `written` has every field of `wanted` with the same value. Consul adds fields of its own.
fn contains(written: &Value, wanted: &Value) -> bool {
    match (written, wanted) {
        (Value::Object(written), Value::Object(wanted)) => {
            wanted.iter().all(|(field, value)| written.get(field).is_some_and(|written| contains(written, value)))
        }
        (Value::Array(written), Value::Array(wanted)) => {
            written.len() == wanted.len()
                && written.iter().zip(wanted).all(|(written, wanted)| contains(written, wanted))
        }
        _ => written == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingress_gateway_has_all_listeners_in_one_entry() {
        let ingress = ["a:8081:web", "b:8082:api", "a:8083:api"].map(|text| Ingress::parse(text).unwrap());
        let entries = of_ingress_gateways(&ingress);
        let ports = |entry: &Value| {
            let ports =
                entry["Listeners"].as_array().unwrap().iter().map(|listener| listener["Port"].as_u64().unwrap());
            (entry["Name"].as_str().unwrap().to_owned(), ports.collect::<Vec<_>>())
        };
        let entries = entries.iter().map(ports).collect::<Vec<_>>();
        assert_eq!(entries, [("a".to_owned(), vec![8081, 8083]), ("b".to_owned(), vec![8082])]);
    }
}
