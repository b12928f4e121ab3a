//! Runs Consul 1.8, which serves xDS v2, and serves Envoys its configuration as xDS v3.

use std::process::ExitCode;

use sidecar_kit::env::Env;
use sidecar_kit::{exit, log};
use supervise::HeldSignals;
use xds_bridge::{Arguments, Error};

fn main() -> ExitCode {
    let held = HeldSignals::hold("xds-bridge");
    let arguments: Arguments = exit::parse_arguments();
    let work = async {
        log::init(&Env::of_process(), None)?;
        xds_bridge::run(held, arguments).await.map(ExitCode::from)
    };
    exit::run_with("xds-bridge", work, Error::exit_code)
}
