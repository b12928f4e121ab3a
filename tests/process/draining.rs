//! Each row of `docs/draining.md`, and connections whose listener changes, with a real Envoy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::http::{get as get_text, get_json};
use mesh_tests::metadata::{Metadata, OWN_DOCKER_ID};
use mesh_tests::process::Process;
use mesh_tests::{binary, eventually, free_port, part};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const BOUND: Duration = Duration::from_secs(20);
/// From the answer until Envoy closes a connection that its client keeps: `drain_timeout` and `delayed_close_timeout`. A test that reads
/// the clock late measures more.
const CLOSES_AFTER: Duration = Duration::from_millis(5_900);

/// An HTTP/1 app that sends each text that the test gives it: the head of its answer, then chunks.
struct App {
    port: u16,
    asked: Receiver<()>,
    tell: Sender<&'static str>,
}

fn app() -> App {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, asked) = channel();
    let (tell, told) = channel::<&'static str>();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream).lines();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        heard.send(()).unwrap();
        for text in told {
            (&stream).write_all(text.as_bytes()).unwrap();
        }
    });
    App { port, asked, tell }
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const CHUNK: &str = "5\r\nchunk\r\n";
const END: &str = "0\r\n\r\n";

fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn cluster(name: &str, port: u16) -> Value {
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": address(port) } }] }]);
    json!({ "name": name, "connect_timeout": "5s", "load_assignment": { "cluster_name": name, "endpoints": endpoints } })
}

fn listener(name: &str, port: u16, filter: Value) -> Value {
    let filters = json!([{ "name": name, "typed_config": filter }]);
    json!({ "name": name, "traffic_direction": "INBOUND", "address": address(port), "filter_chains": [{ "filters": filters }] })
}

/// One port for HTTP/1 and HTTP/2: Envoy itself answers `/`, and each app answers below its name. The other port is for TCP.
fn bootstrap(admin: u16, http: u16, tcp: u16, apps: &[(&str, u16)], echo: u16) -> Value {
    let network = "type.googleapis.com/envoy.extensions.filters.network";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let mut routes = Vec::new();
    for (name, _) in apps {
        let route = json!({ "cluster": name, "timeout": "0s" });
        routes.push(json!({ "match": { "prefix": format!("/{name}") }, "route": route }));
    }
    routes.push(json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }));
    let manager = json!({
        "@type": format!("{network}.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "http",
        "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
        "route_config": { "virtual_hosts": [{ "name": "any", "domains": ["*"], "routes": routes }] },
    });
    let proxy = json!({ "@type": format!("{network}.tcp_proxy.v3.TcpProxy"), "stat_prefix": "tcp", "cluster": "echo" });
    let clusters = apps.iter().map(|(name, port)| cluster(name, *port)).chain([cluster("echo", echo)]);
    json!({
        "admin": { "address": address(admin) },
        "static_resources": {
            "listeners": [listener("http", http, manager), listener("tcp", tcp, proxy)],
            "clusters": clusters.collect::<Vec<_>>(),
        },
    })
}

async fn connected(port: u16) -> TcpStream {
    let connect = async || TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string());
    let stream = eventually("the listener is open", BOUND, connect).await;
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
}

fn send(mut connection: &TcpStream, path: &str) {
    write!(connection, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
}

/// The head of the next answer.
fn head(lines: &mut impl BufRead) -> String {
    let lines = lines.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    lines.map(|line| line + "\n").collect()
}

/// The bytes that come until the connection is closed.
fn rest(mut connection: &TcpStream) -> String {
    let mut rest = String::new();
    connection.read_to_string(&mut rest).unwrap();
    rest
}

fn echoes(mut connection: &TcpStream) -> bool {
    let mut back = [0; 4];
    connection.write_all(b"ping").is_ok() && connection.read_exact(&mut back).is_ok() && &back == b"ping"
}

type Http2 = (SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>);

async fn http2(port: u16) -> Http2 {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, path: &str) -> hyper::Response<Incoming> {
    let request = Request::get(format!("http://a{path}")).body(Empty::new()).unwrap();
    tokio::time::timeout(BOUND, sender.send_request(request)).await.expect("an answer in time").unwrap()
}

#[tokio::test]
async fn each_protocol_drains_as_the_documentation_says() {
    let own = json!({ "DockerId": OWN_DOCKER_ID, "Name": "sidecar-proxy", "KnownStatus": "RUNNING", "DesiredStatus": "RUNNING" });
    let app_container =
        |known: &str| json!({ "DockerId": "app", "Name": "app", "KnownStatus": known, "DesiredStatus": "RUNNING" });
    let metadata = Metadata::start("shop", json!([&own, app_container("RUNNING")]));
    let (admin, http, tcp) = (free_port(), free_port(), free_port());
    let (slow, slow2, stream) = (app(), app(), app());
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("envoy.json");
    let apps = [("slow1", slow.port), ("slow2", slow2.port), ("stream", stream.port)];
    std::fs::write(&config, bootstrap(admin, http, tcp, &apps, echo()).to_string()).unwrap();
    let mut command = Command::new(binary("envoy-entrypoint"));
    command.env("ECS_CONTAINER_METADATA_URI_V4", &metadata.uri).arg("--drain").arg(part("envoy"));
    command.arg("--config-path").arg(config).args(["--drain-time-s", "1", "--drain-strategy", "immediate"]);
    let mut process =
        Process::spawn(command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]));

    // Before: for each protocol an idle connection and one with a request under way; also a stream and a TCP connection.
    let idle = connected(http).await;
    send(&idle, "/");
    let mut idle_lines = BufReader::new(&idle);
    assert!(head(&mut idle_lines).starts_with("HTTP/1.1 200"));
    let busy = connected(http).await;
    send(&busy, "/slow1");
    slow.asked.recv_timeout(BOUND).unwrap();
    let (mut busy2, busy2_end) = http2(http).await;
    let under_way =
        tokio::spawn(async move { get(&mut busy2, "/slow2").await.into_body().collect().await.unwrap().to_bytes() });
    eventually("the app is asked", BOUND, async || slow2.asked.try_recv().map_err(|error| error.to_string())).await;
    let (mut idle2, idle2_end) = http2(http).await;
    assert_eq!(get(&mut idle2, "/").await.status(), 200);
    let (mut streaming, streaming_end) = http2(http).await;
    stream.tell.send(HEAD).unwrap();
    let mut body = get(&mut streaming, "/stream").await.into_body();
    let mut next_chunk = async || {
        stream.tell.send(CHUNK).unwrap();
        let frame = tokio::time::timeout(BOUND, body.frame()).await.expect("a chunk in time");
        frame.is_some_and(|frame| frame.is_ok())
    };
    assert!(next_chunk().await);
    let open_tcp = connected(tcp).await;
    assert!(echoes(&open_tcp));

    process.signal(Signal::TERM);
    process.says("draining the inbound listeners", BOUND).await;
    // For twice the drain time.
    let before = metadata.answered();
    eventually("the drain time is over", BOUND, async || {
        let asked = metadata.answered() - before;
        if asked >= 20 { Ok(()) } else { Err(format!("asked {asked} times")) }
    })
    .await;

    // HTTP/1: the request under way, the next request on an idle connection and a request on a new connection are each answered. Then
    // Envoy closes the connection.
    for text in [HEAD, CHUNK, END] {
        slow.tell.send(text).unwrap();
        slow2.tell.send(text).unwrap();
    }
    assert_eq!(under_way.await.unwrap(), "chunk");
    send(&idle, "/");
    assert!(head(&mut idle_lines).contains("connection: close"));
    let new = connected(http).await;
    let asked = Instant::now();
    send(&new, "/");
    // If the client doesn't close the connection within 6 s, Envoy does.
    let answer = rest(&busy);
    assert!(answer.contains("connection: close") && answer.contains("chunk"), "{answer}");
    assert_eq!(rest(&idle), "");
    let answer = rest(&new);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert!(asked.elapsed() >= CLOSES_AFTER, "{:?}", asked.elapsed());

    // HTTP/2: the same, with GOAWAY.
    tokio::time::timeout(BOUND, busy2_end).await.expect("it is closed in time").unwrap().unwrap();
    assert!(!idle2_end.is_finished());
    assert_eq!(get(&mut idle2, "/").await.status(), 200);
    let (mut new2, new2_end) = http2(http).await;
    assert_eq!(get(&mut new2, "/").await.status(), 200);
    for end in [idle2_end, new2_end] {
        tokio::time::timeout(BOUND, end).await.expect("it is closed in time").unwrap().unwrap();
    }

    // A gRPC stream stays open. A new request on its connection is answered, GOAWAY follows, and the stream still stays open.
    assert!(next_chunk().await);
    assert_eq!(get(&mut streaming, "/").await.status(), 200);
    assert!(next_chunk().await);
    assert!(!streaming_end.is_finished());

    // TCP: nothing changes.
    assert!(echoes(&open_tcp) && echoes(&connected(tcp).await));

    // At Envoy's end, open streams and connections break off.
    metadata.set_containers(json!([&own, app_container("STOPPED")]));
    assert_eq!(process.exit_code(BOUND).await, 0, "{}", process.output());
    assert!(!next_chunk().await);
    assert!(!echoes(&open_tcp));
}

/// Envoy's flags in the command of an image.
fn flags_of_image(name: &str) -> Vec<String> {
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/../images");
    let dockerfile = std::fs::read_to_string(format!("{images}/{name}/Dockerfile")).unwrap();
    let command = dockerfile.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    flags(&serde_json::from_str(command).unwrap())
}

/// Envoy's flags in the command that mesh-task writes for the container with Envoy.
fn flags_of_task(container: &str, servers: Value) -> Vec<String> {
    let mut settings = json!({ "service": { "port": 8080 }, "registry": "registry.example/ecs-mesh" });
    settings.as_object_mut().unwrap().extend(servers.as_object().unwrap().clone());
    let app = json!({ "name": "app", "image": "registry.example/app:1" });
    let task = json!({ "family": "app", "networkMode": "awsvpc", "containerDefinitions": [app] });
    let directory = tempfile::tempdir().unwrap();
    let [settings_file, task_file] = ["settings.json", "task.json"].map(|name| directory.path().join(name));
    std::fs::write(&settings_file, settings.to_string()).unwrap();
    std::fs::write(&task_file, task.to_string()).unwrap();
    let mut command = Command::new(binary("mesh-task"));
    let output = command.args(["render", "--settings"]).arg(settings_file).arg(task_file).output().unwrap();
    let rendered: Value = serde_json::from_slice(&output.stdout).unwrap();
    let containers = rendered["containerDefinitions"].as_array().unwrap();
    flags(&containers.iter().find(|one| one["name"] == container).unwrap()["command"])
}

/// The words after the path of the bootstrap.
fn flags(command: &Value) -> Vec<String> {
    let words = command.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
    words.skip_while(|word| word != "--disable-hot-restart").collect()
}

/// Writes Envoy's listeners. Envoy reads the file again when it is replaced.
fn write_listeners(path: &Path, listeners: &[Value]) {
    let with_type = |listener: &Value| {
        let mut listener = listener.clone();
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        listener
    };
    let resources: Vec<_> = listeners.iter().map(with_type).collect();
    let new = path.with_extension("new");
    std::fs::write(&new, json!({ "resources": resources }).to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The seconds since Envoy started.
async fn uptime(admin: u16) -> Result<u64, String> {
    let info = get_json(&format!("http://127.0.0.1:{admin}/server_info")).await?;
    let uptime = info["uptime_current_epoch"].as_str().unwrap().trim_end_matches('s');
    Ok(uptime.parse().unwrap())
}

#[tokio::test]
async fn a_changed_listener_breaks_off_nothing_within_six_seconds() {
    let flags = flags_of_task("sidecar-proxy", json!({ "retryJoin": ["consul.internal"] }));
    assert_eq!(flags_of_task("dataplane", json!({ "consulServers": { "hosts": "consul.internal" } })), flags);
    assert_eq!([flags_of_image("sidecar-proxy"), flags_of_image("mesh-dataplane")], [flags.clone(), flags.clone()]);

    let (admin, http, tcp) = (free_port(), free_port(), free_port());
    let (slow, stream) = (app(), app());
    let directory = tempfile::tempdir().unwrap();
    let (config, dynamic) = (directory.path().join("envoy.json"), directory.path().join("listeners.json"));
    let apps = [("slow", slow.port), ("stream", stream.port)];
    let mut bootstrap = bootstrap(admin, http, tcp, &apps, echo());
    let mut listeners = bootstrap["static_resources"]["listeners"].take().as_array().unwrap().clone();
    write_listeners(&dynamic, &listeners);
    bootstrap["static_resources"]["listeners"] = json!([]);
    bootstrap["dynamic_resources"] = json!({ "lds_config": { "path_config_source": { "path": dynamic } } });
    bootstrap["node"] = json!({ "id": "shop", "cluster": "shop" });
    std::fs::write(&config, bootstrap.to_string()).unwrap();
    let mut command = Command::new(part("envoy"));
    let envoy = Process::spawn(command.arg("--config-path").arg(config).args(flags).args(["--log-level", "warning"]));
    let busy = connected(http).await;
    send(&busy, "/slow");
    slow.asked.recv_timeout(BOUND).unwrap();
    let (mut streaming, _streaming_end) = http2(http).await;
    stream.tell.send(HEAD).unwrap();
    let mut body = get(&mut streaming, "/stream").await.into_body();
    let open = connected(tcp).await;
    assert!(echoes(&open), "{}", envoy.output());

    // As after a new certificate: the filters change, and the addresses do not.
    for listener in &mut listeners {
        listener["filter_chains"][0]["filters"][0]["typed_config"]["stat_prefix"] = "changed".into();
    }
    write_listeners(&dynamic, &listeners);
    eventually("both listeners have changed", BOUND, async || {
        let filter = "listener_manager.listener_in_place_updated";
        let count = get_text(&format!("http://127.0.0.1:{admin}/stats?filter={filter}")).await?;
        if count.trim() == format!("{filter}: 2") { Ok(()) } else { Err(count) }
    })
    .await;
    let changed = uptime(admin).await.unwrap();
    eventually("six seconds have passed", BOUND, async || {
        let passed = uptime(admin).await?.saturating_sub(changed);
        if passed >= 6 { Ok(()) } else { Err(format!("{passed} s")) }
    })
    .await;

    assert!(echoes(&open), "the TCP connection is closed");
    stream.tell.send(CHUNK).unwrap();
    let frame = tokio::time::timeout(BOUND, body.frame()).await.expect("a chunk in time");
    assert!(frame.is_some_and(|frame| frame.is_ok()), "the stream is closed");
    for text in [HEAD, CHUNK, END] {
        slow.tell.send(text).unwrap();
    }
    let answer = head(&mut BufReader::new(&busy));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
}
