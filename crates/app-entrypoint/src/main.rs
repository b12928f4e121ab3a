//! Keeps an app running for a while after the task was told to stop.

use std::process::ExitCode;

use app_entrypoint::Arguments;
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};
use supervise::entrypoint::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let result = match log::init(&Env::of_process(), None) {
        Ok(()) => app_entrypoint::main(arguments).await,
        Err(error) => Err(error.into()),
    };
    let code = result.as_ref().err().map_or(exit::FAILURE, Error::exit_code);
    exit::finish_with("app-entrypoint", result, code)
}
