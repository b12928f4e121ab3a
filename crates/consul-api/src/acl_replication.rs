//! Where the ACLs of a datacenter come from ("ACL HTTP API", "Check ACL Replication").

use hyper::Method;
use serde::Deserialize;

use crate::client::{Call, Client};
use crate::error::Error;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replication {
    #[serde(default)]
    source_datacenter: String,
}

impl Client {
    /// The primary datacenter, from which this datacenter replicates its ACLs. None if this datacenter is the primary one.
    pub async fn acl_source_datacenter(&self) -> Result<Option<String>, Error> {
        let replication: Replication = self.fetch(Call::new(Method::GET, "/v1/acl/replication")).await?;
        Ok(Some(replication.source_datacenter).filter(|datacenter| !datacenter.is_empty()))
    }
}
