//! One of several controllers works, even if the leader or Consul fails.

use super::*;

#[tokio::test]
async fn standby_takes_over_from_a_killed_leader() {
    let world = World::new(&["web"]).await;
    let first = Process::spawn(&mut world.command("first"));
    first.says("holding the lock", BOUND).await;
    let sessions = world.agent.call("GET", "/v1/session/list", &Value::Null).await;
    let session = &sessions[0];
    // With a node check, the session would end when the server that created it fails. The lock-delay is in nanoseconds.
    let held = json!({ "NodeChecks": session["NodeChecks"], "TTL": session["TTL"], "LockDelay": session["LockDelay"] });
    assert_eq!(held, json!({ "NodeChecks": [], "TTL": "10s", "LockDelay": 1_000_000_000 }), "{sessions}");
    let mut command = world.command("second");
    let address = listens(&command);
    let second = Process::spawn(&mut command);
    second.says("standing by", BOUND).await;
    eventually("it is ready", BOUND, async || http::get(&format!("{address}/readyz")).await).await;
    assert_eq!(metrics(&address).await["acl_controller_leader"], 0.0);
    // Both controllers have found out the cluster's account.
    let _ = world.aws.take_calls();
    world.aws.run("1", "web");
    world.settles("web").await;
    assert!(world.aws.take_calls().iter().all(|call| call.key == "first"));
    drop(first);
    second.says("holding the lock", TAKEOVER).await;
    world.aws.set_secret("p-api", "{}");
    world.aws.run("2", "api");
    world.settles("api").await;
    world.settles("web").await;
    assert_eq!(metrics(&address).await["acl_controller_leader"], 1.0);
}

#[tokio::test]
async fn stopped_leader_releases_the_lock_at_once() {
    let world = World::new(&["web"]).await;
    let mut first = world.start();
    first.says("holding the lock", BOUND).await;
    let second = world.start();
    second.says("standing by", BOUND).await;
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(BOUND).await, 0);
    // Much earlier than the end of the session's TTL.
    second.says("holding the lock", Duration::from_secs(6)).await;
}

#[tokio::test]
async fn leader_frozen_in_a_cycle_writes_nothing_afterwards() {
    let world = World::new(&["web"]).await;
    let mut command = world.command("first");
    let address = listens(&command);
    let first = Process::spawn(&mut command);
    first.says("holding the lock", BOUND).await;
    eventually("the clients' token", BOUND, async || world.token_of("p-consul-client-token").await).await;
    let second = Process::spawn(&mut world.command("second"));
    second.says("standing by", BOUND).await;
    // The leader is frozen between reading the secret and creating the token. Its last request is answered while it is frozen.
    world.aws.slow("GetSecretValue p-web", Duration::from_secs(1));
    let _ = world.aws.take_calls();
    world.aws.run("1", "web");
    eventually("it reads the secret", BOUND, async || {
        let calls = world.aws.take_calls();
        if calls.iter().any(|call| call.name == "GetSecretValue") { Ok(()) } else { Err(format!("{calls:?}")) }
    })
    .await;
    let before = metrics(&address).await;
    let ended = before["acl_controller_cycle_seconds_count"];
    first.signal(Signal::STOP);
    second.says("holding the lock", TAKEOVER).await;
    world.aws.refuse_nothing();
    let accessor = world.settles("web").await;
    let _ = world.aws.take_calls();
    first.signal(Signal::CONT);
    first.says("is lost", BOUND).await;
    first.says("standing by", BOUND).await;
    eventually("the cycle it was in has ended", BOUND, async || {
        let now = metrics(&address).await["acl_controller_cycle_seconds_count"];
        if now > ended { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    let writes = |calls: &[Made]| calls.iter().any(|c| c.key == "first" && c.name == "PutSecretValue");
    assert!(!writes(&world.aws.take_calls()));
    let after = metrics(&address).await;
    for call in ["CreateToken", "UpdateToken", "DeleteToken", "CreatePolicy", "UpdatePolicy"] {
        let of_call = |metrics: &BTreeMap<String, f64>| {
            let name = format!("acl_controller_api_calls_total{{api=\"consul\",call=\"{call}\"");
            metrics.iter().filter(|(key, _)| key.starts_with(&name)).map(|(_, value)| value).sum::<f64>()
        };
        assert_eq!(of_call(&after), of_call(&before), "{call}");
        assert!(call != "CreateToken" || of_call(&before) > 0.0, "it is counted: {before:?}");
    }
    assert_eq!(world.settles("web").await, accessor, "and made no token");
    // The controller works again when it holds the lock again.
    drop(second);
    eventually("it holds the lock for the second time", TAKEOVER, async || {
        let times = first.output().matches("holding the lock").count();
        if times == 2 { Ok(()) } else { Err(first.output()) }
    })
    .await;
    world.aws.set_secret("p-api", "{}");
    world.aws.run("2", "api");
    world.settles("api").await;
    assert!(writes(&world.aws.take_calls()));
}

/// A relay to Consul that can be cut or frozen, or limit the rate of calls to its ACLs.
struct Way {
    relay: Relay,
    state: Arc<AtomicU8>,
}

const OPEN: u8 = 0;
const CUT: u8 = 1;
const FROZEN: u8 = 2;
const LIMITED: u8 = 3;

impl Way {
    fn start(to: &str) -> Self {
        let state = Arc::new(AtomicU8::new(OPEN));
        let (of_requests, of_answers) = (state.clone(), state.clone());
        let frozen = |state: &AtomicU8| {
            while state.load(Ordering::SeqCst) == FROZEN {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let request = move |_, bytes: &[u8]| {
            frozen(&of_requests);
            match of_requests.load(Ordering::SeqCst) {
                CUT => Pass::Cut,
                // The client sends a request when the previous one is answered, and requests for a list have no body.
                LIMITED if bytes.starts_with(b"GET /v1/acl/") => {
                    Pass::Answer(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n".to_vec())
                }
                _ => Pass::On,
            }
        };
        Self { relay: Relay::start(to, request, move |_, _| frozen(&of_answers)), state }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
        if state == CUT {
            self.relay.cut();
        }
    }
}

#[tokio::test]
async fn leader_uses_the_next_server_if_one_dies_or_hangs() {
    for state in [CUT, FROZEN] {
        let world = World::new(&["web", "api"]).await;
        let way = Way::start(&world.agent.http);
        let mut command = world.command("key");
        // The first server never answers, the second one fails later, the third one works.
        let servers = format!("127.0.0.1:{},{},{}", free_port(), way.relay.address, world.agent.http);
        let controller = Process::spawn(command.env("CONSUL_HTTP_ADDR", servers));
        world.aws.run("1", "web");
        world.settles("web").await;
        assert!(way.relay.connections() > 0, "it talks to the second");
        way.set(state);
        world.aws.run("2", "api");
        world.settles("api").await;
        assert!(!controller.output().contains("is lost"), "and it still holds the lock: {}", controller.output());
    }
}

#[tokio::test]
async fn leader_backs_off_while_consul_answers_429() {
    let world = World::new(&["web"]).await;
    let way = Way::start(&world.agent.http);
    let mut command = world.command("key");
    let address = listens(&command);
    let controller = Process::spawn(command.env("CONSUL_HTTP_ADDR", &way.relay.address));
    eventually("the clients' token", BOUND, async || world.token_of("p-consul-client-token").await).await;
    way.set(LIMITED);
    let since = Instant::now();
    world.aws.run("1", "web");
    let failed = "acl_controller_cycles_total{result=\"failed\"}";
    let before = metrics(&address).await[failed];
    let tries = eventually("some tries", BOUND, async || match metrics(&address).await[failed] - before {
        tries if tries >= 6.0 => Ok(tries),
        tries => Err(tries.to_string()),
    })
    .await;
    // The delays grow from 500 ms to 1 s, and jitter takes at most a half. A cycle takes 200 ms.
    let most = 2.0 + since.elapsed().as_secs_f64() / 0.4;
    assert!(tries <= most, "{tries} tries in {:?}", since.elapsed());
    controller.says("Consul answered 429 Too Many Requests", BOUND).await;
    let throttled = |name: &String| name.contains("api=\"consul\"") && name.contains("result=\"throttled\"");
    assert!(metrics(&address).await.keys().any(throttled), "it is counted");
    assert_eq!(world.aws.secret("p-web"), json!({}));
    way.set(OPEN);
    world.settles("web").await;
    assert!(!controller.output().contains("is lost"), "and it still holds the lock: {}", controller.output());
}

#[tokio::test]
async fn standby_takes_over_from_a_cut_off_leader() {
    let world = World::new(&["web"]).await;
    let way = Way::start(&world.agent.http);
    let mut command = world.command("first");
    let address = listens(&command);
    let first = Process::spawn(command.env("CONSUL_HTTP_ADDR", &way.relay.address));
    first.says("holding the lock", BOUND).await;
    let leads = async |leads: f64| {
        eventually(&format!("its gauge is {leads}"), BOUND, async || {
            let gauge = metrics(&address).await["acl_controller_leader"];
            if gauge == leads { Ok(()) } else { Err(gauge.to_string()) }
        })
        .await;
    };
    // First, Consul is frozen for less than the session's TTL.
    way.set(FROZEN);
    leads(0.0).await;
    way.set(OPEN);
    leads(1.0).await;
    let second = Process::spawn(&mut world.command("second"));
    second.says("standing by", BOUND).await;
    way.set(FROZEN);
    let cut = Instant::now();
    second.says("holding the lock", TAKEOVER).await;
    leads(0.0).await;
    assert!(cut.elapsed() >= Duration::from_secs(5), "not while the first may still write");
    eventually("it is not ready", BOUND, async || {
        match http::request("GET", &format!("{address}/readyz"), &[], "").await?.0 {
            503 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    let _ = world.aws.take_calls();
    world.aws.run("1", "web");
    world.settles("web").await;
    way.set(OPEN);
    first.says("is lost", BOUND).await;
    first.says("standing by", BOUND).await;
    let calls = world.aws.take_calls();
    assert!(calls.iter().all(|call| call.key != "first" || call.name != "PutSecretValue"), "{calls:?}");
    world.settles("web").await;
}
