//! The host's ports that the mesh publishes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bollard::Docker;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::wait::{Attempt, until};

use crate::docker::{self, DockerError, PROJECT_LABEL, containers};

/// The published ports, and what each is for.
const PORTS: [(u16, &str); 4] =
    [(9090, "web's app"), (8500, "Consul's HTTP API"), (51678, "the ECS API"), (5000, "Secrets Manager")];

/// How long a closed connection may keep its port (TIME_WAIT lasts a minute), and some more.
const BOUND: Duration = Duration::from_secs(70);

/// Why a port cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Docker's engine refused a request.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// Another program uses the port.
    #[error("port {port} of 127.0.0.1 is taken: end the program that listens there; the mesh publishes {what} on it")]
    Taken {
        /// The port.
        port: u16,
        /// What the mesh publishes on it.
        what: &'static str,
    },
}

/// Fails if another program uses a port of the mesh, or a port of the user's task definitions. A port that the mesh itself publishes is no
/// failure.
pub(crate) async fn check(docker: &Docker, own: &[u16]) -> Result<(), PortsError> {
    let containers = containers(docker, &[PROJECT_LABEL]).await?;
    let published = |port| {
        // If the engine was killed, it still lists the ports of containers that have ended.
        let running = containers.iter().filter(|container| docker::is_running(container));
        let mut ports = running.filter_map(|container| container.ports.as_ref()).flatten();
        ports.any(|published| published.public_port == Some(port))
    };
    for (port, what) in PORTS.into_iter().chain(own.iter().map(|port| (*port, "the port of a task definition"))) {
        if !published(port) {
            free(port, what).await?;
        }
    }
    Ok(())
}

/// Waits until a port can be published. If a program listens on it, this fails at once. If none listens, the port is the local port of
/// a client's connection. Linux keeps it for a minute after the connection's end (TIME_WAIT). This happens to port 51678, which is in
/// Linux's range of ports for clients.
async fn free(port: u16, what: &'static str) -> Result<(), PortsError> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let free = until(&format!("port {port}"), BOUND, Backoff::default(), async || {
        if TcpListener::bind(address).is_ok() {
            return Attempt::Done(());
        }
        let taken = PortsError::Taken { port, what };
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Attempt::Again(taken),
            _ => Attempt::Final(taken),
        }
    })
    .await;
    free.map_err(|_| PortsError::Taken { port, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_of_a_closed_connection_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut free = std::pin::pin!(free(near.local_addr().unwrap().port(), "x"));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut free).await;
        assert!(early.is_err(), "a connection has it: {early:?}");
        // The side that closes first keeps its port in TIME_WAIT.
        drop(listener.accept().unwrap());
        drop(near);
        free.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_with_a_listener_is_reported_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = free(listener.local_addr().unwrap().port(), "x").await;
        assert!(matches!(taken, Err(PortsError::Taken { .. })));
    }
}
