//! A container's health check: does an address accept a connection?

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

/// The address accepts no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The connection failed.
    #[error("cannot connect to {address}")]
    Failed {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The connection was not made in time.
    #[error("no connection to {address} within {}", humantime::format_duration(*timeout))]
    TimedOut {
        /// The address.
        address: String,
        /// The bound.
        timeout: Duration,
    },
}

/// Connects to `HOST:PORT`. With `localhost`, it tries 127.0.0.1 and then ::1.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(address: String, timeout: Duration) -> Result<(), DialError> {
    match tokio::time::timeout(timeout, connect(&address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(DialError::Failed { address, source }),
        Err(_) => Err(DialError::TimedOut { address, timeout }),
    }
}

/// Connects to the address. In a task that has only an IPv6 address, Envoy listens only on IPv6, and the image has no file that says what
/// `localhost` is.
async fn connect(address: &str) -> std::io::Result<TcpStream> {
    match address.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
        Some(port) => {
            let loopback = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()];
            TcpStream::connect(&loopback[..]).await
        }
        None => TcpStream::connect(address).await,
    }
}
