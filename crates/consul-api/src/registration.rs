//! Registering in the catalog: a node's services, their checks, and the node ("Catalog HTTP API", "Transaction HTTP API").

use std::collections::BTreeMap;

use consul_types::{CatalogCheck, CatalogRegistration, CatalogService, CheckId, ServiceId, null_as_empty};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::catalog::HealthNode;
use crate::client::{Call, Client};
use crate::error::Error;

impl Client {
    /// Which of these registrations the catalog has; none if it does not have the node, or if the token may not read the node. All of
    /// them are for this node. The leader first confirms with its peers that it is the leader (`?consistent`). The time does not grow with
    /// the services of the node.
    pub async fn registered(
        &self,
        node: &str,
        registrations: &[CatalogRegistration],
    ) -> Result<Option<Vec<ServiceId>>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Failed {
            op_index: usize,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "null_as_empty")]
            results: Vec<IgnoredAny>,
            #[serde(default, deserialize_with = "null_as_empty")]
            errors: Vec<Failed>,
        }
        let service = |registration: &CatalogRegistration| {
            let CatalogService { id, namespace, partition, .. } = &registration.service;
            let mut service = json!({ "ID": id });
            // Consul without Enterprise may refuse these fields.
            for (field, value) in [("Namespace", namespace), ("Partition", partition)] {
                if let Some(value) = value {
                    service[field] = value.as_str().into();
                }
            }
            json!({ "Service": { "Verb": "get", "Node": node, "Service": service } })
        };
        let mut key = json!({ "Node": node });
        if let Some(partition) = registrations.iter().find_map(|registration| registration.partition.as_deref()) {
            key["Partition"] = partition.into();
        }
        let mut reads = vec![json!({ "Node": { "Verb": "get", "Node": key } })];
        reads.extend(registrations.iter().map(service));
        let call = Call::new(Method::PUT, "/v1/txn").query("consistent", "").json(&reads);
        // A transaction fails if one of its reads finds nothing. The answer then lists these reads.
        let Answer { results, errors } = self.fetch(call.accepting(StatusCode::CONFLICT)).await?;
        let missing = |index: usize| errors.iter().any(|failed| failed.op_index == index);
        // Consul leaves out what the token may not read.
        let unread = errors.is_empty() && results.len() < reads.len();
        if missing(0) || unread {
            return Ok(None);
        }
        let found = registrations.iter().enumerate().filter(|(index, _)| !missing(index + 1));
        Ok(Some(found.map(|(_, registration)| registration.service.id.clone()).collect()))
    }

    /// Registers a service of a node, with its checks. To register the same again changes nothing. Consul before 1.16 refuses a locality,
    /// which is then left out.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] if the token may not write the service, or if the catalog does not have the node.
    pub async fn register_in_catalog(&self, registration: &CatalogRegistration) -> Result<(), Error> {
        let register = |registration| Call::new(Method::PUT, "/v1/catalog/register").json(registration);
        match self.execute(register(registration)).await {
            Err(Error::UnknownField { field, .. }) if field == "Locality" => {
                let mut registration = registration.clone();
                registration.service.locality = None;
                self.execute(register(&registration)).await
            }
            other => other,
        }
    }

    /// Writes checks of a node's services, all or none. The services may differ.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::PermissionDenied`], depending on Consul's version, if the catalog does not have one of the services.
    pub async fn write_checks(
        &self,
        node: &str,
        partition: Option<&str>,
        checks: &[CatalogCheck],
    ) -> Result<(), Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Checks<'a> {
            node: &'a str,
            skip_node_update: bool,
            checks: &'a [CatalogCheck],
            #[serde(skip_serializing_if = "Option::is_none")]
            partition: Option<&'a str>,
        }
        let body = Checks { node, skip_node_update: true, checks, partition };
        self.execute(Call::new(Method::PUT, "/v1/catalog/register").json(&body)).await
    }

    /// Deregisters a service of a node, with its checks. A service that does not exist is no error.
    pub async fn deregister_from_catalog(&self, node: &str, service_id: &ServiceId) -> Result<(), Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Service<'a> {
            node: &'a str,
            #[serde(rename = "ServiceID")]
            service_id: &'a ServiceId,
        }
        match self.execute(Call::new(Method::PUT, "/v1/catalog/deregister").json(&Service { node, service_id })).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Deregisters a check of a node. A check that does not exist is no error.
    pub async fn deregister_check(&self, node: &str, check_id: &CheckId) -> Result<(), Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Check<'a> {
            node: &'a str,
            #[serde(rename = "CheckID")]
            check_id: &'a CheckId,
        }
        match self.execute(Call::new(Method::PUT, "/v1/catalog/deregister").json(&Check { node, check_id })).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Registers a node without a service, or replaces its address and its meta. Its services and checks stay.
    pub async fn register_node(&self, node: &HealthNode) -> Result<(), Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            node: &'a str,
            address: &'a str,
            node_meta: &'a BTreeMap<String, String>,
        }
        let HealthNode { node, address, meta } = node;
        let body = Body { node, address, node_meta: meta };
        self.execute(Call::new(Method::PUT, "/v1/catalog/register").json(&body)).await
    }

    /// Deregisters a node with its services and checks. A node that does not exist is no error.
    pub async fn deregister_node(&self, node: &str) -> Result<(), Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Node<'a> {
            node: &'a str,
        }
        self.execute(Call::new(Method::PUT, "/v1/catalog/deregister").json(&Node { node })).await
    }
}
