//! Tasks without an agent: their node, and what the controller removes when they have stopped.
//!
//! The controller's token has exactly the rules that its README names for this.

use super::*;

const ADDRESS: &str = "10.0.0.14";
const KEY: &str = "/v1/kv/ecs-mesh/acl-controller/arn:aws:ecs:eu-north-1:210987654321:cluster/blue/registered";

/// The rules for tasks without an agent.
fn rules() -> String {
    let arn = readme("hcl", 5).replace("REGION:ACCOUNT:cluster/CLUSTER", "eu-north-1:210987654321:cluster/blue");
    [readme("hcl", 0), readme("hcl", 1), arn].concat()
}

/// A path of the catalog for the node.
fn path(of: &str) -> String {
    format!("/v1/catalog/{of}/{}", CLUSTER.replace('/', "%2F"))
}

/// A task ID with this digit.
fn id(digit: char) -> String {
    digit.to_string().repeat(32)
}

fn arn(digit: char) -> String {
    format!("{}/{}", CLUSTER.replace(":cluster/", ":task/"), id(digit))
}

impl World {
    /// A world whose controller may do what it needs for tasks without an agent.
    pub(super) async fn agentless(services: &[&str]) -> Self {
        let mut world = Self::new(services).await;
        world.token = limited(&world.agent, "agentless", &rules()).await;
        world
    }

    /// Starts a controller that works for tasks without an agent. Returns its metrics' address too.
    fn start_agentless(&self, arguments: &[&str]) -> (Process, String) {
        let mut command = self.command("key");
        let address = listens(&command);
        command.args(["--agentless", "--node-address", ADDRESS]).args(arguments);
        (Process::spawn(&mut command), address)
    }

    /// Starts such a controller behind a relay to Consul, which answers 500 to each request that `refuses` selects.
    fn start_with_refusals(&self, refuses: impl Fn(&str) -> bool + Send + Sync + 'static) -> (Process, Relay) {
        let look = move |_, bytes: &[u8]| {
            if refuses(&String::from_utf8_lossy(bytes)) {
                return Pass::Answer(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec());
            }
            Pass::On
        };
        let relay = Relay::start(&self.agent.http, look, |_, _| {});
        let mut command = self.command("key");
        command.env("CONSUL_HTTP_ADDR", &relay.address).args(["--agentless", "--node-address", ADDRESS]);
        (Process::spawn(&mut command), relay)
    }

    /// The command of a controller that uses no secrets, and the URL on which it will listen.
    fn without_secrets(&self) -> (Command, String) {
        let mut command = Command::new(binary("acl-controller"));
        for (name, value) in self.command("key").get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let listen = format!("127.0.0.1:{}", free_port());
        command.args(["--cluster", CLUSTER, "--listen", &listen, "--agentless", "--node-address", ADDRESS]);
        (command, format!("http://{listen}"))
    }

    async fn node(&self) -> Value {
        self.agent.call("GET", &path("node"), &Value::Null).await["Node"].take()
    }

    async fn node_settles(&self) -> Value {
        eventually("the node is there", BOUND, async || {
            let node = self.node().await;
            let right = node["Address"] == ADDRESS && node["Meta"]["synthetic-node"] == "true";
            if right { Ok(node) } else { Err(node.to_string()) }
        })
        .await
    }

    /// Registers service and proxy of a task as mesh-init does.
    async fn register(&self, task: &str, meta: Value) {
        let service = format!("web-{task}");
        for (service_id, name) in [(service.clone(), "web"), (format!("{service}-sidecar-proxy"), "web-sidecar-proxy")]
        {
            let check = json!({ "CheckID": format!("{service_id}-consul-dataplane"), "ServiceID": service_id,
                                "Name": "Consul dataplane readiness", "Status": "passing" });
            let service = json!({ "ID": service_id, "Service": name, "Address": "10.0.0.21", "Meta": meta });
            let body = json!({ "Node": CLUSTER, "SkipNodeUpdate": true, "Service": service, "Checks": [check] });
            self.agent.call("PUT", "/v1/catalog/register", &body).await;
        }
    }

    async fn register_task(&self, digit: char) {
        let meta = json!({ "source": "consul-ecs", "task-id": id(digit), "task-arn": arn(digit) });
        self.register(&digit.to_string(), meta).await;
    }

    /// The tasks that have service and proxy on the node, in order.
    async fn registered(&self) -> Vec<String> {
        let services = self.agent.call("GET", &path("node"), &Value::Null).await["Services"].take();
        let ids = services.as_object().into_iter().flat_map(|services| services.keys()).cloned().collect::<Vec<_>>();
        let proxies = ids.iter().filter_map(|id| id.strip_suffix("-sidecar-proxy")).collect::<Vec<_>>();
        assert_eq!(proxies.len() * 2, ids.len(), "{ids:?}");
        proxies.into_iter().map(|id| id.trim_start_matches("web-").to_owned()).collect()
    }

    async fn are_registered(&self, tasks: &[&str]) {
        eventually(&format!("{tasks:?} are registered"), BOUND, async || {
            let services = self.agent.call("GET", &path("node"), &Value::Null).await["Services"].take();
            let count = services.as_object().map_or(0, serde_json::Map::len);
            if count == tasks.len() * 2 { Ok(()) } else { Err(services.to_string()) }
        })
        .await;
        assert_eq!(self.registered().await, tasks);
    }

    /// Creates a token with this description. Returns its accessor ID.
    async fn described(&self, description: &str) -> String {
        let token = json!({ "Description": description, "ServiceIdentities": [{ "ServiceName": "web" }] });
        self.agent.call("PUT", "/v1/acl/token", &token).await["AccessorID"].as_str().unwrap().to_owned()
    }

    async fn login(&self, digit: char) -> String {
        let meta = json!({ "consul.hashicorp.com/task-id": id(digit), "consul.hashicorp.com/cluster": CLUSTER });
        self.described(&format!("token created via login: {meta}")).await
    }

    async fn is_gone(&self, accessor: &str) {
        eventually(&format!("the token {accessor} is gone"), BOUND, async || {
            if self.listed(accessor).await.is_some() { Err(String::new()) } else { Ok(()) }
        })
        .await;
    }
}

#[tokio::test]
async fn node_is_kept_and_repaired() {
    let world = World::agentless(&[]).await;
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(&mut command);
    cycles(&address, 3.0).await;
    assert_eq!(world.node().await, Value::Null, "not without the flag");
    drop(controller);

    let (controller, address) = world.start_agentless(&[]);
    let first = world.node_settles().await;
    assert_eq!(first["Meta"], json!({ "synthetic-node": "true" }));
    cycles(&address, 3.0).await;
    assert_eq!(world.node().await, first, "a node that is right is not written again");

    world.register_task('a').await;
    world.aws.run(&id('a'), "web");
    let edited = json!({ "Node": CLUSTER, "Address": "10.9.9.9", "NodeMeta": { "team": "shop" } });
    world.agent.call("PUT", "/v1/catalog/register", &edited).await;
    let repaired = world.node_settles().await;
    assert_eq!(repaired["Meta"], json!({ "synthetic-node": "true", "team": "shop" }));
    world.are_registered(&["a"]).await;
    controller.says("repaired; its address was 10.9.9.9, now 10.0.0.14", BOUND).await;

    world.agent.call("PUT", "/v1/catalog/deregister", &json!({ "Node": CLUSTER })).await;
    world.node_settles().await;
    world.silent(&controller);
}

#[tokio::test]
async fn node_is_kept_while_ecs_fails() {
    let world = World::agentless(&[]).await;
    world.aws.refuse("ListTasks", "AccessDeniedException");
    // The ARN has the account. For a short name, the controller needs a listing first.
    let mut command = world.command_for("key", CLUSTER);
    let _controller = Process::spawn(command.args(["--agentless", "--node-address", ADDRESS]));
    world.node_settles().await;
    world.agent.call("PUT", "/v1/catalog/deregister", &json!({ "Node": CLUSTER })).await;
    world.node_settles().await;
}

#[tokio::test]
async fn node_has_the_address_of_the_controller_s_task() {
    let world = World::agentless(&[]).await;
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": [ADDRESS] }]);
    let metadata = Metadata::start("acl-controller", json!([{ "Name": "controller", "Networks": networks }]));
    let mut command = world.command("key");
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).env("ACL_CONTROLLER_AGENTLESS", "true");
    let _controller = Process::spawn(&mut command);
    world.node_settles().await;
}

#[tokio::test]
async fn services_stay_until_ecs_says_that_their_task_has_stopped() {
    let world = World::agentless(&[]).await;
    let (controller, address) = world.start_agentless(&[]);
    world.node_settles().await;
    for digit in ['a', 'b', 'c', 'd', 'e'] {
        world.aws.run(&id(digit), "web");
        world.register_task(digit).await;
    }
    // No task of this cluster registered these.
    world.register("green", json!({ "task-arn": arn('f').replace("blue", "green") })).await;
    world.register("hand-made", json!({})).await;
    world.register("wrong", json!({ "task-arn": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2" })).await;
    cycles(&address, 3.0).await;
    let before = ["a", "b", "c", "d", "e", "green", "hand-made", "wrong"];
    assert_eq!(world.registered().await, before);

    // `b` has stopped. ECS is stopping `c`, and has deleted its tags. ECS does not know `d`, and fails to describe `e`.
    world.aws.undescribed(&arn('e'), true);
    world.aws.set_status(&arn('e'), "STOPPED", "STOPPED");
    world.aws.forget(&arn('d'));
    world.aws.stop(&arn('c'));
    world.aws.set_status(&arn('b'), "STOPPED", "STOPPED");
    world.are_registered(&["a", "c", "d", "e", "green", "hand-made", "wrong"]).await;
    controller.says(&format!("service web-b: removed, because the task {} has stopped", arn('b')), BOUND).await;
    cycles(&address, 3.0).await;
    assert_eq!(world.registered().await, ["a", "c", "d", "e", "green", "hand-made", "wrong"]);
    world.aws.set_status(&arn('c'), "STOPPED", "STOPPED");
    world.aws.undescribed(&arn('e'), false);
    world.are_registered(&["a", "d", "green", "hand-made", "wrong"]).await;
    let removed = metrics(&address).await["acl_controller_leftovers_removed_total{what=\"service\"}"];
    assert_eq!(removed, 6.0, "service and proxy of three tasks");
    // The checks have gone with the services.
    let checks = format!("/v1/health/node/{}", CLUSTER.replace('/', "%2F"));
    assert_eq!(world.agent.call("GET", &checks, &Value::Null).await.as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn services_of_an_unknown_task_are_removed_after_an_hour() {
    let world = World::agentless(&[]).await;
    let (controller, _) = world.start_agentless(&[]);
    world.node_settles().await;
    world.register_task('a').await;
    // The controller has noted when it saw the service.
    let mark = eventually("a mark", BOUND, async || {
        let url = world.agent.url(&format!("{KEY}?raw"));
        let token = [("X-Consul-Token", world.agent.management.as_str())];
        match http::request("GET", &url, &token, "").await? {
            (200, text) => Ok(text),
            (status, text) => Err(format!("{status} {text}")),
        }
    })
    .await;
    world.register_task('b').await;
    drop(controller);
    // The next controller runs more than an hour later.
    let mut marks: Value = serde_json::from_str(&mark).unwrap();
    marks[0]["at"] = "2020-01-01T00:00:00Z".into();
    world.agent.call("PUT", KEY, &marks).await;
    let (controller, address) = world.start_agentless(&[]);
    controller.says("is unknown to ECS", TAKEOVER + BOUND).await;
    world.are_registered(&["b"]).await;
    cycles(&address, 3.0).await;
    assert_eq!(world.registered().await, ["b"], "the controller saw it after the mark");
}

#[tokio::test]
async fn login_tokens_stay_until_ecs_says_that_their_task_has_stopped() {
    let world = World::agentless(&["web"]).await;
    let (controller, address) = world.start_agentless(&[]);
    let mut tokens = BTreeMap::new();
    for digit in ['a', 'b', 'c', 'd'] {
        world.aws.run(&id(digit), "web");
        tokens.insert(digit, world.login(digit).await);
    }
    let foreign = [
        world
            .described(&format!("token created via login: {}", json!({ "consul.hashicorp.com/task-id": id('b') })))
            .await,
        world.described(&format!("of the task {}", id('b'))).await,
    ];
    cycles(&address, 3.0).await;
    world.aws.forget(&arn('d'));
    world.aws.stop(&arn('c'));
    world.aws.set_status(&arn('b'), "STOPPED", "STOPPED");
    world.is_gone(&tokens[&'b']).await;
    controller.says(&format!("login token {}: removed, because the task {}", tokens[&'b'], arn('b')), BOUND).await;
    cycles(&address, 3.0).await;
    for kept in ['a', 'c', 'd'].map(|digit| &tokens[&digit]).into_iter().chain(&foreign) {
        assert!(world.listed(kept).await.is_some(), "{kept}");
    }
    world.aws.set_status(&arn('c'), "STOPPED", "STOPPED");
    world.is_gone(&tokens[&'c']).await;
    assert_eq!(metrics(&address).await["acl_controller_leftovers_removed_total{what=\"login_token\"}"], 2.0);
}

#[tokio::test]
async fn after_a_failed_removal_the_others_go_on() {
    let world = World::agentless(&[]).await;
    let (controller, _relay) = world.start_with_refusals(|request| {
        request.starts_with("PUT /v1/catalog/deregister") && request.contains("\"web-a\"")
    });
    world.node_settles().await;
    for digit in ['a', 'b'] {
        world.aws.run(&id(digit), "web");
        world.register_task(digit).await;
        world.aws.set_status(&arn(digit), "STOPPED", "STOPPED");
    }
    controller.says("cannot remove service web-a of the stopped task", BOUND).await;
    controller.says("service web-b-sidecar-proxy: removed", BOUND).await;
    controller.says("service web-a-sidecar-proxy: removed", BOUND).await;
}

/// A task that ECS knows to have stopped needs no record of how old its services are.
#[tokio::test]
async fn stopped_task_leaves_nothing_although_the_record_cannot_be_read() {
    let world = World::agentless(&[]).await;
    let (controller, _relay) = world.start_with_refusals(|request| {
        let line = request.lines().next().unwrap_or_default();
        line.starts_with("GET /v1/kv/") && line.contains("/registered")
    });
    world.node_settles().await;
    for digit in ['a', 'b'] {
        world.aws.run(&id(digit), "web");
        world.register_task(digit).await;
    }
    let login = world.login('a').await;
    world.aws.set_status(&arn('a'), "STOPPED", "STOPPED");
    world.aws.forget(&arn('b'));
    controller.says("cannot read how old the services are: ", BOUND).await;
    world.are_registered(&["b"]).await;
    world.is_gone(&login).await;
}

#[tokio::test]
async fn services_without_a_secret_get_no_token() {
    let world = World::agentless(&["web"]).await;
    world.aws.remove_secret("p-consul-client-token");
    world.aws.run(&id('a'), "web");
    world.aws.run(&id('b'), "logs-in");
    let (controller, address) = world.start_agentless(&[]);
    world.settles("web").await;
    controller.says("service logs-in: gets no token, because there is no secret p-logs-in", BOUND).await;
    cycles(&address, 3.0).await;
    let counters = metrics(&address).await;
    assert_eq!(counters["acl_controller_services_failing"], 0.0);
    assert_eq!(counters["acl_controller_tokens_total{change=\"created\"}"], 1.0);
    let policies = world.agent.call("GET", "/v1/acl/policies", &Value::Null).await;
    assert!(!policies.to_string().contains("p-consul-client-policy"), "{policies}");
    let reads = |calls: Vec<Made>| calls.iter().filter(|call| call.name == "GetSecretValue").count();
    let _ = world.aws.take_calls();
    cycles(&address, 3.0).await;
    assert_eq!(reads(world.aws.take_calls()), 0);
    assert_eq!(controller.output().matches("logs-in: gets no token").count(), 1, "said once");
    // A team may add the secret later. It has no value yet.
    world.aws.add_secret("p-logs-in");
    world.settles("logs-in").await;
}

#[tokio::test]
async fn without_a_prefix_there_are_only_calls_for_tasks_without_an_agent() {
    let world = World::agentless(&["web"]).await;
    world.aws.run(&id('a'), "web");
    let (mut command, address) = world.without_secrets();
    let controller = Process::spawn(&mut command);
    world.node_settles().await;
    world.register_task('a').await;
    cycles(&address, 3.0).await;
    let before = metrics(&address).await;
    let _ = world.aws.take_calls();
    cycles(&address, 3.0).await;
    let calls = world.aws.take_calls();
    assert!(calls.iter().all(|call| call.name.ends_with("Tasks")), "{calls:?}");
    let after = metrics(&address).await;
    let grown = after.iter().filter(|(name, value)| {
        name.contains("api=\"consul\"")
            && before.get(*name) != Some(*value)
            && !name.contains("Lock")
            && !name.contains("Session")
    });
    let grown =
        grown.map(|(name, _)| name.split("call=\"").nth(1).unwrap().split('"').next().unwrap()).collect::<Vec<_>>();
    assert_eq!(grown, ["ListPolicies", "ListTerminatingGateways", "ListTokens", "ReadNode"]);
    assert_eq!(world.aws.secret("p-web"), json!({}));
    world.silent(&controller);
}

#[tokio::test]
async fn node_is_kept_without_acls() {
    let agent = Agent::start().await;
    let aws = Aws::start();
    let world = World { agent, aws, token: String::new() };
    let (mut command, address) = world.without_secrets();
    let controller = Process::spawn(&mut command);
    world.node_settles().await;
    world.aws.run(&id('a'), "web");
    world.register_task('a').await;
    cycles(&address, 2.0).await;
    assert_eq!(http::request("GET", &format!("{address}/readyz"), &[], "").await.unwrap().0, 200);
    assert!(!controller.output().contains("ERROR"), "{}", controller.output());
    world.aws.set_status(&arn('a'), "STOPPED", "STOPPED");
    world.are_registered(&[]).await;
}
