//! Envoy's admin page ("Administration interface"): its listeners, and draining them.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::wait::{Attempt, until};
use tokio::time::{Instant, sleep};

/// Envoy may be starting, or busy.
const BOUND: Duration = Duration::from_secs(5);

/// How often Envoy is asked for its first listener.
const PACE: Duration = Duration::from_secs(1);

const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 1 << 20 };

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("Envoy answered {0}")]
    Status(hyper::StatusCode),
}

/// The admin page of one Envoy.
pub(crate) struct Admin {
    address: SocketAddr,
    client: Client,
}

impl Admin {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, client: Client::plain() }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<http::Response, Refused> {
        let url = format!("http://{}{path}", self.address);
        let request = hyper::Request::builder().method(method).uri(url).body(Default::default());
        let answer = self.client.send(request.expect("an address and a path make a URL"), LIMITS).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(Refused::Status(answer.status)) }
    }

    /// From now on each answer on an inbound connection closes it; new connections are accepted for as long as Envoy runs
    /// (`skip_exit`), and what goes out goes on. `/healthcheck/fail` would close outbound connections too. Consul marks none of a
    /// gateway's listeners as inbound: `all` drains every one.
    pub(crate) async fn drain_listeners(&self, all: bool) {
        let (which, only) = if all { ("all", "") } else { ("the inbound", "inboundonly&") };
        let path = format!("/drain_listeners?{only}graceful&skip_exit");
        let drained = until("Envoy's admin page", BOUND, Backoff::default(), async || {
            match self.ask(Method::POST, &path).await {
                Ok(_) => Attempt::Done(()),
                Err(error) => Attempt::Again(error),
            }
        });
        match drained.await {
            Ok(()) => tracing::info!("draining {which} listeners"),
            Err(error) => tracing::warn!("{which} listeners do not drain: {}", one_line(&error)),
        }
    }

    /// Returns when Envoy says, after `bound` or later, that it has no listener. Once it had one this never returns, whatever becomes
    /// of that one; nor does it while the page gives no answer.
    pub(crate) async fn no_listener_within(&self, bound: Duration) {
        let deadline = Instant::now() + bound;
        loop {
            match self.ask(Method::GET, "/listeners").await {
                Ok(listeners) if !listeners.body.trim_ascii().is_empty() => std::future::pending().await,
                Ok(_) if Instant::now() >= deadline => return,
                Ok(_) | Err(_) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(if left.is_zero() { PACE } else { left.min(PACE) }).await;
        }
    }
}
