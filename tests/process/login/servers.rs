//! Logins at several Consul servers, and logins whose answers are lost.

use super::*;

/// A Consul server that closes the connection of the first `lost` logins, and does not know the token in the first `unknown`
/// requests.
fn consul_server(record: &Record, token: &str, lost: u32, unknown: u32) -> Server {
    let login = login_answer(token);
    let left = [AtomicU32::new(lost), AtomicU32::new(unknown)];
    let passed = move |which: usize| {
        left[which].fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err()
    };
    Server::start_with(record, Some, move |request| match request.path() {
        "/v1/acl/login" if passed(0) => Answer::ok(&login),
        "/v1/acl/login" => Answer::raw(""),
        "/v1/acl/token/self" if passed(1) => Answer::ok("null"),
        _ => Answer::new("403 Forbidden", "ACL not found"),
    })
}

/// A server that passes each request on to a real agent.
fn passes_on(record: &Record, agent: &str) -> Server {
    let agent = agent.to_owned();
    Server::start_with(record, Some, move |request| {
        let text = format!("{}connection: close\r\n\r\n{}", request.head, request.body);
        let mut stream = TcpStream::connect(&agent).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        Answer::raw(answer)
    })
}

#[tokio::test]
async fn every_server_knows_the_token_before_the_agent_does() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let record = Record::default();
    let one = consul_server(&record, &token, 0, 2);
    let other = consul_server(&record, &token, 0, 2);
    let relay = passes_on(&record, &agent.http);
    let task = Task::that_logs_in(&format!("{},{}", one.address, other.address));
    task.starts(&[("CONSUL_HTTP_ADDR", &relay.address), ("CONSUL_LOGIN_BEARER_TOKEN", "proof")]).await;

    let requests = record.requests();
    let made = requests.iter().map(|request| (request.to.as_str(), request.path())).collect::<Vec<_>>();
    let (one, other, relay) = (one.address.as_str(), other.address.as_str(), relay.address.as_str());
    let asks = |server| [(server, "/v1/acl/token/self"); 3];
    let expected = [
        &[(one, "/v1/acl/login")],
        &asks(one)[..],
        &asks(other),
        &asks(relay)[..1],
        &[(relay, "/v1/agent/service/register")],
    ];
    assert_eq!(made[..9], expected.concat(), "{made:?}");
}

#[tokio::test]
async fn login_that_may_have_left_a_token_is_reported_once() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let server = consul_server(&Record::default(), &token, 2, 0);
    let task = Task::that_logs_in(&server.address);
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN", "proof")];
    let finished = task.starts(&variables).await;
    assert_eq!(server.requests().iter().filter(|request| request.path() == "/v1/acl/login").count(), 3);
    let told =
        finished.stderr.matches("if it made a token, the token stays until the auth method's MaxTokenTTL").count();
    assert_eq!(told, 1, "{}", finished.stderr);
}

#[tokio::test]
async fn login_that_the_timeout_ends_is_reported() {
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hangs.local_addr().unwrap().to_string();
    let task = Task::that_logs_in(&address);
    let variables = [("CONSUL_HTTP_ADDR", &*address), ("CONSUL_LOGIN_BEARER_TOKEN", "p"), ("MESH_INIT_TIMEOUT", "1s")];
    let finished = run(&mut task.command("mesh-init", &variables), BOUND).await;
    let told = "a login had no answer (cut off at the timeout): if it made a token, the token stays until";
    assert!(finished.code == 1 && finished.stderr.contains(told), "{}", finished.stderr);
}
