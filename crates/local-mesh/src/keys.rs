//! The keys and the configuration of Consul's servers, in `target/local-mesh/consul`. Each server mounts the directory. A CA, a
//! server certificate and the gossip key are made once.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_setup::keys::{CA_FILE, CONFIG};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use sidecar_kit::file::{WriteError, write_if_changed};

use crate::mesh_dir;
use crate::version::Version;

/// The directory's path in a server's container.
const MOUNTED: &str = "/consul/config";

/// The names in the server certificate: the one that Consul's agents expect, and those by which other containers call a server.
const NAMES: [&str; 6] =
    ["server.dc1.consul", "consul-server-1", "consul-server-2", "consul-server-3", "localhost", "127.0.0.1"];

/// Why the keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The directory could not be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for Consul's servers")]
    Certificate(#[from] rcgen::Error),
    /// Linux did not give random bytes.
    #[error("cannot make a gossip key")]
    Random(#[source] io::Error),
}

fn dir() -> PathBuf {
    mesh_dir().join("consul")
}

/// Whether the keys have been made. The configuration is written last: if it exists, the keys exist too.
pub(crate) fn exist() -> bool {
    dir().join(CONFIG).exists()
}

/// Makes the keys unless they exist, and writes the configuration for this version of Consul.
pub(crate) fn make(version: Version) -> Result<(), KeysError> {
    let path = dir().join(CONFIG);
    let written = fs::read_to_string(&path).unwrap_or_default();
    let gossip = match serde_json::from_str::<Value>(&written).unwrap_or_default()["encrypt"].as_str() {
        Some(gossip) => gossip.to_owned(),
        None => make_keys()?,
    };
    write(&path, &format!("{:#}\n", config(version, &gossip)))
}

/// Makes the CA and the server certificate, and returns a new gossip key.
fn make_keys() -> Result<String, KeysError> {
    let dir = dir();
    // The servers' user in the container is not this user, so all users may read the files. Only this user can enter the directory
    // above, `target/local-mesh`. The servers mount the directory in it.
    let made =
        fs::create_dir_all(&dir).and_then(|()| fs::set_permissions(mesh_dir(), PermissionsExt::from_mode(0o700)));
    made.map_err(|source| KeysError::Directory { path: dir.clone(), source })?;

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
    // A server is also a client of the other servers.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let server = params.signed_by(&key, &issuer)?;

    for (file, text) in
        [(CA_FILE, authority.pem()), ("server.pem", server.pem()), ("server-key.pem", key.serialize_pem())]
    {
        write(&dir.join(file), &text)?;
    }
    let mut gossip = [0; 32];
    fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut gossip)).map_err(KeysError::Random)?;
    Ok(STANDARD.encode(gossip))
}

fn config(version: Version, gossip: &str) -> Value {
    let mounted = |file: &str| format!("{MOUNTED}/{file}");
    let files = [("ca_file", CA_FILE), ("cert_file", "server.pem"), ("key_file", "server-key.pem")];
    let mut files = Value::from_iter(files.map(|(name, file)| (name, mounted(file))));
    let mut config = json!({
        "encrypt": gossip,
        "auto_encrypt": { "allow_tls": true },
        "ports": { "https": 8501 },
        "acl": { "enabled": true, "default_policy": "deny", "enable_token_persistence": true },
    });
    let add = |to: &mut Value, more: Value| {
        for (name, value) in more.as_object().into_iter().flatten() {
            to[name] = value.clone();
        }
    };
    if version.has_grpc_tls() {
        config["ports"]["grpc_tls"] = 8503.into();
    }
    if version.has_tls_defaults() {
        files["verify_outgoing"] = true.into();
        let internal_rpc = json!({ "verify_incoming": true, "verify_server_hostname": true });
        config["tls"] = json!({ "defaults": files, "internal_rpc": internal_rpc });
    } else {
        add(&mut config, files);
        add(
            &mut config,
            json!({ "verify_incoming_rpc": true, "verify_outgoing": true, "verify_server_hostname": true }),
        );
    }
    config
}

fn write(path: &Path, text: &str) -> Result<(), KeysError> {
    Ok(write_if_changed(path, text.as_bytes(), 0o644)?)
}
