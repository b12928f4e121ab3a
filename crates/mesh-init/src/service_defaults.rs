//! Passive health checks of the service's upstreams (outlier detection), in the service's config entry `service-defaults`.

use std::time::Duration;

use consul_api::{Client, ConfigError, Error, at_start};
use mesh_config::{Names, OutlierDetection};
use serde_json::{Map, Value, json};

use crate::step::StepError;

const KIND: &str = "service-defaults";
/// Where in the entry the passive health check of all upstreams is.
const PLACE: [&str; 3] = ["UpstreamConfig", "Defaults", "PassiveHealthCheck"];

/// Why the entry is not as it should be.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ServiceDefaultsError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("cannot use the HTTP API of Consul's servers")]
    Servers(#[from] ConfigError),
}

/// Gives the service's `service-defaults` a passive health check, unless they have one. Everything else in the entry stays. Leaves out
/// keys that this Consul does not know. Each wait takes at most `bound`.
///
/// # Errors
/// See [`ServiceDefaultsError`].
pub(crate) async fn write(
    consul: &Client,
    names: &Names,
    outlier: Option<&OutlierDetection>,
    bound: Duration,
) -> Result<(), ServiceDefaultsError> {
    let service = &names.service;
    let failed = |source| StepError::new(format!("write the service-defaults of {service}"), source, names);
    // Config entries are written in the primary datacenter. The copy in a secondary one has other indexes.
    let primary = at_start("the primary datacenter", bound, async || match consul.acl_source_datacenter().await {
        Err(error) if error.is_without_acls() => Ok(None),
        primary => primary,
    });
    let primary = match primary.await.map_err(failed)? {
        Some(primary) => Some(consul.in_datacenter(&primary)?),
        None => None,
    };
    let consul = primary.as_ref().unwrap_or(consul);
    let (mut check, mut unknown) = (passive_health_check(outlier), Vec::new());
    let written = at_start(KIND, bound, async || add(consul, service, &mut check, &mut unknown).await);
    let written = written.await.map_err(failed)?;
    if !unknown.is_empty() {
        let rest = if written { "the rest is written" } else { "nothing is written" };
        let unknown = unknown.join(" and ");
        tracing::warn!("service.networkResilienceConfig: this version of Consul does not know {unknown}: {rest}");
    }
    if written {
        tracing::info!("wrote a passive health check of the upstreams into the service-defaults of {service}");
    }
    Ok(())
}

/// Adds the check to the entry. Removes the keys that this Consul does not know from the check, and adds them to `unknown`. Returns whether
/// it wrote something.
async fn add(
    consul: &Client,
    service: &str,
    check: &mut Map<String, Value>,
    unknown: &mut Vec<String>,
) -> Result<bool, Error> {
    let mut entry = match consul.config_entry(KIND, service).await {
        Ok(entry) => entry,
        Err(Error::NotFound { .. }) => json!({ "Kind": KIND, "Name": service }),
        Err(error) => return Err(error),
    };
    let index = entry["ModifyIndex"].as_u64().unwrap_or_default();
    for made_by_consul in ["CreateIndex", "ModifyIndex", "Hash"] {
        entry.as_object_mut().map(|entry| entry.remove(made_by_consul));
    }
    if PLACE.iter().fold(&entry, |inner, key| &inner[key]).is_object() {
        tracing::debug!("the service-defaults of {service} have a passive health check already");
        return Ok(false);
    }
    while !check.is_empty() {
        let mut new = entry.clone();
        *PLACE.iter().fold(&mut new, |inner, key| &mut inner[key]) = check.clone().into();
        let error = match consul.replace_config_entry(&new, index).await {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        let refused = error.unknown_config_keys();
        let before = check.len();
        check.retain(|key, _| !refused.iter().any(|refused| is_at(refused, key)));
        if check.len() == before {
            return Err(error);
        }
        unknown.extend(refused);
    }
    Ok(false)
}

/// Whether a path in the entry is that of this key of the passive health check, or of an object around it.
fn is_at(path: &str, key: &str) -> bool {
    let mut place = PLACE.into_iter().chain([key]);
    path.split('.').all(|step| place.next().is_some_and(|place| place.eq_ignore_ascii_case(step)))
}

/// Consul's form of the document's settings. Some have a default, which is that of consul-ecs 0.10.
fn passive_health_check(outlier: Option<&OutlierDetection>) -> Map<String, Value> {
    let OutlierDetection {
        interval,
        max_failures,
        enforcing_consecutive_5xx,
        consecutive_5xx,
        enforcing_consecutive_gateway_failure,
        consecutive_gateway_failure,
        max_ejection_percent,
    } = outlier.cloned().unwrap_or_default();
    let given = [
        ("Interval", Some(interval.unwrap_or(10_000_000_000))),
        ("MaxFailures", Some(max_failures.unwrap_or(5).into())),
        ("EnforcingConsecutive5xx", enforcing_consecutive_5xx.map(i64::from)),
        ("Consecutive5xx", consecutive_5xx.map(i64::from)),
        ("EnforcingConsecutiveGatewayFailure", Some(enforcing_consecutive_gateway_failure.unwrap_or(100).into())),
        ("ConsecutiveGatewayFailure", consecutive_gateway_failure.map(i64::from)),
        ("MaxEjectionPercent", Some(max_ejection_percent.unwrap_or(50).into())),
    ];
    given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_given_are_those_of_consul_ecs() {
        let defaults = json!({
            "Interval": 10_000_000_000_i64, "MaxFailures": 5, "EnforcingConsecutiveGatewayFailure": 100, "MaxEjectionPercent": 50,
        });
        assert_eq!(Value::from(passive_health_check(None)), defaults);
        assert_eq!(Value::from(passive_health_check(Some(&OutlierDetection::default()))), defaults);
        let all = OutlierDetection {
            interval: Some(20_000_000_000),
            max_failures: Some(1),
            enforcing_consecutive_5xx: Some(2),
            consecutive_5xx: Some(3),
            enforcing_consecutive_gateway_failure: Some(0),
            consecutive_gateway_failure: Some(4),
            max_ejection_percent: Some(6),
        };
        let all = passive_health_check(Some(&all));
        assert_eq!(
            Value::from(all),
            json!({
                "Interval": 20_000_000_000_i64, "MaxFailures": 1, "EnforcingConsecutive5xx": 2, "Consecutive5xx": 3,
                "EnforcingConsecutiveGatewayFailure": 0, "ConsecutiveGatewayFailure": 4, "MaxEjectionPercent": 6,
            })
        );
    }

    #[test]
    fn an_unknown_path_is_that_of_a_key_or_of_an_object_around_it() {
        let key = "MaxFailures";
        for path in
            ["UpstreamConfig", "upstreamconfig.defaults", "UpstreamConfig.Defaults.PassiveHealthCheck.MaxFailures"]
        {
            assert!(is_at(path, key), "{path}");
        }
        for path in ["Protocol", "UpstreamConfig.Overrides", "UpstreamConfig.Defaults.PassiveHealthCheck.Interval"] {
            assert!(!is_at(path, key), "{path}");
        }
        assert!(!is_at("UpstreamConfig.Defaults.PassiveHealthCheck.MaxFailures.More", key));
    }
}
