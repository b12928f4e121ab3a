//! The HTTP client against servers that behave well, badly and not at all.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sidecar_kit::http::{Client, Error, Limits, Response};
use sidecar_kit::tls::TlsOptions;
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
async fn nonsense_and_half_an_answer_are_broken() {
    for answer in [b"SSH-2.0-OpenSSH\r\n".as_slice(), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"] {
        let error = get(&Client::plain(), &server(answer).await, LIMITS).await.unwrap_err();
        assert!(matches!(error, Error::Broken { .. }), "{error:?}");
        assert!(!error.to_string().contains("secret"));
    }
}

/// A TLS server for `localhost`; gives its URL and its certificate, which is its own authority.
async fn tls_server() -> (String, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    tokio::task::spawn_blocking(move || {
        let config = Arc::new(config);
        let listener = listener.into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut request = [0; 4096];
            if std::io::Read::read(&mut tls, &mut request).is_ok() {
                let _ = std::io::Write::write_all(&mut tls, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                let _ = std::io::Write::flush(&mut tls);
            }
        }
    });
    (url, made.cert.pem().into_bytes())
}

#[test]
fn a_private_authority_and_a_server_name_are_honoured() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (url, authority) = tls_server().await;
        let trusted =
            TlsOptions { authorities: vec![authority], server_name: Some("localhost".to_owned()), insecure: false };
        let status = async |options: &TlsOptions| {
            get(&Client::with_tls(options).unwrap(), &url, LIMITS).await.map(|response| response.status.as_u16())
        };
        assert_eq!(status(&trusted).await.unwrap(), 200);
        let wrong_name = TlsOptions { server_name: None, ..trusted.clone() };
        assert!(matches!(status(&wrong_name).await, Err(Error::Tls { .. })));
        let untrusted = TlsOptions { authorities: vec![], ..trusted.clone() };
        assert!(matches!(status(&untrusted).await, Err(Error::Tls { .. })));
        let insecure = TlsOptions { insecure: true, ..TlsOptions::default() };
        assert_eq!(status(&insecure).await.unwrap(), 200);
    });
    // The server's thread accepts for ever.
    runtime.shutdown_background();
}

#[test]
fn text_that_is_no_certificate_is_refused_with_the_reason() {
    let options = TlsOptions { authorities: vec![b"hello".to_vec()], ..TlsOptions::default() };
    assert_eq!(Client::with_tls(&options).unwrap_err().to_string(), "no certificate in the PEM text");
}
