//! What every ecs-mesh container needs and none should write twice.
//!
//! The lowest layer: an HTTP [`client`](http), one [backoff] and one bounded [wait], [logging](log) to
//! [standard error](stderr), [exit codes and one-line errors](exit), [secrets](secret), [JSON that may hold them](json),
//! [environment variables](mod@env) and [atomic file writes](mod@file). Nothing here knows Consul or ECS.

pub mod backoff;
pub mod env;
pub mod exit;
pub mod file;
pub mod http;
pub mod json;
pub mod log;
pub mod secret;
pub mod stderr;
pub mod tls;
pub mod wait;
