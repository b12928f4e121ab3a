//! Where Consul is and how to get in: Consul's own environment variables.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Uri;
use sidecar_kit::env::Env;
use sidecar_kit::secret::{Secret, SecretSource};
use sidecar_kit::tls::TlsOptions;

/// How to reach an agent. The variables' meaning is Consul's own ("Consul Commands (CLI)", environment variables).
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `http://` or `https://`, host, port, and a path where a proxy in between wants one; without a slash at its end.
    pub(crate) base: String,
    pub(crate) token: Option<SecretSource>,
    pub(crate) authorization: Option<Secret>,
    pub(crate) namespace: Option<String>,
    pub(crate) partition: Option<String>,
    pub(crate) tls: TlsOptions,
}

/// A variable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It holds something else than it may.
    #[error("{variable} is {value:?}: expected {expected}")]
    Invalid {
        /// Its name.
        variable: &'static str,
        /// What it held.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// It names a file that cannot be read.
    #[error("{variable}: cannot read {}", path.display())]
    File {
        /// Its name.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The certificates or the server name are not usable.
    #[error("CONSUL_CACERT_PEM, CONSUL_CACERT, CONSUL_CAPATH or CONSUL_TLS_SERVER_NAME is not usable")]
    Tls(#[from] sidecar_kit::tls::TlsOptionsError),
}

impl Config {
    /// What the variables say:
    ///
    /// | variable | meaning | default |
    /// |---|---|---|
    /// | `CONSUL_HTTP_ADDR` | `host:port`, `http://…` or `https://…` | `127.0.0.1:8500` |
    /// | `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_TOKEN` | the ACL token; the file wins and is read for each request | none |
    /// | `CONSUL_HTTP_AUTH` | `user:password` of basic authentication | none |
    /// | `CONSUL_HTTP_SSL` | `true`: `https`, also where the address says `http` | `false` |
    /// | `CONSUL_HTTP_SSL_VERIFY` | `false`: any server certificate will do | `true` |
    /// | `CONSUL_CACERT_PEM`, `CONSUL_CACERT`, `CONSUL_CAPATH` | trusted authorities: the PEM text, a file, a directory | none |
    /// | `CONSUL_TLS_SERVER_NAME` | the name in the server's certificate | the address's host |
    /// | `CONSUL_NAMESPACE`, `CONSUL_PARTITION` | Consul Enterprise's | none |
    ///
    /// # Errors
    /// When one of them cannot be used; the error names it.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        for variable in ["CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"] {
            if let Some(value) = env.get(variable) {
                let expected = "it unset: client certificates are not supported yet";
                return Err(ConfigError::Invalid { variable, value: value.to_owned(), expected });
            }
        }
        Ok(Self {
            base: base(env)?,
            token: env.secret("CONSUL_HTTP_TOKEN"),
            authorization: authorization(env),
            namespace: env.get("CONSUL_NAMESPACE").map(str::to_owned),
            partition: env.get("CONSUL_PARTITION").map(str::to_owned),
            tls: TlsOptions {
                authorities: authorities(env)?,
                server_name: env.get("CONSUL_TLS_SERVER_NAME").map(str::to_owned),
                insecure: !flag(env, "CONSUL_HTTP_SSL_VERIFY", true)?,
            },
        })
    }

    /// The same, within another namespace or admin partition where one is given (Consul Enterprise).
    #[must_use]
    pub fn within(self, namespace: Option<&str>, partition: Option<&str>) -> Self {
        Self {
            namespace: namespace.map(str::to_owned).or(self.namespace),
            partition: partition.map(str::to_owned).or(self.partition),
            ..self
        }
    }

    /// The namespace, if one is given.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The admin partition, if one is given.
    #[must_use]
    pub fn partition(&self) -> Option<&str> {
        self.partition.as_deref()
    }

    /// Where the token comes from, if there is one.
    #[must_use]
    pub fn token(&self) -> Option<&SecretSource> {
        self.token.as_ref()
    }

    /// Scheme, host and port, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.base
    }
}

fn base(env: &Env) -> Result<String, ConfigError> {
    const EXPECTED: &str = "host:port, http://… or https://…";
    let variable = "CONSUL_HTTP_ADDR";
    let value = env.get(variable).unwrap_or("127.0.0.1:8500");
    let invalid = |expected| ConfigError::Invalid { variable, value: value.to_owned(), expected };
    let ssl = flag(env, "CONSUL_HTTP_SSL", false)?;
    let url = match value.split_once("://") {
        Some(("unix", _)) => {
            return Err(invalid("host:port, http://… or https://…: unix sockets are not supported yet"));
        }
        // As Consul does it: TLS that was asked for is never taken back by the address.
        Some(("http", rest)) if ssl => format!("https://{rest}"),
        Some(("http" | "https", _)) => value.to_owned(),
        Some(_) => return Err(invalid(EXPECTED)),
        None if ssl => format!("https://{value}"),
        None => format!("http://{value}"),
    };
    let uri = url.parse::<Uri>().map_err(|_| invalid(EXPECTED))?;
    let authority = uri.authority().ok_or_else(|| invalid(EXPECTED))?;
    if authority.as_str().contains('@') {
        // A password stands there: it isn't shown.
        let expected = "an address without user and password, which belong into CONSUL_HTTP_AUTH";
        return Err(ConfigError::Invalid { variable, value: "(not shown)".to_owned(), expected });
    }
    if authority.host().is_empty() || uri.query().is_some() {
        return Err(invalid(EXPECTED));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// `user:password`, or the user alone.
fn authorization(env: &Env) -> Option<Secret> {
    let value = env.get("CONSUL_HTTP_AUTH")?;
    let credentials = if value.contains(':') { value.to_owned() } else { format!("{value}:") };
    Some(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(credentials))))
}

fn authorities(env: &Env) -> Result<Vec<Vec<u8>>, ConfigError> {
    if let Some(pem) = env.get("CONSUL_CACERT_PEM") {
        return Ok(vec![pem.as_bytes().to_vec()]);
    }
    let read =
        |variable, path: PathBuf| std::fs::read(&path).map_err(|source| ConfigError::File { variable, path, source });
    if let Some(path) = env.get("CONSUL_CACERT") {
        return Ok(vec![read("CONSUL_CACERT", path.into())?]);
    }
    let variable = "CONSUL_CAPATH";
    let Some(directory) = env.get(variable).map(PathBuf::from) else { return Ok(Vec::new()) };
    let failed = |source| ConfigError::File { variable, path: directory.clone(), source };
    let mut authorities = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            authorities.push(read(variable, path)?);
        }
    }
    Ok(authorities)
}

/// A variable that is true or false, in any of the spellings that Go's `strconv.ParseBool` takes.
fn flag(env: &Env, variable: &'static str, default: bool) -> Result<bool, ConfigError> {
    match env.get(variable) {
        None => Ok(default),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(ConfigError::Invalid { variable, value: value.to_owned(), expected: "true or false" }),
    }
}
