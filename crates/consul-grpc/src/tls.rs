//! How a server's certificate is checked.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use sidecar_kit::secret::shown_path;
use sidecar_kit::tls::{Authorities, TlsOptions};

use crate::error::Error;

/// TLS to the servers. They negotiate no protocol by ALPN, so none is offered.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The CA certificates that are trusted.
    pub trust: Trust,
    /// The name that the certificate must have, if it is not the host.
    pub server_name: Option<String>,
}

/// Where the CA certificates of the servers come from.
#[derive(Debug, Clone)]
pub enum Trust {
    /// A file. It is read for each new connection, so that a replaced file takes effect.
    File(PathBuf),
    /// These.
    Given(Authorities),
}

impl Tls {
    /// The configuration for a new connection.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let authorities = match &self.trust {
            Trust::Given(authorities) => authorities.clone(),
            Trust::File(path) => {
                let file = shown_path(path);
                let text = fs::read(path).map_err(|source| Error::Authority { file: file.clone(), source })?;
                Authorities::from_pem(&text).map_err(|source| Error::Pem { file, source })?
            }
        };
        let options = TlsOptions { authorities, ..TlsOptions::default() };
        Ok(Arc::new(options.client_config()?))
    }
}
