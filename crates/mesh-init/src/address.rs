//! The addresses in the bootstrap: xDS at the agent, and Envoy's admin interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use consul_api::{AgentSelf, XdsPort};
use ecs_meta::Task;

use sidecar_kit::env::Env;
use sidecar_kit::file::files_below;
use sidecar_kit::secret::{shown, shown_path};
use sidecar_kit::tls::{CertificatesPem, PemError};

use envoy_bootstrap::{Endpoint, XdsAddress};

/// The variables that name the file of a CA certificate, and a directory with such files.
const GRPC: (&str, &str) = ("CONSUL_GRPC_CACERT", "CONSUL_GRPC_CAPATH");
const HTTP: (&str, &str) = ("CONSUL_CACERT", "CONSUL_CAPATH");

/// The port that Consul's documentation recommends for gRPC.
pub const DEFAULT_PORT: u16 = 8502;

/// An address or a certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is not an address.
    #[error("{name} is {value}: expected {expected}")]
    Invalid {
        /// The variable or flag.
        name: &'static str,
        /// Its value in quotes; not shown if it may be a secret.
        value: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// The host in the address cannot be resolved.
    #[error("{name}: {host} has no address")]
    Unresolved {
        /// The variable or flag.
        name: &'static str,
        /// The host.
        host: String,
        /// The resolver's reason.
        source: std::io::Error,
    },
    /// The agent serves gRPC with TLS only, and `CONSUL_GRPC_ADDR` is not set.
    #[error(
        "the agent serves gRPC with TLS only: expected CONSUL_GRPC_ADDR=https://{0} and CONSUL_GRPC_CACERT, the file with \
         the certificate of its CA"
    )]
    OnlyTls(SocketAddr),
    /// The agent serves no gRPC.
    #[error(
        "the agent serves no gRPC, which Envoy needs: expected ports {{ grpc = 8502 }} in its configuration, as mesh-init \
         agent-config writes it, or another agent in CONSUL_GRPC_ADDR"
    )]
    NoGrpc,
    /// `CONSUL_GRPC_ADDR` asks for TLS, but no CA certificate is given.
    #[error(
        "CONSUL_GRPC_ADDR begins with https://, but there is no CA certificate: set CONSUL_GRPC_CACERT to its file"
    )]
    NoAuthority,
    /// A CA certificate cannot be read.
    #[error("{variable}: cannot read the CA certificate in {file}")]
    Authority {
        /// The variable that names the file or its directory.
        variable: &'static str,
        /// The file or directory. It is not shown if the variable holds the certificate itself.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a CA certificate, or holds something else too.
    #[error("{variable}: {what} cannot be used")]
    Pem {
        /// The variable.
        variable: &'static str,
        /// The file's name, or a note that the text is in the variable.
        what: String,
        /// Why.
        source: PemError,
    },
}

impl AddressError {
    fn invalid(name: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Invalid { name, value: shown(value), expected }
    }
}

/// The address in `CONSUL_GRPC_ADDR` or its flag: `host:port`, optionally after `http://` or `https://`, or `unix://<path>`. With a gRPC
/// CA certificate, Envoy uses TLS on the socket too.
///
/// # Errors
/// If it is not an address, its host cannot be resolved, or its CA certificates cannot be read.
pub fn given(
    address: &str,
    ca_file: Option<&str>,
    ca_path: Option<&str>,
    env: &Env,
) -> Result<XdsAddress, AddressError> {
    if let Some(path) = address.strip_prefix("unix://") {
        if !path.starts_with('/') {
            return Err(AddressError::invalid("CONSUL_GRPC_ADDR", address, "unix:// and the socket's full path"));
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
            return Err(AddressError::invalid("CONSUL_GRPC_ADDR", address, expected));
        }
    };
    let (ip, port) = resolve("CONSUL_GRPC_ADDR", host_port.trim_end_matches('/'))?;
    let authorities = if tls { Some(authorities(ca_file, ca_path, env)?) } else { None };
    Ok(XdsAddress { endpoint: Endpoint::Tcp(ip, port), authorities })
}

/// xDS at the port that the agent reports, in plain text. If the agent reports no port, this uses [`DEFAULT_PORT`].
///
/// # Errors
/// [`AddressError::OnlyTls`] and [`AddressError::NoGrpc`].
pub fn of_agent(agent_self: Option<&AgentSelf>, loopback: IpAddr) -> Result<XdsAddress, AddressError> {
    let port = match agent_self.map_or(XdsPort::Unknown, AgentSelf::xds_port) {
        XdsPort::Plain(port) => port,
        XdsPort::Tls(port) => return Err(AddressError::OnlyTls((loopback, port).into())),
        XdsPort::Off => return Err(AddressError::NoGrpc),
        XdsPort::Unknown => DEFAULT_PORT,
    };
    Ok(XdsAddress { endpoint: Endpoint::Tcp(loopback, port), authorities: None })
}

/// The loopback address on which the agent listens: `::1` for an agent on IPv6. If the agent does not report the address
/// that it binds, the task's own address decides, as in `agent-config`.
#[must_use]
pub fn loopback(agent_self: Option<&AgentSelf>, task: &Task) -> IpAddr {
    let ip = |text: &str| text.parse::<IpAddr>().ok();
    let bound = agent_self.and_then(|agent_self| ip(agent_self.debug_config.get("BindAddr")?.as_str()?));
    match bound.or_else(|| ip(task.private_ip()?)) {
        Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Resolves `host:port`, because Envoy resolves no names in these places. As in Consul, an IPv4 address is preferred.
///
/// # Errors
/// If it is not `host:port`, or its host cannot be resolved.
pub fn resolve(name: &'static str, value: &str) -> Result<(IpAddr, u16), AddressError> {
    let invalid = || AddressError::invalid(name, value, "<host>:<port>");
    let (host, port) = value.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse() {
        return Ok((ip, port));
    }
    if host == "localhost" {
        return Ok((Ipv4Addr::LOCALHOST.into(), port));
    }
    if host.is_empty() || host.contains([':', '/', '@']) {
        return Err(invalid());
    }
    let unresolved = |source| AddressError::Unresolved { name, host: shown(host), source };
    let addresses: Vec<IpAddr> =
        (host, port).to_socket_addrs().map_err(unresolved)?.map(|address| address.ip()).collect();
    let preferred = addresses.iter().find(|ip| ip.is_ipv4()).or(addresses.first());
    preferred.map(|ip| (*ip, port)).ok_or_else(|| unresolved(std::io::ErrorKind::NotFound.into()))
}

/// The CA certificates for gRPC, else those for HTTP.
fn authorities(ca_file: Option<&str>, ca_path: Option<&str>, env: &Env) -> Result<CertificatesPem, AddressError> {
    let own = read_authorities(GRPC, ca_file, ca_path);
    let variable = "CONSUL_CACERT_PEM";
    let pem = own.or_else(|| env.get(variable).map(|pem| checked(variable, "its text", pem)));
    let pem = pem.or_else(|| read_authorities(HTTP, env.get(HTTP.0), env.get(HTTP.1)));
    pem.ok_or(AddressError::NoAuthority)?
}

/// The certificates for the bootstrap. This refuses a text that holds anything else.
fn checked(variable: &'static str, what: &str, pem: &str) -> Result<CertificatesPem, AddressError> {
    CertificatesPem::new(pem).map_err(|source| AddressError::Pem { variable, what: what.to_owned(), source })
}

/// A file wins over a directory. The files of a directory are read in the order of their names.
fn read_authorities(
    (file_variable, directory_variable): (&'static str, &'static str),
    file: Option<&str>,
    directory: Option<&str>,
) -> Option<Result<CertificatesPem, AddressError>> {
    match (file.map(Path::new), directory.map(Path::new)) {
        (Some(file), _) => Some(read(file_variable, file, &[file])),
        (None, Some(directory)) => {
            let files = files_below(directory).map_err(|source| unreadable(directory_variable, directory, source));
            Some(files.and_then(|files| read(directory_variable, directory, &files)))
        }
        (None, None) => None,
    }
}

/// `whole` is what the variable names: one file, or the directory of the files.
fn read(variable: &'static str, whole: &Path, files: &[impl AsRef<Path>]) -> Result<CertificatesPem, AddressError> {
    let mut all = String::new();
    for file in files {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(|source| unreadable(variable, file, source))?;
        all.push_str(checked(variable, &shown_path(file), &text)?.as_str());
        // The next certificate must begin on a new line.
        if !all.ends_with('\n') {
            all.push('\n');
        }
    }
    checked(variable, &shown_path(whole), &all)
}

fn unreadable(variable: &'static str, path: &Path, source: std::io::Error) -> AddressError {
    AddressError::Authority { variable, file: shown_path(path), source }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sidecar_kit::exit::one_line;

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
    fn an_invalid_address_is_reported_with_what_is_expected() {
        assert_eq!(endpoint("8502"), Err(r#"CONSUL_GRPC_ADDR is "8502": expected <host>:<port>"#.to_owned()));
        assert!(endpoint("ftp://localhost:1").unwrap_err().contains("unix://<path>"));
        assert!(endpoint("unix://").unwrap_err().contains("the socket's full path"));
        assert!(endpoint("https://localhost:8503").unwrap_err().contains("CONSUL_GRPC_CACERT"));
    }

    #[test]
    fn grpc_with_tls_uses_the_grpc_ca_or_else_the_http_ca() {
        let (http, grpc) = (authority(), authority());
        let env = Env::from_iter([("CONSUL_CACERT_PEM", http.as_str())]);
        let authorities = |file: Option<&str>| {
            given("https://127.0.0.1:1", file, None, &env).unwrap().authorities.unwrap().as_str().to_owned()
        };
        assert_eq!(authorities(None), http);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), grpc.trim_end()).unwrap();
        assert_eq!(authorities(file.path().to_str()), grpc);
    }

    fn authority() -> String {
        rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn ca_files_in_a_directory_are_read_in_go_s_order() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("b")).unwrap();
        // As paths, `b.pem` would come before `b/b.pem`.
        let files = [("a.pem", authority()), ("b/b.pem", authority()), ("b.pem", authority()), ("c.pem", authority())];
        for (file, text) in files.iter().rev() {
            std::fs::write(directory.path().join(file), text.trim_end()).unwrap();
        }
        std::os::unix::fs::symlink(directory.path(), directory.path().join("b/loop")).unwrap();
        let given = given("https://127.0.0.1:1", None, directory.path().to_str(), &Env::default()).unwrap();
        let expected = files.map(|(_, text)| text).concat();
        assert_eq!(given.authorities.unwrap().as_str(), expected);
    }

    #[test]
    fn a_text_without_a_certificate_is_refused_not_shown() {
        let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let error = given("https://127.0.0.1:1", file.path().to_str(), None, &Env::default()).unwrap_err();
            let line = one_line(&error);
            let middle = &key.lines().nth(1).unwrap()[20..50];
            assert!(line.starts_with("CONSUL_GRPC_CACERT: /") && !line.contains(middle), "{line}");
            line
        };
        assert!(error(&format!("{certificate}{key}")).contains("it holds a private key"));
        assert!(error(&key.replace('\n', "\\n")).contains("it holds a private key"));
        assert!(error(&certificate.replace('\n', "\\n")).contains("its line breaks are written as \\n"));
        assert!(error("").contains("it holds no certificate"));
        let text = given("https://127.0.0.1:1", Some(&key), None, &Env::default()).unwrap_err();
        assert!(one_line(&text).contains("CONSUL_GRPC_CACERT: cannot read the CA certificate in a file: the variable"));
        let password = given("http://user:5ec3e7@consul:8502", None, None, &Env::default()).unwrap_err();
        assert!(!one_line(&password).contains("5ec3e7"), "{password}");
    }

    #[test]
    fn an_unreadable_ca_file_is_reported_with_its_variable() {
        let error = |file, path, env: &Env| given("https://127.0.0.1:1", file, path, env).unwrap_err().to_string();
        let env = Env::from_iter([("CONSUL_CACERT", "/nowhere")]);
        let text = "cannot read the CA certificate in /nowhere";
        assert_eq!(error(Some("/nowhere"), None, &env), format!("CONSUL_GRPC_CACERT: {text}"));
        assert_eq!(error(None, Some("/nowhere"), &env), format!("CONSUL_GRPC_CAPATH: {text}"));
        assert_eq!(error(None, None, &env), format!("CONSUL_CACERT: {text}"));
    }

    #[test]
    fn an_agent_with_tls_grpc_only_needs_address_and_ca() {
        let asked = |ports: Value| {
            let config = json!({ "Datacenter": "dc1", "NodeName": "n", "Version": "1.17.0" });
            let agent_self = serde_json::from_value(json!({ "Config": config, "xDS": { "Ports": ports } })).unwrap();
            of_agent(Some(&agent_self), Ipv4Addr::LOCALHOST.into()).map(|xds| xds.endpoint)
        };
        let error = asked(json!({ "Plaintext": -1, "TLS": 8503 })).unwrap_err().to_string();
        assert!(error.contains("CONSUL_GRPC_ADDR=https://127.0.0.1:8503 and CONSUL_GRPC_CACERT"), "{error}");
        let plain = asked(json!({ "Plaintext": 18502, "TLS": 8503 })).unwrap();
        assert_eq!(plain, Endpoint::Tcp(Ipv4Addr::LOCALHOST.into(), 18502));
        let neither = asked(json!({ "Plaintext": -1, "TLS": -1 })).unwrap_err();
        assert!(matches!(neither, AddressError::NoGrpc), "{neither}");
        // An agent before Consul 1.14 does not report it there.
        let older = asked(Value::Null).unwrap();
        assert_eq!(older, Endpoint::Tcp(Ipv4Addr::LOCALHOST.into(), DEFAULT_PORT));
    }

    #[test]
    fn the_agent_s_ip_version_decides_the_loopback_address() {
        let agent_self = |bound: &str| -> AgentSelf {
            let config = json!({ "Datacenter": "dc1", "NodeName": "n", "Version": "1.17.0" });
            serde_json::from_value(json!({ "Config": config, "DebugConfig": { "BindAddr": bound } })).unwrap()
        };
        let task = |networks: Value| -> Task {
            serde_json::from_value(json!({
                "Cluster": "blue", "Family": "f", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2",
                "Containers": [{ "Name": "web", "Networks": [networks] }],
            }))
            .unwrap()
        };
        let (v4, v6) = (task(json!({ "IPv4Addresses": ["10.0.0.1"] })), task(json!({ "IPv6Addresses": ["fd00::1"] })));
        for (agent_self, task, expected) in [
            (Some(agent_self("::")), &v4, "::1"),
            (Some(agent_self("0.0.0.0")), &v6, "127.0.0.1"),
            (Some(agent_self("")), &v6, "::1"),
            (None, &v6, "::1"),
            (None, &v4, "127.0.0.1"),
        ] {
            assert_eq!(loopback(agent_self.as_ref(), task).to_string(), expected);
        }
    }
}
