//! The files that `cargo xtask images` makes for Consul's servers, as far as others read them.

/// The CA certificate.
pub const AUTHORITY: &str = "ca.pem";
/// The servers' configuration, which has the gossip key.
pub const CONFIG: &str = "servers.json";
