//! Why a call failed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use sidecar_kit::secret::Secret;
use sidecar_kit::tls::{PemError, TlsOptionsError};
use tonic::{Code, Status};

/// Why a call failed. No message holds a token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot resolve the name of Consul's servers, {host}")]
    Resolve { host: String, source: io::Error },
    #[error("cannot read the CA certificate of Consul's servers in {file}")]
    Authority { file: String, source: io::Error },
    #[error("cannot use the CA certificate of Consul's servers in {file}")]
    Pem { file: String, source: PemError },
    #[error("cannot use TLS")]
    Tls(#[from] TlsOptionsError),
    #[error("{0:?} is not a name that a certificate can have")]
    ServerName(String),
    #[error("the token cannot be sent: it has characters that gRPC metadata cannot have")]
    Token,
    #[error("cannot connect to Consul's server at {server}")]
    Connect { server: SocketAddr, source: io::Error },
    #[error("{call}: Consul's server at {server} did not answer within {within:?}")]
    TimedOut { call: &'static str, server: SocketAddr, within: Duration },
    #[error("{call}: the connection to Consul's server at {server} broke: {reason}")]
    Broken { call: &'static str, server: SocketAddr, reason: String },
    #[error("{call}: Consul's server at {server} answered {code:?}: {message}")]
    Status { call: &'static str, server: SocketAddr, code: Code, message: String },
}

impl Error {
    /// The error of a failed call. `<token>` replaces `secrets` in the server's text.
    pub(crate) fn of(call: &'static str, server: SocketAddr, status: &Status, secrets: &[&Secret]) -> Self {
        let message = shown(status.message(), secrets);
        // A status with a source comes from the broken connection, not from the server.
        match std::error::Error::source(status) {
            Some(_) => Self::Broken { call, server, reason: innermost(status) },
            None => Self::Status { call, server, code: status.code(), message },
        }
    }

    /// The error of a broken connection.
    pub(crate) fn broken(call: &'static str, server: SocketAddr, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Broken { call, server, reason: innermost(error) }
    }

    /// The code that a server answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether another server may succeed: this one is unreachable or too slow, or it answered that it cannot serve the call now.
    #[must_use]
    pub fn is_of_the_server(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            Self::Status { code, .. } => {
                matches!(code, Code::ResourceExhausted | Code::Aborted | Code::Unavailable | Code::Cancelled)
            }
            _ => false,
        }
    }

    /// Whether a call may succeed later, while Consul or the task is being set up. An operator can still mend what a server refuses.
    #[must_use]
    pub fn may_pass_at_start(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code != Code::Unimplemented,
            Self::Resolve { .. } | Self::Connect { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            _ => false,
        }
    }

    /// What the server said, if it answered with an error.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Status { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Whether the server has too much to do for this call.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.code() == Some(Code::ResourceExhausted)
    }

    /// Whether the server does not know the token. After a login, a server may need some 80 ms to learn the token.
    #[must_use]
    pub fn is_unauthenticated(&self) -> bool {
        self.code() == Some(Code::Unauthenticated)
    }

    /// Whether the server may have carried out the call although there was no answer.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Broken { .. })
    }
}

/// A server's text, for a log or an error. `<token>` replaces `secrets`, and a long text is cut.
#[must_use]
pub fn shown(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.expose().is_empty()) {
        text = text.replace(secret.expose(), "<token>");
    }
    text.replace(char::is_control, " ").chars().take(300).collect()
}

/// The text of the cause behind all others: why a connection broke.
#[must_use]
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_text_has_no_token_and_is_short() {
        let token = Secret::new("5ec3e7");
        // The end of the shown part is in the middle of the token.
        let text = format!("{}5ec3e7 \n{}", "x".repeat(297), "y".repeat(300));
        let text = shown(&text, &[&token]);
        assert_eq!(text.len(), 300);
        assert!(text.ends_with("x<to"), "{text}");
    }
}
