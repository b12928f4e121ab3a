//! TLS to Consul: from variables, from the caller, and from files, which are read again once they were replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::failure::LastFailure;
use sidecar_kit::file::files_below;
use sidecar_kit::secret::shown_path;
use sidecar_kit::tls::{Authorities, Identity, IdentityError, PemError, TlsOptions};

use crate::config::ConfigError;

const PEM: &str = "CONSUL_CACERT_PEM";
const FILE: &str = "CONSUL_CACERT";
const DIRECTORY: &str = "CONSUL_CAPATH";
const CERTIFICATE: &str = "CONSUL_CLIENT_CERT";
const KEY: &str = "CONSUL_CLIENT_KEY";
/// See [`Authorities::public`].
const PUBLIC: &str = "SSL_CERT_FILE";

/// The CA certificates that the caller gives, and the name of the caller's value.
#[derive(Debug, Clone)]
pub(crate) enum Authority {
    File(&'static str, PathBuf),
    Pem(&'static str, String),
}

/// Where the options come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) env: Env,
    pub(crate) authority: Option<Authority>,
    pub(crate) server_name: Option<String>,
    pub(crate) insecure: bool,
    /// Whether an address is `https://…`. Only then are the public authorities read.
    pub(crate) https: bool,
}

/// The options, and the files that they were read from.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    source: Source,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    options: Arc<TlsOptions>,
    files: Vec<Stamp>,
    failure: LastFailure,
}

/// Tells whether a file was replaced or rewritten: inode, size, and time of the last change; none if there is no such file.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Tls {
    pub(crate) fn new(source: Source) -> Result<Self, ConfigError> {
        let files = source.stamps();
        let options = Arc::new(source.options()?);
        Ok(Self { source, read: Mutex::new(Read { options, files, failure: LastFailure::default() }) })
    }

    /// The options now. If a file was replaced, all are read again. If they cannot be used, the earlier options stay.
    pub(crate) fn current(&self) -> Arc<TlsOptions> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let files = self.source.stamps();
        if files != read.files {
            match self.source.options() {
                Ok(options) => {
                    tracing::info!("read the files with the certificates for Consul again, because one was replaced");
                    read.failure.end();
                    (read.options, read.files) = (Arc::new(options), files);
                }
                Err(error) => {
                    let reason = one_line(&error);
                    if read.failure.is_new(&reason) {
                        tracing::warn!("the earlier certificates for Consul stay in use: {reason}");
                    }
                }
            }
        }
        read.options.clone()
    }
}

impl Source {
    /// The stamps of all files that the options are read from.
    fn stamps(&self) -> Vec<Stamp> {
        let variable = |name| self.env.get(name).map(PathBuf::from);
        let authorities = match &self.authority {
            Some(Authority::File(_, path)) => vec![path.clone()],
            Some(Authority::Pem(..)) => Vec::new(),
            None if self.env.get(PEM).is_some() => Vec::new(),
            None => match (variable(FILE), variable(DIRECTORY)) {
                (Some(file), _) => vec![file],
                (None, Some(directory)) => files_below(&directory).unwrap_or_default(),
                (None, None) => variable(PUBLIC).into_iter().collect(),
            },
        };
        let identity = [CERTIFICATE, KEY].into_iter().filter_map(variable);
        let stamp = |path: PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        };
        authorities.into_iter().chain(identity).map(stamp).collect()
    }

    fn options(&self) -> Result<TlsOptions, ConfigError> {
        let authorities = match &self.authority {
            Some(Authority::Pem(name, pem)) => Some(in_text(name, pem)?),
            Some(Authority::File(name, path)) => Some(in_file(name, path)?),
            None => authorities(&self.env)?,
        };
        let authorities = match authorities {
            Some(authorities) => authorities,
            None if !self.insecure && self.https => Authorities::public(&self.env)?,
            None => Authorities::default(),
        };
        let server_name = self.server_name.clone();
        let options = TlsOptions { authorities, server_name, insecure: self.insecure, identity: identity(&self.env)? };
        Ok(options)
    }
}

fn authorities(env: &Env) -> Result<Option<Authorities>, ConfigError> {
    if let Some(pem) = env.get(PEM) {
        return in_text(PEM, pem).map(Some);
    }
    if let Some(path) = env.get(FILE) {
        return in_file(FILE, Path::new(path)).map(Some);
    }
    let variable = DIRECTORY;
    let Some(directory) = env.get(variable).map(Path::new) else { return Ok(None) };
    let files = files_below(directory).map_err(|source| ConfigError::file(variable, directory, source))?;
    if files.is_empty() {
        let (what, source) = (shown_path(directory), PemError::NoCertificate);
        return Err(ConfigError::Pem { variable, what, source });
    }
    let mut all = Authorities::default();
    for file in files {
        all.extend([in_file(variable, &file)?]);
    }
    Ok(Some(all))
}

fn in_text(variable: &'static str, pem: &str) -> Result<Authorities, ConfigError> {
    let pem_error = |source| ConfigError::Pem { variable, what: "its text".to_owned(), source };
    Authorities::from_pem(pem.as_bytes()).map_err(pem_error)
}

fn in_file(variable: &'static str, path: &Path) -> Result<Authorities, ConfigError> {
    let pem = read(variable, path)?;
    Authorities::from_pem(&pem).map_err(|source| ConfigError::Pem { variable, what: shown_path(path), source })
}

fn identity(env: &Env) -> Result<Option<Identity>, ConfigError> {
    let (certificate, key) = (CERTIFICATE, KEY);
    match (env.get(certificate).map(Path::new), env.get(key).map(Path::new)) {
        (None, None) => Ok(None),
        (Some(certificate_file), Some(key_file)) => {
            let identity = Identity::from_pem(&read(certificate, certificate_file)?, &read(key, key_file)?);
            identity.map(Some).map_err(|error| match error {
                IdentityError::Certificate(source) => {
                    ConfigError::Pem { variable: certificate, what: shown_path(certificate_file), source }
                }
                IdentityError::Key(source) => ConfigError::Pem { variable: key, what: shown_path(key_file), source },
            })
        }
        (Some(_), None) => Err(ConfigError::HalfIdentity { given: certificate, missing: key }),
        (None, Some(_)) => Err(ConfigError::HalfIdentity { given: key, missing: certificate }),
    }
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::file(variable, path, source))
}
