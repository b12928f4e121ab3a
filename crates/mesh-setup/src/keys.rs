//! The names of files that `cargo xtask images` makes for Consul's servers and that other crates read.

/// The CA certificate.
pub const CA_FILE: &str = "ca.pem";
/// The servers' configuration, which has the gossip key.
pub const CONFIG: &str = "servers.json";
