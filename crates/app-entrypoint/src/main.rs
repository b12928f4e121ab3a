//! Keeps an app running for a while after its task gets TERM.

use std::process::ExitCode;

use app_entrypoint::Arguments;
use sidecar_kit::env::Env;
use sidecar_kit::exit;
use supervise::HeldSignals;
use supervise::entrypoint::{Error, start_logging};

fn main() -> ExitCode {
    let held = HeldSignals::hold("app-entrypoint");
    let arguments: Arguments = exit::parse_arguments();
    start_logging(&Env::of_process(), None);
    exit::run_with("app-entrypoint", app_entrypoint::main(held, arguments), Error::exit_code)
}
