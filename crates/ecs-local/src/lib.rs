//! ECS's task metadata endpoint for the containers of a local Docker engine.
//!
//! A container with the label `com.amazonaws.ecs.task-arn` belongs to a task. [`serve`] answers for each of them as
//! ECS's endpoint does, from what the engine says at that moment, and stops a task when an essential container of it
//! exits. [`pause`] is the program of a task's pause container.

mod container;
mod engine;
mod labels;
mod live;
mod server;
mod task;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hyper::StatusCode;
use sidecar_kit::http;
use sidecar_kit::log::LogError;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::net::TcpListener;

pub use engine::EngineError;

/// Why a program of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(LogError),
    /// There is no Docker engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The address is taken or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals can't be caught.
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
    /// The endpoint does not answer.
    #[error("not ready")]
    Unanswered(#[source] http::Error),
    /// The endpoint answers that it can't.
    #[error("not ready: {status}: {excerpt}")]
    NotReady {
        /// The status.
        status: StatusCode,
        /// What it said.
        excerpt: String,
    },
}

/// Answers on `listen` for the engine at `docker_host` (`unix:///path`), until TERM or INT: for the tasks whose cluster
/// label is `cluster`, or for all.
///
/// # Errors
/// When at the start the engine is not there or the address can't be listened on. An engine that goes away later is
/// waited for.
pub async fn serve(listen: SocketAddr, docker_host: &str, cluster: Option<&str>) -> Result<ExitCode, Error> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::Signals)?;
    let live = Arc::new(live::Live::new(engine::Engine::connect(docker_host, cluster).await?));
    let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen, source })?;
    tracing::info!("answering on {listen} for the tasks of {docker_host}");
    tokio::spawn(live.clone().watch());
    tokio::select! {
        () = server::serve(listener, live) => {}
        _ = signals.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the [`serve`] that listens on `listen` on this machine whether it answers and its engine too.
///
/// # Errors
/// When it doesn't.
pub async fn ready(listen: SocketAddr) -> Result<ExitCode, Error> {
    let mut address = listen;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        address.set_ip(loopback);
    }
    let mut request = http::Request::default();
    *request.uri_mut() = format!("http://{address}{}", server::READY).parse().expect("an address makes a URL");
    let limits = http::Limits { time: Duration::from_secs(5), bytes: 1 << 16 };
    let answer = http::Client::plain().send(request, limits).await.map_err(Error::Unanswered)?;
    if answer.status != StatusCode::OK {
        return Err(Error::NotReady { status: answer.status, excerpt: answer.excerpt() });
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for TERM or INT and returns at once: what ECS's pause container does, so that a network namespace has an owner
/// that outlives the containers in it.
///
/// # Errors
/// When signals can't be caught.
pub async fn pause() -> Result<ExitCode, Error> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::Signals)?;
    signals.next().await;
    Ok(ExitCode::SUCCESS)
}
