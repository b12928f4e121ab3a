//! ECS's task metadata endpoint and part of its API for the containers of a local Docker engine.
//!
//! A container with the label `com.amazonaws.ecs.task-arn` belongs to a task. [`serve`] answers for each of them as
//! ECS's endpoint does, from what the engine says at that moment, and stops a task when an essential container of it
//! exits or somebody asks for it. [`pause`] is the program of a task's pause container, [`secrets()`] that of one which has to
//! end before those that need its secrets start.

mod api;
mod container;
pub mod documented;
mod engine;
pub mod labels;
mod live;
mod secrets;
pub mod secrets_manager;
mod server;
mod task;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use sidecar_kit::http;
use sidecar_kit::log::LogError;
use sidecar_kit::signals::{SignalsError, StopSignals};
use tokio::net::TcpListener;

pub use engine::EngineError;
pub use secrets::{SecretError, SecretsError, SecretsOptions, TaskSecret, TaskSecretError, ValueError, secrets};

pub use task::StopOrder;

/// Why a program of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(LogError),
    /// There is no Docker engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A task's secrets could not be written.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The address is taken or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TERM and INT can't be caught.
    #[error(transparent)]
    Signals(#[from] SignalsError),
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

/// What [`serve`] is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the metadata endpoint listens.
    pub listen: SocketAddr,
    /// Where the ECS API listens.
    pub api_listen: SocketAddr,
    /// The engine: `unix:///path`.
    pub docker_host: String,
    /// Only the tasks whose cluster label is this, or all.
    pub cluster: Option<String>,
    /// The order in which containers get TERM.
    pub stop_order: StopOrder,
}

/// Answers for the tasks of an engine, until TERM or INT.
///
/// # Errors
/// When at the start the engine is not there or an address can't be listened on. An engine that goes away later is waited
/// for.
pub async fn serve(options: Options) -> Result<ExitCode, Error> {
    let mut signals = StopSignals::catch()?;
    let engine = engine::Engine::connect(&options.docker_host, options.cluster.as_deref()).await?;
    let live = Arc::new(live::Live::new(engine, options.stop_order));
    let bind = async |address| TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source });
    let (metadata, api) = (bind(options.listen).await?, bind(options.api_listen).await?);
    let Options { listen, api_listen, docker_host, .. } = options;
    tracing::info!("answering on {listen}, and the ECS API on {api_listen}, for the tasks of {docker_host}");
    tokio::spawn(live.clone().watch());
    tokio::select! {
        () = server::serve(metadata, live.clone(), server::metadata) => {}
        () = server::serve(api, live, api::respond) => {}
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
    let mut signals = StopSignals::catch()?;
    signals.next().await;
    Ok(ExitCode::SUCCESS)
}
