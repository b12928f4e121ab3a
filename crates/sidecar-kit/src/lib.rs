//! What every ecs-mesh container needs: [backoff] and bounded [waits](wait), [logging](log) to [standard error](stderr),
//! [exit codes and one-line errors](exit), [secrets](secret), [JSON that may hold them](json),
//! [environment variables](mod@env) and [atomic file writes](mod@file).
//!
//! The feature `http` adds an HTTP client for `http://` and unix sockets, the feature `tls` the same for `https://`. A program
//! without them builds neither hyper nor rustls. This is the lowest layer: nothing here knows Consul or ECS.

pub mod backoff;
pub mod env;
pub mod exit;
pub mod file;
#[cfg(feature = "http")]
pub mod http;
pub mod json;
pub mod log;
pub mod secret;
pub mod stderr;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wait;
