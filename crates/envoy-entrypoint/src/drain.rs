//! Envoy's listeners, told to drain through its admin API ("Administration interface": `drain_listeners`).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use sidecar_kit::backoff::Backoff;
use sidecar_kit::exit::one_line;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::wait::{Attempt, until};

/// Envoy may be starting, or busy.
const BOUND: Duration = Duration::from_secs(5);

const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 1 << 16 };

/// The arguments that Envoy needs so that something closes before the app is gone, and what it has without them.
const NEEDED: [(&str, &str); 2] =
    [("--drain-time-s", "connections close only after 600 s"), ("--drain-strategy", "connections close gradually")];

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("Envoy answered {0}")]
    Status(hyper::StatusCode),
}

/// Says which of the arguments that make draining end in time the command lacks.
pub(crate) fn warn_of(command: &[OsString]) {
    for (argument, without) in NEEDED {
        let given = command.iter().any(|word| word.to_string_lossy().split('=').next() == Some(argument));
        if !given {
            tracing::warn!("--drain without Envoy's {argument}: {without}");
        }
    }
}

/// Answers close their connections, and when the time that `--drain-time-s` gives is over the inbound listeners are closed;
/// outbound goes on. `/healthcheck/fail` would close outbound connections too. A gateway's listeners are none of them inbound for
/// Consul: `all` drains every one.
pub(crate) async fn listeners(admin: SocketAddr, all: bool) {
    let client = Client::plain();
    let (which, query) = if all { ("all", "graceful") } else { ("the inbound", "inboundonly&graceful") };
    let url = format!("http://{admin}/drain_listeners?{query}");
    let drained = until("Envoy's admin page", BOUND, Backoff::default(), async || {
        let request = hyper::Request::post(url.as_str()).body(Default::default()).expect("an address makes a URL");
        match client.send(request, LIMITS).await {
            Ok(answer) if answer.status.is_success() => Attempt::Done(()),
            Ok(answer) => Attempt::Again(Refused::Status(answer.status)),
            Err(error) => Attempt::Again(error.into()),
        }
    });
    match drained.await {
        Ok(()) => tracing::info!("draining {which} listeners"),
        Err(error) => tracing::warn!("{which} listeners do not drain: {}", one_line(&error)),
    }
}
