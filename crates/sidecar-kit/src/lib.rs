//! What every ecs-mesh container needs. [`wait`] and [`backoff`] try again. [`exit`] has the exit codes and one-line errors, [`log`] and
//! [`stderr`] write the log. [`secret`] and [`json`] keep secrets out of messages. [`mod@env`] has the variables, and [`mod@file`] writes
//! files completely or not at all.
//!
//! Four features add more: `http` is a client for `http://` and unix sockets, `tls` extends it to `https://`, `server` is an HTTP server,
//! and `signals` is for TERM and INT. A program without `http` does not build hyper, and one without `tls` does not build rustls. This
//! is the lowest layer: nothing here knows Consul or ECS.

pub mod backoff;
pub mod env;
pub mod exit;
pub mod failure;
pub mod file;
#[cfg(feature = "http")]
pub mod http;
pub mod json;
pub mod log;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "signals")]
pub mod signals;
pub mod stderr;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wait;
