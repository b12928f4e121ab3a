//! Logins with AWS credentials. moto checks the signed requests.

use super::*;

/// A server that plays both ECS's endpoint for credentials and a Consul that accepts every login.
fn credentials_and_consul(credentials: Value, token: &str) -> Server {
    let login = login_answer(token);
    Server::start(move |request| match request.path() {
        "/credentials" => Answer::ok(&credentials),
        "/v1/acl/login" => Answer::ok(&login),
        _ => Answer::ok("null"),
    })
}

/// The first request of this method and path.
fn request_of(server: &Server, method: &str, path: &str) -> Request {
    let requests = server.requests();
    let found = requests.iter().find(|request| request.method == method && request.path() == path);
    found.unwrap_or_else(|| panic!("no {method} {path} in {requests:?}")).clone()
}

/// A signed request, as Consul's auth method reads it from a login.
#[derive(Debug)]
struct Signed {
    url: String,
    headers: Value,
    body: String,
}

impl Signed {
    /// The request to STS, from the body of a login.
    fn of_login(body: &str) -> Self {
        let login: Value = serde_json::from_str(body).unwrap();
        let token: Value = serde_json::from_str(login["BearerToken"].as_str().unwrap()).unwrap();
        assert_eq!(token["iam_http_request_method"], "POST");
        let decode = |field: &str| {
            let bytes = BASE64_STANDARD.decode(token[field].as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let headers = serde_json::from_str(&decode("iam_request_headers")).unwrap();
        Self { url: decode("iam_request_url"), headers, body: decode("iam_request_body") }
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name][0].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.headers))
    }

    /// The request to IAM, from the header fields of the request to STS.
    fn entity(&self) -> Self {
        let field = |name: &str| self.header(&format!("X-Consul-Iam-Getentity-{name}"));
        assert_eq!(field("Method"), "POST");
        let headers = serde_json::from_str(field("Headers")).unwrap();
        Self { url: field("Url").to_owned(), headers, body: field("Body").to_owned() }
    }

    /// Sends the request to an endpoint that plays AWS, as Consul's servers do. The header field `Host` is the one that was signed.
    async fn answered_by(&self, endpoint: &str) -> (u16, String) {
        let host = self.url.split('/').nth(2).unwrap();
        let headers = self.headers.as_object().unwrap();
        let mut headers: Vec<_> =
            headers.iter().map(|(name, values)| (name.as_str(), values[0].as_str().unwrap())).collect();
        headers.push(("Host", host));
        http::request("POST", &format!("{endpoint}/"), &headers, &self.body).await.unwrap()
    }
}

#[tokio::test]
async fn moto_accepts_the_signed_requests_of_an_aws_login() {
    let moto = Moto::start().await;
    let aws = async |arguments: &[&str]| -> Value {
        let finished = moto.aws(arguments).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap_or_default()
    };
    aws(&["iam", "create-user", "--user-name", "ann"]).await;
    let key = aws(&["iam", "create-access-key", "--user-name", "ann"]).await["AccessKey"].take();
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:GetUser","sts:GetCallerIdentity"],"Resource":"*"}]}"#;
    aws(&["iam", "put-user-policy", "--user-name", "ann", "--policy-name", "p", "--policy-document", policy]).await;
    moto.require_authorization().await;

    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let servers = credentials_and_consul(Value::Null, &token);
    let mut task = Task::that_logs_in(&servers.address);
    task.document["consulLogin"]["stsEndpoint"] = moto.url.as_str().into();
    task.document["consulLogin"]["serverIdHeaderValue"] = "consul.example".into();
    let text = |field: &str| key[field].as_str().unwrap().to_owned();
    let (id, secret) = (text("AccessKeyId"), text("SecretAccessKey"));
    let variables = [
        ("CONSUL_HTTP_ADDR", agent.http.as_str()),
        ("AWS_ACCESS_KEY_ID", id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", secret.as_str()),
    ];
    let finished = task.starts(&variables).await;
    assert!(!finished.stderr.contains(&secret) && !finished.stderr.contains("Signature="), "{}", finished.stderr);

    let login = request_of(&servers, "POST", "/v1/acl/login").body;
    let meta = json!({ "consul.hashicorp.com/task-id": "f1a2", "team": "shop",
                       "consul.hashicorp.com/cluster": "arn:aws:ecs:eu-north-1:210987654321:cluster/blue" });
    let sent: Value = serde_json::from_str(&login).unwrap();
    assert_eq!((&sent["AuthMethod"], &sent["Meta"]), (&json!(METHOD), &meta));
    let sts = Signed::of_login(&login);
    assert_eq!(sts.body, "Action=GetCallerIdentity&Version=2011-06-15");
    assert!(sts.header("Authorization").contains("/eu-north-1/sts/aws4_request"), "the task's region");
    let iam = sts.entity();
    assert_eq!(
        (iam.url.as_str(), iam.body.as_str()),
        ("https://iam.amazonaws.com/", "Action=GetUser&UserName=ann&Version=2010-05-08",)
    );
    for signed in [&sts, &iam] {
        assert_eq!(signed.header("X-Consul-Iam-Serverid"), "consul.example");
        assert!(signed.header("Authorization").contains("x-consul-iam-serverid"), "it is signed, too");
        let (status, answer) = signed.answered_by(&moto.url).await;
        assert!(status == 200 && answer.contains(":user/ann</Arn>"), "{status}: {answer}");
    }
    let forged = Signed { headers: sts.headers.clone(), url: sts.url.clone(), body: format!("{}&X=y", sts.body) };
    let (status, answer) = forged.answered_by(&moto.url).await;
    assert!(status == 403 && answer.contains("SignatureDoesNotMatch"), "{status}: {answer}");
}

#[tokio::test]
async fn credentials_come_from_the_endpoint_of_ecs() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let credentials = json!({
        "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "an+example", "Token": "session+token",
        "RoleArn": "arn:aws:iam::210987654321:role/mesh/web", "Expiration": "2999-01-01T00:00:00Z"
    });
    let servers = credentials_and_consul(credentials.clone(), &token);
    let task = Task::that_logs_in(&servers.address);
    let authorization = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authorization.path(), "Bearer of-the-platform\n").unwrap();
    let endpoint = format!("http://{}/credentials", servers.address);
    let variables = [
        ("CONSUL_HTTP_ADDR", agent.http.as_str()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", endpoint.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path(authorization.path())),
        ("AWS_REGION", "eu-west-3"),
    ];
    let finished = task.starts(&variables).await;
    for secret in ["an+example", "session+token", "of-the-platform", "Signature="] {
        assert!(!finished.stderr.contains(secret), "{secret} in {}", finished.stderr);
    }
    assert_eq!(request_of(&servers, "GET", "/credentials").header("authorization"), "Bearer of-the-platform");
    let sts = Signed::of_login(&request_of(&servers, "POST", "/v1/acl/login").body);
    assert_eq!(sts.url, "https://sts.eu-west-3.amazonaws.com/");
    assert!(sts.header("Authorization").contains("Credential=ASIAEXAMPLE/"));
    assert_eq!(sts.header("X-Amz-Security-Token"), "session+token");
    assert_eq!(sts.entity().body, "Action=GetRole&RoleName=web&Version=2010-05-08");

    let mut expired = credentials;
    expired["Expiration"] = "2020-01-01T00:00:00Z".into();
    let servers = credentials_and_consul(expired, &token);
    let endpoint = format!("http://{}/credentials", servers.address);
    let variables = [variables[0], ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &endpoint)];
    let task = Task::that_logs_in(&servers.address);
    // The error does not show the path, because everyone who knows it can get the keys.
    let line = format!("the AWS credentials from http://{} expired at 2020-01-01T00:00:00Z", servers.address);
    task.fails_with(&variables, &[&line]).await;
}
