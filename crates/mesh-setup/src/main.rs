//! Prepares Consul and Secrets Manager for the local mesh.

use std::process::ExitCode;

use mesh_setup::Options;
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Setup(#[from] mesh_setup::Error),
}

fn main() -> ExitCode {
    let options: Options = exit::parse_arguments();
    exit::run("mesh-setup", async {
        let env = Env::of_process();
        log::init(&env, None)?;
        mesh_setup::run(&env, options).await?;
        Ok::<_, Error>(ExitCode::SUCCESS)
    })
}
