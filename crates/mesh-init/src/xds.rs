//! Where Envoy finds xDS: `CONSUL_GRPC_ADDR` with Consul's own meaning.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use sidecar_kit::env::Env;
use sidecar_kit::file::files_below;

use crate::bootstrap::{Endpoint, XdsAddress};

/// The variables that name a CA certificate's file and a directory of them.
const GRPC: (&str, &str) = ("CONSUL_GRPC_CACERT", "CONSUL_GRPC_CAPATH");
const HTTP: (&str, &str) = ("CONSUL_CACERT", "CONSUL_CAPATH");

/// The port where Consul's documentation tells to serve gRPC.
pub const DEFAULT_PORT: u16 = 8502;

/// An address or a certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is not an address.
    #[error("{name} is {value:?}: expected {expected}")]
    Invalid {
        /// The variable or flag.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Its host has no address.
    #[error("{name}: {host:?} has no address")]
    Unresolved {
        /// The variable or flag.
        name: &'static str,
        /// The host.
        host: String,
        /// The resolver's reason.
        source: std::io::Error,
    },
    /// TLS without authorities.
    #[error("CONSUL_GRPC_ADDR is https, but there is no CA certificate: set CONSUL_GRPC_CACERT to its file")]
    NoAuthority,
    /// A CA certificate cannot be read.
    #[error("{variable}: cannot read the CA certificate in {}", path.display())]
    Authority {
        /// The variable that names the file or its directory.
        variable: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The address that `CONSUL_GRPC_ADDR` or its flag gives: `host:port`, `http://…` or `https://…` in front, or
/// `unix://<path>`. A unix socket is spoken to with TLS where a gRPC CA certificate is given.
///
/// # Errors
/// When it is no address, its host has none, or its CA certificates cannot be read.
pub fn given(
    address: &str,
    ca_file: Option<&str>,
    ca_path: Option<&str>,
    env: &Env,
) -> Result<XdsAddress, AddressError> {
    if let Some(path) = address.strip_prefix("unix://") {
        if !path.starts_with('/') {
            let expected = "unix:// and the socket's full path";
            return Err(AddressError::Invalid { name: "CONSUL_GRPC_ADDR", value: address.to_owned(), expected });
        }
        let authorities = read_authorities(GRPC, ca_file, ca_path).transpose()?;
        return Ok(XdsAddress { endpoint: Endpoint::Unix(path.to_owned()), authorities });
    }
    let (tls, host_port) = match address.split_once("://") {
        None => (false, address),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some(_) => {
            let expected = "<host>:<port>, http://…, https://… or unix://<path>";
            return Err(AddressError::Invalid { name: "CONSUL_GRPC_ADDR", value: address.to_owned(), expected });
        }
    };
    let (ip, port) = resolve("CONSUL_GRPC_ADDR", host_port.trim_end_matches('/'))?;
    let authorities = if tls { Some(authorities(ca_file, ca_path, env)?) } else { None };
    Ok(XdsAddress { endpoint: Endpoint::Tcp(ip, port), authorities })
}

/// `host:port` as an address for Envoy, which resolves no names where these stand; IPv4 is preferred, as Consul does.
///
/// # Errors
/// When it is something else, or its host has no address.
pub fn resolve(name: &'static str, value: &str) -> Result<(IpAddr, u16), AddressError> {
    let invalid = || AddressError::Invalid { name, value: value.to_owned(), expected: "<host>:<port>" };
    let (host, port) = value.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse() {
        return Ok((ip, port));
    }
    if host == "localhost" {
        return Ok((Ipv4Addr::LOCALHOST.into(), port));
    }
    if host.is_empty() || host.contains([':', '/']) {
        return Err(invalid());
    }
    let unresolved = |source| AddressError::Unresolved { name, host: host.to_owned(), source };
    let addresses: Vec<IpAddr> =
        (host, port).to_socket_addrs().map_err(unresolved)?.map(|address| address.ip()).collect();
    let preferred = addresses.iter().find(|ip| ip.is_ipv4()).or(addresses.first());
    preferred.map(|ip| (*ip, port)).ok_or_else(|| unresolved(std::io::ErrorKind::NotFound.into()))
}

/// The CA certificates for gRPC, else those for HTTP.
fn authorities(ca_file: Option<&str>, ca_path: Option<&str>, env: &Env) -> Result<String, AddressError> {
    let own = read_authorities(GRPC, ca_file, ca_path);
    let pem = own.or_else(|| env.get("CONSUL_CACERT_PEM").map(|pem| Ok(pem.to_owned())));
    let pem = pem.or_else(|| read_authorities(HTTP, env.get(HTTP.0), env.get(HTTP.1)));
    let pem = pem.ok_or(AddressError::NoAuthority)??;
    if pem.trim().is_empty() { Err(AddressError::NoAuthority) } else { Ok(pem) }
}

/// A file goes before a directory, as in Consul.
fn read_authorities(
    (file_variable, directory_variable): (&'static str, &'static str),
    file: Option<&str>,
    directory: Option<&str>,
) -> Option<Result<String, AddressError>> {
    let failed = |variable, path: &Path, source| AddressError::Authority { variable, path: path.to_owned(), source };
    let read = |variable, path: &Path| match std::fs::read_to_string(path) {
        // The next certificate begins on a line of its own.
        Ok(text) if text.ends_with('\n') => Ok(text),
        Ok(text) => Ok(text + "\n"),
        Err(source) => Err(failed(variable, path, source)),
    };
    match (file, directory) {
        (Some(file), _) => Some(read(file_variable, Path::new(file))),
        (None, Some(directory)) => {
            let directory = Path::new(directory);
            let files = files_below(directory).map_err(|source| failed(directory_variable, directory, source));
            Some(files.and_then(|files| files.iter().map(|file| read(directory_variable, file)).collect()))
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Result<Endpoint, String> {
        let given = given(address, None, None, &Env::default());
        given.map(|given| given.endpoint).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_with_and_without_scheme_become_ip_and_port() {
        let local = Ok(Endpoint::Tcp(Ipv4Addr::LOCALHOST.into(), 8502));
        for address in ["127.0.0.1:8502", "localhost:8502", "http://localhost:8502", "HTTP://127.0.0.1:8502/"] {
            assert_eq!(endpoint(address), local, "{address}");
        }
        assert_eq!(endpoint("[::1]:18502"), Ok(Endpoint::Tcp("::1".parse().unwrap(), 18502)));
        assert_eq!(endpoint("unix:///run/grpc.sock"), Ok(Endpoint::Unix("/run/grpc.sock".to_owned())));
    }

    #[test]
    fn what_is_no_address_is_named_with_what_would_do() {
        assert_eq!(endpoint("8502"), Err(r#"CONSUL_GRPC_ADDR is "8502": expected <host>:<port>"#.to_owned()));
        assert!(endpoint("ftp://localhost:1").unwrap_err().contains("unix://<path>"));
        assert!(endpoint("unix://").unwrap_err().contains("the socket's full path"));
        assert!(endpoint("https://localhost:8503").unwrap_err().contains("CONSUL_GRPC_CACERT"));
    }

    #[test]
    fn tls_takes_the_grpc_authority_else_the_http_one() {
        let env = Env::from_iter([("CONSUL_CACERT_PEM", "http authority")]);
        let authorities = |file: Option<&str>| given("https://127.0.0.1:1", file, None, &env).unwrap().authorities;
        assert_eq!(authorities(None).as_deref(), Some("http authority"));
        let file = std::env::temp_dir().join(format!("grpc-ca-{}", std::process::id()));
        std::fs::write(&file, "grpc authority").unwrap();
        assert_eq!(authorities(file.to_str()).as_deref(), Some("grpc authority\n"));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_directory_s_authorities_are_those_of_its_subdirectories_too() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("b")).unwrap();
        for (file, text) in [("c.pem", "third"), ("a.pem", "first\n"), ("b/b.pem", "second")] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        std::os::unix::fs::symlink(directory.path(), directory.path().join("b/loop")).unwrap();
        let given = given("https://127.0.0.1:1", None, directory.path().to_str(), &Env::default()).unwrap();
        assert_eq!(given.authorities.as_deref(), Some("first\nsecond\nthird\n"));
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_named_with_its_variable() {
        let error = |file, path, env: &Env| given("https://127.0.0.1:1", file, path, env).unwrap_err().to_string();
        let env = Env::from_iter([("CONSUL_CACERT", "/nowhere")]);
        let text = "cannot read the CA certificate in /nowhere";
        assert_eq!(error(Some("/nowhere"), None, &env), format!("CONSUL_GRPC_CACERT: {text}"));
        assert_eq!(error(None, Some("/nowhere"), &env), format!("CONSUL_GRPC_CAPATH: {text}"));
        assert_eq!(error(None, None, &env), format!("CONSUL_CACERT: {text}"));
    }
}
