//! Servers that fail on purpose: each is a small HTTP/2 server on loopback. What a real Consul answers is tested in `tests/process`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consul_grpc::{Code, Error, Follower, Servers, State, Tls, Trust};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sidecar_kit::secret::Secret;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(60);

/// A server that answers every call with a status, and with an empty message if that is 0.
struct Fake {
    address: SocketAddr,
    status: Arc<AtomicU32>,
    calls: Arc<AtomicUsize>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(ip: &str, port: u16) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, calls, tokens) = (Arc::default(), Arc::default(), Arc::default());
        let fake = Self { address, status, calls, tokens };
        let (status, calls, tokens) = (fake.status.clone(), fake.calls.clone(), fake.tokens.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (status, calls, tokens) = (status.clone(), calls.clone(), tokens.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    calls.fetch_add(1, Ordering::SeqCst);
                    let token = request.headers().get("x-consul-token").map(|token| token.to_str().unwrap().to_owned());
                    tokens.lock().unwrap().extend(token);
                    let status = status.load(Ordering::SeqCst);
                    async move { Ok::<_, Infallible>(answer(status)) }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        fake
    }

    fn answers(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn answer(status: u32) -> Response<http_body_util::combinators::BoxBody<Bytes, Infallible>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    trailers.insert("grpc-message", "no: 5ec3e7 is not for you".parse().unwrap());
    let message = if status == 0 { Bytes::from_static(&[0; 5]) } else { Bytes::new() };
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// Two servers on the same port of two loopback addresses.
async fn two() -> [Fake; 2] {
    loop {
        let first = Fake::start("127.0.0.1", 0).await;
        let port = first.address.port();
        if TcpListener::bind(("127.0.0.2", port)).await.is_ok() {
            return [first, Fake::start("127.0.0.2", port).await];
        }
    }
}

fn servers_of(fakes: &[Fake]) -> Servers {
    let hosts = fakes.iter().map(|fake| fake.address.ip().to_string()).collect();
    Servers::new(hosts, fakes[0].address.port(), None).answering_within(Duration::from_secs(20))
}

async fn features(servers: &Servers, token: Option<&Secret>) -> Result<(), Error> {
    servers.call(true, |server| async move { server.features(token).await }).await.map(|_| ())
}

#[tokio::test]
async fn a_server_that_cannot_now_is_left_for_the_next() {
    for status in [Code::ResourceExhausted, Code::Aborted, Code::Unavailable] {
        let fakes = two().await;
        fakes[0].answers(status as u32);
        // The first server is chosen at random. In 20 attempts, each of the two is chosen first at some time.
        for _ in 0..20 {
            let servers = servers_of(&fakes);
            features(&servers, None).await.unwrap();
            assert_eq!(servers.connection().await.unwrap().server(), fakes[1].address);
        }
        assert!(
            fakes[0].calls() > 0 && fakes[1].calls() == 20,
            "{status:?}: {} {}",
            fakes[0].calls(),
            fakes[1].calls()
        );
    }
}

/// Servers whose server in use is this one.
async fn servers_that_use(fake: &Fake, fakes: &[Fake]) -> Servers {
    // The first server is chosen at random.
    loop {
        let servers = servers_of(fakes);
        if servers.connection().await.unwrap().server() == fake.address {
            return servers;
        }
    }
}

#[tokio::test]
async fn a_call_beside_a_stream_goes_elsewhere_without_leaving_an_exhausted_server() {
    let fakes = two().await;
    let servers = Arc::new(servers_that_use(&fakes[0], &fakes).await);
    let follower = Follower::start(servers.clone(), None);
    let mut state = follower.state();
    let ready = state.wait_for(|state| matches!(state, State::Ready(_)));
    timeout(BOUND, ready).await.expect("in time").unwrap();
    state.mark_unchanged();
    fakes[0].answers(Code::ResourceExhausted as u32);
    let (asked, calls) = (fakes[0].calls(), fakes[1].calls());
    for repeats in [true, false] {
        let call = servers.call_beside_stream(repeats, |server| async move { server.features(None).await });
        call.await.unwrap();
    }
    assert_eq!((fakes[0].calls() - asked, fakes[1].calls() - calls), (2, 2));
    fakes[1].answers(Code::ResourceExhausted as u32);
    let call = servers.call_beside_stream(true, |server| async move { server.features(None).await });
    assert_eq!(call.await.unwrap_err().code(), Some(Code::ResourceExhausted));
    assert_eq!((fakes[0].calls() - asked, fakes[1].calls() - calls), (3, 3), "each is asked once");
    assert_eq!(servers.connection().await.unwrap().server(), fakes[0].address);
    assert!(!state.has_changed().unwrap(), "a stream would have moved: {:?}", state.borrow());
    // Other failures are of the whole server.
    fakes.iter().for_each(|fake| fake.answers(Code::Unavailable as u32));
    let call = servers.call_beside_stream(true, |server| async move { server.features(None).await });
    assert!(call.await.is_err());
    timeout(BOUND, state.changed()).await.expect("in time").unwrap();
}

#[tokio::test]
async fn each_server_is_asked_once_and_then_again_at_the_next_call() {
    let fakes = two().await;
    fakes.iter().for_each(|fake| fake.answers(Code::Unavailable as u32));
    let servers = servers_of(&fakes);
    for round in 1..=3 {
        let error = features(&servers, None).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Unavailable));
        assert_eq!((fakes[0].calls(), fakes[1].calls()), (round, round));
    }
    fakes[1].answers(0);
    features(&servers, None).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_final_and_shows_no_token() {
    let fakes = two().await;
    fakes.iter().for_each(|fake| fake.answers(Code::PermissionDenied as u32));
    let servers = servers_of(&fakes);
    let token = Secret::new("5ec3e7");
    let error = features(&servers, Some(&token)).await.unwrap_err();
    assert_eq!(fakes[0].calls() + fakes[1].calls(), 1);
    let tokens: Vec<_> = fakes.iter().flat_map(|fake| fake.tokens.lock().unwrap().clone()).collect();
    assert_eq!(tokens, ["5ec3e7"]);
    let shown = format!("{error} {error:?} {servers:?}");
    assert!(!shown.contains("5ec3e7") && shown.contains("no: <token> is not for you"), "{shown}");
}

#[tokio::test]
async fn an_unreachable_server_is_left_for_the_next() {
    let [first, second] = two().await;
    let port = first.address.port();
    let hosts = ["127.0.0.3".to_owned(), second.address.ip().to_string()];
    for _ in 0..10 {
        let servers = Servers::new(hosts.to_vec(), port, None);
        features(&servers, None).await.unwrap();
    }
    let none = Servers::new(vec!["127.0.0.3".to_owned()], port, None);
    assert!(matches!(features(&none, None).await.unwrap_err(), Error::Connect { .. }));
}

#[tokio::test]
async fn a_silent_server_is_left_after_the_time_of_a_call() {
    let [working, _] = two().await;
    let port = working.address.port();
    let silent = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let hosts = vec!["127.0.0.1".to_owned(), "127.0.0.3".to_owned()];
    let asked = async {
        let mut silences = 0;
        while silences == 0 {
            let servers = Servers::new(hosts.clone(), port, None).answering_within(Duration::from_millis(300));
            features(&servers, None).await.unwrap();
            // If the silent server was chosen first, it has got a connection.
            silences += usize::from(timeout(Duration::from_millis(1), silent.accept()).await.is_ok());
        }
    };
    timeout(BOUND, asked).await.expect("the silent server is left");
    assert!(working.calls() > 0);
}

#[tokio::test]
async fn a_login_that_may_have_arrived_is_not_repeated() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let servers =
        Servers::new(vec!["127.0.0.1".to_owned(); 2], port, None).answering_within(Duration::from_millis(300));
    let calls = AtomicUsize::new(0);
    let login = servers.call(false, |server| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move { server.login(consul_grpc::LoginRequest::default()).await }
    });
    let error = login.await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }) && error.may_have_arrived(), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn follower_reports_a_refused_token_and_takes_another() {
    let fakes = two().await;
    let servers = Arc::new(servers_of(&fakes[..1]));
    fakes[0].answers(Code::Unauthenticated as u32);
    let follower = Follower::start(servers, Some(Secret::new("old")));
    let mut state = follower.state();
    let refused = state.wait_for(|state| matches!(state, State::Refused));
    timeout(BOUND, refused).await.expect("in time").unwrap();
    fakes[0].answers(0);
    follower.set_token(Some(Secret::new("new")));
    let ready = state.wait_for(|state| matches!(state, State::Ready(ready) if ready.token == Some(Secret::new("new"))));
    timeout(BOUND, ready).await.expect("in time").unwrap();
    assert!(fakes[0].tokens.lock().unwrap().contains(&"new".to_owned()));
}

#[tokio::test]
async fn follower_goes_on_to_the_next_server_if_one_is_left() {
    let fakes = two().await;
    let servers = Arc::new(servers_of(&fakes));
    let follower = Follower::start(servers.clone(), None);
    let mut state = follower.state();
    let mut server = None;
    for _ in 0..4 {
        let ready =
            state.wait_for(|state| matches!(state, State::Ready(ready) if Some(ready.connection.server()) != server));
        let State::Ready(ready) = timeout(BOUND, ready).await.expect("in time").unwrap().clone() else {
            unreachable!()
        };
        server = Some(ready.connection.server());
        servers.leave(ready.connection.server());
    }
}

#[tokio::test]
async fn follower_leaves_a_server_that_does_not_learn_the_token() {
    let fakes = two().await;
    fakes[0].answers(Code::Unauthenticated as u32);
    let servers = Arc::new(servers_that_use(&fakes[0], &fakes).await);
    let follower = Follower::start(servers, Some(Secret::new("new")));
    let mut state = follower.state();
    let changed = state.wait_for(|state| !matches!(state, State::Searching));
    let State::Ready(ready) = timeout(BOUND, changed).await.expect("in time").unwrap().clone() else {
        panic!("no other server was asked")
    };
    assert_eq!(ready.connection.server(), fakes[1].address);
    assert!(fakes[0].calls() > 1, "a server may learn of a new token a moment later");
}

#[tokio::test]
async fn each_further_refusal_of_a_token_shows_later() {
    let fakes = two().await;
    fakes.iter().for_each(|fake| fake.answers(Code::Unauthenticated as u32));
    let follower = Follower::start(Arc::new(servers_of(&fakes[..1])), Some(Secret::new("0")));
    let mut state = follower.state();
    let mut waits = Vec::new();
    for number in 1..=5 {
        let begin = std::time::Instant::now();
        let refused = async {
            loop {
                state.changed().await.unwrap();
                // With the same token, the follower may have been refused again before it got this one.
                let asked = fakes[0].tokens.lock().unwrap().last().cloned();
                if matches!(*state.borrow_and_update(), State::Refused) && asked == Some((number - 1).to_string()) {
                    return;
                }
            }
        };
        timeout(BOUND, refused).await.expect("in time");
        waits.push(begin.elapsed());
        follower.set_token(Some(Secret::new(number.to_string())));
    }
    assert!(waits[4] > waits[0] + Duration::from_secs(1), "{waits:?}");
}

#[tokio::test]
async fn callers_that_connect_at_the_same_time_use_the_same_server() {
    for _ in 0..20 {
        let fakes = two().await;
        let servers = servers_of(&fakes);
        let (first, second) = tokio::join!(servers.connection(), servers.connection());
        let (first, second) = (first.unwrap().server(), second.unwrap().server());
        assert_eq!(first, second);
        assert_eq!(servers.connection().await.unwrap().server(), first);
    }
}

/// A server with TLS and without ALPN, like Consul's. It passes the connection on to the fake.
async fn with_tls(behind: SocketAddr, issued: &rcgen::CertifiedKey<rcgen::KeyPair>) -> SocketAddr {
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn tls_checks_the_server_name_and_reads_a_replaced_ca_file() {
    let fake = Fake::start("127.0.0.1", 0).await;
    let name = "server.dc1.consul";
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let address = with_tls(fake.address, &issued).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let servers = |server_name: Option<&str>| {
        let tls = Tls { trust: Trust::File(ca.clone()), server_name: server_name.map(str::to_owned) };
        Servers::new(vec!["127.0.0.1".to_owned()], address.port(), Some(tls))
    };
    let named = servers(Some(name));
    let missing = features(&named, None).await.unwrap_err();
    assert!(matches!(&missing, Error::Authority { file, .. } if file.ends_with("ca.pem")), "{missing}");
    std::fs::write(&ca, other.cert.pem()).unwrap();
    let untrusted = features(&named, None).await.unwrap_err();
    assert!(matches!(&untrusted, Error::Connect { .. }), "{untrusted}");
    std::fs::write(&ca, issued.cert.pem()).unwrap();
    features(&named, None).await.unwrap();
    // Without a server name, the certificate must have the host's name, and it does not.
    let wrong = features(&servers(None), None).await.unwrap_err();
    assert!(matches!(&wrong, Error::Connect { source, .. } if source.to_string().contains("certificate")), "{wrong:?}");
    assert_eq!(fake.calls(), 1);
}
