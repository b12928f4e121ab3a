//! Keeps an app running for a while after the task was told to stop.

use std::process::ExitCode;

use app_entrypoint::Arguments;
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};
use supervise::entrypoint::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    // They are the app's variables too, and it may have other words for them.
    if let Err(error) = log::init(&Env::of_process(), None) {
        let _ = log::init(&Env::default(), None);
        tracing::warn!("{error}; logging as text, from info on");
    }
    let result = app_entrypoint::main(arguments).await;
    let code = result.as_ref().err().map_or(exit::FAILURE, Error::exit_code);
    exit::finish_with("app-entrypoint", result, code)
}
