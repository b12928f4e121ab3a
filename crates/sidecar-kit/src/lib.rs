//! What every ecs-mesh container needs: [`wait`] and [`backoff`] to try again, [`log`] and [`stderr`], exit codes and one-line
//! errors in [`exit`], [`secret`], [`json`] that may hold secrets, [`mod@env`], and atomic writes in [`mod@file`].
//!
//! Four features add the rest: `http` a client for `http://` and unix sockets, `tls` the same for `https://`, `server` an HTTP server,
//! and `signals` TERM and INT. A program without `http` does not build hyper, and one without `tls` does not build rustls. This is
//! the lowest layer: nothing here knows Consul or ECS.

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
