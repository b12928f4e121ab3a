//! TLS for tasks without an agent. As with Consul's servers, no protocol is negotiated by ALPN.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sidecar_kit::server::accept;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many bytes wait between TLS and the server.
const BUFFER: usize = 64 * 1024;

/// Why the certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {path}: expected a file in PEM form")]
    File {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("cannot use the certificate and key")]
    Pair(#[from] rustls::Error),
}

/// A server's certificate and key.
pub fn acceptor(certificate: PathBuf, key: PathBuf) -> Result<TlsAcceptor, TlsError> {
    let chain = CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect);
    let chain: Vec<_> = chain.map_err(|source| TlsError::File { path: certificate, source })?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|source| TlsError::File { path: key, source })?;
    Ok(TlsAcceptor::from(Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?)))
}

/// Accepts connections. Each handshake is a task of its own, so that a slow client delays no other.
pub(crate) fn incoming(listener: TcpListener, acceptor: TlsAcceptor) -> mpsc::Receiver<DuplexStream> {
    let (connections, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stream = accept(|| listener.accept()).await;
            let _ = stream.set_nodelay(true);
            let (acceptor, connections) = (acceptor.clone(), connections.clone());
            tokio::spawn(async move {
                match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(mut stream)) => {
                        let (mut ours, theirs) = duplex(BUFFER);
                        if connections.send(theirs).await.is_ok() {
                            // An error means that the client has hung up.
                            drop(copy_bidirectional(&mut stream, &mut ours).await);
                        }
                    }
                    Ok(Err(error)) => debug!("a TLS handshake failed: {error}"),
                    Err(_) => debug!("a TLS handshake took too long"),
                }
            });
        }
    });
    receiver
}
