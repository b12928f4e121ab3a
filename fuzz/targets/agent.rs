//! What Consul's agent answers, through the whole client: the first byte picks the call, the second the status, the rest
//! is the body. No answer makes the client panic, and none makes it wait or print the token.
#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use consul_api::{Client, Config, ServiceId};
use libfuzzer_sys::fuzz_target;
use sidecar_kit::env::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

const TOKEN: &str = "00000000-a-token-0000";
const STATUSES: [u16; 8] = [200, 200, 200, 400, 403, 404, 429, 500];

struct Loopback {
    runtime: Runtime,
    listener: TcpListener,
    client: Client,
}

thread_local! {
    static LOOPBACK: RefCell<Loopback> = RefCell::new(Loopback::new());
}

impl Loopback {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let env = [("CONSUL_HTTP_ADDR", address.as_str()), ("CONSUL_HTTP_TOKEN", TOKEN)].into_iter().collect::<Env>();
        let client = Client::new(Config::from_env(&env).expect("a configuration")).expect("a client");
        Self { runtime, listener, client }
    }

    fn answers(&self, call: u8, status: u16, body: &[u8]) -> Option<consul_api::Error> {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let server = async {
            let (mut stream, _) = self.listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.expect("a request") > 0 {}
            // The client may have seen enough.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body).await;
        };
        let client = async {
            match call % 6 {
                0 => self.client.agent_self().await.map(|agent| _ = agent.xds_port()),
                1 => self.client.agent_service(&ServiceId::from("web-1")).await.map(drop),
                2 => self.client.agent_checks(&[&ServiceId::from("web-1")]).await.map(drop),
                3 => self.client.catalog_service("web").await.map(drop),
                4 => self.client.config_entry("proxy-defaults", "global").await.map(drop),
                _ => self.client.deregister_service(&ServiceId::from("web-1")).await,
            }
        };
        let both = async { tokio::join!(server, client).1 };
        let bounded = async { tokio::time::timeout(Duration::from_secs(5), both).await };
        self.runtime.block_on(bounded).expect("an answer that is there ends the call").err()
    }
}

fuzz_target!(|input: &[u8]| {
    let [call, status, body @ ..] = input else { return };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    LOOPBACK.with_borrow(|loopback| {
        if let Some(error) = loopback.answers(*call, status, body) {
            let said = format!("{error} {error:?}");
            let echoed = body.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
            assert!(echoed || !said.contains(TOKEN));
            let _ = error.may_pass_at_start();
        }
    });
});
