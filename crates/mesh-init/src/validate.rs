//! `mesh-init validate`: reads a document, and reports its errors or what mesh-init would register.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mesh_config::{Config, ConfigError, VARIABLE};
use sidecar_kit::env::Env;
use sidecar_kit::stderr;

use crate::run::RunError;

/// The document cannot be checked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ValidateError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    NoConfig(RunError),
    #[error("the document")]
    NotJson(#[source] ConfigError),
}

/// Reads the document from `file` (`-`: standard input), else from its variable. Each error and each warning is a line on standard
/// error. Without an error, a line on standard output says what mesh-init would register. Errors in the document's fields are
/// printed here and give the exit code 1.
pub fn run(file: Option<&Path>, env: &Env) -> Result<ExitCode, ValidateError> {
    let text = match file {
        Some(path) => {
            let read = if path == Path::new("-") { from_stdin() } else { fs::read_to_string(path) };
            read.map_err(|source| ValidateError::Read { path: path.to_owned(), source })?
        }
        None => env.get(VARIABLE).ok_or(ValidateError::NoConfig(RunError::NoConfig))?.to_owned(),
    };
    let read = Config::parse(&text);
    let warnings = match &read {
        Ok(config) => &config.warnings,
        Err(error) => error.warnings(),
    };
    for warning in warnings {
        stderr::line(format!("warning: {warning}\n"));
    }
    match read {
        Ok(config) => {
            println!("valid: {}", registers(&config));
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError::Fields { errors, .. }) => {
            for error in errors {
                stderr::line(format!("error: {error}\n"));
            }
            Ok(ExitCode::FAILURE)
        }
        Err(error @ ConfigError::NotJson(_)) => Err(ValidateError::NotJson(error)),
    }
}

fn from_stdin() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// What mesh-init would register for this document.
fn registers(config: &Config) -> String {
    if let Some(gateway) = &config.gateway {
        let name = gateway.name.as_deref().unwrap_or("named as the task family");
        return format!("registers the {} {name}", gateway.kind.as_str());
    }
    let service = config.service.as_ref();
    let name = service.and_then(|service| service.name.as_deref()).unwrap_or("named as the task family");
    let port = service.map(|service| service.port).filter(|port| *port != 0);
    let port = port.map_or_else(|| "without a port".to_owned(), |port| format!("on port {port}"));
    let proxy = &config.proxy;
    let upstreams = match proxy.upstreams.len() {
        0 => "no upstreams".to_owned(),
        1 => "1 upstream".to_owned(),
        more => format!("{more} upstreams"),
    };
    format!(
        "registers the service {name} {port}, and its sidecar proxy on port {} with {upstreams}",
        proxy.public_listener_port
    )
}
