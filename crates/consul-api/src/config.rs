//! How to reach Consul, from Consul's own environment variables or from the caller's values.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Uri;
use sidecar_kit::env::Env;
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource, shown, shown_path};
use sidecar_kit::tls::{PemError, PublicAuthoritiesError};

use crate::tls::{Authority, Source, Tls};

/// How to reach an agent or server. The variables mean what they mean for Consul's own commands ("Consul Commands (CLI)",
/// environment variables).
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// One or more base URLs without a slash at the end. Each has `http://` or `https://`, host, port, and a path if a proxy needs
    /// one, or it is `unix://` and the path of a socket.
    pub(crate) bases: Vec<String>,
    pub(crate) token: Option<SecretSource>,
    pub(crate) authorization: Option<Secret>,
    pub(crate) namespace: Option<String>,
    pub(crate) partition: Option<String>,
    pub(crate) datacenter: Option<String>,
    pub(crate) tls: Arc<Tls>,
}

/// A variable, or a value that the caller gave, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The value is not valid.
    #[error("{variable} is {value}: expected {expected}")]
    Invalid {
        /// The variable, or the name of the caller's value.
        variable: &'static str,
        /// The value in quotes, unless it may be a password or a key.
        value: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// The value names a file that cannot be read.
    #[error("{variable}: cannot read {file}")]
    File {
        /// The variable, or the name of the caller's value.
        variable: &'static str,
        /// The file's name, unless the variable holds the file's text.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The value or its file holds a certificate or a key that cannot be used.
    #[error("{variable}: {what} cannot be used")]
    Pem {
        /// The variable, or the name of the caller's value.
        variable: &'static str,
        /// The file's name, or "its text".
        what: String,
        /// The cause.
        source: PemError,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("{given} is set without {missing}: expected both or neither")]
    HalfIdentity {
        /// The variable that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// No CA certificate is given for https, and the public ones cannot be read.
    #[error("no CA certificate is given for https, and the public CA certificates cannot be read")]
    PublicAuthorities(#[from] PublicAuthoritiesError),
    /// `CONSUL_HTTP_AUTH_FILE` names a file that cannot be read.
    #[error("CONSUL_HTTP_AUTH_FILE")]
    Auth(#[from] SecretFileError),
    /// The server name is not valid, or the client's certificate and key do not match.
    #[error("CONSUL_TLS_SERVER_NAME, or CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, cannot be used")]
    Tls(#[from] sidecar_kit::tls::TlsOptionsError),
}

impl ConfigError {
    fn invalid(variable: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Invalid { variable, value: shown(value), expected }
    }

    pub(crate) fn file(variable: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File { variable, file: shown_path(path), source }
    }
}

impl Config {
    /// Reads these variables:
    ///
    /// | variable | meaning | default |
    /// |---|---|---|
    /// | `CONSUL_HTTP_ADDR` | `host:port`, `http://…`, `https://…` or `unix://<path>`; or several, separated by commas | `127.0.0.1:8500` |
    /// | `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_TOKEN` | the ACL token. The file wins over the value and is read for each request | none |
    /// | `CONSUL_HTTP_AUTH_FILE`, `CONSUL_HTTP_AUTH` | `user:password` for basic authentication. The file wins over the value | none |
    /// | `CONSUL_HTTP_SSL` | `true`: use `https`, even if the address has `http` | `false` |
    /// | `CONSUL_HTTP_SSL_VERIFY` | `false`: accept any server certificate | `true` |
    /// | `CONSUL_CACERT_PEM`, `CONSUL_CACERT`, `CONSUL_CAPATH` | trusted CA certificates: the PEM text, a file, a directory | for https [those of the public authorities](sidecar_kit::tls::Authorities::public) |
    /// | `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY` | files: the certificate and key for mutual TLS | none |
    /// | `CONSUL_TLS_SERVER_NAME` | the name in the server's certificate | the address's host |
    /// | `CONSUL_NAMESPACE`, `CONSUL_PARTITION` | the namespace and the admin partition (Consul Enterprise) | none |
    ///
    /// # Errors
    /// When one of them cannot be used; the error names it.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        Self::builder(env).build()
    }

    /// A builder: the caller sets some values, and all others come from the environment, as in [`Config::from_env`].
    pub fn builder(env: &Env) -> Builder<'_> {
        Builder { env, address: None, authority: None, server_name: None, token: Token::OfEnvironment, namespace: true }
    }

    /// The same configuration in another namespace or admin partition (Consul Enterprise). `None` keeps the current value.
    #[must_use]
    pub fn within(self, namespace: Option<&str>, partition: Option<&str>) -> Self {
        Self {
            namespace: namespace.map(str::to_owned).or(self.namespace),
            partition: partition.map(str::to_owned).or(self.partition),
            ..self
        }
    }

    /// The same configuration for another datacenter. The agent forwards each request to it.
    #[must_use]
    pub fn in_datacenter(self, datacenter: &str) -> Self {
        Self { datacenter: Some(datacenter.to_owned()), ..self }
    }

    /// The datacenter to which requests are forwarded, if one is set.
    #[must_use]
    pub fn datacenter(&self) -> Option<&str> {
        self.datacenter.as_deref()
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

    /// Whether the namespace or the partition or both are given, and each given name is `default`.
    pub(crate) fn is_in_default_scope(&self) -> bool {
        let mut given = [&self.namespace, &self.partition].into_iter().flatten().peekable();
        given.peek().is_some() && given.all(|name| name.eq_ignore_ascii_case("default"))
    }

    /// The source of the token, if there is one.
    #[must_use]
    pub fn token(&self) -> Option<&SecretSource> {
        self.token.as_ref()
    }

    /// Scheme, host and port of the first address, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        self.bases.first().map_or("", String::as_str)
    }
}

/// See [`Config::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder<'a> {
    env: &'a Env,
    address: Option<Given<&'a str>>,
    authority: Option<Authority>,
    server_name: Option<&'a str>,
    token: Token,
    namespace: bool,
}

/// A value that the caller gave in place of a variable, and its name for errors.
#[derive(Debug)]
struct Given<T> {
    name: &'static str,
    value: T,
}

#[derive(Debug)]
enum Token {
    OfEnvironment,
    None,
    From(SecretSource),
}

impl<'a> Builder<'a> {
    /// Uses this address, if it is given, and not `CONSUL_HTTP_ADDR`. Errors call it `name`: the flag, field or variable that had it.
    pub fn address(self, name: &'static str, address: Option<&'a str>) -> Self {
        let given = address.filter(|address| !address.is_empty()).map(|value| Given { name, value });
        Self { address: given.or(self.address), ..self }
    }

    /// Trusts the CA certificates in this file, if it is given, and not those of the environment. Errors call it `name`.
    pub fn ca_file(self, name: &'static str, file: Option<&'a Path>) -> Self {
        let given = file.map(|path| Authority::File(name, path.to_owned()));
        Self { authority: given.or(self.authority), ..self }
    }

    /// Trusts the CA certificates in this PEM text, if it is given, and not those of the environment. Errors call it `name`.
    pub fn ca_pem(self, name: &'static str, pem: Option<&'a str>) -> Self {
        let given = pem.map(|pem| Authority::Pem(name, pem.to_owned()));
        Self { authority: given.or(self.authority), ..self }
    }

    /// Expects this name in the server's certificate, if it is given, and not that of `CONSUL_TLS_SERVER_NAME`.
    pub fn server_name(self, name: Option<&'a str>) -> Self {
        Self { server_name: name.or(self.server_name), ..self }
    }

    /// Uses this token, and not that of the environment.
    pub fn token(self, token: SecretSource) -> Self {
        Self { token: Token::From(token), ..self }
    }

    /// Uses neither a token nor a namespace, for a login: auth methods are in the partition's default namespace.
    pub fn for_login(self) -> Self {
        Self { token: Token::None, namespace: false, ..self }
    }

    /// The configuration.
    ///
    /// # Errors
    /// If a variable or a value of the caller cannot be used. The error names it.
    pub fn build(self) -> Result<Config, ConfigError> {
        let Self { env, address, authority, server_name, token, namespace } = self;
        let bases = bases(env, address)?;
        let insecure = !flag(env, "CONSUL_HTTP_SSL_VERIFY", true)?;
        let https = bases.iter().any(|base| base.starts_with("https:"));
        let server_name = server_name.or_else(|| env.get("CONSUL_TLS_SERVER_NAME")).map(str::to_owned);
        let tls = Tls::new(Source { env: env.clone(), authority, server_name, insecure, https })?;
        Ok(Config {
            bases,
            token: match token {
                Token::OfEnvironment => env.secret("CONSUL_HTTP_TOKEN"),
                Token::None => None,
                Token::From(source) => Some(source),
            },
            authorization: authorization(env)?,
            namespace: env.get("CONSUL_NAMESPACE").filter(|_| namespace).map(str::to_owned),
            partition: env.get("CONSUL_PARTITION").map(str::to_owned),
            datacenter: None,
            tls: Arc::new(tls),
        })
    }
}

/// All addresses, in their order.
fn bases(env: &Env, given: Option<Given<&str>>) -> Result<Vec<String>, ConfigError> {
    let Given { name, value: all } = given
        .unwrap_or(Given { name: "CONSUL_HTTP_ADDR", value: env.get("CONSUL_HTTP_ADDR").unwrap_or("127.0.0.1:8500") });
    all.split(',').map(|address| base(env, name, all, address.trim())).collect()
}

fn base(env: &Env, name: &'static str, all: &str, value: &str) -> Result<String, ConfigError> {
    const EXPECTED: &str = "host:port, http://…, https://… or unix:///path/of/a/socket";
    // A password may contain a comma. If any part has an `@`, the whole text goes to `invalid`, which then does not show it.
    let shown = if all.contains('@') { all } else { value };
    let invalid = |expected| ConfigError::invalid(name, shown, expected);
    let ssl = flag(env, "CONSUL_HTTP_SSL", false)?;
    let url = match value.split_once("://") {
        // A relative path would depend on the working directory.
        Some(("unix", path)) if path.starts_with('/') => return Ok(value.to_owned()),
        // As in Consul, an address cannot switch off TLS that CONSUL_HTTP_SSL switches on.
        Some(("http", rest)) if ssl => format!("https://{rest}"),
        Some(("http" | "https", _)) => value.to_owned(),
        Some(_) => return Err(invalid(EXPECTED)),
        None if ssl => format!("https://{value}"),
        None => format!("http://{value}"),
    };
    let uri = url.parse::<Uri>().map_err(|_| invalid(EXPECTED))?;
    let authority = uri.authority().ok_or_else(|| invalid(EXPECTED))?;
    if authority.as_str().contains('@') {
        return Err(invalid("an address without user and password: set CONSUL_HTTP_AUTH for them"));
    }
    if authority.host().is_empty() || uri.query().is_some() {
        return Err(invalid(EXPECTED));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// `user:password`, or the user alone.
fn authorization(env: &Env) -> Result<Option<Secret>, ConfigError> {
    let Some(source) = env.secret("CONSUL_HTTP_AUTH") else { return Ok(None) };
    let secret = source.read()?;
    let value = secret.expose();
    let credentials = if value.contains(':') { value.to_owned() } else { format!("{value}:") };
    Ok(Some(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(credentials)))))
}

/// A boolean variable, in any spelling that Go's `strconv.ParseBool` accepts.
fn flag(env: &Env, variable: &'static str, default: bool) -> Result<bool, ConfigError> {
    match env.get(variable) {
        None => Ok(default),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(ConfigError::invalid(variable, value, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sidecar_kit::env::Env;
    use sidecar_kit::exit::one_line;

    use super::{Builder, Config};

    #[test]
    fn an_error_names_the_flag_or_variable_with_the_value() {
        let env = [("CONSUL_HTTP_ADDR", "localhost:8500")].into_iter().collect::<Env>();
        let line = |with: fn(Builder<'_>) -> Builder<'_>| one_line(&with(Config::builder(&env)).build().unwrap_err());
        assert_eq!(
            line(|builder| builder.address("--some-addr", Some("ftp://a"))),
            "--some-addr is \"ftp://a\": expected host:port, http://…, https://… or unix:///path/of/a/socket"
        );
        assert!(
            line(|builder| builder.ca_file("CONSUL_LOGIN_CACERT", Some(Path::new("/nowhere/ca.pem"))))
                .starts_with("CONSUL_LOGIN_CACERT: cannot read /nowhere/ca.pem: ")
        );
        assert!(
            line(|builder| builder.ca_pem("CONSUL_LOGIN_CACERT_PEM", Some("no PEM")))
                .starts_with("CONSUL_LOGIN_CACERT_PEM: its text cannot be used: it holds no certificate")
        );
    }
}
