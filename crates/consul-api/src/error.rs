//! The errors of requests to Consul, by status and body.

use hyper::StatusCode;
use sidecar_kit::http;
use sidecar_kit::secret::SecretFileError;

/// A request to Consul failed. Messages name the request and never hold a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent answers: connection refused, no route, unknown name, or a broken connection.
    #[error("{request}: Consul is not reachable")]
    Unreachable {
        /// Method and path.
        request: String,
        /// The cause.
        source: http::Error,
    },
    /// The answer was not complete in time.
    #[error("{request}: Consul did not answer in time")]
    TimedOut {
        /// Method and path.
        request: String,
        /// The cause.
        source: http::Error,
    },
    /// The TLS handshake failed: check the CA certificates, the server name, and the client's certificate for mutual TLS.
    #[error(
        "{request}: no TLS connection (check the CA certificate, such as CONSUL_CACERT, and CONSUL_TLS_SERVER_NAME; for mutual TLS, \
         CONSUL_CLIENT_CERT)"
    )]
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
        /// Consul's answer.
        body: String,
    },
    /// The token is unknown or lacks the permission (403). An agent that has not joined gives the same answer.
    #[error("{request}: the ACL token is unknown or lacks the permission: {body}")]
    PermissionDenied {
        /// Method and path.
        request: String,
        /// Consul's answer.
        body: String,
    },
    /// There is no such service, check or entry (404; older agents answer 500).
    #[error("{request}: not found: {body}")]
    NotFound {
        /// Method and path.
        request: String,
        /// Consul's answer.
        body: String,
    },
    /// This Consul does not know a field of the request (400, `json: unknown field`).
    #[error("{request}: this version of Consul does not know the field {field:?}")]
    UnknownField {
        /// Method and path.
        request: String,
        /// The field.
        field: String,
    },
    /// Somebody else has changed what this request would replace.
    #[error("{request}: somebody else has changed it in the meantime")]
    Changed {
        /// Method and path.
        request: String,
    },
    /// Any other status than success.
    #[error("{request}: Consul answered {status}: {body}")]
    Refused {
        /// Method and path.
        request: String,
        /// The status.
        status: StatusCode,
        /// Consul's answer.
        body: String,
    },
    /// The answer is not of the documented form: another program listens there.
    #[error("{request}: the answer is not from Consul")]
    Undecodable {
        /// Method and path.
        request: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token's file cannot be read.
    #[error("no ACL token")]
    Token(#[from] SecretFileError),
}

impl Error {
    /// Whether the same call may succeed later while a task and its agent start: the agent may be missing, may not have joined, or
    /// may not know the token yet. A wrong request (400) and an answer of another program are final.
    #[must_use]
    pub fn may_pass_at_start(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::NotJoined { .. }
            | Self::PermissionDenied { .. }
            | Self::Changed { .. } => true,
            // Consul answers 500 to a script check if scripts are disabled. That stays so.
            Self::Refused { body, .. } if body.contains("Scripts are disabled") => false,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound { .. }
            | Self::Tls { .. }
            | Self::UnknownField { .. }
            | Self::Undecodable { .. }
            | Self::Token(_) => false,
        }
    }

    /// Whether the answer is `ACL not found`: the server does not know the token, or the ACL object that the request names.
    #[must_use]
    pub fn is_unknown_token(&self) -> bool {
        matches!(self, Self::PermissionDenied { body, .. } if body.to_lowercase().contains("acl not found"))
    }

    /// Whether there is no token with the accessor ID that the request names. `ACL not found` is ambiguous: the unknown token may also be
    /// the one that the request carries.
    #[must_use]
    pub fn is_missing_token(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            // The answer of Consul 1.8 to 1.21 to a change of a token that does not exist.
            Self::Refused { body, .. } => body.to_lowercase().contains("cannot find token"),
            error => error.is_unknown_token(),
        }
    }

    /// Whether this Consul has no ACLs, and so no tokens and policies.
    #[must_use]
    pub fn is_without_acls(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::UNAUTHORIZED, body, .. } if body.contains("ACL support disabled"))
    }

    /// The keys of a config entry that this Consul does not know (400, `invalid config key "X"`). If there are many, this may be only
    /// the first ones, because the text of an answer is cut off.
    #[must_use]
    pub fn unknown_config_keys(&self) -> Vec<String> {
        match self {
            Self::Refused { status: StatusCode::BAD_REQUEST, body, .. } => {
                let keys = body.split("invalid config key \"").skip(1).filter_map(|rest| rest.split_once('"'));
                keys.map(|(key, _)| key.to_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether another server may succeed: this one is gone, too slow, without a leader or over its rate limit, or the TLS handshake
    /// failed.
    pub(crate) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Tls { .. } | Self::NotJoined { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }

    /// Whether the server may have carried out the request although there was no answer.
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

    /// The error for a status other than success.
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
                    // A server refused the agent's request. The agent passes the refusal on as a 500.
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
