//! Logins that an AWS IAM auth method refuses for good: they end at once. Repeating them would only cost requests to STS.

use super::*;

/// Much longer than a login takes. If mesh-init ends before this timeout, it did not try again.
const TIMEOUT: (&str, &str) = ("MESH_INIT_TIMEOUT", "10m");

/// A task that logs in with the keys of an IAM user. mesh-init asks STS for the user's ARN, once for each attempt.
fn task(servers: &str, sts: &Server) -> Task {
    let mut task = Task::that_logs_in(servers);
    task.document["consulLogin"]["stsEndpoint"] = sts.url().into();
    task
}

/// Checks that mesh-init ends with one line that contains all of `texts`.
async fn ends_with(task: &Task, agent: &str, texts: &[&str]) {
    let key = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "an example"), TIMEOUT];
    let mut command = task.command("mesh-init", &key);
    let finished = run(command.env("CONSUL_HTTP_ADDR", agent).env("LOG_LEVEL", "error"), BOUND).await;
    let line = finished.stderr.trim_end();
    assert_eq!((finished.code, line.lines().count()), (1, 1), "{line}");
    for text in texts {
        assert!(line.contains(text), "{text:?} is not in {line}");
    }
}

/// How many requests of this path a server got.
fn count(server: &Server, path: &str) -> usize {
    server.requests().iter().filter(|request| request.path() == path).count()
}

#[tokio::test]
async fn login_that_consul_refuses_for_good_is_tried_once() {
    let sts = Server::start(|_| caller_identity());
    // The texts of Consul 1.21.4. The test below causes them.
    let cases = [
        (format!("IAM principal {USER} is not trusted"), "BoundIAMPrincipalARNs"),
        (r#"missing header "X-Consul-IAM-ServerID""#.to_owned(), "serverIdHeaderValue"),
        (r#"expected "blue" but got "green""#.to_owned(), "serverIdHeaderValue"),
        (r#"missing header "X-Consul-IAM-GetEntity-Method""#.to_owned(), "includeEntity"),
        (r#"invalid STS hostname: "127.0.0.1""#.to_owned(), "stsEndpoint"),
    ];
    for (refusal, cure) in cases {
        let before = sts.requests().len();
        let answer = Answer::new("500 Internal Server Error", &refusal);
        let servers = Server::start(move |_| answer.clone());
        ends_with(&task(&servers.address, &sts), &servers.address, &[&refusal, cure]).await;
        assert_eq!((count(&servers, "/v1/acl/login"), sts.requests().len() - before), (1, 1), "{refusal}");
    }
}

#[tokio::test]
async fn login_is_tried_again_if_consul_could_not_reach_aws() {
    let sts = Server::start(|_| caller_identity());
    let agent = Agent::start_with_acls().await;
    let login = login_answer(&agent.service_token("web").await);
    let first = AtomicU32::new(0);
    let servers = Server::start(move |request| match request.path() {
        "/v1/acl/login" if first.fetch_add(1, Ordering::Relaxed) == 0 => {
            Answer::new("500 Internal Server Error", "error making request: dial tcp: connection refused")
        }
        "/v1/acl/login" => Answer::ok(&login),
        _ => Answer::ok("null"),
    });
    let key = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "an example")];
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), key[0], key[1]];
    task(&servers.address, &sts).starts(&variables).await;
    assert_eq!(count(&servers, "/v1/acl/login"), 2);
}

#[tokio::test]
async fn aws_iam_method_of_consul_takes_a_login_and_refuses_wrong_ones_at_once() {
    let sts = Server::start(|_| caller_identity());
    let agent = Agent::start_with_acls().await;
    let method = async |config: Value| {
        let mut config = config;
        config["STSEndpoint"] = sts.url().into();
        let method = json!({ "Name": METHOD, "Type": "aws-iam", "MaxTokenTTL": "1h", "Config": config });
        agent.call("PUT", "/v1/acl/auth-method", &method).await;
    };
    let rule = json!({ "AuthMethod": METHOD, "BindType": "service", "BindName": "web" });
    let trusted = json!({ "BoundIAMPrincipalARNs": ["arn:aws:iam::210987654321:user/ann"] });
    method(trusted.clone()).await;
    agent.call("PUT", "/v1/acl/binding-rule", &rule).await;
    let with = |field: &str, value: Value| {
        let mut config = trusted.clone();
        config[field] = value;
        config
    };
    let key = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "an example")];
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), key[0], key[1]];
    task(&agent.http, &sts).starts(&variables).await;
    assert_eq!(logins(&agent).await.len(), 1);

    let mut without_entity = task(&agent.http, &sts);
    without_entity.document["consulLogin"]["includeEntity"] = false.into();
    let mut of_another = task(&agent.http, &sts);
    of_another.document["consulLogin"]["serverIdHeaderValue"] = "green".into();
    let server_id = with("ServerIDHeaderValue", "blue".into());
    // The method's configuration, the task, the texts of Consul and mesh-init, and the number of requests to STS. mesh-init asks STS once,
    // unless it sends no entity. Consul asks STS once, if it gets that far.
    let cases = [
        (
            json!({ "BoundIAMPrincipalARNs": ["arn:aws:iam::210987654321:role/other"] }),
            task(&agent.http, &sts),
            ["is not trusted", "BoundIAMPrincipalARNs"],
            2,
        ),
        (
            server_id.clone(),
            task(&agent.http, &sts),
            [r#"missing header "X-Consul-IAM-ServerID"#, "serverIdHeaderValue"],
            1,
        ),
        (server_id, of_another, [r#"but got "green"#, "serverIdHeaderValue"], 1),
        (with("EnableIAMEntityDetails", true.into()), without_entity, ["GetEntity-Method", "includeEntity"], 0),
    ];
    for (config, task, [refusal, cure], asked) in cases {
        method(config).await;
        let before = sts.requests().len();
        ends_with(&task, &agent.http, &[refusal, cure]).await;
        assert_eq!(sts.requests().len() - before, asked, "{refusal}");
    }
    assert_eq!(logins(&agent).await.len(), 1);
}
