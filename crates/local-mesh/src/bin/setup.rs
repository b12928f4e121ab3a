//! Writes the local mesh's config entries: a one-shot container, safe to run again.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use consul_api::{Client, Config, at_start};
use serde_json::{Value, json};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

/// Waits for Consul's leader and writes the local mesh's config entries. A second run changes nothing.
#[derive(Debug, Parser)]
#[command(
    name = "setup",
    version,
    after_help = "Variables: Consul's own (CONSUL_HTTP_ADDR and its kind), LOG_LEVEL, LOG_FORMAT.\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong command line."
)]
struct Arguments {
    /// A service that speaks HTTP; may be given more than once.
    #[arg(long, env = "HTTP_SERVICES", value_delimiter = ',', value_name = "SERVICE")]
    http_service: Vec<String>,
    /// How long to wait for Consul.
    #[arg(long, env = "WAIT", default_value = "90s", value_parser = sidecar_kit::exit::parse_duration)]
    wait: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Config(#[from] consul_api::ConfigError),
    #[error(transparent)]
    Consul(#[from] sidecar_kit::wait::WaitError<consul_api::Error>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { http_service, wait } = exit::parse_arguments();
    exit::finish("setup", setup(&http_service, wait).await)
}

async fn setup(http_services: &[String], wait: Duration) -> Result<ExitCode, Error> {
    let env = Env::of_process();
    log::init(&env, None)?;
    let client = Client::new(Config::from_env(&env)?)?;
    for service in http_services {
        let entry = json!({ "Kind": "service-defaults", "Name": service, "Protocol": "http" });
        at_start("Consul's leader", wait, async || write(&client, &entry).await).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes an entry unless Consul has it: even an equal one would get a new index and wake all who watch.
async fn write(client: &Client, entry: &Value) -> Result<(), consul_api::Error> {
    let (kind, name) = (entry["Kind"].as_str().unwrap_or_default(), entry["Name"].as_str().unwrap_or_default());
    let written = match client.config_entry(kind, name).await {
        Ok(written) => written,
        Err(consul_api::Error::NotFound { .. }) => Value::Null,
        Err(error) => return Err(error),
    };
    let fields = entry.as_object().into_iter().flatten();
    if fields.into_iter().all(|(field, value)| written.get(field) == Some(value)) {
        tracing::info!("{kind} of {name} is as it should be");
        return Ok(());
    }
    client.put_config_entry(entry).await?;
    tracing::info!("wrote {kind} of {name}");
    Ok(())
}
