//! A client for the gRPC services of Consul's servers that a mesh task without an agent uses.
//!
//! [`Connection`] is a connection to one server, with one method for each call. [`Servers`] knows the servers and chooses one; if it
//! fails, it goes on to the next. [`Follower`] stays with a server, learns from it which servers there are, and reports when the server
//! or the token is no longer good. The crate knows neither ECS nor Envoy.

mod connection;
mod connector;
mod error;
mod follow;
pub mod messages;
mod servers;
mod tls;

pub use connection::{
    BootstrapParams, Connection, DnsProtocol, Features, LoginRequest, LoginToken, Server, WatchServers, XDS,
};
pub use error::{Error, innermost, shown};
pub use follow::{Follower, Ready, State};
pub use servers::Servers;
pub use tls::{Tls, Trust};
pub use tonic::Code;
