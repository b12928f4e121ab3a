//! ECS's task metadata endpoint and part of its API for the containers of a local Docker engine.
//!
//! A container with the label `com.amazonaws.ecs.task-arn` belongs to a task.
//!
//! - [`serve`] answers for each of these containers as ECS does, with the engine's state at the time of the request. It stops
//!   a task when an essential container exits or somebody calls `StopTask`.
//! - [`pause`] is the program of a task's pause container.
//! - [`secrets()`] is the program of a container that writes the task's secrets. The containers that need them start after it.

mod api;
mod container;
pub mod documented;
mod engine;
pub mod labels;
mod monitor;
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

/// Why a command of ecs-local failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `LOG_LEVEL` or `LOG_FORMAT` is wrong.
    #[error(transparent)]
    Log(LogError),
    /// ecs-local cannot use the Docker engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A task's secrets could not be written.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The address is in use or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The program cannot catch TERM and INT.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// The endpoint does not answer.
    #[error("not ready")]
    Unanswered(#[source] http::Error),
    /// The endpoint answers that it is not ready.
    #[error("not ready: {status}: {excerpt}")]
    NotReady {
        /// The status.
        status: StatusCode,
        /// The text of the answer.
        excerpt: String,
    },
}

/// The settings of [`serve`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The address of the metadata endpoint.
    pub listen: SocketAddr,
    /// The address of the ECS API.
    pub api_listen: SocketAddr,
    /// The engine's socket: `unix:///path`.
    pub docker_host: String,
    /// If it is set, [`serve`] shows only the tasks with this cluster label.
    pub cluster: Option<String>,
    /// The order in which containers get TERM.
    pub stop_order: StopOrder,
}

/// Answers for the tasks of an engine until TERM or INT.
///
/// # Errors
/// If it cannot connect to the engine at the start, or cannot listen on an address. If the engine fails later, it waits for
/// the engine.
pub async fn serve(options: Options) -> Result<ExitCode, Error> {
    let mut signals = StopSignals::catch()?;
    let engine = engine::Engine::connect(&options.docker_host, options.cluster.as_deref()).await?;
    let monitor = Arc::new(monitor::TaskMonitor::new(engine, options.stop_order));
    let bind = async |address| TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source });
    let (metadata, api) = (bind(options.listen).await?, bind(options.api_listen).await?);
    let Options { listen, api_listen, docker_host, .. } = options;
    tracing::info!("answering on {listen}, and the ECS API on {api_listen}, for the tasks of {docker_host}");
    tokio::spawn(monitor.clone().watch());
    tokio::select! {
        () = server::serve(metadata, monitor.clone(), server::metadata) => {}
        () = server::serve(api, monitor, api::respond) => {}
        _ = signals.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks whether the [`serve`] that listens on `listen` on this machine answers, and whether its engine answers.
///
/// # Errors
/// If one of them does not answer.
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

/// Waits for TERM or INT, and returns as soon as one of them comes. ECS's pause container does the same: it owns the network namespace
/// longer than any other container of the task.
///
/// # Errors
/// If it cannot catch signals.
pub async fn pause() -> Result<ExitCode, Error> {
    let mut signals = StopSignals::catch()?;
    signals.next().await;
    Ok(ExitCode::SUCCESS)
}
