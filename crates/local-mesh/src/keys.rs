//! What Consul's servers share and nobody commits: a certificate authority, a certificate of theirs, the gossip key. Made once
//! in `target/local-mesh/consul`, with the configuration that names them, and mounted into each server.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use crate::mesh_dir;

/// The authority's certificate.
pub const AUTHORITY: &str = "ca.pem";
/// The servers' configuration, with the gossip key in it.
pub const CONFIG: &str = "servers.json";

/// Where a server has the directory.
const MOUNTED: &str = "/consul/config";

/// Names of a server: what Consul's agents expect of one, and how others in the mesh's network ask for it.
const NAMES: [&str; 6] =
    ["server.dc1.consul", "consul-server-1", "consul-server-2", "consul-server-3", "localhost", "127.0.0.1"];

/// Keys that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A certificate.
    #[error("cannot make a certificate for Consul's servers")]
    Certificate(#[from] rcgen::Error),
    /// Linux gives no random bytes.
    #[error("cannot make a gossip key")]
    Random(#[source] io::Error),
}

fn dir() -> PathBuf {
    mesh_dir().join("consul")
}

/// Whether they have been made.
#[must_use]
pub fn exist() -> bool {
    // It is written last of all: where it is, all the others are.
    dir().join(CONFIG).exists()
}

/// Makes what is not there yet.
///
/// # Errors
/// See [`KeysError`].
pub fn make() -> Result<(), KeysError> {
    if exist() {
        return Ok(());
    }
    let dir = dir();
    // The servers' user in the container is another than who runs this: the files are open, the way to them is not.
    let made =
        fs::create_dir_all(&dir).and_then(|()| fs::set_permissions(mesh_dir(), PermissionsExt::from_mode(0o700)));
    made.map_err(|source| KeysError::Write { path: dir.clone(), source })?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ecs-mesh local mesh");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name.push(DnType::CommonName, NAMES[0]);
    // A server calls the others, too.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let server = params.signed_by(&key, &issuer)?;

    let mut gossip = [0; 32];
    fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut gossip)).map_err(KeysError::Random)?;
    let mounted = |file: &str| format!("{MOUNTED}/{file}");
    let config = json!({
        "encrypt": STANDARD.encode(gossip),
        "ca_file": mounted(AUTHORITY), "cert_file": mounted("server.pem"), "key_file": mounted("server-key.pem"),
        "verify_incoming_rpc": true, "verify_outgoing": true, "verify_server_hostname": true,
        "auto_encrypt": { "allow_tls": true },
        "ports": { "https": 8501 },
        "acl": { "enabled": true, "default_policy": "deny", "enable_token_persistence": true },
    });
    for (file, text) in [
        (AUTHORITY, authority.pem()),
        ("server.pem", server.pem()),
        ("server-key.pem", key.serialize_pem()),
        (CONFIG, format!("{config:#}\n")),
    ] {
        write(&dir.join(file), &text)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), KeysError> {
    let written = fs::write(path, text).and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o644)));
    written.map_err(|source| KeysError::Write { path: path.to_owned(), source })
}
