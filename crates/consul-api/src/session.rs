//! Sessions and the locks they hold ("Session HTTP API", "KV Store Endpoints", "Sessions and Distributed Locks").

use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Call, Client};
use crate::error::Error;
use crate::kv::key_call;

/// A session's ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(String);

impl SessionId {
    /// The ID as Consul writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The settings of a new session. It depends on no check. With a check of the node, it would end when the agent that created it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewSession<'a> {
    /// The description, for operators.
    pub name: &'a str,
    /// The TTL, 10 s to 24 h. Without a renewal, the session lives at least this long, and at most twice as long.
    pub ttl: Duration,
    /// The lock-delay: for this long after the session's end, nobody can acquire its locks. At most 60 s.
    pub lock_delay: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    name: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: &'static str,
    node_checks: [&'static str; 0],
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Id {
    #[serde(rename = "ID")]
    id: SessionId,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default)]
    session: Option<SessionId>,
}

impl Client {
    /// Creates a session. Its end releases its locks.
    pub async fn create_session(&self, session: NewSession<'_>, within: Duration) -> Result<SessionId, Error> {
        let body = Body {
            name: session.name,
            ttl: format!("{}s", session.ttl.as_secs()),
            lock_delay: format!("{}ms", session.lock_delay.as_millis()),
            behavior: "release",
            node_checks: [],
        };
        let call = Call::new(Method::PUT, "/v1/session/create").json(&body).within(within);
        self.fetch::<Id>(call).await.map(|Id { id }| id)
    }

    /// Renews a session for its whole TTL. Returns false if the session has ended.
    pub async fn renew_session(&self, id: &SessionId, within: Duration) -> Result<bool, Error> {
        let call = Call::new(Method::PUT, "/v1/session/renew").segment(id.as_str()).within(within);
        match self.execute(call).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a session and releases its locks.
    pub async fn destroy_session(&self, id: &SessionId, within: Duration) -> Result<(), Error> {
        self.execute(Call::new(Method::PUT, "/v1/session/destroy").segment(id.as_str()).within(within)).await
    }

    /// Acquires the lock on a key for a session. Returns false if another session holds the lock, or held it less than a lock-delay ago.
    pub async fn acquire(&self, key: &str, id: &SessionId, value: &str, within: Duration) -> Result<bool, Error> {
        let call = key_call(Method::PUT, key).query("acquire", id.as_str()).text(value);
        self.fetch(call.within(within)).await
    }

    /// Releases a lock. Returns false if the session does not hold it.
    pub async fn release(&self, key: &str, id: &SessionId, within: Duration) -> Result<bool, Error> {
        self.fetch(key_call(Method::PUT, key).query("release", id.as_str()).within(within)).await
    }

    /// The session that holds the lock on a key. The leader first confirms with its peers that it is the leader (`?consistent`).
    pub async fn lock_holder(&self, key: &str, within: Duration) -> Result<Option<SessionId>, Error> {
        let call = key_call(Method::GET, key).query("consistent", "").within(within);
        match self.fetch::<Vec<Entry>>(call).await {
            Ok(entries) => Ok(entries.into_iter().find_map(|entry| entry.session)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
