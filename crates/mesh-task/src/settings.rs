//! The settings: the `CONSUL_ECS_CONFIG_JSON` document without `bootstrapDir`, and the other fields that the task definition needs.

use std::time::Duration;

use mesh_config::schema::schema_of_modes;
use mesh_config::shape::Shape;
use mesh_config::{Config, FieldReader, Object, Role, Unknown, rules};
use serde_json::{Map, Value, json};
use sidecar_kit::exit::parse_delay;

use crate::problem::{Collected, Document};

/// The directory at which the sidecars mount their shared volume.
pub(crate) const BOOTSTRAP_DIR: &str = "/consul";

/// The version of Consul that runs as `consul-client`, unless `images.consul` names another one.
pub const CONSUL_IMAGE: &str = "hashicorp/consul:1.21.4";

/// The fields that are not part of the document.
const OWN: [&str; 11] = [
    "retryJoin",
    "registry",
    "images",
    "secrets",
    "datacenter",
    "consulVersion",
    "tls",
    "listenerPorts",
    "shutdownDelay",
    "shutdownDelayContainers",
    "logConfiguration",
];

/// How to make a mesh task.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The document, parsed.
    pub config: Config,
    /// The document in the form of `CONSUL_ECS_CONFIG_JSON`.
    pub(crate) document: Map<String, Value>,
    /// How the task reaches Consul.
    pub mode: Mode,
    /// The images.
    pub images: Images,
    /// The secrets.
    pub secrets: Secrets,
    /// The ports of an ingress gateway's listeners.
    pub(crate) listener_ports: Vec<u16>,
    /// How long an app still runs after TERM: as written in the settings, and as a duration.
    pub shutdown_delay: Option<(String, Duration)>,
    /// The containers that have this delay. If the list is empty, `rules::delayed` chooses them.
    pub shutdown_delay_containers: Vec<String>,
    /// The sidecars' `logConfiguration`.
    pub log_configuration: Option<Value>,
    /// The warnings.
    pub warnings: Vec<String>,
}

/// How a task reaches Consul.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Through a Consul agent in the task.
    Agent(Agent),
    /// Through Consul's servers: the document has `consulServers`.
    Agentless,
}

/// The agent of the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The servers: addresses or cloud auto-join strings.
    pub retry_join: Vec<String>,
    /// The datacenter; otherwise Consul's default.
    pub datacenter: Option<String>,
    /// The version of the agent's Consul; otherwise a current one.
    pub consul_version: Option<String>,
}

/// The images of the sidecars.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Images {
    pub mesh_init: String,
    pub consul: String,
    pub sidecar_proxy: String,
    pub mesh_dataplane: String,
    pub health_sync: String,
    pub app_entrypoint: String,
}

/// The ARNs of the secrets, in the form of `valueFrom`. Each is optional. Without secrets there are neither ACLs nor encryption.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Secrets {
    /// The token of all agents.
    pub client_token: Option<String>,
    /// The token of this service.
    pub service_token: Option<String>,
    /// The gossip key.
    pub gossip_key: Option<String>,
    /// The certificate of the servers' authority.
    pub ca: Option<String>,
}

/// mesh-task's own fields, unparsed.
struct Own {
    retry_join: Vec<String>,
    registry: Option<String>,
    images: [Option<String>; 6],
    secrets: Secrets,
    datacenter: Option<String>,
    consul_version: Option<String>,
    tls: Option<bool>,
    listener_ports: Vec<u16>,
    shutdown_delay: Option<String>,
    shutdown_delay_containers: Vec<String>,
    log_configuration: Map<String, Value>,
}

impl Settings {
    /// Reads the settings. The result is valid only if there are no problems.
    pub(crate) fn read(value: &Value) -> (Self, Collected) {
        let mut found = Collected::new(Document::Settings);
        let (config, own, findings) = Config::read_beside(value, BOOTSTRAP_DIR, Own::read);
        findings.errors.into_iter().for_each(|error| found.add(error));
        let mut warnings = findings.warnings;
        // For a hand-written document, a conflict with a sidecar's port is only a warning. Here it is an error, because mesh-task must not
        // render such a task.
        let refused = |rule: &rules::Rule| !rule.warns || rule.name == "port-of-a-sidecar";
        for (rule, error) in rules::broken(value).into_iter().filter(|_| value.is_object()) {
            if refused(rule) {
                found.add(error);
            } else if rule.name != "transparent-proxy-default" {
                // That rule is only for documents of consul-ecs, so here it gives no warning.
                warnings.push(error.to_string());
            }
        }
        let mut document = value.as_object().cloned().unwrap_or_default();
        document.retain(|name, value| !OWN.contains(&name.as_str()) && !value.is_null());
        document.insert("bootstrapDir".to_owned(), json!(BOOTSTRAP_DIR));

        let agentless = config.consul_servers.is_some();
        if value.get("retryJoin").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            found.missing("retryJoin", "the addresses of Consul's servers, such as [\"consul.internal\"]", None);
        }
        for (index, address) in own.retry_join.iter().enumerate() {
            if holds_a_key(address) {
                found.add(mesh_config::FieldError {
                    path: format!("retryJoin[{index}]"),
                    got: Some("a string with a key in it".to_owned()),
                    expected:
                        "no key, because everyone who may read the task definition sees it: give the task role the \
                         permission to look up the servers"
                            .to_owned(),
                    rule: None,
                });
            }
        }
        if own.tls == Some(true) && own.secrets.ca.is_none() {
            found.missing("secrets.ca", "the ARN of the servers' CA certificate, because `tls` is true", None);
        }
        if let (Some(false), Some(ca)) = (own.tls, &own.secrets.ca) {
            found.wrong("secrets.ca", &json!(ca), "nothing, because `tls` is false", None);
        }
        let shutdown_delay = own.shutdown_delay.as_ref().and_then(|text| match parse_delay(text) {
            Ok(delay) if delay.is_zero() => None,
            Ok(delay) => Some((text.clone(), delay)),
            Err(expected) => {
                found.wrong("shutdownDelay", &json!(text), expected, None);
                None
            }
        });
        let images = own.images(shutdown_delay.is_some() && config.gateway.is_none(), agentless, &mut found);
        let log_configuration = (!own.log_configuration.is_empty()).then_some(Value::Object(own.log_configuration));
        let settings = Self {
            mode: if agentless {
                Mode::Agentless
            } else {
                let Own { retry_join, datacenter, consul_version, .. } = own;
                Mode::Agent(Agent { retry_join, datacenter, consul_version })
            },
            config,
            document,
            images,
            secrets: own.secrets,
            listener_ports: own.listener_ports,
            shutdown_delay,
            shutdown_delay_containers: own.shutdown_delay_containers,
            log_configuration,
            warnings,
        };
        settings.check_login(&mut found);
        (settings, found)
    }

    /// Whether the tokens come from an auth method of Consul.
    pub(crate) fn logs_in(&self) -> bool {
        self.config.consul_login.as_ref().is_some_and(|login| login.enabled)
    }

    /// Whether this is a service or a gateway; none if the document has neither.
    pub(crate) fn role(&self) -> Option<Role<'_>> {
        (self.config.service.is_some() || self.config.gateway.is_some()).then(|| Role::of(&self.config))
    }

    fn check_login(&self, found: &mut Collected) {
        if !self.logs_in() {
            return;
        }
        if let Some(token) = &self.secrets.service_token {
            found.wrong(
                "secrets.serviceToken",
                &json!(token),
                "nothing, because the login of `consulLogin` gives that token",
                None,
            );
        }
        if self.mode != Mode::Agentless && self.secrets.client_token.is_none() && self.config.consul_http_addr.is_none()
        {
            found.missing(
                "consulHTTPAddr",
                "the URL of Consul's servers, at which the agent logs in; or set `secrets.clientToken`",
                None,
            );
        }
    }
}

/// A field of the task's agent. The settings of a task without an agent must not have it.
fn of_agent<'o, 'a>(
    object: &'o mut Object<'a>,
    name: &'static str,
    about: &'static str,
) -> Option<FieldReader<'o, 'a>> {
    if object.is_agentless() {
        object.refuse(name, "the task has no Consul agent, because `consulServers` is set");
        return None;
    }
    Some(object.field(name, about))
}

/// Whether a cloud auto-join string contains a credential.
fn holds_a_key(address: &str) -> bool {
    let names = address.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
    let is_key =
        |name: &str| name == "api_key" || ["secret", "token", "password"].iter().any(|word| name.contains(word));
    address.contains("provider=") && names.into_iter().any(is_key)
}

impl Own {
    fn read(root: &mut Object<'_>) -> Self {
        Self {
            retry_join: of_agent(root, "retryJoin", "Consul's servers, which the task's agent joins: addresses or cloud auto-join strings.")
                .map(|field| field.required().texts())
                .unwrap_or_default(),
            registry: root
                .field("registry", "The registry with the images of ecs-mesh, which are named `<registry>/<image>:<version>`.")
                .text()
                .map(|text| text.trim_end_matches('/').to_owned()),
            images: root
                .field("images", "Single images. Each takes precedence over `registry`.")
                .object(Unknown::Refused, |images| {
                    [
                        images.field("meshInit", "The image of `consul-config` and `mesh-init`.").text(),
                        of_agent(images, "consul", "The image of `consul-client`; default HashiCorp's image of Consul.")
                            .and_then(FieldReader::text),
                        images.field("sidecarProxy", "The image of `sidecar-proxy`: Envoy with envoy-entrypoint.").text(),
                        images
                            .field("meshDataplane", "The image of `dataplane`, in a task without an agent: Envoy with mesh-dataplane.")
                            .text(),
                        images.field("healthSync", "The image of `health-sync`.").text(),
                        images.field("appEntrypoint", "The image of `app-entrypoint`.").text(),
                    ]
                })
                .unwrap_or_default(),
            secrets: root
                .field("secrets", "The ARNs of secrets in Secrets Manager or of parameters in the Parameter Store. As in `valueFrom`, an ARN may name a JSON key and a version.")
                .object(Unknown::Refused, |secrets| Secrets {
                    client_token: of_agent(secrets, "clientToken", "The token of all agents: the secret that acl-controller fills, or an ARN with the JSON key that holds the token.")
                        .and_then(FieldReader::text),
                    service_token: secrets
                        .field("serviceToken", "The token of this service: the secret that acl-controller fills, or an ARN with the JSON key that holds the token.")
                        .text(),
                    gossip_key: of_agent(secrets, "gossipKey", "The gossip key. Without it, gossip is not encrypted.").and_then(FieldReader::text),
                    ca: secrets.field("ca", "The CA certificate of the servers. Without it, an agent uses no TLS. A task without an agent then trusts public authorities.").text(),
                })
                .unwrap_or_default(),
            datacenter: of_agent(root, "datacenter", "The datacenter of the agent; default Consul's, `dc1`.").and_then(FieldReader::text),
            consul_version: of_agent(root, "consulVersion", "The version of the agent's Consul, such as `1.8`; default 1.12 or later.")
                .and_then(FieldReader::text),
            listener_ports: root
                .field("listenerPorts", "The ports of an ingress gateway's listeners. mesh-task maps them in the task definition, because a load balancer sends requests only to mapped ports.")
                .ports(),
            tls: of_agent(root, "tls", "Whether the agent speaks TLS to the servers; by default it does if `secrets.ca` is set.")
                .and_then(FieldReader::boolean),
            shutdown_delay: root
                .field("shutdownDelay", "How long the app runs on after TERM, such as `10s`. In the task of a gateway, Envoy runs on for this long.")
                .text(),
            shutdown_delay_containers: root
                .field("shutdownDelayContainers", "The containers with that delay. By default all containers have it, except log routers, containers that must end before another one starts, and containers that already run under app-entrypoint.")
                .texts(),
            log_configuration: root
                .field("logConfiguration", "The sidecars' `logConfiguration`, as a container definition has it.")
                .opaque(),
        }
    }

    /// The images. Only a task with a delayed app needs the one of app-entrypoint. The mode decides which image has Envoy.
    fn images(&self, delayed: bool, agentless: bool, found: &mut Collected) -> Images {
        let version = env!("CARGO_PKG_VERSION");
        let [mesh_init, consul, sidecar_proxy, mesh_dataplane, health_sync, app_entrypoint] = &self.images;
        let needed = |name: &str| match name {
            "app-entrypoint" => delayed,
            "sidecar-proxy" => !agentless,
            "mesh-dataplane" => agentless,
            _ => true,
        };
        let mut image = |given: &Option<String>, field: &str, name: &str| {
            let from_registry = || self.registry.as_ref().map(|registry| format!("{registry}/{name}:{version}"));
            given.clone().or_else(from_registry).unwrap_or_else(|| {
                if needed(name) {
                    found.missing(
                        format!("images.{field}"),
                        "an image; or set `registry`, the registry with the images of ecs-mesh",
                        None,
                    );
                }
                String::new()
            })
        };
        Images {
            mesh_init: image(mesh_init, "meshInit", "mesh-init"),
            sidecar_proxy: image(sidecar_proxy, "sidecarProxy", "sidecar-proxy"),
            mesh_dataplane: image(mesh_dataplane, "meshDataplane", "mesh-dataplane"),
            health_sync: image(health_sync, "healthSync", "health-sync"),
            app_entrypoint: image(app_entrypoint, "appEntrypoint", "app-entrypoint"),
            consul: consul.clone().unwrap_or_else(|| CONSUL_IMAGE.to_owned()),
        }
    }
}

/// The JSON schema of the settings. The rules of the document and of this crate are not part of the schema.
#[must_use]
pub fn schema() -> Value {
    schema_of_modes("Settings of mesh-task", |mode| Shape::of_document_beside(mode, Own::read))
}
