//! Envoy's admin page ("Administration interface"): draining listeners, and whether Consul has sent any.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::wait::{Attempt, until};
use tokio::time::{Instant, sleep};

use super::command;

/// How long to try to send the drain request: Envoy may still be starting, or be busy.
const BOUND: Duration = Duration::from_secs(5);

/// How often Envoy is asked whether Consul has sent listeners.
const PACE: Duration = Duration::from_secs(1);

/// How long the page may give no answer before Envoy counts as hung, unless the bound is shorter.
const SILENT: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 1 << 20 };

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("Envoy answered {0}")]
    Status(hyper::StatusCode),
}

/// The admin page of one Envoy.
pub(super) struct Admin {
    address: SocketAddr,
    /// A flag or the bootstrap gives the address. Otherwise there may be no page.
    is_given: bool,
    client: Client,
}

/// What Envoy lacks once the bound is over.
pub(super) enum Lack {
    /// It has no listeners from Consul.
    Listeners,
    /// Its admin page, at this address, gives no answer.
    Answer(SocketAddr),
}

impl Admin {
    pub(super) fn at(given: Option<SocketAddr>) -> Self {
        Self { address: given.unwrap_or(command::ADMIN), is_given: given.is_some(), client: Client::plain() }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<http::Response, Refused> {
        let url = format!("http://{}{path}", self.address);
        let request = hyper::Request::builder().method(method).uri(url).body(Default::default());
        let answer = self.client.send(request.expect("an address and a path make a URL"), LIMITS).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(Refused::Status(answer.status)) }
    }

    /// Drains inbound listeners: from now on, each answer closes its connection. Envoy accepts new connections for as long as it runs
    /// (`skip_exit`). `/healthcheck/fail` would close outbound connections too. With `all`, every listener drains: Consul marks none of
    /// a gateway's listeners as inbound.
    pub(super) async fn drain_listeners(&self, all: bool) {
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

    /// Returns if Envoy has no listener from Consul once `bound` is over, or if its page gives no answer until then. Never returns once
    /// Consul has sent listeners, or for an Envoy that doesn't ask Consul for listeners.
    pub(super) async fn without_listeners_for(&self, bound: Duration) -> Lack {
        let deadline = Instant::now() + bound;
        let mut answered = Instant::now();
        loop {
            let late = Instant::now() >= deadline;
            match self.ask(Method::GET, "/stats?filter=listener_manager.lds.update_").await {
                Ok(answer) => {
                    answered = Instant::now();
                    match (consul_has_answered(&String::from_utf8_lossy(&answer.body)), late) {
                        (Some(false), true) => return Lack::Listeners,
                        (Some(false) | None, false) => {}
                        (Some(true), _) | (None, true) => std::future::pending().await,
                    }
                }
                Err(Refused::Status(_)) => answered = Instant::now(),
                Err(Refused::Http(_)) if late && self.is_given && answered.elapsed() >= bound.min(SILENT) => {
                    return Lack::Answer(self.address);
                }
                Err(Refused::Http(_)) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(if left.is_zero() { PACE } else { left.min(PACE) }).await;
        }
    }
}

/// Whether Envoy has taken or refused listeners from Consul, by its statistics of the listener discovery service (LDS). None if Envoy
/// has no such statistics: it doesn't use LDS.
fn consul_has_answered(stats: &str) -> Option<bool> {
    let count = |name: &str| {
        let mut lines = stats.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(stat, count)| (stat == name).then(|| count.trim() != "0"))
    };
    let (taken, refused) =
        (count("listener_manager.lds.update_success"), count("listener_manager.lds.update_rejected"));
    taken.zip(refused).map(|(taken, refused)| taken || refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_taken_or_refused_update_shows_that_listeners_came() {
        let stats = |rejected: u8, success: u8| {
            format!(
                "listener_manager.lds.update_attempt: 7\nlistener_manager.lds.update_duration: No recorded values\n\
                 listener_manager.lds.update_rejected: {rejected}\nlistener_manager.lds.update_success: {success}\n"
            )
        };
        for (stats, expected) in [
            (stats(0, 0), Some(false)),
            (stats(0, 1), Some(true)),
            (stats(2, 0), Some(true)),
            (String::new(), None),
            ("OK\n".to_owned(), None),
        ] {
            assert_eq!(consul_has_answered(&stats), expected, "{stats}");
        }
    }
}
