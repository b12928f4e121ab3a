//! Runs Envoy in a task without a Consul agent, and connects it to Consul's servers.

use std::process::ExitCode;

use mesh_dataplane::{Arguments, Error};
use sidecar_kit::env::Env;
use sidecar_kit::exit;
use supervise::HeldSignals;

fn main() -> ExitCode {
    let held = HeldSignals::hold("mesh-dataplane");
    let arguments: Arguments = exit::parse_arguments();
    let env = Env::of_process();
    exit::run_with("mesh-dataplane", mesh_dataplane::main(held, arguments, &env), Error::exit_code)
}
