//! What a task without an agent writes into the catalog ("Register Entity - Catalog HTTP API").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::service::is_false;
use crate::{CheckId, CheckStatus, Proxy, ServiceAddress, ServiceId, ServiceKind, ServiceRegistration, Weights};

/// A service of a node, and its checks. The node must exist; the registration does not change it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogRegistration {
    /// The node's name.
    pub node: String,
    /// The node keeps its address and its meta. A token that may only write its service needs this.
    skip_node_update: bool,
    /// The service.
    pub service: CatalogService,
    /// Its checks. Other checks of the service stay as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CatalogCheck>,
    /// Consul Enterprise's admin partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

/// A service in the catalog.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the fields are those of a registration at an agent, which has the descriptions")]
pub struct CatalogService {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ServiceKind>,
    #[serde(rename = "ID")]
    pub id: ServiceId,
    pub service: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_false")]
    pub enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Where the instance runs (Consul 1.16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
}

/// A region and a zone in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names say it")]
pub struct Locality {
    pub region: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
}

/// A check in the catalog. No agent runs it: somebody writes its status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogCheck {
    /// Its ID, unique on the node.
    #[serde(rename = "CheckID")]
    pub check_id: CheckId,
    /// The ID of its service.
    #[serde(rename = "ServiceID")]
    pub service_id: ServiceId,
    /// Its name.
    pub name: String,
    /// Who writes its status.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// A text for people.
    pub notes: String,
    /// Its status.
    pub status: CheckStatus,
    /// Why it has this status.
    pub output: String,
    /// The namespace of its service (Consul Enterprise).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl CatalogRegistration {
    /// The catalog's form of a registration at an agent, for a service of this node. Its checks are not taken over, because an agent runs
    /// those.
    #[must_use]
    pub fn new(node: String, registration: ServiceRegistration, checks: Vec<CatalogCheck>) -> Self {
        let ServiceRegistration {
            kind,
            id,
            name,
            tags,
            port,
            address,
            tagged_addresses,
            meta,
            enable_tag_override,
            weights,
            checks: _,
            proxy,
            namespace,
            partition,
        } = registration;
        let service = CatalogService {
            kind,
            id,
            service: name,
            tags,
            port,
            address,
            tagged_addresses,
            meta,
            enable_tag_override: enable_tag_override.unwrap_or(false),
            weights,
            proxy,
            namespace,
            partition: partition.clone(),
            locality: None,
        };
        Self { node, skip_node_update: true, service, checks, partition }
    }
}
