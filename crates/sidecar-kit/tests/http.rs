//! The HTTP client against servers that behave well, badly and not at all.

use std::time::Duration;

use sidecar_kit::http::{Client, Error, Limits, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LIMITS: Limits = Limits { time: Duration::from_secs(5), bytes: 1000 };

/// Answers each connection's first request with the given bytes and closes.
async fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    format!("http://{address}/path?secret=1")
}

async fn get(client: &Client, url: &str, limits: Limits) -> Result<Response, Error> {
    client.send(hyper::Request::get(url).body(Default::default()).unwrap(), limits).await
}

#[tokio::test]
async fn any_status_is_an_answer() {
    let url = server(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 3\r\n\r\nno\n").await;
    let response = get(&Client::plain(), &url, LIMITS).await.unwrap();
    assert_eq!((response.status.as_u16(), response.excerpt().as_str()), (503, "no"));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = get(&Client::plain(), &format!("http://user:pw@{address}/"), LIMITS).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error:?}");
    let line = sidecar_kit::exit::one_line(&error);
    assert_eq!(line, format!("cannot reach http://{address}: Connection refused (os error 111)"));
}

/// A name may have other addresses, which must be tried too.
#[tokio::test]
async fn a_silent_host_is_unreachable_after_three_seconds() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // If the listen queue is full, Linux drops new connections.
    let mut queued = Vec::new();
    while let Ok(connected) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(connected);
    }
    let error = get(&Client::plain(), &format!("http://{address}/"), LIMITS).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn an_endless_answer_is_too_large() {
    let url = server(Box::leak(Box::new(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n".as_slice(), &[b'x'; 2000]].concat(),
    )))
    .await;
    let error = get(&Client::plain(), &url, LIMITS).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 1000, .. }), "{error:?}");
}

#[tokio::test]
async fn silence_is_timed_out_and_says_after_how_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let limits = Limits { time: Duration::from_millis(50), ..LIMITS };
    let error = get(&Client::plain(), &url, limits).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }));
    assert!(error.to_string().ends_with("within 50ms"), "{error}");
}

#[tokio::test]
async fn nonsense_is_not_http_and_half_an_answer_is_broken() {
    let nonsense = get(&Client::plain(), &server(b"SSH-2.0-OpenSSH\r\n").await, LIMITS).await.unwrap_err();
    assert!(matches!(nonsense, Error::NotHttp { .. }), "{nonsense:?}");
    let half = server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let half = get(&Client::plain(), &half, LIMITS).await.unwrap_err();
    assert!(matches!(half, Error::Broken { .. }), "{half:?}");
    assert!(!half.to_string().contains("secret") && !nonsense.to_string().contains("secret"));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_one_of_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // An empty SETTINGS frame of HTTP/2.
            stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            streams.push(stream);
        }
    });
    // The request may be on its way by then, or not.
    for _ in 0..100 {
        let error = get(&Client::plain(), &url, LIMITS).await.unwrap_err();
        assert!(matches!(error, Error::NotHttp { .. }), "{error:?}");
    }
}
