//! Why a cycle, or the work on one token owner, failed.

use crate::term::NotLeader;
use crate::{aws, consul};

/// Why a cycle, or one service in it, did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to AWS failed.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// A call to Consul failed.
    #[error(transparent)]
    Consul(#[from] consul::Error),
    /// There is no secret to store the token in.
    #[error("the secret {name} does not exist: create it, with the value {{}}, together with the service")]
    NoSecret {
        /// Its name.
        name: String,
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
    /// A token vanished between two calls.
    #[error("the token {accessor} has vanished meanwhile")]
    Vanished {
        /// Its accessor ID.
        accessor: String,
    },
    /// A task's service can't have a token.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn is_not_leader(&self) -> bool {
        matches!(self, Self::Aws(aws::Error::NotLeader(_)) | Self::Consul(consul::Error::NotLeader(_)))
    }
}

impl From<NotLeader> for Error {
    fn from(error: NotLeader) -> Self {
        Self::Consul(error.into())
    }
}
