//! Errors of a cycle and of the work on one token owner.

use std::sync::Arc;

use consul_api::AccessorId;

use crate::term::NotLeader;
use crate::{aws, consul};

/// Why a cycle, or the work on one token owner, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to AWS failed.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// A policy that the token links could not be created or repaired.
    #[error(transparent)]
    Policy(Arc<Error>),
    /// A call to Consul failed.
    #[error(transparent)]
    Consul(#[from] consul::Error),
    /// The secret for the token does not exist.
    #[error("the secret {name} does not exist: create it, with the value {{}}, together with the service")]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// Only the secret of consul-ecs 0.4 with Consul Enterprise exists.
    #[error(
        "the secret {name} does not exist. acl-controller does not use {found}, the name that consul-ecs 0.4 gives with \
         -partitions-enabled. Create {name} with the value {{}}, and use it in the task definition"
    )]
    OldSecret {
        /// Its name.
        name: String,
        /// The one that exists.
        found: String,
    },
    /// The secret holds something else than a token, and must not be overwritten.
    #[error(
        "the secret {name} does not hold a token: expected {{\"accessor_id\":\"…\",\"token\":\"…\"}} or {{}}. acl-controller \
         does not change it; set it to {{}} to get a token"
    )]
    NotOurs {
        /// Its name.
        name: String,
    },
    /// The secret holds a token that Consul does not list and no controller of this cluster has recorded.
    #[error(
        "the secret {name} holds the token {accessor}, which this Consul does not list \
         and this controller did not make: it may be a token of another Consul. acl-controller does not change the secret; \
         set it to {{}} to get a token"
    )]
    UnknownToken {
        /// The secret's name.
        name: String,
        /// The token's accessor ID.
        accessor: AccessorId,
    },
    /// The secret holds a live token that somebody else made for another purpose.
    #[error(
        "the secret {name} holds the token {accessor}, which another controller or person made ({description:?}). acl-controller does \
         not change it. Check whether the prefix of another \
         cluster begins with the prefix of this one, or the other way round. If not, set the secret to {{}} to get a token"
    )]
    AnothersToken {
        /// The secret's name.
        name: String,
        /// The token's accessor ID.
        accessor: AccessorId,
        /// What the token's description says.
        description: String,
    },
    /// There is an auth method of the same name and of another type.
    #[error("the auth method {name} has the type {kind}, not aws-iam; give another name with --auth-method")]
    OtherAuthMethod {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
    },
    /// A token was deleted between two calls.
    #[error("the token {accessor} was deleted in the meantime")]
    Vanished {
        /// Its accessor ID.
        accessor: AccessorId,
    },
    /// Consul allows no token for a service with this name.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether the secret causes the failure and the next attempt will fail too.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::NotOurs { .. } => true,
            Self::Aws(error) => error.is_lasting(),
            _ => false,
        }
    }

    /// Whether this Consul has no ACLs.
    pub(crate) fn is_without_acls(&self) -> bool {
        matches!(self, Self::Consul(consul::Error::Failed(error)) if error.is_without_acls())
    }

    pub(crate) fn is_not_leader(&self) -> bool {
        match self {
            Self::Aws(error) => matches!(error, aws::Error::NotLeader(_)),
            Self::Consul(error) => matches!(error, consul::Error::NotLeader(_)),
            Self::Policy(error) => error.is_not_leader(),
            _ => false,
        }
    }
}

impl From<NotLeader> for Error {
    fn from(error: NotLeader) -> Self {
        Self::Consul(error.into())
    }
}
