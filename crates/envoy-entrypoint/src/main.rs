//! Runs Envoy under supervision as a task's sidecar proxy, for as long as the task's apps need it.

use std::process::ExitCode;

use envoy_entrypoint::{Arguments, Error};
use sidecar_kit::env::Env;
use sidecar_kit::exit;
use supervise::HeldSignals;
use supervise::entrypoint::start_logging;

fn main() -> ExitCode {
    let held = HeldSignals::hold("envoy-entrypoint");
    let arguments: Arguments = exit::parse_arguments();
    let env = Env::of_process();
    start_logging(&env, None);
    exit::run_with("envoy-entrypoint", envoy_entrypoint::main(held, arguments, &env), Error::exit_code)
}
