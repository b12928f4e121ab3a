//! What can go wrong between a task and its agent, typed by status and body.

use hyper::StatusCode;
use sidecar_kit::http;
use sidecar_kit::secret::SecretFileError;

/// A request to Consul that failed. Messages name the request, never a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent there: refused, no route, no such name, or the connection broke.
    #[error("{request}: Consul is not reachable")]
    Unreachable {
        /// Method and path.
        request: String,
        /// The cause.
        source: http::Error,
    },
    /// The answer was not complete in time.
    #[error("{request}: Consul is too slow")]
    TimedOut {
        /// Method and path.
        request: String,
        /// The cause.
        source: http::Error,
    },
    /// The TLS handshake failed: check the CA certificates, the server name, and the client's certificate for mutual TLS.
    #[error("{request}: check CONSUL_CACERT, CONSUL_TLS_SERVER_NAME and, for mutual TLS, CONSUL_CLIENT_CERT")]
    Tls {
        /// Method and path.
        request: String,
        /// The cause.
        source: http::Error,
    },
    /// The agent runs, but has no server or no leader yet (500, `No known Consul servers`, `No cluster leader`).
    #[error("{request}: the agent has not joined a cluster with a leader: {body}")]
    NotJoined {
        /// Method and path.
        request: String,
        /// What Consul said.
        body: String,
    },
    /// The token may not do this, or isn't known (403). An agent that hasn't joined says so too.
    #[error("{request}: the ACL token is unknown or lacks the permission: {body}")]
    PermissionDenied {
        /// Method and path.
        request: String,
        /// What Consul said.
        body: String,
    },
    /// No such service, check or entry (404, and what older agents say with 500).
    #[error("{request}: not found: {body}")]
    NotFound {
        /// Method and path.
        request: String,
        /// What Consul said.
        body: String,
    },
    /// This Consul doesn't know a field that was sent (400, `json: unknown field`).
    #[error("{request}: this version of Consul does not know the field {field:?}")]
    UnknownField {
        /// Method and path.
        request: String,
        /// The field, as it was sent.
        field: String,
    },
    /// Any other status than success.
    #[error("{request}: Consul answered {status}: {body}")]
    Refused {
        /// Method and path.
        request: String,
        /// The status.
        status: StatusCode,
        /// What Consul said.
        body: String,
    },
    /// The answer isn't what this endpoint is documented to give: something else listens there.
    #[error("{request}: the answer is not what Consul gives")]
    Undecodable {
        /// Method and path.
        request: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token's file could not be read.
    #[error("no ACL token")]
    Token(#[from] SecretFileError),
}

impl Error {
    /// Whether the same call may succeed later while a task and its agent start: no agent yet, not joined yet, a token
    /// that the servers don't know yet. A wrong request (400) and an answer that isn't Consul's stay what they are.
    #[must_use]
    pub fn may_pass_at_start(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::NotJoined { .. }
            | Self::PermissionDenied { .. } => true,
            // Consul says 500 to a check with a script, which this agent won't run later either.
            Self::Refused { body, .. } if body.contains("Scripts are disabled") => false,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound { .. }
            | Self::Tls { .. }
            | Self::UnknownField { .. }
            | Self::Undecodable { .. }
            | Self::Token(_) => false,
        }
    }

    /// Whether the server does not know the token, or what else was asked of its ACLs.
    #[must_use]
    pub fn is_unknown_token(&self) -> bool {
        matches!(self, Self::PermissionDenied { body, .. } if body.to_lowercase().contains("acl not found"))
    }

    /// Whether there is no token with the accessor ID that the request names. `ACL not found` may also mean the request's own token.
    #[must_use]
    pub fn is_missing_token(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            // What 1.8 to 1.21 answer when a token is to be changed.
            Self::Refused { body, .. } => body.to_lowercase().contains("cannot find token"),
            error => error.is_unknown_token(),
        }
    }

    /// Whether another server may do better: this one is gone, too slow, without a leader or over its rate limit, or the TLS
    /// handshake with it failed.
    pub(crate) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Tls { .. } | Self::NotJoined { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }

    /// Whether the server may have done what it was asked, although it gave no answer.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !matches!(source, http::Error::Unreachable { .. }),
            other => matches!(other, Self::TimedOut { .. }),
        }
    }

    pub(crate) fn from_http(request: String, source: http::Error) -> Self {
        match source {
            http::Error::Unreachable { .. } | http::Error::Broken { .. } => Self::Unreachable { request, source },
            http::Error::TimedOut { .. } => Self::TimedOut { request, source },
            http::Error::Tls { .. } => Self::Tls { request, source },
            http::Error::TooLarge { .. } | http::Error::NotHttp { .. } => {
                Self::Undecodable { request, source: source.into() }
            }
        }
    }

    /// The error that a status other than success stands for.
    pub(crate) fn from_response(request: String, status: StatusCode, body: String) -> Self {
        match status {
            StatusCode::FORBIDDEN => Self::PermissionDenied { request, body },
            StatusCode::NOT_FOUND => Self::NotFound { request, body },
            StatusCode::BAD_REQUEST if unknown_field(&body).is_some() => {
                Self::UnknownField { request, field: unknown_field(&body).unwrap_or_default().to_owned() }
            }
            StatusCode::INTERNAL_SERVER_ERROR => {
                let text = body.to_lowercase();
                if ["no known consul servers", "no cluster leader", "not ready to serve"]
                    .iter()
                    .any(|t| text.contains(t))
                {
                    Self::NotJoined { request, body }
                } else if [
                    "unknown check",
                    "not have associated ttl",
                    "unknown service",
                    "missing service registration",
                ]
                .iter()
                .any(|t| text.contains(t))
                {
                    Self::NotFound { request, body }
                } else if ["permission denied", "acl not found"].iter().any(|t| text.contains(t)) {
                    // What a server said to an agent, passed on as the agent's own failure.
                    Self::PermissionDenied { request, body }
                } else {
                    Self::Refused { request, status, body }
                }
            }
            status => Self::Refused { request, status, body },
        }
    }
}

/// The name in Go's `json: unknown field "X"`.
fn unknown_field(body: &str) -> Option<&str> {
    body.split_once("unknown field \"")?.1.split_once('"').map(|(field, _)| field)
}
