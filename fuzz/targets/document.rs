//! The configuration document: no text makes reading it panic, and a message is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_config::{Config, ConfigError};

fuzz_target!(|text: &str| {
    match Config::parse(text) {
        Ok(config) => {
            assert!(config.service.is_some() || config.gateway.is_some());
            assert!(config.proxy.upstreams.iter().all(|upstream| upstream.local_bind_port != 0));
            assert!(config.warnings.iter().all(|line| !line.contains('\n')));
        }
        Err(ConfigError::Fields { errors, .. }) => {
            assert!(!errors.is_empty() && errors.iter().all(|error| !error.to_string().contains('\n')));
        }
        Err(ConfigError::NotJson(_)) => {}
    }
});
