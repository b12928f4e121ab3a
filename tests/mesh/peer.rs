//! A service moves from the agentless tasks of consul-ecs 0.10 to those of ecs-mesh, and back: `cargo xtask test mesh --peer DIR`.

use std::path::PathBuf;

use bollard::Docker;
use local_mesh::compose::Compose;
use local_mesh::images::{self, PEER};
use local_mesh::load::{Load, Report};
use local_mesh::task::{self, StopOrder};
use local_mesh::tasks::Own;
use local_mesh::{docker, workspace};
use serde_json::{Map, Value, json};

use crate::acl::token_of;
use crate::agentless::{LOAD, without_an_agent};
use crate::{answered_by, restored, up, whole};

/// The tasks of consul-ecs: name, service, and a task ID for the first run.
const TASKS: [(&str, &str, char); 3] =
    [("web-peer", "web", '5'), ("api-peer-1", "api", '6'), ("api-peer-2", "api", '7')];

/// The tasks of api: those of consul-ecs, each with the task of ecs-mesh that replaces it.
const PAIRS: [(&str, &str); 2] = [("api-peer-1", "api-1"), ("api-peer-2", "api-2")];

/// A name in the certificate of Consul's servers. Servers that consul-dataplane learns from a server have addresses only.
const SERVER_NAME: &str = "server.dc1.consul";

#[tokio::test]
async fn service_moves_from_tasks_of_consul_ecs_and_back() {
    let docker = whole().await;
    let folder = PathBuf::from(std::env::var_os("PEER").expect("the folder of `cargo xtask test mesh --peer DIR`"));
    images::of_peer(&folder).await.unwrap();
    up(&without_an_agent(&["web", "api-1", "api-2"])).await;
    let peers = Peers::write().await;

    // Only tasks of consul-ecs serve api.
    for (name, ..) in TASKS {
        peers.start(&docker, name).await;
    }
    for (_, own) in PAIRS {
        task::stop(&docker, own, StopOrder::AllAtOnce).await.unwrap();
    }
    answered_by(&docker, &["api-peer-1", "api-peer-2"]).await;

    // Tasks of both kinds call api while it moves.
    let of_own = Load::start(&docker, "web", LOAD).await.unwrap();
    let of_peer = Load::start(&docker, "web-peer", LOAD).await.unwrap();
    for (peer, own) in PAIRS {
        task::start(&docker, own, &[]).await.unwrap();
        task::in_rotation(&docker, own).await.unwrap();
        task::stop(&docker, peer, StopOrder::AllAtOnce).await.unwrap();
    }
    answered_by(&docker, &["api-1", "api-2"]).await;
    for (peer, own) in PAIRS {
        peers.start(&docker, peer).await;
        task::in_rotation(&docker, peer).await.unwrap();
        task::stop(&docker, own, StopOrder::AllAtOnce).await.unwrap();
    }
    answered_by(&docker, &["api-peer-1", "api-peer-2"]).await;
    for (load, from) in [(of_own, "web"), (of_peer, "web-peer")] {
        let report: Report = load.end().await.unwrap();
        println!("{from} called api while it moved there and back: {} requests, {} failed", report.sent, report.failed);
        assert_eq!((report.failed, &report.failures), (0, &Default::default()), "{from}: {report:?}");
        assert!(report.sent > 0);
    }

    peers.remove(&docker).await;
    up(&Own::default()).await;
    restored().await;
}

/// The tasks of consul-ecs, in a file over docker-compose.yml.
struct Peers {
    file: tempfile::NamedTempFile,
    services: Map<String, Value>,
}

impl Peers {
    async fn write() -> Self {
        let (mut services, mut volumes) = (Map::new(), Map::new());
        for (name, service, digit) in TASKS {
            let task = Task { name, service, id: digit.to_string().repeat(32), token: token_of(service).await };
            services.extend(task.services());
            let options = json!({ "type": "tmpfs", "device": "tmpfs", "o": "uid=10001,gid=10001,mode=2770" });
            volumes.insert(format!("{name}-consul"), json!({ "driver": "local", "driver_opts": options }));
        }
        let file = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
        let text = json!({ "services": services, "volumes": volumes }).to_string();
        std::fs::write(file.path(), text).unwrap();
        Self { file, services }
    }

    /// The services of these tasks.
    fn names<'a>(&'a self, tasks: &'a str) -> impl Iterator<Item = &'a str> {
        self.services.keys().map(String::as_str).filter(move |name| name.starts_with(tasks))
    }

    async fn compose(&self, arguments: &[&str]) {
        let over = Compose { over: Some(self.file.path()), ..Compose::default() };
        over.run(arguments).await.unwrap();
    }

    /// Starts a task and waits until its checks pass.
    async fn start(&self, docker: &Docker, name: &str) {
        self.compose(&["up", "--detach"].into_iter().chain(self.names(name)).collect::<Vec<_>>()).await;
        task::ready(docker, name).await.unwrap();
    }

    async fn remove(&self, docker: &Docker) {
        let running = docker::tasks(docker).await.unwrap();
        for (name, ..) in TASKS {
            if running[name].running {
                task::stop(docker, name, StopOrder::AllAtOnce).await.unwrap();
            }
        }
        self.compose(&["rm", "--force", "-v"].into_iter().chain(self.names("")).collect::<Vec<_>>()).await;
        for (name, ..) in TASKS {
            let options = None::<bollard::query_parameters::RemoveVolumeOptions>;
            docker.remove_volume(&format!("ecs-mesh_{name}-consul"), options).await.unwrap();
        }
    }
}

/// A task of consul-ecs, as its Terraform modules make it. On ECS the token comes from a secret, too.
struct Task {
    name: &'static str,
    service: &'static str,
    id: String,
    token: String,
}

impl Task {
    fn services(&self) -> Vec<(String, Value)> {
        let Self { name, service, .. } = self;
        let is_web = *service == "web";
        let port = if is_web { 9090 } else { 8080 };
        let upstreams = if is_web { json!([{ "destinationName": "api", "localBindPort": 1234 }]) } else { json!([]) };
        let document = json!({
            "bootstrapDir": "/consul",
            "service": { "name": service, "port": port },
            "proxy": { "upstreams": upstreams },
            "transparentProxy": { "enabled": false },
            "healthSyncContainers": ["app"],
            "consulServers": {
                "hosts": "consul-server-1",
                "defaults": { "tls": true, "caCertFile": "/ca.pem", "tlsServerName": SERVER_NAME },
            },
        })
        .to_string();
        let sidecar = [("CONSUL_ECS_CONFIG_JSON", document.as_str()), ("CONSUL_HTTP_TOKEN", self.token.as_str())];
        let listen = format!("127.0.0.1:{port}");
        let mut app = vec![("SERVICE_NAME", *service), ("LISTEN", listen.as_str())];
        if is_web {
            app.push(("UPSTREAMS", "api=http://127.0.0.1:1234"));
        }
        let dataplane = [
            ("DP_CREDENTIAL_TYPE", "static"),
            ("DP_CREDENTIAL_STATIC_TOKEN", self.token.as_str()),
            // mesh-init writes it to the file under a name that consul-dataplane does not read.
            ("DP_TLS_SERVER_NAME", SERVER_NAME),
        ];
        let [init, healthy] = ["service_completed_successfully", "service_healthy"];
        let pause = json!({
            "image": "ecs-mesh/ecs-local:dev", "command": ["pause"], "user": "10001:10001", "networks": ["mesh", "metadata"],
            "labels": self.labels("~internal~ecs~pause", &[("ecs-mesh.type", "CNI_PAUSE")]),
            "volumes": [format!("{name}-consul:/volumes/consul")],
        });
        let mut all = vec![((*name).to_owned(), pause)];
        let mut add = |container: &str, labels: &[(&str, &str)], variables: &[(&str, &str)], more: Value| {
            all.push((format!("{name}-{container}"), self.container(container, labels, variables, more)));
        };
        let not_essential = ("ecs-mesh.essential", "false");
        add("consul-ecs-mesh-init", &[not_essential], &sidecar, json!({ "command": ["consul-ecs", "mesh-init"] }));
        add(
            "consul-dataplane",
            &[("ecs-mesh.depends-on", "consul-ecs-mesh-init:SUCCESS"), ("ecs-mesh.stop-timeout", "40")],
            &dataplane,
            json!({
                "command": ["consul-ecs", "envoy-entrypoint", "consul-dataplane", "-config-file", "/consul/consul-dataplane.json"],
                "depends_on": { format!("{name}-consul-ecs-mesh-init"): { "condition": init } },
                "healthcheck": health(&["/consul/consul-ecs", "net-dial", "127.0.0.1:22000"]),
            }),
        );
        add(
            "consul-ecs-health-sync",
            &[("ecs-mesh.depends-on", "consul-ecs-mesh-init:SUCCESS")],
            &sidecar,
            json!({
                "command": ["consul-ecs", "health-sync"],
                "depends_on": { format!("{name}-consul-ecs-mesh-init"): { "condition": init } },
            }),
        );
        add(
            "app",
            &[("ecs-mesh.depends-on", "consul-dataplane:HEALTHY")],
            &app,
            json!({
                "image": "ecs-mesh/demo-app:dev",
                "entrypoint": ["/consul/consul-ecs", "app-entrypoint", "-shutdown-delay", "6s", "/demo-app"],
                "command": ["serve"],
                "depends_on": { format!("{name}-consul-dataplane"): { "condition": healthy } },
                "healthcheck": health(&["/demo-app", "health"]),
            }),
        );
        all
    }

    fn container(&self, container: &str, labels: &[(&str, &str)], variables: &[(&str, &str)], more: Value) -> Value {
        let name = self.name;
        let ca = workspace().join("target/local-mesh/consul/ca.pem");
        let mut environment: Map<String, Value> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let metadata = format!("http://169.254.170.2/v4/{}-{container}", self.task_id());
        environment.insert("ECS_CONTAINER_METADATA_URI_V4".to_owned(), metadata.into());
        let mut service = json!({
            "image": PEER, "user": "10001:10001", "network_mode": format!("service:{name}"), "tmpfs": ["/tmp:mode=1777"],
            "labels": self.labels(container, labels), "environment": environment, "stop_grace_period": "40s",
            "volumes": [format!("{}:/ca.pem:ro", ca.display()), format!("{name}-consul:/consul")],
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            service[field] = value.clone();
        }
        service
    }

    fn labels(&self, container: &str, more: &[(&str, &str)]) -> Value {
        let arn = format!("arn:aws:ecs:us-east-1:123456789012:task/ecs-mesh/{}", self.task_id());
        let mut labels = json!({
            "com.amazonaws.ecs.cluster": "ecs-mesh",
            "com.amazonaws.ecs.task-arn": arn,
            "com.amazonaws.ecs.task-definition-family": self.service,
            "com.amazonaws.ecs.task-definition-version": "1",
            "com.amazonaws.ecs.container-name": container,
            "ecs-mesh.task": self.name,
            "ecs-mesh.tag.consul.hashicorp.com/mesh": "true",
            "ecs-mesh.tag.consul.hashicorp.com/service-name": self.service,
        });
        for (name, value) in more {
            labels[name] = json!(value);
        }
        labels
    }

    /// The task's ID, as docker-compose reads it: a variable, which is set for each start, with a default.
    fn task_id(&self) -> String {
        format!("${{{}_TASK_ID:-{}}}", self.name.to_uppercase().replace('-', "_"), self.id)
    }
}

fn health(command: &[&str]) -> Value {
    let test = ["CMD"].into_iter().chain(command.iter().copied()).collect::<Vec<_>>();
    json!({ "test": test, "interval": "1s", "timeout": "2s", "retries": 3, "start_period": "300s" })
}
