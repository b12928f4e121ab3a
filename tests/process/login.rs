//! Ways into Consul: mutual TLS, a unix socket, and logins through an auth method, of mesh-init, its agent-config, and
//! health-sync, which logs out.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::moto::Moto;
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, free_port, http};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);
const METHOD: &str = "platform";

/// A task: its metadata, its volume and its document.
struct Task {
    metadata: Metadata,
    volume: TempDir,
    document: Value,
}

impl Task {
    fn new() -> Self {
        let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }]);
        let app = json!([{ "Name": "app", "Networks": networks, "Health": { "status": "HEALTHY" } }]);
        let volume = tempfile::tempdir().unwrap();
        let document =
            json!({ "bootstrapDir": volume.path(), "healthSyncContainers": ["app"], "service": { "port": 8080 } });
        Self { metadata: Metadata::start("web", app), volume, document }
    }

    /// The same that logs in with [`METHOD`] at these servers.
    fn that_logs_in(servers: &str) -> Self {
        let mut task = Self::new();
        task.document["consulHTTPAddr"] = servers.into();
        task.document["consulLogin"] = json!({ "enabled": true, "method": METHOD, "meta": { "team": "shop" } });
        task
    }

    fn command(&self, program: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(binary(program));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri).env("LOG_LEVEL", "trace");
        command.env("CONSUL_ECS_CONFIG_JSON", self.document.to_string()).envs(variables.iter().copied());
        command
    }

    async fn starts(&self, variables: &[(&str, &str)]) -> Finished {
        let finished = run(&mut self.command("mesh-init", variables), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.volume.path().join("service-token")).unwrap()
    }

    /// That mesh-init fails with one line that holds all of `texts`, and leaves nothing on the volume.
    async fn fails_with(&self, variables: &[(&str, &str)], texts: &[&str]) {
        let mut command = self.command("mesh-init", variables);
        command.env("LOG_LEVEL", "error").env("MESH_INIT_TIMEOUT", "1s");
        let finished = run(&mut command, BOUND).await;
        let line = finished.stderr.trim_end();
        assert_eq!((finished.code, line.lines().count()), (1, 1), "{line}");
        for text in texts {
            assert!(line.contains(text), "{text:?} is not in {line}");
        }
        assert_eq!(std::fs::read_dir(self.volume.path()).unwrap().count(), 0, "{line}");
    }
}

/// That both programs do their work over this way into the agent.
async fn serves_both(agent: &Agent, variables: &[(&str, &str)]) {
    let task = Task::new();
    task.starts(variables).await;
    let service = agent.call("GET", "/v1/agent/service/web-f1a2", &Value::Null).await;
    assert_eq!(service["Service"], "web");
    let mut sync = Process::spawn(&mut task.command("health-sync", variables));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    let checks = agent.call("GET", "/v1/agent/checks", &Value::Null).await;
    assert_eq!(checks["web-f1a2-app-consul-ecs"]["Status"], "critical");
}

#[tokio::test]
async fn https_with_a_private_authority_and_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = file("ca.pem", &params.self_signed(&key).unwrap().pem());
    let authority = Issuer::new(params, key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["server.dc1.consul".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &authority).unwrap().pem();
        (file(&format!("{name}.pem"), &certificate), file(&format!("{name}-key.pem"), &key.serialize_pem()))
    };
    let (server, client) = (signed("server"), signed("client"));
    let https = free_port();
    let config = json!({
        "ca_file": ca, "cert_file": server.0, "key_file": server.1, "verify_incoming": true,
        "ports": { "https": https }
    });
    let agent = Agent::start_with(&config).await;
    let address = format!("https://127.0.0.1:{https}");
    let variables = [
        ("CONSUL_HTTP_ADDR", address.as_str()),
        ("CONSUL_CACERT", &ca),
        ("CONSUL_CLIENT_CERT", &client.0),
        ("CONSUL_CLIENT_KEY", &client.1),
    ];
    serves_both(&agent, &variables).await;

    let task = Task::new();
    task.fails_with(&variables[..2], &["for mutual TLS, CONSUL_CLIENT_CERT"]).await;
    let foreign = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let foreign = file("foreign.pem", &foreign.cert.pem());
    let untrusted = [variables[0], ("CONSUL_CACERT", foreign.as_str()), variables[2], variables[3]];
    task.fails_with(&untrusted, &["check CONSUL_CACERT"]).await;
    let swapped = [variables[0], variables[1], variables[2], ("CONSUL_CLIENT_KEY", server.1.as_str())];
    task.fails_with(&swapped, &["CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, cannot be used"]).await;
    let missing = [variables[0], variables[1], ("CONSUL_CLIENT_CERT", "/no/cert.pem"), variables[3]];
    task.fails_with(&missing, &["CONSUL_CLIENT_CERT: cannot read /no/cert.pem"]).await;
}

#[tokio::test]
async fn a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", dir.path().join("consul.sock").display());
    let agent = Agent::start_with(&json!({ "addresses": { "http": format!("127.0.0.1 {socket}") } })).await;
    serves_both(&agent, &[("CONSUL_HTTP_ADDR", &socket)]).await;
    let nowhere = format!("{socket}.none");
    let line = ["cannot reach unix:///", "consul.sock.none: No such file or directory"];
    Task::new().fails_with(&[("CONSUL_HTTP_ADDR", &nowhere)], &line).await;
}

/// Signs what a platform would say of a task, as Consul's jwt auth method takes it.
struct Platform {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Platform {
    /// With the auth method that trusts it and gives a service identity by the claim `service`.
    async fn trusted_by(agent: &Agent, identity: &str) -> Self {
        let pair = KeyPair::generate().unwrap();
        let method = json!({
            "Name": METHOD, "Type": "jwt", "MaxTokenTTL": "1h",
            "Config": { "JWTValidationPubKeys": [pair.public_key_pem()], "JWTSupportedAlgs": ["ES256"],
                        "BoundAudiences": ["consul"], "ClaimMappings": { "service": "service" } }
        });
        agent.call("PUT", "/v1/acl/auth-method", &method).await;
        let rule = json!({ "AuthMethod": METHOD, "BindType": "service", "BindName": identity,
                           "Selector": "value.service != nobody" });
        agent.call("PUT", "/v1/acl/binding-rule", &rule).await;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der(), &random).unwrap();
        Self { key, random }
    }

    /// A file with a token for this service, good for an hour from `at`.
    fn proof_at(&self, service: &str, at: u64) -> tempfile::NamedTempFile {
        let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "aud": "consul", "service": service, "iat": at, "exp": at + 3600 });
        let text = format!("{}.{}", encode(json!({ "alg": "ES256", "typ": "JWT" })), encode(claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))).unwrap();
        file
    }

    fn proof(&self, service: &str) -> tempfile::NamedTempFile {
        self.proof_at(service, SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
    }
}

/// The tokens that logins have made.
async fn logins(agent: &Agent) -> Vec<Value> {
    let tokens = agent.call("GET", "/v1/acl/tokens", &Value::Null).await;
    tokens.as_array().unwrap().iter().filter(|token| token["AuthMethod"] == METHOD).cloned().collect()
}

#[tokio::test]
async fn a_login_gives_the_task_its_token_and_the_task_s_end_takes_it_back() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let task = Task::that_logs_in(&agent.http);
    let variables =
        [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap())];
    let first = task.starts(&variables).await;
    let token = task.token();
    let bearer = std::fs::read_to_string(proof.path()).unwrap();
    assert!(!first.stderr.contains(&token) && !first.stderr.contains(&bearer), "{}", first.stderr);
    let mode = std::fs::metadata(task.volume.path().join("service-token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let made = logins(&agent).await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0]["ServiceIdentities"][0]["ServiceName"], "web");
    let description = made[0]["Description"].as_str().unwrap();
    for meta in [
        r#""consul.hashicorp.com/task-id":"f1a2""#,
        r#""consul.hashicorp.com/cluster":"arn:aws:ecs:eu-north-1:210987654321:cluster/blue""#,
        r#""team":"shop""#,
    ] {
        assert!(description.contains(meta), "{description}");
    }
    let bootstrap = std::fs::read_to_string(task.volume.path().join("envoy-bootstrap.json")).unwrap();
    assert!(bootstrap.contains(&token));

    // Run again, it leaves no old token behind; unless the token no longer works.
    task.starts(&variables).await;
    assert_eq!((task.token(), logins(&agent).await.len()), (token.clone(), 1));
    // Nor does a run that fails take it from the task that runs on it.
    let without_agent = [("CONSUL_HTTP_ADDR", "http://127.0.0.1:1"), variables[1], ("MESH_INIT_TIMEOUT", "1s")];
    let failed = run(&mut task.command("mesh-init", &without_agent), BOUND).await;
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert_eq!((task.token(), logins(&agent).await.len()), (token.clone(), 1));
    let accessor = made[0]["AccessorID"].as_str().unwrap();
    agent.call("DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null).await;
    task.starts(&variables).await;
    assert_ne!(task.token(), token);
    assert_eq!(logins(&agent).await.len(), 1);

    let mut sync = Process::spawn(&mut task.command("health-sync", &variables[..1]));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
    // The servers have what the agent handed on with the token, so that came before.
    let checks = agent.call("GET", "/v1/health/checks/web", &Value::Null).await;
    let statuses = checks.as_array().unwrap().iter().map(|check| &check["Status"]).collect::<Vec<_>>();
    assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == "critical"), "{checks}");
    assert!(!sync.output().contains(&task.token()));

    // Somebody else may have taken it already.
    let mut again = Process::spawn(&mut task.command("health-sync", &variables[..1]));
    again.says("syncing the health", BOUND).await;
    again.signal(Signal::TERM);
    again.exit_code(BOUND).await;
    assert!(!again.output().contains("not logged out"), "{}", again.output());
}

#[tokio::test]
async fn agent_config_logs_in_for_the_client_token_and_health_sync_logs_it_out() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let mut task = Task::new();
    let (sink, output) = (task.volume.path().join("client-token"), task.volume.path().join("agent.json"));
    let variables = [
        ("CONSUL_RETRY_JOIN", "server"),
        ("CONSUL_HTTP_ADDR", agent.http.as_str()),
        ("CONSUL_LOGIN", "true"),
        ("CONSUL_LOGIN_METHOD", METHOD),
        ("CONSUL_LOGIN_TOKEN_SINK", sink.to_str().unwrap()),
        ("MESH_INIT_AGENT_CONFIG", output.to_str().unwrap()),
        ("CONSUL_LOGIN_BEARER_TOKEN_FILE", proof.path().to_str().unwrap()),
    ];
    let configured = async || {
        let finished = run(task.command("mesh-init", &variables).arg("agent-config"), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        let config: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
        let token = config["acl"]["tokens"]["agent"].as_str().unwrap().to_owned();
        assert!(!finished.stderr.contains(&token));
        token
    };
    let token = configured().await;
    assert_eq!(std::fs::read_to_string(&sink).unwrap(), token);
    assert_eq!(configured().await, token);
    assert_eq!(logins(&agent).await.len(), 1);

    let both = [&variables[..], &[("CONSUL_CLIENT_TOKEN", "t")]].concat();
    let refused = run(task.command("mesh-init", &both).arg("agent-config"), BOUND).await;
    assert!(refused.code == 1 && refused.stderr.contains("both set"), "{}", refused.stderr);

    let service_token = agent.service_token("web").await;
    let with_token = [variables[1], ("CONSUL_HTTP_TOKEN", service_token.as_str())];
    task.starts(&with_token).await;
    // The first of the servers takes requests and never answers.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    task.document["consulHTTPAddr"] = format!("{},{}", hangs.local_addr().unwrap(), agent.http).into();
    let mut sync = Process::spawn(&mut task.command("health-sync", &with_token));
    sync.says("check passing", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 0);
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_login_that_fails_says_why_in_one_line_and_leaves_no_token() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let (proof, nobody, old) = (platform.proof("web"), platform.proof("nobody"), platform.proof_at("web", 1_000_000));
    let given = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let (proof, nobody, old) = (given(&proof), given(&nobody), given(&old));
    let agent_at = ("CONSUL_HTTP_ADDR", agent.http.as_str());
    let bearer = "CONSUL_LOGIN_BEARER_TOKEN_FILE";
    let task = Task::that_logs_in(&agent.http);

    task.fails_with(&[agent_at], &["no AWS credentials", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]).await;
    let refuses = r#"the auth method "platform" refuses this task: check its binding rules"#;
    task.fails_with(&[agent_at, (bearer, &nobody)], &[refuses]).await;
    task.fails_with(&[agent_at, (bearer, &old)], &["consulLogin: ", "expired"]).await;
    task.fails_with(&[agent_at, (bearer, "/no/proof")], &["CONSUL_LOGIN_BEARER_TOKEN_FILE", "/no/proof"]).await;

    let mut wrong = Task::that_logs_in(&agent.http);
    wrong.document["consulLogin"]["method"] = "other".into();
    wrong.fails_with(&[agent_at, (bearer, &proof)], &[r#"there is no auth method "other" at http://127"#]).await;
    // With the default method, which is AWS's and which this Consul can't have.
    let mut aws = Task::that_logs_in(&agent.http);
    aws.document["consulLogin"] = json!({ "enabled": true, "includeEntity": false });
    let key = [agent_at, ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
    let needs = [r#"there is no auth method "iam-ecs-service-token""#, "aws-iam needs Consul 1.12 or later"];
    aws.fails_with(&key, &needs).await;
    let nowhere = Task::that_logs_in(&format!("127.0.0.1:{}", free_port()));
    nowhere.fails_with(&[agent_at, (bearer, &proof)], &["Consul is not reachable", "Connection refused"]).await;
    let mut authority = Task::that_logs_in(&agent.http);
    authority.document["consulCACertFile"] = "/no/ca.pem".into();
    authority.fails_with(&[agent_at, (bearer, &proof)], &["servers", "cannot read /no/ca.pem"]).await;

    // What fails after the login takes the token back: here the registration, at an agent that isn't there.
    let no_agent = format!("127.0.0.1:{}", free_port());
    task.fails_with(&[("CONSUL_HTTP_ADDR", &no_agent), (bearer, &proof)], &["not known everywhere"]).await;
    let mut other = Task::that_logs_in(&agent.http);
    other.document["service"]["name"] = "other".into();
    let denied = "cannot register other-f1a2: expected a token with the service identity other";
    other.fails_with(&[agent_at, (bearer, &proof)], &[denied, "Permission denied"]).await;
    assert_eq!(logins(&agent).await, Vec::<Value>::new());
}

/// A request that was made: to which address, its first line, its header fields in lower case and its body.
#[derive(Debug, Clone)]
struct Made {
    to: String,
    line: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Made {
    fn path(&self) -> &str {
        self.line.split([' ', '?']).nth(1).unwrap_or_default()
    }
}

/// What was asked of several, in order.
type Record = Arc<Mutex<Vec<Made>>>;

/// Stands in another's place and records what is asked of it.
struct Recorder {
    address: String,
    made: Record,
}

impl Recorder {
    /// ECS's endpoint for credentials and, at another path, a Consul that lets anybody log in.
    fn start(credentials: Value, token: &str) -> Self {
        let login = login_answer(token);
        Self::answering(Record::default(), move |request| match request.path() {
            "/credentials" => response("200 OK", &credentials.to_string()),
            "/v1/acl/login" => response("200 OK", &login),
            _ => response("200 OK", "null"),
        })
    }

    /// A Consul server: it hangs up on the first `lost` logins, and says of the token `unknown` times that it doesn't know it.
    fn server(made: &Record, token: &str, mut lost: u32, mut unknown: u32) -> Self {
        let login = login_answer(token);
        let passed = |left: &mut u32| left.checked_sub(1).map(|fewer| *left = fewer).is_none();
        Self::answering(made.clone(), move |request| match request.path() {
            "/v1/acl/login" if passed(&mut lost) => response("200 OK", &login),
            "/v1/acl/login" => Vec::new(),
            "/v1/acl/token/self" if passed(&mut unknown) => response("200 OK", "null"),
            _ => response("403 Forbidden", "ACL not found"),
        })
    }

    /// A way to a real agent.
    fn relay(made: &Record, agent: &str) -> Self {
        let agent = agent.to_owned();
        Self::answering(made.clone(), move |request| {
            let headers = request.headers.iter().filter(|(name, _)| *name != "connection");
            let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
            let text = format!("{}{headers}connection: close\r\n\r\n{}", request.line, request.body);
            let mut stream = TcpStream::connect(&agent).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        })
    }

    fn answering(made: Record, mut answer: impl FnMut(&Made) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (recorded, to) = (made.clone(), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream, &to) else { continue };
                recorded.lock().unwrap().push(request.clone());
                // Who asked may have gone.
                let _ = (&stream).write_all(&answer(&request));
            }
        });
        Self { address, made }
    }

    fn of(&self, line: &str) -> Made {
        let made = self.made.lock().unwrap();
        made.iter().find(|made| made.line.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {made:?}")).clone()
    }
}

fn login_answer(token: &str) -> String {
    json!({ "AccessorID": "a", "SecretID": token, "Description": "" }).to_string()
}

fn response(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
}

fn read(stream: &TcpStream, to: &str) -> Option<Made> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let Some((name, value)) = field.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Made { to: to.to_owned(), line, headers, body: String::from_utf8(body).unwrap() })
}

#[tokio::test]
async fn each_server_knows_the_token_before_the_agent_meets_it() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let made = Record::default();
    let one = Recorder::server(&made, &token, 0, 2);
    let other = Recorder::server(&made, &token, 0, 2);
    let relay = Recorder::relay(&made, &agent.http);
    let task = Task::that_logs_in(&format!("{},{}", one.address, other.address));
    task.starts(&[("CONSUL_HTTP_ADDR", &relay.address), ("CONSUL_LOGIN_BEARER_TOKEN", "proof")]).await;

    let made = made.lock().unwrap();
    let made = made.iter().map(|made| (made.to.as_str(), made.path())).collect::<Vec<_>>();
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
async fn a_login_that_may_have_left_a_token_is_told_once() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let made = Record::default();
    let server = Recorder::server(&made, &token, 2, 0);
    let task = Task::that_logs_in(&server.address);
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN", "proof")];
    let finished = task.starts(&variables).await;
    assert_eq!(made.lock().unwrap().iter().filter(|made| made.path() == "/v1/acl/login").count(), 3);
    let told = finished.stderr.matches("if it made a token, that stays until the auth method's MaxTokenTTL").count();
    assert_eq!(told, 1, "{}", finished.stderr);
}

#[tokio::test]
async fn a_login_that_is_cut_off_at_the_timeout_is_told_too() {
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hangs.local_addr().unwrap().to_string();
    let task = Task::that_logs_in(&address);
    let variables = [("CONSUL_HTTP_ADDR", &*address), ("CONSUL_LOGIN_BEARER_TOKEN", "p"), ("MESH_INIT_TIMEOUT", "1s")];
    let finished = run(&mut task.command("mesh-init", &variables), BOUND).await;
    let told = "a login had no answer (cut off at the timeout): if it made a token, that stays until";
    assert!(finished.code == 1 && finished.stderr.contains(told), "{}", finished.stderr);
}

#[tokio::test]
async fn term_before_there_is_any_task_metadata_logs_out_all_the_same() {
    let agent = Agent::start_with_acls().await;
    let platform = Platform::trusted_by(&agent, "${value.service}").await;
    let proof = platform.proof("web");
    let task = Task::that_logs_in(&agent.http);
    let variables = [("CONSUL_HTTP_ADDR", agent.http.as_str()), ("CONSUL_LOGIN_BEARER_TOKEN_FILE", path(proof.path()))];
    task.starts(&variables).await;
    assert_eq!(logins(&agent).await.len(), 1);
    let nobody = format!("http://127.0.0.1:{}/v4/x", free_port());
    let no_metadata = [variables[0], ("ECS_CONTAINER_METADATA_URI_V4", &nobody)];

    let mut sync = Process::spawn(&mut task.command("health-sync", &no_metadata));
    sync.says("no task metadata: ", BOUND).await;
    sync.signal(Signal::TERM);
    assert_eq!(sync.exit_code(BOUND).await, 1);
    sync.says("health-sync: TERM before there was any task metadata: nothing was written to Consul", BOUND).await;
    assert_eq!(logins(&agent).await, Vec::<Value>::new(), "{}", sync.output());
}

/// A signed request as the auth method finds it in a login.
#[derive(Debug)]
struct Signed {
    url: String,
    headers: Value,
    body: String,
}

impl Signed {
    /// The request to STS in a login's body.
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

    /// The request to IAM in its header fields.
    fn entity(&self) -> Self {
        let field = |name: &str| self.header(&format!("X-Consul-Iam-Getentity-{name}"));
        assert_eq!(field("Method"), "POST");
        let headers = serde_json::from_str(field("Headers")).unwrap();
        Self { url: field("Url").to_owned(), headers, body: field("Body").to_owned() }
    }

    /// Sends it to an endpoint in AWS's place, for the host that it was signed for, as Consul's servers do.
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
async fn the_signed_requests_of_an_aws_login_are_what_an_independent_aws_accepts() {
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
    let servers = Recorder::start(Value::Null, &token);
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

    let login = servers.of("POST /v1/acl/login").body;
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
async fn credentials_come_from_the_endpoint_that_ecs_tells() {
    let agent = Agent::start_with_acls().await;
    let token = agent.service_token("web").await;
    let credentials = json!({
        "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "an+example", "Token": "session+token",
        "RoleArn": "arn:aws:iam::210987654321:role/mesh/web", "Expiration": "2999-01-01T00:00:00Z"
    });
    let servers = Recorder::start(credentials.clone(), &token);
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
    assert_eq!(servers.of("GET /credentials").headers["authorization"], "Bearer of-the-platform");
    let sts = Signed::of_login(&servers.of("POST /v1/acl/login").body);
    assert_eq!(sts.url, "https://sts.eu-west-3.amazonaws.com/");
    assert!(sts.header("Authorization").contains("Credential=ASIAEXAMPLE/"));
    assert_eq!(sts.header("X-Amz-Security-Token"), "session+token");
    assert_eq!(sts.entity().body, "Action=GetRole&RoleName=web&Version=2010-05-08");

    let mut expired = credentials;
    expired["Expiration"] = "2020-01-01T00:00:00Z".into();
    let servers = Recorder::start(expired, &token);
    let endpoint = format!("http://{}/credentials", servers.address);
    let variables = [variables[0], ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &endpoint)];
    let task = Task::that_logs_in(&servers.address);
    // Without the path, which is what the keys are handed out for.
    let line = format!("the AWS credentials from http://{} expired at 2020-01-01T00:00:00Z", servers.address);
    task.fails_with(&variables, &[&line]).await;
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
