//! The options of a proxy's configuration that end up in the bootstrap ("Envoy proxy configuration reference",
//! bootstrap configuration).

use std::net::IpAddr;

use serde_json::{Map, Value};
use sidecar_kit::env::Env;
use sidecar_kit::secret::shown;

use super::BootstrapError;
use super::stats::{self, split_ip_port};
use super::template::Template;

const TEMPLATE: &str = "envoy_bootstrap_json_tpl";
const TEXT: &str = "a string";
const OBJECTS: &str = "JSON objects separated by commas";
const OBJECT: &str = "a JSON object";

/// The options of a proxy's configuration, parsed.
#[derive(Default)]
pub struct ProxyOptions {
    pub(super) template: Option<Template>,
    /// The sinks of `envoy_statsd_url`, `envoy_dogstatsd_url` and `envoy_extra_stats_sinks_json`, in this order.
    pub(super) stats_sinks: Vec<Value>,
    pub(super) stats_tags: Vec<String>,
    pub(super) prometheus_bind: Option<(IpAddr, u16)>,
    pub(super) stats_bind: Option<(IpAddr, u16)>,
    pub(super) static_clusters: Vec<Value>,
    pub(super) static_listeners: Vec<Value>,
    pub(super) stats_config: Option<Value>,
    pub(super) stats_flush_interval: Option<String>,
    pub(super) tracing: Option<Value>,
    pub(super) telemetry_collector_dir: Option<String>,
}

impl ProxyOptions {
    /// Parses the options. `env` is for options that name a variable.
    ///
    /// # Errors
    /// [`BootstrapError::Option`] and [`BootstrapError::Template`].
    pub fn parse(config: &Map<String, Value>, env: &Env) -> Result<Self, BootstrapError> {
        let config = Config(config);
        let mut stats_sinks = Vec::new();
        stats_sinks.extend(config.text("envoy_statsd_url")?.map(|url| stats::statsd(&url, env)).transpose()?);
        stats_sinks.extend(config.text("envoy_dogstatsd_url")?.map(|url| stats::dogstatsd(&url, env)).transpose()?);
        stats_sinks.extend(config.json_list("envoy_extra_stats_sinks_json")?);
        Ok(Self {
            template: config.text(TEMPLATE)?.map(|text| Template::parse(&text)).transpose()?,
            stats_sinks,
            stats_tags: config.texts("envoy_stats_tags")?,
            prometheus_bind: config.bind("envoy_prometheus_bind_addr")?,
            stats_bind: config.bind("envoy_stats_bind_addr")?,
            static_clusters: config.json_list("envoy_extra_static_clusters_json")?,
            static_listeners: config.json_list("envoy_extra_static_listeners_json")?,
            stats_config: config.json("envoy_stats_config_json")?,
            stats_flush_interval: config.text("envoy_stats_flush_interval")?,
            tracing: config.json("envoy_tracing_json")?,
            telemetry_collector_dir: config.text("envoy_telemetry_collector_bind_socket_dir")?,
        })
    }
}

/// A proxy's configuration, read as Consul reads it: keys are case-insensitive, numbers and booleans count as strings, and a single
/// value counts as a list.
struct Config<'a>(&'a Map<String, Value>);

impl Config<'_> {
    fn value(&self, option: &'static str) -> Option<&Value> {
        let any_case = || self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(option)).map(|(_, value)| value);
        self.0.get(option).or_else(any_case)
    }

    /// The empty string is the same as absent.
    fn text(&self, option: &'static str) -> Result<Option<String>, BootstrapError> {
        let Some(value) = self.value(option) else { return Ok(None) };
        let text = as_text(value).ok_or_else(|| wrong(option, TEXT, kind(value)))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The address of a listener.
    fn bind(&self, option: &'static str) -> Result<Option<(IpAddr, u16)>, BootstrapError> {
        let Some(text) = self.text(option)? else { return Ok(None) };
        split_ip_port(&text).map(Some).ok_or_else(|| wrong(option, "<ip>:<port>", shown(&text)))
    }

    fn texts(&self, option: &'static str) -> Result<Vec<String>, BootstrapError> {
        let values = match self.value(option) {
            None | Some(Value::Null) => &[],
            Some(Value::Array(values)) => values.as_slice(),
            Some(Value::Object(empty)) if empty.is_empty() => &[],
            Some(single) => std::slice::from_ref(single),
        };
        let text = |value| as_text(value).ok_or_else(|| wrong(option, "an array of strings", kind(value)));
        values.iter().map(text).collect()
    }

    /// A string that holds an object.
    fn json(&self, option: &'static str) -> Result<Option<Value>, BootstrapError> {
        let Some(text) = self.text(option)? else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(value @ Value::Object(_)) => Ok(Some(value)),
            Ok(other) => Err(wrong(option, OBJECT, kind(&other))),
            Err(error) => Err(wrong(option, OBJECT, format!("text that is not JSON ({error})"))),
        }
    }

    /// A string that holds objects separated by commas.
    fn json_list(&self, option: &'static str) -> Result<Vec<Value>, BootstrapError> {
        let Some(text) = self.text(option)? else { return Ok(Vec::new()) };
        let values: Vec<Value> = serde_json::from_str(&format!("[{text}]"))
            .map_err(|error| wrong(option, OBJECTS, format!("text that is not JSON ({error})")))?;
        match values.iter().find(|value| !value.is_object()) {
            Some(other) => Err(wrong(option, OBJECTS, kind(other))),
            None => Ok(values),
        }
    }
}

/// The bootstrap from a filled template. No error repeats its text, which holds the token.
pub(super) fn filled(text: &str) -> Result<Value, BootstrapError> {
    let expected = "a template that gives a JSON object";
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => Err(wrong(TEMPLATE, expected, kind(&other))),
        Err(error) => Err(wrong(TEMPLATE, expected, format!("text that is not JSON ({error})"))),
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(yes) => Some(if *yes { "1" } else { "0" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// The kind of value. The value itself may hold a credential.
fn kind(value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    kind.to_owned()
}

fn wrong(option: &'static str, expected: &'static str, got: String) -> BootstrapError {
    BootstrapError::Option { option, expected, got }
}
