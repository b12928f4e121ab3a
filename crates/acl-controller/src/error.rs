//! Why a cycle, or the work on one token owner, failed.

use std::sync::Arc;

use consul_api::AccessorId;

use crate::term::NotLeader;
use crate::{aws, consul};

/// Why a cycle, or one service in it, did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to AWS failed.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// A policy that the token links can't be had.
    #[error(transparent)]
    Policy(Arc<Error>),
    /// A call to Consul failed.
    #[error(transparent)]
    Consul(#[from] consul::Error),
    /// There is no secret to store the token in.
    #[error("the secret {name} does not exist: create it, with the value {{}}, together with the service")]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// There is only a secret as consul-ecs 0.4 names it with Consul Enterprise.
    #[error(
        "the secret {name} does not exist, and {found}, as consul-ecs 0.4 with -partitions-enabled names it, is not used: create \
         {name}, with the value {{}}, and give that one to the task definition"
    )]
    OldSecret {
        /// Its name.
        name: String,
        /// The one that exists.
        found: String,
    },
    /// The secret holds what is not ours to overwrite.
    #[error(
        "the secret {name} does not hold a token: expected {{\"accessor_id\":\"…\",\"token\":\"…\"}} or {{}}; it is left as it is, \
         set it to {{}} to have it filled"
    )]
    NotOurs {
        /// Its name.
        name: String,
    },
    /// The secret holds a token that neither Consul lists nor a controller of this cluster has noted.
    #[error(
        "the secret {name} holds the token {accessor}, which this Consul does not have and this controller did not make, such as a \
         token of another Consul: it is left as it is; set it to {{}} to have it filled"
    )]
    UnknownToken {
        /// The secret's name.
        name: String,
        /// The token's accessor ID.
        accessor: AccessorId,
    },
    /// The secret holds a live token that somebody else made for something else.
    #[error(
        "the secret {name} holds the token {accessor}, which another made ({description:?}): it is left as it is. Does the prefix of \
         another cluster's secrets begin with this one's? Otherwise set the secret to {{}} to have it filled"
    )]
    AnothersToken {
        /// The secret's name.
        name: String,
        /// The token's accessor ID.
        accessor: AccessorId,
        /// What the token's description says.
        description: String,
    },
    /// A token vanished between two calls.
    #[error("the token {accessor} has vanished meanwhile")]
    Vanished {
        /// Its accessor ID.
        accessor: AccessorId,
    },
    /// A task's service can't have a token.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether it is of the secret, and will be the same next time.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::NotOurs { .. } => true,
            Self::Aws(error) => error.is_lasting(),
            _ => false,
        }
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
