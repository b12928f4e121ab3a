//! Tests of the demo-app binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use http_fixture::{Answer, Request, Server};
use serde_json::{Value, json};

fn demo_app(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-app"));
    command.args(arguments).env_remove("ECS_CONTAINER_METADATA_URI_V4").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    demo_app(arguments).output().unwrap()
}

/// A running `serve`, which is killed at the end of the test.
struct Serve {
    child: Child,
    address: String,
}

impl Serve {
    fn start(arguments: &[&str], metadata: Option<&str>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut command = demo_app(&[&["serve", "--listen", &address], arguments].concat());
        if let Some(uri) = metadata {
            command.env("ECS_CONTAINER_METADATA_URI_V4", uri);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("listens on"), "{line}");
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { child, address }
    }

    fn get(&self, path: &str) -> (Option<i32>, Value) {
        let output = run(&["get", &format!("{}{path}", self.address)]);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("serve still runs");
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that sends these raw answers in turn and closes the connection after each.
fn raw_server(answers: Vec<String>) -> String {
    let next = AtomicUsize::new(0);
    let answer = move |_: &Request| Answer::raw(answers[next.fetch_add(1, Ordering::SeqCst) % answers.len()].clone());
    Server::start(answer).address
}

#[test]
fn an_answer_has_service_task_and_upstreams() {
    let metadata = r#"{"Cluster": "c", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/c/0a1b", "Family": "f"}"#;
    let metadata = Server::start(move |_| Answer::ok(metadata));
    let api = Serve::start(&["--service", "api"], Some(&format!("{}/v4/x", metadata.url())));
    let web = Serve::start(&["--service", "web", "--upstream", &format!("api={}", api.address)], None);

    let deadline = Instant::now() + Duration::from_secs(10);
    while api.get("/").1["task"] == json!(null) {
        assert!(Instant::now() < deadline, "api learns its task ID");
    }
    let expected = json!({
        "service": "web", "task": null,
        "upstreams": {"api": {"status": 200, "answer": {"service": "api", "task": "0a1b"}}},
    });
    assert_eq!(web.get("/"), (Some(0), expected));
}

#[test]
fn a_failed_upstream_makes_the_answer_a_502() {
    let broken = Server::start(|_| Answer::new("503 Service Unavailable", "no upstream\r\n"));
    let broken = format!("broken={}", broken.url());
    let web = Serve::start(&["--upstream", &broken, "--upstream", "gone=127.0.0.1:1"], None);
    let (code, answer) = web.get("/");
    assert_eq!(code, Some(1));
    assert_eq!(answer["upstreams"]["broken"], json!({"status": 503, "error": "no upstream"}));
    let gone = answer["upstreams"]["gone"]["error"].as_str().unwrap();
    assert!(gone.starts_with("cannot reach http://127.0.0.1:1: "), "{gone}");
}

#[test]
fn a_service_without_metadata_answers_without_a_task_id() {
    let app = Serve::start(&[], Some("http://127.0.0.1:1/v4/x"));
    assert_eq!(app.get("/"), (Some(0), json!({"service": "demo", "task": null})));
}

#[test]
fn a_put_request_changes_the_health() {
    let app = Serve::start(&[], None);
    let health = || run(&["health", "--listen", &app.address]).status.code();
    let turn = |status: &str| {
        let mut stream = TcpStream::connect(&app.address).unwrap();
        let request = format!("PUT /health?status={status} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap().to_owned()
    };
    assert_eq!(health(), Some(0));
    assert_eq!(turn("unhealthy"), "HTTP/1.1 200 OK");
    assert_eq!(health(), Some(1));
    assert_eq!(app.get("/health").0, Some(1));
    assert_eq!(turn("sick"), "HTTP/1.1 400 Bad Request");
    assert_eq!(turn("healthy"), "HTTP/1.1 200 OK");
    assert_eq!(health(), Some(0));
    // The service also answers while it is unhealthy.
    assert_eq!(app.get("/").0, Some(0));
}

#[test]
fn a_request_takes_at_least_its_delay() {
    let app = Serve::start(&["--delay", "300ms"], None);
    let took = |path: &str| {
        let began = Instant::now();
        assert_eq!(app.get(path).0, Some(0));
        began.elapsed()
    };
    assert!(took("/") >= Duration::from_millis(300));
    assert!(took("/?delay=600ms") >= Duration::from_millis(600));
    assert_eq!(app.get("/?delay=2h").0, Some(1));
}

#[test]
fn term_and_int_end_it_at_once_with_0() {
    for signal in ["TERM", "INT"] {
        let mut app = Serve::start(&["--delay", "60s"], None);
        let mut unanswered = TcpStream::connect(&app.address).unwrap();
        unanswered.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        app.signal(signal);
        assert_eq!(app.exit_code(), Some(0), "{signal}");
    }
}

#[test]
fn the_term_delay_applies_to_term_and_not_to_int() {
    let mut app = Serve::start(&["--term-delay", "1s"], None);
    let began = Instant::now();
    app.signal("TERM");
    assert_eq!(app.get("/").0, Some(0));
    app.signal("TERM");
    assert_eq!(app.exit_code(), Some(0));
    assert!(began.elapsed() >= Duration::from_secs(1));

    let mut app = Serve::start(&["--term-delay", "1h"], None);
    app.signal("TERM");
    assert_eq!(app.get("/").0, Some(0));
    app.signal("INT");
    assert_eq!(app.exit_code(), Some(0));
}

#[test]
fn get_prints_the_body_and_fails_unless_it_is_2xx() {
    let app = Serve::start(&[], None);
    let output = run(&["get", &app.address]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"service\":\"demo\",\"task\":null}\n");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("200 OK in "));

    let output = run(&["get", &format!("{}/nowhere", app.address), "--header", "x-test: 1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("404 Not Found in "));

    let output = run(&["get", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("demo-app: no answer from http://127.0.0.1:1/: cannot reach"), "{error}");
    assert_eq!(error.lines().count(), 1);
}

fn load(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["load", "--json"], arguments].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), report)
}

#[test]
fn load_follows_its_schedule_and_counts_the_tasks() {
    let api = Serve::start(&["--service", "api"], None);
    let web = Serve::start(&["--service", "web", "--upstream", &format!("api={}", api.address)], None);
    let (code, report) =
        load(&[&web.address, "--rate", "100", "--duration", "1s", "--connections", "2", "--fresh", "20%"]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!((&report["sent"], &report["succeeded"], &report["failed"]), (&json!(100), &json!(100), &json!(0)));
    assert_eq!(report["tasks"], json!({"web -": 100, "api -": 100}));
    let connections = report["connections"].as_u64().unwrap();
    assert!((21..=100).contains(&connections), "20 connections for single requests, and the reused ones: {report}");
}

/// A server that answers each request once `received` has returned.
fn server(received: impl Fn() + Send + Sync + 'static) -> String {
    let answer = move |_: &Request| {
        received();
        Answer::ok("")
    };
    Server::start(answer).address
}

#[test]
fn load_keeps_its_schedule_while_answers_are_slow() {
    // The server answers when it has received all requests. If load sent them one by one, all but the last would time out.
    let all = Barrier::new(50);
    let slow = server(move || {
        all.wait();
    });
    let (code, report) = load(&[&slow, "--rate", "50", "--duration", "1s", "--connections", "1"]);
    assert_eq!((code, &report["succeeded"]), (Some(0), &json!(50)), "{report}");
}

#[test]
fn load_repeats_nothing_and_counts_failures_by_reason() {
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let bad = "HTTP/1.1 503 Service Unavailable\r\nx-envoy-overloaded: true\r\ncontent-length: 4\r\n\r\nbusy";
    let answers = [good, bad, ""].map(str::to_owned).to_vec();
    // If load repeated requests, some of the failures would be successes.
    let flaky = raw_server(answers);
    let (code, report) = load(&[&flaky, "--rate", "30", "--duration", "1s", "--fresh", "1"]);
    assert_eq!(code, Some(1));
    assert_eq!((&report["sent"], &report["succeeded"], &report["failed"]), (&json!(30), &json!(10), &json!(20)));
    let failures = json!({"closed before an answer": 10, "status 503 x-envoy-overloaded=true busy": 10});
    assert_eq!(report["failures"], failures);

    let (_, report) = load(&["127.0.0.1:1", "--rate", "10", "--duration", "1s"]);
    assert_eq!(report["failures"], json!({"connect: refused": 10}));

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (_, report) = load(&[&address, "--rate", "10", "--duration", "1s", "--timeout", "200ms"]);
    assert_eq!(report["failures"], json!({"timeout": 10}));
}

#[test]
fn a_request_on_a_closed_connection_counts_as_failed() {
    // The server reads the second request on a connection, but does not answer it.
    let server = Server::start(|request| if request.number == 0 { Answer::ok("") } else { Answer::raw("") });
    let (_, report) = load(&[&server.address, "--rate", "20", "--duration", "1s", "--connections", "1"]);
    let (succeeded, failed) = (report["succeeded"].as_u64().unwrap(), report["failed"].as_u64().unwrap());
    assert_eq!((succeeded + failed, server.requests().len()), (20, 20), "{report}");
    assert!(failed > 0, "{report}");
    assert_eq!(report["failures"], json!({"closed before an answer": failed}));
}

#[test]
fn load_that_is_ended_early_still_reports() {
    let (sender, requests) = mpsc::channel();
    let app = server(move || {
        let _ = sender.send(());
    });
    let mut child = demo_app(&["load", &app, "--json", "--rate", "100", "--duration", "1h"]);
    let child = child.stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..10 {
        requests.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["sent"].as_u64().unwrap() >= 10, "{report}");
    assert_eq!(report["sent"], report["succeeded"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_wrong_command_line_is_one_line_and_exit_code_2() {
    let wrong: [&[&str]; 5] = [
        &[],
        &["get", "https://x"],
        &["serve", "--upstream", "x"],
        &["load", "x", "--rate", "0"],
        &["load", "x", "--fresh", "120%"],
    ];
    for arguments in wrong {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
    }
    let output = run(&["load", "x", "--rate", "100000", "--duration", "1h"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "demo-app: 100000 requests a second for 1h are 360000000: expected at most 5000000\n");
}
