//! Runs Envoy under supervision as a task's sidecar proxy, for as long as the task's apps need it.

use std::process::ExitCode;

use envoy_entrypoint::{Arguments, Error};
use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};
use supervise::entrypoint;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let env = Env::of_process();
    let result = match log::init(&env, None) {
        Ok(()) => envoy_entrypoint::main(arguments, &env).await,
        Err(error) => Err(entrypoint::Error::from(error).into()),
    };
    let code = result.as_ref().err().map_or(exit::FAILURE, Error::exit_code);
    exit::finish_with("envoy-entrypoint", result, code)
}
