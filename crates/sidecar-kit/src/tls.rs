//! TLS as a client: whom to trust, for which name, and how to prove who asks.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::secret::Secret;

/// How a server proves who it is.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM certificates of the authorities that are trusted. Images of ours hold no others.
    pub authorities: Vec<Vec<u8>>,
    /// Authorities that are trusted besides, as a library of public ones has them.
    pub public_authorities: &'static [TrustAnchor<'static>],
    /// The name the server's certificate must carry, where it is not the URL's host.
    pub server_name: Option<String>,
    /// Take any certificate. Consul's `CONSUL_HTTP_SSL_VERIFY=false`; for a laboratory.
    pub insecure: bool,
    /// What a server that asks for it is shown (mutual TLS).
    pub identity: Option<Identity>,
}

/// A client's certificate, with those between it and the authority after it, and its private key; both in PEM.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Secret,
}

/// TLS options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsOptionsError {
    /// An authority's text is not PEM.
    #[error("not a PEM certificate")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    /// There is PEM, but no certificate in it.
    #[error("no certificate in the PEM text")]
    NoCertificate,
    /// A certificate that cannot serve as an authority.
    #[error("not a usable CA certificate")]
    NotAnAuthority(#[source] rustls::Error),
    /// The name is neither a DNS name nor an address.
    #[error("{0:?} is not a server name")]
    ServerName(String),
    /// The client's key is not a private key in PEM.
    #[error("the client's key is not a private key in PEM")]
    NotAKey,
    /// Certificate and key of the client don't belong together, or are of a kind that isn't supported.
    #[error("the client's certificate and key cannot be used")]
    Identity(#[source] rustls::Error),
}

impl TlsOptions {
    /// The server name to check, parsed.
    pub(crate) fn parsed_server_name(&self) -> Result<Option<ServerName<'static>>, TlsOptionsError> {
        let parse =
            |name: &String| ServerName::try_from(name.clone()).map_err(|_| TlsOptionsError::ServerName(name.clone()));
        self.server_name.as_ref().map(parse).transpose()
    }

    pub(crate) fn client_config(&self) -> Result<ClientConfig, TlsOptionsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for the default TLS versions");
        if self.insecure {
            let verifier = Arc::new(AnyCertificate(provider));
            return self.identified(builder.dangerous().with_custom_certificate_verifier(verifier));
        }
        let mut roots = RootCertStore { roots: self.public_authorities.to_vec() };
        for pem in &self.authorities {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(TlsOptionsError::NotPem)?;
                roots.add(certificate).map_err(TlsOptionsError::NotAnAuthority)?;
            }
            if roots.len() == before {
                return Err(TlsOptionsError::NoCertificate);
            }
        }
        self.identified(builder.with_root_certificates(roots))
    }

    fn identified(
        &self,
        builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    ) -> Result<ClientConfig, TlsOptionsError> {
        let Some(Identity { certificate, key }) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(TlsOptionsError::NotPem)?;
        if chain.is_empty() {
            return Err(TlsOptionsError::NoCertificate);
        }
        // The parser's error may quote what it read.
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| TlsOptionsError::NotAKey)?;
        builder.with_client_auth_cert(chain, key).map_err(TlsOptionsError::Identity)
    }
}

/// Takes every certificate, but still checks that the peer holds its key.
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
