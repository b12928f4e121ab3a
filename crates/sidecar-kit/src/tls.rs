//! TLS for the client: which authorities to trust, for which name, and the client's own certificate. No error shows a part of what it
//! read.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tower_service::Service;

use crate::env::Env;
use crate::exit::one_line;
use crate::http::{Client, Tcp, tcp};
use crate::secret::shown;

/// How the client checks a server, and its own certificate.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// The authorities that are trusted.
    pub authorities: Authorities,
    /// The name that the server's certificate must have, if it is not the URL's host.
    pub server_name: Option<String>,
    /// Accept any certificate, as Consul's `CONSUL_HTTP_SSL_VERIFY=false` does. For tests only.
    pub insecure: bool,
    /// The client's certificate and key, for mutual TLS.
    pub identity: Option<Identity>,
}

/// TLS options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    /// The name is neither a DNS name nor an address.
    #[error("{0} is not a server name")]
    ServerName(String),
    /// The public authorities cannot be read.
    #[error(transparent)]
    PublicAuthorities(#[from] PublicAuthoritiesError),
    /// Certificate and key of the client don't belong together, or are of a kind that isn't supported.
    #[error("the client's certificate and key cannot be used")]
    Identity(#[source] rustls::Error),
}

/// What is wrong with a PEM text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no such section.
    #[error("it holds no certificate: expected PEM text, in which a line begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// The line breaks are written as `\n`.
    #[error("its line breaks are written as \\n: expected PEM text in lines")]
    EscapedLines,
    /// The line breaks are missing.
    #[error("its line breaks are missing: expected PEM text in lines")]
    OneLine,
    /// A section without an end, or one that is not base64.
    #[error("a section of its PEM text is damaged: it does not end, or it is not base64")]
    Damaged,
    /// A certificate that cannot be read.
    #[error("a certificate in it is damaged")]
    Certificate,
    /// A key where only certificates belong.
    #[error("it holds a private key: expected certificates alone, since they are passed on")]
    PrivateKey,
    /// No key that can be used.
    #[error("it is not a private key: expected PEM text with a key that has no passphrase")]
    NoKey,
}

/// Why the public authorities are not known.
#[derive(Debug, thiserror::Error)]
pub enum PublicAuthoritiesError {
    /// The variable names a file or directory that cannot be read.
    #[error("{variable}: cannot read {}", path.display())]
    Unreadable {
        /// The variable.
        variable: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The variable names a file or directory without a certificate.
    #[error("{variable}: {}", path.display())]
    Pem {
        /// The variable.
        variable: &'static str,
        /// The file, or the directories.
        path: PathBuf,
        /// What is wrong with it.
        source: PemError,
    },
}

/// The CA certificates that a client trusts. `Debug` shows only their number.
#[derive(Clone, Default)]
pub struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    /// Also trust the certificates built into the program.
    built_in: bool,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let built_in = if self.built_in { " and those built in" } else { "" };
        write!(f, "Authorities({}{built_in})", self.certificates.len())
    }
}

/// The variables of Go's TLS client. The file replaces the system's bundle, and the directories replace the system's directories.
const CERT_FILE: &str = "SSL_CERT_FILE";
const CERT_DIR: &str = "SSL_CERT_DIR";
/// The bundles of the distributions. The first one that exists is used.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

impl Authorities {
    /// The certificates in this PEM text. There must be at least one.
    ///
    /// # Errors
    /// When one of them is damaged.
    pub fn from_pem(text: &[u8]) -> Result<Self, PemError> {
        let certificates = certificates(text)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|_| PemError::Certificate)?;
        }
        Ok(Self { certificates, built_in: false })
    }

    /// The CA certificates that Go's client trusts by default. They are in the file of `SSL_CERT_FILE`, otherwise in the system's bundle;
    /// and in the directories of `SSL_CERT_DIR`, otherwise in the system's directories. If none of these has a certificate, as in a scratch
    /// image, this trusts the certificates that are built into the program.
    ///
    /// # Errors
    /// When one of the variables names a file or directory that cannot be used.
    pub fn public(env: &Env) -> Result<Self, PublicAuthoritiesError> {
        let mut found = HashSet::new();
        match env.get(CERT_FILE) {
            Some(file) => {
                let path = PathBuf::from(file);
                let text = fs::read(&path).map_err(|source| unreadable(CERT_FILE, &path, source))?;
                let own = usable_certificates(&text);
                if own.is_empty() {
                    let source = certificates(&text).err().unwrap_or(PemError::Certificate);
                    return Err(PublicAuthoritiesError::Pem { variable: CERT_FILE, path, source });
                }
                found.extend(own);
            }
            None => {
                let text = BUNDLES.iter().find_map(|bundle| fs::read(bundle).ok());
                found.extend(text.iter().flat_map(|text| usable_certificates(text)));
            }
        }
        match env.get(CERT_DIR) {
            Some(directories) => {
                for directory in directories.split(':').filter(|directory| !directory.is_empty()) {
                    let directory = Path::new(directory);
                    let own = in_directory(directory).map_err(|source| unreadable(CERT_DIR, directory, source))?;
                    found.extend(own);
                }
                if found.is_empty() {
                    let (variable, path) = (CERT_DIR, directories.into());
                    return Err(PublicAuthoritiesError::Pem { variable, path, source: PemError::NoCertificate });
                }
            }
            None => found.extend(DIRECTORIES.iter().filter_map(|path| in_directory(Path::new(path)).ok()).flatten()),
        }
        Ok(Self { built_in: found.is_empty(), certificates: found.into_iter().collect() })
    }

    /// The number of certificates, without those built in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.certificates.len()
    }

    /// Whether the client trusts no CA certificate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty() && !self.built_in
    }

    fn store(&self) -> RootCertStore {
        let roots = if self.built_in { webpki_roots::TLS_SERVER_ROOTS.to_vec() } else { Vec::new() };
        let mut store = RootCertStore { roots };
        store.add_parsable_certificates(self.certificates.iter().cloned());
        store
    }
}

impl Extend<Self> for Authorities {
    fn extend<I: IntoIterator<Item = Self>>(&mut self, others: I) {
        for other in others {
            self.certificates.extend(other.certificates);
            self.built_in |= other.built_in;
        }
    }
}

fn unreadable(variable: &'static str, path: &Path, source: std::io::Error) -> PublicAuthoritiesError {
    PublicAuthoritiesError::Unreadable { variable, path: path.to_owned(), source }
}

/// The certificates in a directory. Other files are skipped, as Go does.
fn in_directory(directory: &Path) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let files = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    let texts = files.filter_map(|path| fs::read(path).ok());
    Ok(texts.flat_map(|text| usable_certificates(&text)).collect())
}

fn usable_certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).filter_map(Result::ok).collect()
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    // The parser's errors carry the line that they are about, which may be a key.
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(misread(text, PemError::NoCertificate)),
        Err(_) => Err(misread(text, PemError::Damaged)),
    }
}

/// Why a text is not PEM.
fn misread(text: &[u8], otherwise: PemError) -> PemError {
    let text = String::from_utf8_lossy(text);
    let Some((_, begun)) = text.split_once("-----BEGIN ") else { return otherwise };
    match begun.lines().next() {
        Some(line) if line.contains("\\n") => PemError::EscapedLines,
        Some(line) if !line.trim_end().ends_with("-----") || line.contains("-----END") => PemError::OneLine,
        _ => otherwise,
    }
}

/// A PEM text with certificates only, so that it can be passed on. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatesPem(String);

impl CertificatesPem {
    /// Checks the text, and does not change it.
    ///
    /// # Errors
    /// When it holds no certificate, a damaged one, or a private key.
    pub fn new(text: impl Into<String>) -> Result<Self, PemError> {
        let text = text.into();
        if text.contains("PRIVATE KEY-----") {
            return Err(PemError::PrivateKey);
        }
        Authorities::from_pem(text.as_bytes())?;
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CertificatesPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificatesPem(…)")
    }
}

/// A client's certificate, the intermediate certificates after it, and its private key. `Debug` shows nothing of them.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

/// Which of the two cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate.
    #[error("the client's certificate")]
    Certificate(#[source] PemError),
    /// The key.
    #[error("the client's private key")]
    Key(#[source] PemError),
}

impl Identity {
    /// From a certificate and its key, both in PEM.
    ///
    /// # Errors
    /// When one of the two is something else.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain = certificates(certificate).map_err(IdentityError::Certificate)?;
        let parsed = PrivateKeyDer::from_pem_slice(key);
        let key = parsed.map_err(|_| IdentityError::Key(misread(key, PemError::NoKey)))?;
        Ok(Self { chain, key: Arc::new(key) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Client {
    /// A client for `http://` and `https://`.
    ///
    /// # Errors
    /// When the options hold no usable certificate or name.
    pub fn with_tls(options: &TlsOptions) -> Result<Self, TlsOptionsError> {
        Ok(Self::over(https(options, None)?))
    }

    /// The same, with options that may change. Each new connection uses the current ones. If the host of the URL is a name, this connects to
    /// the given address, and not to those of the name.
    ///
    /// # Errors
    /// As for [`Client::with_tls`]. Later options that cannot be used are logged, and the earlier ones stay.
    pub fn with_current_tls(current: CurrentTls, address: Option<SocketAddr>) -> Result<Self, TlsOptionsError> {
        let options = current();
        let made = Arc::new(Mutex::new((options.clone(), https(&options, address)?)));
        Ok(Self::over(Renewed { current, address, made }))
    }
}

/// Returns the options for a new connection. While nothing changes, it returns the same ones.
pub type CurrentTls = Arc<dyn Fn() -> Arc<TlsOptions> + Send + Sync>;

type Https = HttpsConnector<Tcp>;

fn https(options: &TlsOptions, address: Option<SocketAddr>) -> Result<Https, TlsOptionsError> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(options.client_config()?).https_or_http();
    let builder = match options.parsed_server_name()? {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
        None => builder,
    };
    let mut tcp = tcp(address);
    tcp.enforce_http(false);
    Ok(builder.enable_http1().wrap_connector(tcp))
}

/// Connects with the current options.
#[derive(Clone)]
struct Renewed {
    current: CurrentTls,
    address: Option<SocketAddr>,
    /// The options of the last connection, and what was made from them.
    made: Arc<Mutex<(Arc<TlsOptions>, Https)>>,
}

impl Service<Uri> for Renewed {
    type Response = <Https as Service<Uri>>::Response;
    type Error = <Https as Service<Uri>>::Error;
    type Future = <Https as Service<Uri>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let options = (self.current)();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.0, &options) {
            match https(&options, self.address) {
                Ok(connector) => *made = (options, connector),
                Err(error) => {
                    tracing::warn!("the earlier certificates stay in use: {}", one_line(&error));
                    made.0 = options;
                }
            }
        }
        made.1.call(uri)
    }
}

/// Whether it was rustls that failed.
pub(crate) fn is_tls_error(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<rustls::Error>()
}

impl TlsOptions {
    /// The server name to check, parsed.
    fn parsed_server_name(&self) -> Result<Option<ServerName<'static>>, TlsOptionsError> {
        let parse =
            |name: &String| ServerName::try_from(name.clone()).map_err(|_| TlsOptionsError::ServerName(shown(name)));
        self.server_name.as_ref().map(parse).transpose()
    }

    /// The configuration of rustls. The server name is not part of it.
    ///
    /// # Errors
    /// When the client's certificate and key cannot be used.
    pub fn client_config(&self) -> Result<ClientConfig, TlsOptionsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for the default TLS versions");
        if self.insecure {
            let verifier = Arc::new(AnyCertificate(provider));
            return self.identified(builder.dangerous().with_custom_certificate_verifier(verifier));
        }
        self.identified(builder.with_root_certificates(self.authorities.store()))
    }

    fn identified(
        &self,
        builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    ) -> Result<ClientConfig, TlsOptionsError> {
        let Some(Identity { chain, key }) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(TlsOptionsError::Identity)
    }
}

/// Accepts every certificate, and still checks that the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// Checks that `shown` has no part of the PEM text: neither 24 characters from its middle, nor their bytes as decimal numbers.
    fn shows_nothing_of(pem: &str, shown: &str) {
        let body = pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>();
        let middle = &body[body.len() / 2..][..24];
        let decimal = middle.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        assert!(!shown.contains(middle) && !shown.contains(&decimal) && shown.len() < 300, "{shown}");
    }

    type Damage = fn(&str) -> String;

    #[test]
    fn no_error_and_no_debug_shows_a_part_of_the_pem() {
        let (certificate, key) = made("consul.test");
        let both = format!("{certificate}{key}");
        let damages: [(&str, Damage); 6] = [
            ("its line breaks are written as \\n", |pem| pem.replace('\n', "\\n")),
            ("its line breaks are missing", |pem| pem.replace('\n', " ")),
            ("its line breaks are missing", |pem| pem.replace('\n', "")),
            ("damaged", |pem| pem.replace("-----END", "-----ENT")),
            ("damaged", |pem| pem.replace("CERTIFICATE-----\n", "CERTIFICATE-----\n!")),
            ("it holds no certificate", |pem| pem.replace("-----BEGIN", "  -----BEGIN")),
        ];
        for (problem, damage) in damages {
            for pem in [&certificate, &both] {
                let damaged = damage(pem);
                let error = Authorities::from_pem(damaged.as_bytes()).unwrap_err();
                assert!(error.to_string().contains(problem), "{error}");
                let identity = Identity::from_pem(damaged.as_bytes(), key.as_bytes()).unwrap_err();
                let passed_on = CertificatesPem::new(damaged).unwrap_err();
                for pem in [&certificate, &key] {
                    shows_nothing_of(pem, &format!("{error} {error:?} {identity:?} {passed_on}"));
                }
            }
            let damaged = damage(&key.replace("PRIVATE KEY", "CERTIFICATE")).replace("CERTIFICATE", "PRIVATE KEY");
            let error = Identity::from_pem(certificate.as_bytes(), damaged.as_bytes()).unwrap_err();
            shows_nothing_of(&key, &format!("{error} {error:?}"));
        }
        let options = TlsOptions {
            authorities: Authorities::from_pem(both.as_bytes()).unwrap(),
            identity: Some(Identity::from_pem(both.as_bytes(), both.as_bytes()).unwrap()),
            ..TlsOptions::default()
        };
        assert!(options.client_config().is_ok());
        for pem in [&certificate, &key] {
            shows_nothing_of(pem, &format!("{options:?} {:?}", CertificatesPem::new(&certificate)));
        }
        assert_eq!(CertificatesPem::new(both), Err(PemError::PrivateKey));
    }

    #[test]
    fn the_public_cas_are_those_of_go_or_else_built_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (one, two) = (made("one").0, made("two").0);
        fs::write(path("one.pem"), format!("{one}{one}")).unwrap();
        fs::create_dir(path("more")).unwrap();
        fs::write(path("more/two.crt"), &two).unwrap();
        fs::write(path("more/notes.txt"), "no certificate").unwrap();
        fs::create_dir(path("none")).unwrap();
        let public = |variables: &[(&str, String)]| {
            Authorities::public(&Env::from_iter(variables.iter().map(|(name, value)| (*name, value.clone()))))
        };
        let file = (CERT_FILE, path("one.pem"));
        let only = public(&[file.clone(), (CERT_DIR, path("none"))]).unwrap();
        assert_eq!((only.len(), only.built_in), (1, false));
        let both = public(&[file, (CERT_DIR, format!("{}:{}", path("none"), path("more")))]).unwrap();
        assert_eq!((both.len(), both.built_in), (2, false));
        let neither = public(&[]).unwrap();
        assert!(!neither.is_empty() && neither.built_in == (neither.certificates.is_empty()));

        let refused =
            |variable: &'static str, value: String| crate::exit::one_line(&public(&[(variable, value)]).unwrap_err());
        assert!(refused(CERT_FILE, path("gone")).starts_with("SSL_CERT_FILE: cannot read /"));
        assert!(refused(CERT_DIR, path("gone")).starts_with("SSL_CERT_DIR: cannot read /"));
        let notes = refused(CERT_FILE, path("more/notes.txt"));
        assert!(notes.contains("notes.txt: it holds no certificate"), "{notes}");
    }

    #[test]
    fn the_cas_of_aws_s_own_certificates_are_built_in() {
        let store = Authorities { certificates: Vec::new(), built_in: true }.store();
        let subjects = store.roots.iter().map(|anchor| String::from_utf8_lossy(&anchor.subject).into_owned());
        let subjects = subjects.collect::<Vec<_>>();
        // "Amazon Trust Services" names these five.
        for name in [1, 2, 3, 4].map(|number| format!("Amazon Root CA {number}")) {
            assert!(subjects.iter().any(|subject| subject.contains(&name)), "{name}");
        }
        let starfield = "Starfield Services Root Certificate Authority - G2";
        assert!(subjects.iter().any(|subject| subject.contains(starfield)));
    }
}
