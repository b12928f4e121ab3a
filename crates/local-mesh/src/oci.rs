//! Writes an image for several architectures as an OCI layout: a directory with an index, which a registry takes as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::command::{CommandError, run};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why a layout could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// docker or tar failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read or written.
    #[error("cannot read or write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `docker save` wrote something else than an image.
    #[error("`docker save {image}` wrote no {missing}")]
    Saved {
        /// The image.
        image: String,
        /// What is missing.
        missing: &'static str,
    },
}

/// Writes the layout. `images` are images of Docker's engine, each with its architecture as OCI names it. `name` is the tag in the index.
pub async fn write(layout: &Path, name: &str, images: &[(String, &str)]) -> Result<(), OciError> {
    if let Err(error) = fs::remove_dir_all(layout)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(layout)(error));
    }
    make_dir(&layout.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for (image, architecture) in images {
        let saved = layout.join("saved");
        make_dir(&saved)?;
        let archive = saved.join("image.tar");
        run(Command::new("docker").args(["save", "--output"]).arg(&archive).arg(image)).await?;
        run(Command::new("tar").arg("--extract").arg("--directory").arg(&saved).arg("--file").arg(&archive)).await?;
        let mut manifest = manifest(layout, &saved, image, architecture)?;
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifests.push(manifest);
        fs::remove_dir_all(&saved).map_err(failed(&saved))?;
    }
    let of_name = |manifests: Value| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut index = blob(layout, of_name(manifests.into()).to_string().as_bytes(), INDEX)?;
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    write_file(&layout.join("index.json"), of_name(json!([index])).to_string().as_bytes())?;
    write_file(&layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())
}

/// The descriptor of an image's manifest. The blobs of the image are in the layout then.
fn manifest(layout: &Path, saved: &Path, image: &str, architecture: &str) -> Result<Value, OciError> {
    let missing = |missing| OciError::Saved { image: image.to_owned(), missing };
    let list = read_json(&saved.join("manifest.json"))?;
    let config = list[0]["Config"].as_str().ok_or_else(|| missing("configuration"))?;
    let mut config = read_json(&saved.join(config))?;
    // An engine of another architecture writes its own.
    config["architecture"] = architecture.into();
    let config = blob(layout, config.to_string().as_bytes(), CONFIG)?;
    let mut layers = Vec::new();
    for layer in list[0]["Layers"].as_array().ok_or_else(|| missing("layers"))? {
        let path = saved.join(layer.as_str().unwrap_or_default());
        let bytes = fs::read(&path).map_err(failed(&path))?;
        let gzip = bytes.starts_with(&[0x1f, 0x8b]);
        let media_type = if gzip { format!("{LAYER}+gzip") } else { LAYER.to_owned() };
        layers.push(blob(layout, &bytes, &media_type)?);
    }
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    blob(layout, manifest.to_string().as_bytes(), MANIFEST)
}

/// Writes a blob and returns its descriptor.
fn blob(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Value, OciError> {
    let hex = sha256(bytes);
    write_file(&layout.join("blobs/sha256").join(&hex), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() }))
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_json(path: &Path) -> Result<Value, OciError> {
    let text = fs::read(path).map_err(failed(path))?;
    serde_json::from_slice(&text).map_err(|error| failed(path)(error.into()))
}

fn make_dir(path: &Path) -> Result<(), OciError> {
    fs::create_dir_all(path).map_err(failed(path))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), OciError> {
    fs::write(path, bytes).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OciError {
    let path = path.to_owned();
    move |source| OciError::File { path, source }
}
