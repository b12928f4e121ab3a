//! Runs a Consul that speaks xDS v2 and serves Envoys that speak xDS v3 from it.

use std::process::ExitCode;

use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};
use xds_bridge::{Arguments, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let result = match log::init(&Env::of_process(), None) {
        Ok(()) => xds_bridge::run(arguments).await.map(ExitCode::from),
        Err(error) => Err(Error::Log(error)),
    };
    let code = result.as_ref().err().map_or(exit::FAILURE, Error::exit_code);
    exit::finish_with("xds-bridge", result, code)
}
