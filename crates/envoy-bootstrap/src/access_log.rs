//! The access log of Envoy's admin interface ("Proxy Defaults Configuration Reference", `AccessLogs`; Consul 1.15).

use serde_json::{Map, Value, json};
use sidecar_kit::json;

use super::BootstrapError;

/// Envoy's access logger for `AccessLogs` of the config entry `proxy-defaults`. None if the entry does not enable access logs.
///
/// # Errors
/// [`BootstrapError::AccessLogs`].
pub fn access_log_of(entry: &Value) -> Result<Option<Value>, BootstrapError> {
    AccessLogs::read(entry).map_or(Ok(None), |logs| logs.to_json())
}

/// `AccessLogs` as the entry has it.
struct AccessLogs {
    enabled: bool,
    sink: String,
    path: String,
    json_format: String,
    text_format: String,
}

/// The fields of a JSON log line if the entry has no format of its own: each key, and the Envoy command operator for its value.
const FIELDS: [(&str, &str); 24] = [
    ("authority", "REQ(:AUTHORITY)"),
    ("bytes_received", "BYTES_RECEIVED"),
    ("bytes_sent", "BYTES_SENT"),
    ("connection_termination_details", "CONNECTION_TERMINATION_DETAILS"),
    ("downstream_local_address", "DOWNSTREAM_LOCAL_ADDRESS"),
    ("downstream_remote_address", "DOWNSTREAM_REMOTE_ADDRESS"),
    ("duration", "DURATION"),
    ("method", "REQ(:METHOD)"),
    ("path", "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)"),
    ("protocol", "PROTOCOL"),
    ("request_id", "REQ(X-REQUEST-ID)"),
    ("requested_server_name", "REQUESTED_SERVER_NAME"),
    ("response_code", "RESPONSE_CODE"),
    ("response_code_details", "RESPONSE_CODE_DETAILS"),
    ("response_flags", "RESPONSE_FLAGS"),
    ("route_name", "ROUTE_NAME"),
    ("start_time", "START_TIME"),
    ("upstream_cluster", "UPSTREAM_CLUSTER"),
    ("upstream_host", "UPSTREAM_HOST"),
    ("upstream_local_address", "UPSTREAM_LOCAL_ADDRESS"),
    ("upstream_service_time", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"),
    ("upstream_transport_failure_reason", "UPSTREAM_TRANSPORT_FAILURE_REASON"),
    ("user_agent", "REQ(USER-AGENT)"),
    ("x_forwarded_for", "REQ(X-FORWARDED-FOR)"),
];

impl AccessLogs {
    fn read(entry: &Value) -> Option<Self> {
        let logs = entry.get("AccessLogs")?.as_object()?;
        let text = |key: &str| logs.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            enabled: logs.get("Enabled").and_then(Value::as_bool).unwrap_or(false),
            sink: text("Type"),
            path: text("Path"),
            json_format: text("JSONFormat"),
            text_format: text("TextFormat"),
        })
    }

    fn to_json(&self) -> Result<Option<Value>, BootstrapError> {
        if !self.enabled {
            return Ok(None);
        }
        let mut config = Map::new();
        let kind = match self.sink.as_str() {
            "" | "stdout" => "stream.v3.StdoutAccessLog",
            "stderr" => "stream.v3.StderrAccessLog",
            "file" => {
                config.insert("path".to_owned(), self.path.clone().into());
                "file.v3.FileAccessLog"
            }
            other => return Err(wrong("Type", "stdout, stderr or file", format!("{other:?}"))),
        };
        config.insert("@type".to_owned(), format!("type.googleapis.com/envoy.extensions.access_loggers.{kind}").into());
        config.insert("logFormat".to_owned(), self.format()?);
        Ok(Some(json!({ "name": "Consul Listener Filter Log", "typedConfig": config })))
    }

    fn format(&self) -> Result<Value, BootstrapError> {
        if !self.json_format.is_empty() {
            let format: Map<String, Value> = json::decode(self.json_format.as_bytes())
                .map_err(|error| wrong("JSONFormat", "a JSON object", error.to_string()))?;
            return Ok(json!({ "jsonFormat": format }));
        }
        if !self.text_format.is_empty() {
            let text = self.text_format.strip_suffix('\n').unwrap_or(&self.text_format);
            return Ok(json!({ "textFormatSource": { "inlineString": format!("{text}\n") } }));
        }
        let fields: Map<_, _> =
            FIELDS.iter().map(|(key, operator)| ((*key).to_owned(), format!("%{operator}%").into())).collect();
        Ok(json!({ "jsonFormat": fields }))
    }
}

/// The access log if proxy-defaults have none.
pub(super) fn file(path: &str) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
    json!({ "name": "envoy.access_loggers.file", "typed_config": { "@type": kind, "path": path } })
}

fn wrong(field: &'static str, expected: &'static str, got: String) -> BootstrapError {
    BootstrapError::AccessLogs { field, expected, got }
}
