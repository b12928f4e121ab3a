//! ACL tokens from an auth method of Consul.
//!
//! [`Login`] logs in at the servers' HTTP API, `GrpcLogin` at their gRPC (feature `grpc`). [`Prover`] makes the proof that the auth method
//! asks for: a signed AWS request, or a text that the platform gives. [`Keeper`] replaces a token before it expires; [`TaskLogin`] is its source
//! for a login by HTTP. [`Issued`] knows the tokens that must be deleted at the end.

mod aws;
mod credentials;
#[cfg(feature = "grpc")]
mod grpc;
mod issued;
mod keep;
mod login;
mod proof;
mod task;

pub use aws::AwsError;
pub use credentials::CredentialsError;
#[cfg(feature = "grpc")]
pub use grpc::GrpcLogin;
pub use issued::Issued;
pub use keep::{Held, Keeper, Source, expiry};
pub use login::{LOGOUT_AT_ONE, Login, LoginError, LoginToken, servers};
pub use proof::{BEARER_TOKEN, Prover, Settings, meta};
pub use task::TaskLogin;
